"""Detect the end of a level for a pair, and a loss that is not finite or has exploded."""

from __future__ import annotations

import numpy as np

from nst_tasks.core import objective
from nst_tasks.core.method import LBFGS, Method
from nst_tasks.core.pyramid import Level

EXPLOSION_RATIO = 1e4
"""Multiple of the largest of a level's first ten losses above which a loss has exploded: no descent recovers from there."""


def has_ended(method: Method, level: Level, number: int, terms: np.ndarray) -> bool:
    """Return whether a level has ended for a pair after the steps with these terms (n, 3).

    All its steps are done, its loss has reached the plateau, or it blew up; L-BFGS may recover from the last.
    """
    if len(terms) == level.steps:
        return True
    if method.plateau is not None and method.plateau.is_reached(terms.sum(axis=1, dtype=np.float64)):
        return True
    return not isinstance(method.optimizer, LBFGS) and find_divergence(method, level, number, terms) is not None


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
