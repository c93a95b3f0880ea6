"""Measured costs of one step and one pair by image size, and interpolation between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nst_tasks.core.method import Method, strip_numbers
from nst_tasks.inputs.jobs import Job


@dataclass(frozen=True)
class StepKind:
    """Everything except the pixels that decides the time of a step: method structure, number of styles, mask or none."""

    method: Method
    styles: int
    masked: bool


def get_step_kind(job: Job) -> StepKind:
    """Return the kind of a job; all jobs of a batch are of one kind."""
    return StepKind(strip_numbers(job.recipe.method), len(job.styles), job.mask is not None)


@dataclass(frozen=True)
class Sample:
    """A measurement: seconds at a number of pixels."""

    pixels: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """Measured seconds of one kind of pair on a device; samples in ascending order of pixels.

    Attributes:
        kind: The kind of pair that was measured.
        step_samples: One step, by the pixels of all pairs of the batch.
        pair_samples: Everything except the steps, from reading the content to writing the result, on all levels, by the pixels
        of
            the result.
        style_seconds: Reading a style image and computing its statistics, once per structure and size.
        tracing_seconds: Tracing the graphs, once per structure.
    """

    kind: StepKind
    step_samples: tuple[Sample, ...]
    pair_samples: tuple[Sample, ...]
    style_seconds: float
    tracing_seconds: float


@dataclass(frozen=True)
class Calibration:
    """Measurements on this machine: its devices, its largest batch, the seconds to build the backbone, the costs per kind."""

    devices: tuple[str, ...]
    max_pairs: int
    backbone_seconds: float
    costs: tuple[Costs, ...]

    @property
    def on_gpus(self) -> bool:
        """True if measured on GPUs."""
        return "GPU" in self.devices[0]


def interpolate_seconds(samples: Sequence[Sample], pixels: int) -> float:
    """Interpolate the seconds at a number of pixels linearly between samples, in ascending order of pixels.

    Constant below the smallest sample, because a step on few pixels takes a minimum time; proportional to the pixels beyond
    the largest.
    """
    if pixels <= samples[0].pixels:
        return samples[0].seconds
    for low, high in pairwise(samples):
        if pixels <= high.pixels:
            share = (pixels - low.pixels) / (high.pixels - low.pixels)
            return low.seconds + share * (high.seconds - low.seconds)
    return samples[-1].seconds * pixels / samples[-1].pixels
