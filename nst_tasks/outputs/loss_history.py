"""Loss history of a pair: its schema, and conversion to and from parquet.

Row `step` k of a level holds the losses of the image after k updates at that level, so step 0 is the level's initial image.
The weighted terms add up to `total`. `pandas.read_parquet("OUT/history")` reads the histories of all pairs.
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
    """Losses of a pair at one level after n steps.

    Attributes:
        terms: Content, style and total variation loss, weighted, `(n + 1, 3)`.
        learning_rate: Learning rates, `(n + 1,)`.
        seconds: Compute time since the pair began, its share of its batch's time, `(n + 1,)`.
    """

    level: int
    height: int
    width: int
    terms: np.ndarray
    learning_rate: np.ndarray
    seconds: np.ndarray


def build_table(pair_id: str, run_id: str, levels: list[LevelHistory], interval: int) -> pa.Table:
    """Build the history table of one pair: every `interval`-th step, and each level's first and last row."""
    parts = []
    for history in levels:
        step = np.arange(len(history.terms), dtype=np.int32)
        kept = (step % interval == 0) | (step == step[-1])
        terms = history.terms.astype(np.float64)
        columns = {
            "level": np.full_like(step, history.level),
            "height": np.full_like(step, history.height),
            "width": np.full_like(step, history.width),
            "step": step,
            "total": terms.sum(axis=1),
            "content": terms[:, 0],
            "style": terms[:, 1],
            "tv": terms[:, 2],
            "learning_rate": history.learning_rate.astype(np.float64),
            "seconds": history.seconds.astype(np.float64),
        }
        parts.append({name: values[kept] for name, values in columns.items()})
    numbers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = len(numbers["step"])
    return pa.table({"pair_id": [pair_id] * rows, "run_id": [run_id] * rows, **numbers}, schema=_build_schema())


@functools.cache
def _build_schema() -> pa.Schema:
    """Build the schema as pandas would; cached, because inferring it for each pair takes longer."""
    kinds = dict.fromkeys(COLUMNS, "float64") | dict.fromkeys(("level", "height", "width", "step"), "int32")
    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in (kinds | dict.fromkeys(COLUMNS[:2], "str")).items()})
    return pa.Schema.from_pandas(empty, preserve_index=False)


def to_parquet(table: pa.Table) -> bytes:
    """Encode a table as parquet."""
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


CURVE_COLUMNS = ["level", "height", "width", "step", "content", "style", "tv"]
"""Columns that `extract_curves` reads."""


def extract_curves(data: bytes, max_points: int) -> list[dict[str, Any]]:
    """Extract the loss curves for a plot from a pair's parquet history, as plain Python values.

    Returns:
        A dict for each level, in order: `height`, `width`, and the lists `step`, `content`, `style` and `tv` of at most
        `max_points` entries each, evenly thinned, with the first and last entry. Losses are rounded to four significant digits;
        a loss that is not finite is None.

    Raises:
        ValueError: The bytes are not a loss history.
    """
    try:
        table = parquet.ParquetFile(io.BytesIO(data)).read(CURVE_COLUMNS, use_threads=False)
        columns = {name: table[name].to_numpy() for name in CURVE_COLUMNS}
        levels = []
        for level in np.unique(columns["level"]):
            at = np.flatnonzero(columns["level"] == level)
            kept = at[np.unique(np.linspace(0, len(at) - 1, max_points).round().astype(int))]
            losses = {term: [_round_loss(value) for value in columns[term][kept]] for term in ("content", "style", "tv")}
            size = {name: int(columns[name][at[0]]) for name in ("height", "width")}
            levels.append({**size, "step": [int(step) for step in columns["step"][kept]], **losses})
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError("not a loss history") from error
    return levels


def _round_loss(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
