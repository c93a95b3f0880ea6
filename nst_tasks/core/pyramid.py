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


def plan_levels(method: Method, height: int, width: int) -> tuple[Level, ...]:
    """Return the levels for an image of this final size, coarsest first; the last has exactly the final size.

    Sizes shrink from the final one by the pyramid's `ratio` while the longest side stays at or above `smallest` (and the
    shortest at or above 32 px, below which the deep layers have no positions), up to `levels` in all. Levels without steps
    are omitted, except the last: they would only blur the initial image.
    """
    fine_to_coarse = [Level(height, width, method.steps)]
    pyramid = method.pyramid
    if pyramid is None:
        return tuple(fine_to_coarse)
    scale = 1.0 / pyramid.ratio
    while round(max(height, width) * scale) >= pyramid.smallest and min(height, width) * scale >= 32:
        if len(fine_to_coarse) == pyramid.levels:
            break
        fine_to_coarse.append(Level(round(height * scale), round(width * scale), pyramid.coarse_steps))
        scale /= pyramid.ratio
    if pyramid.first_steps is not None and len(fine_to_coarse) > 1:
        fine_to_coarse[-1] = replace(fine_to_coarse[-1], steps=pyramid.first_steps)
    last, *coarser = fine_to_coarse
    return (*(level for level in reversed(coarser) if level.steps), last)
