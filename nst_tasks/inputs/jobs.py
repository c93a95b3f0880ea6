"""Jobs (a manifest row with its recipe resolved and its images identified) and their grouping into batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from nst_tasks.core.memory import peak_bytes
from nst_tasks.core.method import NUMERICS_VERSION
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.images.picture import Source
from nst_tasks.inputs.manifest import Pair
from nst_tasks.inputs.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A manifest row with its recipe resolved and its images identified; `height` and `width` are those of the result.

    `init` is the image to start from; None leaves it to the method. `mask` is white where the content is stylized; None
    stylizes all pixels.
    """

    pair: Pair
    recipe: Recipe
    content: Source
    styles: tuple[Source, ...]
    init: Source | None
    mask: Source | None
    upscale: bool
    height: int
    width: int
    weights_sha256: str

    @property
    def id(self) -> str:
        """Id of the row, which names the outputs."""
        return self.pair.id

    @property
    def row(self) -> int:
        """Line of the manifest on which the row starts."""
        return self.pair.row

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the bytes of the result; a finished outcome with the same key is reused."""
        key_fields = {
            "numerics": NUMERICS_VERSION,
            "content": self.content.sha256,
            "styles": [[style.sha256, weight] for style, weight in zip(self.styles, self.pair.style_weights, strict=True)],
            "method": self.recipe.method.plain,
            "size": self.recipe.size,
            "upscale": self.upscale,
            "init": self.init and self.init.sha256,
            "keep_color": self.pair.keep_color,
            "mask": self.mask and self.mask.sha256,
            "seed": self.pair.seed,
            "format": self.pair.format,
            "weights": self.weights_sha256,
        }
        return hashlib.sha256(json.dumps(key_fields, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Display name of the pair: `tubingen x starry_night`."""
        return f"{self.content.name} x {' + '.join(style.name for style in self.styles)}"

    @property
    def steps(self) -> int:
        """Number of steps over all levels."""
        return sum(level.steps for level in plan_levels(self.recipe.method, self.height, self.width))

    @property
    def pixel_steps(self) -> int:
        """Pixel-steps: pixels times steps, summed over levels; compute time is proportional to them."""
        return sum(at.steps * at.height * at.width for at in plan_levels(self.recipe.method, self.height, self.width))


@dataclass(frozen=True)
class Batch:
    """Jobs of one method, one shape and one number of styles, all masked or none, optimized together."""

    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """Name of the only pair, or of the first one and the number of others."""
        more = f" and {len(self.jobs) - 1} more" if len(self.jobs) > 1 else ""
        return self.jobs[0].name + more


def group_into_batches(jobs: Iterable[Job], max_pairs: int, memory_bytes: float, on_gpus: bool = False) -> list[Batch]:
    """Group jobs of one method, shape and number of styles, masked or not, into batches in the order of their rows.

    A batch holds at most `max_pairs` jobs, as many as fit into `memory_bytes`, and at least one: an image too large for the
    memory is tried alone.
    """
    groups: dict[object, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.row):
        group_key = job.recipe.method, job.height, job.width, len(job.styles), job.mask is None
        groups.setdefault(group_key, []).append(job)
    batches = []
    for group in groups.values():
        fitting_pairs = int(memory_bytes // peak_bytes(group[0].recipe.method, group[0].height, group[0].width, on_gpus))
        batch_size = max(1, min(max_pairs, fitting_pairs))
        batches += [Batch(tuple(group[k : k + batch_size])) for k in range(0, len(group), batch_size)]
    return sorted(batches, key=lambda batch: batch.jobs[0].row)


def split_into_shares(batches: Sequence[Batch], max_shares: int) -> list[tuple[Batch, ...]]:
    """Split the batches, in order, into at most `max_shares` shares of equal length; the last one may be shorter."""
    share_length = max(1, -(-len(batches) // max_shares))
    return [tuple(batches[k : k + share_length]) for k in range(0, len(batches), share_length)]


def format_share_name(share: Sequence[Batch]) -> str:
    """Return the name of the only batch, or the number of pairs and the range of their manifest rows."""
    if len(share) == 1:
        return share[0].name
    rows = [job.row for batch in share for job in batch.jobs]
    return f"{len(rows)} pairs, rows {min(rows)} to {max(rows)}"
