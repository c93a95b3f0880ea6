"""The loss history of a pair: its schema, and parquet in and out.

Row `step` k of a level holds the losses of the image after k updates there, so step 0 is the level's initial image. The
weighted terms add up to `total`. `pandas.read_parquet("OUT/history")` reads those of every pair.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

COLUMNS = (
    "pair_id", "run_id", "level", "height", "width", "step", "total", "content", "style", "tv", "learning_rate", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class LevelHistory:
    """A pair's losses at one level: terms (steps + 1, 3): content, style, tv; learning rates and seconds (steps + 1,)."""

    level: int
    height: int
    width: int
    terms: np.ndarray
    learning_rate: np.ndarray
    seconds: np.ndarray


def table(pair_id: str, run_id: str, levels: list[LevelHistory], every: int) -> pd.DataFrame:
    """The history of one pair, thinned to every `every`-th step; each level's first and last row stay."""
    parts = []
    for at in levels:
        step = np.arange(len(at.terms))
        kept = (step % every == 0) | (step == step[-1])
        terms = at.terms.astype(np.float64)
        parts.append(
            pd.DataFrame(
                {
                    "pair_id": pair_id,
                    "run_id": run_id,
                    "level": np.int32(at.level),
                    "height": np.int32(at.height),
                    "width": np.int32(at.width),
                    "step": step.astype(np.int32),
                    "total": terms.sum(axis=1),
                    "content": terms[:, 0],
                    "style": terms[:, 1],
                    "tv": terms[:, 2],
                    "learning_rate": at.learning_rate.astype(np.float64),
                    "seconds": at.seconds.astype(np.float64),
                },
                columns=list(COLUMNS),
            )[kept]
        )
    return pd.concat(parts, ignore_index=True)


def to_parquet(frame: pd.DataFrame) -> bytes:
    """A table as parquet bytes."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
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
        frame = pd.read_parquet(io.BytesIO(data), columns=CURVES)
        levels = []
        for _, at in frame.groupby("level"):
            kept = at.iloc[np.unique(np.linspace(0, len(at) - 1, points).round().astype(int))]
            losses = {term: [_plain(value) for value in kept[term]] for term in ("content", "style", "tv")}
            size = {"height": int(at["height"].iloc[0]), "width": int(at["width"].iloc[0])}
            levels.append({**size, "step": [int(step) for step in kept["step"]], **losses})
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError("not a loss history") from error
    return levels


def _plain(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
