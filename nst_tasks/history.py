"""The loss history of a pair: its schema, and parquet in and out.

Row `step` k of a level holds the losses of the image after k updates there, so step 0 is the level's initial image. The
weighted terms add up to `total`. `pandas.read_parquet("OUT/history")` reads those of every pair.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

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
