"""Rows of the loss history, computed by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from nst_tasks.outputs.loss_history import COLUMNS, LevelHistory, build_table, extract_curves, to_parquet


def make_level(number: int, steps: int, height: int = 20, width: int = 30) -> LevelHistory:
    """Make a level with content 100 + k, style 10 and tv 0.5 at step k; its learning rate falls and its seconds rise."""
    k = np.arange(steps + 1, dtype=np.float32)
    terms = np.stack([100 + k, np.full_like(k, 10), np.full_like(k, 0.5)], axis=1)
    return LevelHistory(number, height, width, terms, 0.1 / (1 + k), 2.0 * k)


def test_every_step_of_every_level_is_a_row() -> None:
    frame = build_table("cat_oil", "run-1", [make_level(0, 2, 10, 15), make_level(1, 3)], interval=1).to_pandas()
    assert tuple(frame.columns) == COLUMNS
    assert list(frame.index) == list(range(7))
    assert list(frame["level"]) == [0, 0, 0, 1, 1, 1, 1]
    assert list(frame["step"]) == [0, 1, 2, 0, 1, 2, 3]
    assert list(frame["height"]) == [10] * 3 + [20] * 4
    assert list(frame["width"]) == [15] * 3 + [30] * 4
    assert set(frame["pair_id"]) == {"cat_oil"}
    assert set(frame["run_id"]) == {"run-1"}
    assert list(frame["content"]) == [100, 101, 102, 100, 101, 102, 103]
    assert list(frame["style"]) == [10] * 7
    assert list(frame["tv"]) == [0.5] * 7
    assert list(frame["total"]) == [110.5, 111.5, 112.5, 110.5, 111.5, 112.5, 113.5]
    assert list(frame["seconds"]) == [0, 2, 4, 0, 2, 4, 6]
    assert frame["learning_rate"].tolist() == pytest.approx([0.1, 0.05, 0.1 / 3, 0.1, 0.05, 0.1 / 3, 0.025])


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (10, 1, list(range(11))),
        (10, 5, [0, 5, 10]),
        (10, 4, [0, 4, 8, 10]),
        (10, 10, [0, 10]),
        (10, 999, [0, 10]),
        (1, 7, [0, 1]),
        (0, 1, [0]),
        (0, 7, [0]),
    ],
)
def test_thinning_keeps_each_levels_first_and_last(steps: int, every: int, expected: list[int]) -> None:
    frame = build_table("a", "r", [make_level(0, steps), make_level(1, steps)], every).to_pandas()
    assert list(frame["step"]) == expected * 2
    assert list(frame["content"]) == [100 + k for k in expected] * 2  # rows keep their own values


def test_the_terms_add_up_to_total_in_double_precision() -> None:
    # in single precision the 1 would vanish beside the 1e9
    terms = np.array([[1e9, 1.0, 1.0], [3e9, 0.0, 1.0]], np.float32)
    frame = build_table("a", "r", [LevelHistory(0, 4, 4, terms, np.ones(2), np.zeros(2))], 1).to_pandas()
    assert list(frame["total"]) == [1e9 + 2, 3e9 + 1]
    assert (frame["content"] + frame["style"] + frame["tv"] == frame["total"]).all()


def test_parquet_types_do_not_depend_on_values(tmp_path: Path) -> None:
    data = to_parquet(build_table("cat_oil", "run-1", [make_level(0, 3)], 1))
    back = pd.read_parquet(io.BytesIO(data))
    assert back.to_parquet(index=False) == data  # as pandas itself writes it
    assert tuple(pyarrow.parquet.read_schema(io.BytesIO(data)).names) == COLUMNS  # and no index
    types = {name: str(kind) for name, kind in back.dtypes.items()}
    assert {name: types[name] for name in ("level", "height", "width", "step")} == dict.fromkeys(
        ("level", "height", "width", "step"), "int32"
    )
    floats = ("total", "content", "style", "tv", "learning_rate", "seconds")
    assert {name: types[name] for name in floats} == dict.fromkeys(floats, "float64")


def test_a_folder_of_histories_is_one_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_bytes(to_parquet(build_table(name, "r", [make_level(0, 2)], 1)))
    table = pd.read_parquet(tmp_path)
    assert tuple(table.columns) == COLUMNS
    assert list(table["pair_id"]) == ["a"] * 3 + ["b"] * 3


def test_the_same_table_gives_the_same_bytes() -> None:
    assert to_parquet(build_table("a", "r", [make_level(0, 3)], 1)) == to_parquet(build_table("a", "r", [make_level(0, 3)], 1))


def test_curves_are_each_level_thinned_evenly_with_its_ends() -> None:
    short, long = extract_curves(
        to_parquet(build_table("a", "r", [make_level(0, 2, 10, 15), make_level(1, 90)], 1)), max_points=10
    )
    assert short == {
        "height": 10, "width": 15, "step": [0, 1, 2], "content": [100, 101, 102], "style": [10] * 3, "tv": [0.5] * 3,
    }  # fmt: skip
    assert long["step"] == list(range(0, 91, 10))
    assert long["content"] == [100 + k for k in long["step"]]
    assert (long["height"], long["width"]) == (20, 30)


def test_curves_have_four_digits_and_none_for_non_finite() -> None:
    terms = np.array([[1234567, 0.000123456, 0], [np.nan, np.inf, 1]], np.float32)
    (curves,) = extract_curves(
        to_parquet(build_table("a", "r", [LevelHistory(3, 1, 1, terms, np.ones(2), np.ones(2))], 1)), max_points=60
    )
    assert (curves["content"], curves["style"], curves["tv"]) == ([1235000, None], [0.0001235, None], [0, 1])


def test_invalid_history_is_refused() -> None:
    history = to_parquet(build_table("a", "r", [make_level(0, 2)], 1))
    other = to_parquet(pa.table({"level": [1], "step": ["secret"]}))
    for data in (b"", b"secret", history[: len(history) // 2], history[:-9], other):
        with pytest.raises(ValueError, match="^not a loss history$"):
            extract_curves(data, max_points=60)
