"""Jobs, and their grouping into batches of one method, shape and number of styles that fit into memory."""

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
"""Peak bytes of a step per pixel of an image computed as a whole in float32, with a margin (bench/memory.py)."""

IN_A_BAND = 96
"""Peak bytes per value of the single band of features that is in memory at a time, for a large image (core/bands.py)."""

IN_BANDS = 490
"""Peak bytes per pixel of an image in bands: the image, its gradient, Adam's moments, the features between two blocks."""

BESIDE = 340
"""Peak bytes per pixel that L-BFGS takes besides features and history, for an image of at most `LARGE` pixels."""

UPDATE = 420
"""Peak bytes per pixel during an L-BFGS update, besides its history; some of it stays allocated from coarser levels."""


@dataclass(frozen=True)
class Job:
    """A manifest row with its recipe resolved and its images identified; `height` and `width` are those of the result.

    `init` is the image to start from; None leaves it to the method. `mask` is white where the content is stylized; None
    stylizes all pixels. `keep_color` is empty, `luminance` or `match`.
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
        """SHA-256 of everything that decides the bytes of the result; a finished outcome with the same key is reused."""
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
        """Display name of the pair: `tubingen x starry_night`."""
        return f"{self.content.name} x {' + '.join(style.name for style in self.styles)}"

    @property
    def steps(self) -> int:
        """Number of steps over all levels."""
        return sum(level.steps for level in levels(self.recipe.method, self.height, self.width))

    @property
    def work(self) -> int:
        """Pixel-steps: pixels times steps, summed over levels; compute time is proportional to them."""
        return sum(at.steps * at.height * at.width for at in levels(self.recipe.method, self.height, self.width))


@dataclass(frozen=True)
class Batch:
    """Jobs of one method, one shape and one number of styles, all masked or none, optimized together."""

    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """Name of the only pair, or of the first one and the number of others."""
        more = f" and {len(self.jobs) - 1} more" if len(self.jobs) > 1 else ""
        return self.jobs[0].name + more


def memory(method: Method, height: int, width: int, on_gpu: bool = False) -> int:
    """Estimate the peak bytes of one step of one pair of this size, in addition to those of the idle process (bench/memory.py).

    The features of a large image are computed in bands; everything outside the bands takes two thirds with `mixed`. An entry
    of the L-BFGS history is two float32 images, 24 bytes per pixel, and during an update the history exists twice.
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
    """Return the approximate longest side, in pixels, at which one image scaled down fits into `memory_bytes`."""
    longest = max(height, width)
    sides = range(MIN_SIZE, longest, 16)
    # a linear search: memory is not monotonic, because the L-BFGS history is shorter for images above `LARGE`
    fitting = (
        side
        for side in reversed(sides)
        if memory(method, round(height * side / longest), round(width * side / longest), on_gpu) <= memory_bytes
    )
    return next(fitting, MIN_SIZE)


def batches(jobs: Iterable[Job], most: int, memory_bytes: float, on_gpus: bool = False) -> list[Batch]:
    """Group jobs of one method, shape and number of styles, masked or not, into batches in the order of their first rows.

    A batch holds at most `most` jobs, as many as fit into `memory_bytes`, and at least one: an image too large for the memory
    is tried alone.
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
    """Split the batches, in order, into at most `most` shares of equal length; the last one may be shorter."""
    each = max(1, -(-len(batches) // most))
    return [tuple(batches[k : k + each]) for k in range(0, len(batches), each)]


def share_name(share: Sequence[Batch]) -> str:
    """Return the name of the only batch, or the number of pairs and the range of their manifest rows."""
    if len(share) == 1:
        return share[0].name
    rows = [job.row for batch in share for job in batch.jobs]
    return f"{len(rows)} pairs, rows {min(rows)} to {max(rows)}"
