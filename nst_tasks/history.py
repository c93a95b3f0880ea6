"""The loss history of a pair: its schema, and parquet in and out.

Row `step` k of a level holds the losses of the image after k updates there, so step 0 is the level's initial image. The
weighted terms add up to `total`. `pandas.read_parquet("OUT/history")` reads those of every pair.
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

COLUMNS = (
    "pair_id", "run_id", "level", "height", "width", "step", "total", "content", "style", "tv", "learning_rate", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class LevelHistory:
    """A pair's losses at one level of n steps done: terms (n + 1, 3), content, style, tv; learning rates and seconds (n + 1,).

    Seconds are of compute since the pair began: its share of those of its batch.
    """

    level: int
    height: int
    width: int
    terms: np.ndarray
    learning_rate: np.ndarray
    seconds: np.ndarray


def table(pair_id: str, run_id: str, levels: list[LevelHistory], every: int) -> pa.Table:
    """The history of one pair, thinned to every `every`-th step; each level's first and last row stay."""
    parts = []
    for at in levels:
        step = np.arange(len(at.terms), dtype=np.int32)
        kept = (step % every == 0) | (step == step[-1])
        terms = at.terms.astype(np.float64)
        columns = {
            "level": np.full_like(step, at.level),
            "height": np.full_like(step, at.height),
            "width": np.full_like(step, at.width),
            "step": step,
            "total": terms.sum(axis=1),
            "content": terms[:, 0],
            "style": terms[:, 1],
            "tv": terms[:, 2],
            "learning_rate": at.learning_rate.astype(np.float64),
            "seconds": at.seconds.astype(np.float64),
        }
        parts.append({name: values[kept] for name, values in columns.items()})
    numbers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = len(numbers["step"])
    return pa.table({"pair_id": [pair_id] * rows, "run_id": [run_id] * rows, **numbers}, schema=_schema())


@functools.cache
def _schema() -> pa.Schema:
    """Names and types as pandas writes and reads them, without the time that it takes to find them out anew for each pair."""
    kinds = dict.fromkeys(COLUMNS, "float64") | dict.fromkeys(("level", "height", "width", "step"), "int32")
    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in (kinds | dict.fromkeys(COLUMNS[:2], "str")).items()})
    return pa.Schema.from_pandas(empty, preserve_index=False)


def to_parquet(table: pa.Table) -> bytes:
    """A table as parquet bytes."""
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


CURVES = ["level", "height", "width", "step", "content", "style", "tv"]
"""Columns that `curves` reads."""


def curves(data: bytes, points: int) -> list[dict[str, Any]]:
    """What a plot needs of a pair's history, as plain values: a dict for each level, in order, with `height` and `width` and
    lists of at most `points` entries by `step`, `content`, `style` and `tv`, evenly thinned; the first and last stay.

    A loss has four digits, and None stands for one that is no finite number.

    Raises:
        ValueError: the bytes are no history.
    """
    try:
        found = parquet.ParquetFile(io.BytesIO(data)).read(CURVES, use_threads=False)
        columns = {name: found[name].to_numpy() for name in CURVES}
        levels = []
        for level in np.unique(columns["level"]):
            at = np.flatnonzero(columns["level"] == level)
            kept = at[np.unique(np.linspace(0, len(at) - 1, points).round().astype(int))]
            losses = {term: [_plain(value) for value in columns[term][kept]] for term in ("content", "style", "tv")}
            size = {name: int(columns[name][at[0]]) for name in ("height", "width")}
            levels.append({**size, "step": [int(step) for step in columns["step"][kept]], **losses})
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError("not a loss history") from error
    return levels


def _plain(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
