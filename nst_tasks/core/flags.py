"""Flags: simple signs that a result went wrong, each with its rule. NumPy only, so that a report loads them fast.

A flagged image is written all the same; a flag means that a person should look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

BLANK_DEVIATION = 0.02
"""Standard deviation, in units of the [0, 1] range, below which an image is blank: five of 255 gray levels."""

SATURATED_EXCESS_SHARE = 0.2
"""Share of clipped values, in excess of the content's and the styles', from which an image is saturated."""

MIN_LOSS_FALL_SHARE = 0.01
"""Smallest fall of a level's loss, as a share of its first value, that counts as progress."""


class Flag(NamedTuple):
    """Meaning of a flag and a remedy, each a phrase for a report."""

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
"""Every flag by name. `find_flags` returns the first three; the caller sets the others."""


def channel_deviation(image: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the standard deviation of values (H, W, 3) around their channel's mean; weight (H, W) of pixels, or None for 1."""

    def variance(values: np.ndarray) -> float:
        return float(np.average(np.square(values - np.average(values, weights=weight)), weights=weight))

    # channel by channel: sums over the last axis of 3 values, or arrays of all channels, take three times as long
    return float(np.sqrt(np.mean([variance(channel.astype(np.float64)) for channel in np.moveaxis(image, -1, 0)])))


def clipped_share(image: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return the share of values (H, W, 3) in [0, 1] that are 0 or 255 in 8 bits; weight (H, W) of the pixels, None for 1."""
    is_clipped = (image < 0.5 / 255) | (image > 254.5 / 255)
    if weight is None:
        return float(np.count_nonzero(is_clipped) / is_clipped.size)
    return float(np.average(is_clipped, weights=np.broadcast_to(weight[..., None], image.shape)))


def has_no_progress(losses: Sequence[np.ndarray]) -> bool:
    """Return whether steps were taken and every level ended above 99 % of its first loss.

    Args:
        losses: The total loss (steps + 1,) of each level, from that of its initial image to that of its result. Levels without
            steps are ignored. A level whose loss stays 0 counts as progress, since it cannot fall.
    """
    ends = [(level[0], level[-1]) for level in losses if len(level) > 1]
    return bool(ends) and all(last > (1 - MIN_LOSS_FALL_SHARE) * first for first, last in ends)


def find_flags(
    out: np.ndarray,
    content: np.ndarray,
    style_clipped_shares: Sequence[float],
    losses: Sequence[np.ndarray] = (),
    weight: np.ndarray | None = None,
) -> tuple[str, ...]:
    """Return the flags of a result, in the order of `FLAGS`.

    `blank`: spread(out) < 0.02 and spread(content) >= 0.04. `saturated`: clipped(out) exceeds the largest of clipped(content)
    and `style_clipped_shares` by 0.2 or more. `has_no_progress`: the function of this name is true for `losses`.

    Args:
        out: The result, (H, W, 3) in [0, 1].
        content: The content, (H, W, 3) in [0, 1], at the same size.
        style_clipped_shares: `clipped_share` of each style.
        losses: The total loss of each level, as for `has_no_progress`.
        weight: Weight (H, W) in [0, 1] of each pixel in `out` and `content`; None weights all by 1.
    """
    is_set_by_name = {
        "blank": channel_deviation(out, weight) < BLANK_DEVIATION and channel_deviation(content, weight) >= 2 * BLANK_DEVIATION,
        "saturated": clipped_share(out, weight) - max(clipped_share(content, weight), *style_clipped_shares)
        >= SATURATED_EXCESS_SHARE,
        "no_progress": has_no_progress(losses),
    }
    return tuple(name for name, is_set in is_set_by_name.items() if is_set)
