"""The coarse-to-fine schedule: which sizes a picture is optimized at, and for how many steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nst_tasks.core.method import Method


@dataclass(frozen=True)
class Level:
    """One size of the picture, in pixels, and its steps."""

    height: int
    width: int
    steps: int


def levels(method: Method, height: int, width: int) -> tuple[Level, ...]:
    """The levels of a picture of this final size, coarsest first; the last has the final size exactly.

    Sizes go down from the final one by the pyramid's `ratio` while the longest side stays at or above `smallest` (and the
    shorter one at or above 32 px, below which the deep layers see nothing), for at most its number of `levels`. Those without
    steps, but for the last, are left out: all that they do is to blur the initial image.
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
