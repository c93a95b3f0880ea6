"""Detect a loss that is not finite or has exploded, and a level that has reached its plateau."""

from __future__ import annotations

import numpy as np

from nst_tasks.core import objective
from nst_tasks.core.method import LBFGS, Method
from nst_tasks.core.pyramid import Level
from nst_tasks.engine.checkpoint import Checkpoint

EXPLOSION_RATIO = 1e4
"""Multiple of the largest of a level's first ten losses above which a loss has exploded: no descent recovers from there."""


def find_ended_pairs(method: Method, level: Level, at: Checkpoint) -> list[int]:
    """Return the indices of the pairs whose level is over, or an empty list while the whole batch continues.

    A pair whose loss blew up stays in the batch until another pair's level is over, or all have blown up.
    """
    pairs = range(at.terms[-1].shape[1])
    completed = {k for k in pairs if at.state.step == level.steps or _has_plateaued(method, at, k)}
    diverged = {k for k in pairs if has_diverged(method, level, at, k)}
    return sorted(completed | diverged) if completed or len(diverged) == len(pairs) else []


def _has_plateaued(method: Method, at: Checkpoint, k: int) -> bool:
    totals = at.terms[-1][:, k].sum(axis=1, dtype=np.float64)
    return method.plateau is not None and method.plateau.is_reached(totals)


def has_diverged(method: Method, level: Level, at: Checkpoint, k: int) -> bool:
    """Return whether a pair's loss blew up; never with L-BFGS, which may recover."""
    if isinstance(method.optimizer, LBFGS):
        return False
    return find_divergence(method, level, at.state.level, at.terms[-1][:, k]) is not None


def find_divergence(method: Method, level: Level, number: int, terms: np.ndarray) -> tuple[int, str] | None:
    """Return the first step of terms (n, 3) whose loss is not finite or exploded, and a sentence naming the term, or None."""
    bad = ~np.isfinite(terms)
    if isinstance(method.optimizer, LBFGS) and not bad[-1].any():
        return None  # it recovers from non-finite values: only the last row counts
    where = f"of level {number} ({level.width} x {level.height})"
    if bad.any():
        step, term = np.argwhere(bad)[0]
        return int(step), f"the {objective.TERMS[term]} loss is not a finite number at step {step} {where}"
    total = terms.sum(axis=1, dtype=np.float64)
    explosion_threshold = EXPLOSION_RATIO * total[:10].max(initial=0.0)
    if method.clip or not (exploded := np.flatnonzero(total > explosion_threshold)).size:  # a clipped image's loss is bounded
        return None
    step = int(exploded[0])
    term = int(np.argmax(terms[step]))
    return step, f"the {objective.TERMS[term]} loss exploded to {terms[step, term]:.3g} at step {step} {where}"
