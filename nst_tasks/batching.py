"""Jobs, and how they are grouped into batches: one method and shape, all masked or none, as many as the memory takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from nst_tasks.core import bands
from nst_tasks.core.method import LARGE, LBFGS, NUMERICS_VERSION, Method, sized
from nst_tasks.core.pyramid import levels
from nst_tasks.recipes import MIN_SIZE, Recipe
from nst_tasks.source import Source

AT_ONCE = 3_000
"""Peak bytes of a step for each pixel of a picture that is computed as a whole, in float32, and some room (bench/memory.py)."""

IN_A_BAND = 96
"""Peak bytes for each value of the one band of a large picture's features that is in memory at a time (core/bands.py)."""

IN_BANDS = 490
"""Peak bytes for each pixel of a picture in bands: the image, its gradient, Adam's moments, what lies between two blocks."""

BESIDE = 340
"""Peak bytes for each pixel, in a picture of `LARGE` at most, that L-BFGS takes beside features and history."""

UPDATE = 420
"""Peak bytes for each pixel while L-BFGS makes an update, besides its history; some is kept from coarser levels."""


@dataclass(frozen=True)
class Job:
    """A manifest row with its recipe resolved and its pictures known; `height` and `width` are those of the result.

    `init` is the picture to start from, None leaves it to the method. `mask` is white where to stylize, None stylizes all.
    `keep_color` is empty, `luminance` or `match`.
    """

    id: str
    row: int
    content: Source
    styles: tuple[Source, ...]
    style_weights: tuple[float, ...]
    recipe: Recipe
    seed: int
    init: Source | None
    keep_color: str
    mask: Source | None
    upscale: bool
    format: str
    height: int
    width: int
    weights_sha256: str

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that decides the result's bytes; a finished outcome with the same key need not be made again."""
        decides = {
            "numerics": NUMERICS_VERSION,
            "content": self.content.sha256,
            "styles": [[style.sha256, weight] for style, weight in zip(self.styles, self.style_weights, strict=True)],
            "method": self.recipe.method.plain,
            "size": self.recipe.size,
            "upscale": self.upscale,
            "init": self.init and self.init.sha256,
            "keep_color": self.keep_color,
            "mask": self.mask and self.mask.sha256,
            "seed": self.seed,
            "format": self.format,
            "weights": self.weights_sha256,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """What a person calls the pair: `tubingen x starry_night`."""
        return f"{self.content.name} x {' + '.join(style.name for style in self.styles)}"

    @property
    def steps(self) -> int:
        """Steps over all levels."""
        return sum(level.steps for level in levels(self.recipe.method, self.height, self.width))

    @property
    def work(self) -> int:
        """Pixel-steps: pixels times steps, summed over levels; time passes in proportion to them."""
        return sum(at.steps * at.height * at.width for at in levels(self.recipe.method, self.height, self.width))


@dataclass(frozen=True)
class Batch:
    """Jobs of one method and one shape, masked all or none, optimized together."""

    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """The pair's name, or the first one's and how many more."""
        more = f" and {len(self.jobs) - 1} more" if len(self.jobs) > 1 else ""
        return self.jobs[0].name + more


def memory(method: Method, height: int, width: int, on_gpu: bool = False) -> int:
    """Peak bytes of one step of one pair of so many pixels, over what the process takes anyway (bench/memory.py).

    A large picture's features are computed in bands; what lies outside them takes two thirds with `mixed`. Each difference of
    L-BFGS's history is two float32 images, and while an update is made there are two of it.
    """
    pixels, optimizer = height * width, sized(method, height, width).optimizer
    at_once, outside = AT_ONCE * pixels, IN_BANDS * pixels
    if method.precision == "mixed":
        at_once, outside = at_once * 2 // 3, outside * 2 // 3
    features = min(at_once, IN_A_BAND * bands.usual(method.precision, on_gpu).most + outside)
    if not isinstance(optimizer, LBFGS):
        return features
    history = optimizer.history * 2 * 3 * 4 * pixels
    beside = BESIDE * pixels if pixels <= LARGE else 0
    return max(features + history + beside, UPDATE * pixels + 2 * history)


def fitting_size(method: Method, height: int, width: int, memory_bytes: float, on_gpu: bool = False) -> int:
    """About the longest side, in pixels, to which a picture of this size must be scaled down to fit into a memory alone."""
    longest = max(height, width)
    sides = range(MIN_SIZE, longest, 16)
    # one by one, for where L-BFGS begins to remember less, a larger picture takes less
    fitting = (
        side
        for side in reversed(sides)
        if memory(method, round(height * side / longest), round(width * side / longest), on_gpu) <= memory_bytes
    )
    return next(fitting, MIN_SIZE)


def batches(jobs: Iterable[Job], most: int, memory_bytes: float, on_gpus: bool = False) -> list[Batch]:
    """Group jobs of one method, shape and number of styles, masked apart from whole ones, in the order of their first rows.

    A batch holds at most `most` jobs and as many as `memory_bytes` have room for, but always at least one: a picture too
    large for the memory is tried alone.
    """
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        alike = job.recipe.method, job.height, job.width, len(job.styles), job.mask is None
        groups.setdefault(alike, []).append(job)
    found = []
    for group in groups.values():
        fitting = int(memory_bytes // memory(group[0].recipe.method, group[0].height, group[0].width, on_gpus))
        at_once = max(1, min(most, fitting))
        found += [Batch(tuple(group[k : k + at_once])) for k in range(0, len(group), at_once)]
    return sorted(found, key=lambda batch: batch.jobs[0].row)


def shares(batches: Sequence[Batch], most: int) -> list[tuple[Batch, ...]]:
    """The batches in their order, in at most `most` shares of as many batches each, the last one of fewer."""
    each = max(1, -(-len(batches) // most))
    return [tuple(batches[k : k + each]) for k in range(0, len(batches), each)]


def share_name(share: Sequence[Batch]) -> str:
    """The only batch's name, or how many pairs and between which rows of the manifest."""
    if len(share) == 1:
        return share[0].name
    rows = [job.row for batch in share for job in batch.jobs]
    return f"{len(rows)} pairs, rows {min(rows)} to {max(rows)}"
