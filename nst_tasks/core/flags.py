"""Flags: plain signs that a result went wrong, each with its rule. NumPy only, so that a report can explain them at once.

A flagged picture is written all the same; a flag says that somebody should look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

BLANK = 0.02
"""Standard deviation, in units of the [0, 1] range, below which a picture counts as blank: five of 255 gray levels."""

SATURATED = 0.2
"""Share of clipped values beyond the content's and the styles' from which a picture counts as saturated."""

LEAST_FALL = 0.01
"""The least fall of a level's loss, as a share of its first value, that counts as progress."""


class Flag(NamedTuple):
    """What a flag means and what may be done about it, each in words fit for a report."""

    meaning: str
    remedy: str


FLAGS: Mapping[str, Flag] = MappingProxyType(
    {
        "blank": Flag(
            "the picture has almost no variation although its content has",
            "lower tv_weight, raise content_weight or take a style with more texture",
        ),
        "saturated": Flag(
            "far more of its values are clipped to black or white than in the content and the styles",
            "lower style_weight or the learning rate, or take another recipe",
        ),
        "no_progress": Flag(
            "steps were taken, but on no level did the loss fall by 1 %",
            "raise steps, check the weights and the learning rate, or take another recipe",
        ),
        "not_finite": Flag(
            "a loss was not a finite number or exploded, at a lower learning rate too, so no picture was written",
            "lower the weights or the learning rate, or take another recipe",
        ),
        "stepped_back": Flag(
            "its loss blew up once, so a level was gone through again at a tenth of the learning rate",
            "lower the weights or the learning rate, or take another recipe",
        ),
        "quarantined": Flag(
            "it took its process down twice in native code, so no picture was written and it is not tried again",
            "take another size or recipe, or delete its outcome to try once more",
        ),
    }
)
"""Every flag by name. The last three are the caller's to give; the others come from `find`."""


def spread(picture: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Standard deviation of values (H, W, 3) about their channel's mean, over all channels; weight (H, W) or None for 1."""

    def variance(values: np.ndarray) -> float:
        return float(np.average(np.square(values - np.average(values, weights=weight)), weights=weight))

    # one channel after another: sums over rows of 3 values, and arrays of all of them, take three times as long
    return float(np.sqrt(np.mean([variance(channel.astype(np.float64)) for channel in np.moveaxis(picture, -1, 0)])))


def clipped(picture: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Share of values (H, W, 3) in [0, 1] that 8 bits hold as 0 or 255; weight (H, W) of the pixels, or None for 1."""
    at_end = (picture < 0.5 / 255) | (picture > 254.5 / 255)
    if weight is None:
        return float(np.count_nonzero(at_end) / at_end.size)
    return float(np.average(at_end, weights=np.broadcast_to(weight[..., None], picture.shape)))


def no_progress(losses: Sequence[np.ndarray]) -> bool:
    """Whether steps were taken and every level ended above 99 % of the loss that it began with.

    losses: the total loss (steps + 1,) of each level; first that of its initial image, last that of its result. Levels
    without steps do not count, and a loss that begins at 0 has nothing to fall.
    """
    ends = [(level[0], level[-1]) for level in losses if len(level) > 1]
    return bool(ends) and all(last > (1 - LEAST_FALL) * first for first, last in ends)


def find(
    out: np.ndarray,
    content: np.ndarray,
    styles_clipped: Sequence[float],
    losses: Sequence[np.ndarray] = (),
    weight: np.ndarray | None = None,
) -> tuple[str, ...]:
    """The flags of a result, in the order of `FLAGS`; out and content (H, W, 3) in [0, 1] at one size.

    `blank`: spread(out) < 0.02 and spread(content) >= 0.04. `saturated`: clipped(out) exceeds the largest of clipped(content)
    and `styles_clipped` by 0.2 or more. `no_progress`: of that name, of `losses`. A weight (H, W) in [0, 1] tells how much
    each pixel counts in `out` and `content`.
    """
    signs = {
        "blank": spread(out, weight) < BLANK and spread(content, weight) >= 2 * BLANK,
        "saturated": clipped(out, weight) - max(clipped(content, weight), *styles_clipped) >= SATURATED,
        "no_progress": no_progress(losses),
    }
    return tuple(name for name, is_so in signs.items() if is_so)
