"""Coarse-to-fine schedule: the sizes at which an image is optimized, and the number of steps at each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nst_tasks.core.method import Method


@dataclass(frozen=True)
class Level:
    """Level of the pyramid: an image size in pixels and its number of steps."""

    height: int
    width: int
    steps: int


def levels(method: Method, height: int, width: int) -> tuple[Level, ...]:
    """Return the levels for an image of this final size, coarsest first; the last has exactly the final size.

    Sizes shrink from the final one by the pyramid's `ratio` while the longest side stays at or above `smallest` (and the
    shortest at or above 32 px, below which the deep layers have no positions), up to `levels` in all. Levels without steps
    are omitted, except the last: they would only blur the initial image.
    """
    found = [Level(height, width, method.steps)]
    pyramid = method.pyramid
    if pyramid is None:
        return tuple(found)
    scale = 1.0 / pyramid.ratio
    while round(max(height, width) * scale) >= pyramid.smallest and min(height, width) * scale >= 32:
        if len(found) == pyramid.levels:
            break
        found.append(Level(round(height * scale), round(width * scale), pyramid.coarse_steps))
        scale /= pyramid.ratio
    if pyramid.first_steps is not None and len(found) > 1:
        found[-1] = replace(found[-1], steps=pyramid.first_steps)
    last, *coarser = found
    return (*(level for level in reversed(coarser) if level.steps), last)
