"""The coarse-to-fine schedule: which sizes a picture is optimized at, and for how many steps."""

from __future__ import annotations

from dataclasses import dataclass

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
    shorter one at or above 32 px, below which the deep layers see nothing).
    """
    if method.pyramid is None:
        return (Level(height, width, method.steps),)
    found = [Level(height, width, method.steps)]
    scale = 1.0 / method.pyramid.ratio
    while max(height, width) * scale >= method.pyramid.smallest and min(height, width) * scale >= 32:
        found.append(Level(round(height * scale), round(width * scale), method.pyramid.coarse_steps))
        scale /= method.pyramid.ratio
    return tuple(reversed(found))
