"""Plan a run: its batches, memory and time, from the rows to do and a few steps measured on this device.

Pure, no TensorFlow: `calibration` measures, this module calculates. The seconds of a step depend on the pixels of all pairs of
its batch; they are interpolated linearly between measured sizes, and proportional to the pixels beyond the largest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nst_tasks import batching
from nst_tasks.batching import Batch, Job
from nst_tasks.core.method import Method, structure
from nst_tasks.core.pyramid import levels
from nst_tasks.intake import Findings, Triage
from nst_tasks.manifest import Manifest
from nst_tasks.settings import Settings

SHOWN = 5
"""Limit of the printed plan on shapes, on groups of rows with the same result and on ids per group; the JSON has all."""

TASK_SECONDS = 0.05
"""Seconds of a batch's Prefect task run, claim and check for finished pairs: a constant, because they are not measured."""


@dataclass(frozen=True)
class Kind:
    """Everything except the pixels that decides the time of a step: method structure, number of styles, mask or none."""

    method: Method
    styles: int
    masked: bool


def kind_of(job: Job) -> Kind:
    """Return the kind of a job; all jobs of a batch are of one kind."""
    return Kind(structure(job.recipe.method), len(job.styles), job.mask is not None)


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
        step: One step, by the pixels of all pairs of the batch.
        pair: Everything except the steps, from reading the content to writing the result, on all levels, by the pixels of
            the result.
        style: Reading a style image and computing its statistics, once per structure and size.
        method: Tracing the graphs, once per structure.
    """

    kind: Kind
    step: tuple[Sample, ...]
    pair: tuple[Sample, ...]
    style: float
    method: float


@dataclass(frozen=True)
class Calibration:
    """Measurements on this machine: its devices, its largest batch, the seconds to build the backbone, the costs per kind."""

    devices: tuple[str, ...]
    most: int
    start: float
    costs: tuple[Costs, ...]

    @property
    def on_gpus(self) -> bool:
        """True if measured on GPUs."""
        return "GPU" in self.devices[0]


@dataclass(frozen=True)
class Shape:
    """Pairs of one size and one memory need.

    `memory_gib` is that of `at_once` pairs. `fitting_size` is the longest side that would fit, in pixels, if one pair alone
    exceeds the memory of the device, or else None.
    """

    width: int
    height: int
    pairs: int
    at_once: int
    memory_gib: float
    fitting_size: int | None


@dataclass(frozen=True)
class Rate:
    """Measured seconds of one step of a recipe at one number of pixels."""

    recipe: str
    pixels: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of a run once it has started; `measured` is the share of its work whose kind and size were timed."""

    seconds: float
    devices: tuple[str, ...]
    measured: float
    rates: tuple[Rate, ...]


@dataclass(frozen=True)
class Plan:
    """Plan of a run; every count is of rows, except those of images and batches.

    Fields that need a calibration are None without one.

    Attributes:
        same_picture: Groups of ids of rows that would produce the same image.
        unknown_pictures: Number of images that no earlier run describes, which are read whole before the first step.
        shapes: Largest memory need first.
    """

    rows: int
    rejected: int
    refused: int
    done: int
    quarantined: int
    to_do: int
    same_picture: tuple[tuple[str, ...], ...]
    contents: int
    styles: int
    unknown_pictures: int
    batches: int | None
    memory_gib: float
    shapes: tuple[Shape, ...]
    estimate: Estimate | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the plan as lines to print."""
        found = [
            *self.warnings,
            *self.problems,
            f"{_counted(self.rows, 'row')}: {self.done} done, {self.to_do} to do, {self.rejected} rejected, "
            f"{self.refused} refused, {self.quarantined} quarantined",
            f"pictures: {_counted(self.contents, 'content')}, {_counted(self.styles, 'style')}; "
            f"{self.unknown_pictures} to inspect",
        ]
        if self.same_picture:
            spare = sum(len(ids) - 1 for ids in self.same_picture)
            found.append(f"{_counted(spare, 'row')} would make a picture that another row makes too; each is made by itself:")
            found += [f"  {' = '.join(ids[:SHOWN])}{' = ...' if len(ids) > SHOWN else ''}" for ids in self.same_picture[:SHOWN]]
            found += _more(len(self.same_picture))
        if self.to_do:
            if self.batches is not None:
                found.append(f"batches: {self.batches}")
            found.append(f"memory, of {self.memory_gib:g} GiB (NST_DEVICE_MEMORY_GIB):")
            found += [_told(shape) for shape in self.shapes[:SHOWN]]
            found += _more(len(self.shapes))
            found += ["estimate: none, nothing was measured"] if self.estimate is None else _estimated(self.estimate)
        return found


def plan(manifest: Manifest, found: Findings, settings: Settings, calibration: Calibration | None) -> Plan:
    """Build the plan of a run from the findings before its first step, and a calibration if there is one."""
    memory = settings.device_memory_gib * 2**30
    to_do = found.rows.to_do
    most = calibration.most if calibration else settings.batch or 1
    on_gpus = calibration is not None and calibration.on_gpus
    batches = batching.batches(to_do, most, memory, on_gpus)
    pairs = manifest.pairs
    return Plan(
        rows=manifest.rows,
        rejected=len(manifest.rejected),
        refused=len(found.rows.refused),
        done=len(found.rows.done),
        quarantined=len(found.rows.quarantined),
        to_do=len(to_do),
        same_picture=_same_picture(found.rows),
        contents=len({pair.content for pair in pairs}),
        styles=len({style for pair in pairs for style in pair.styles}),
        unknown_pictures=found.unknown_pictures,
        batches=len(batches) if calibration or settings.batch == 1 or not to_do else None,
        memory_gib=settings.device_memory_gib,
        shapes=_shapes(batches, memory, on_gpus),
        estimate=_estimate(batches, calibration) if calibration and calibration.costs else None,
        problems=found.problems,
        warnings=found.warnings,
    )


def _same_picture(rows: Triage) -> tuple[tuple[str, ...], ...]:
    by_key: dict[str, list[Job]] = {}
    for job in (*rows.to_do, *rows.done, *rows.quarantined):
        by_key.setdefault(job.key, []).append(job)
    several = [sorted(jobs, key=lambda job: job.row) for jobs in by_key.values() if len(jobs) > 1]
    return tuple(tuple(job.id for job in jobs) for jobs in sorted(several, key=lambda jobs: jobs[0].row))


def _shapes(batches: Iterable[Batch], memory_bytes: float, on_gpus: bool) -> tuple[Shape, ...]:
    alike: dict[tuple[int, int, int], list[Batch]] = {}
    for batch in batches:
        job = batch.jobs[0]
        alone = batching.memory(job.recipe.method, job.height, job.width, on_gpus)
        alike.setdefault((job.height, job.width, alone), []).append(batch)
    found = []
    for (height, width, alone), members in alike.items():
        at_once = max(len(batch.jobs) for batch in members)
        fitting = None
        if alone > memory_bytes:
            fitting = batching.fitting_size(members[0].jobs[0].recipe.method, height, width, memory_bytes, on_gpus)
        pairs = sum(len(batch.jobs) for batch in members)
        found.append(Shape(width, height, pairs, at_once, round(at_once * alone / 2**30, 3), fitting))
    return tuple(sorted(found, key=lambda shape: -shape.memory_gib))


def _estimate(batches: Sequence[Batch], calibration: Calibration) -> Estimate:
    by_kind = {costs.kind: costs for costs in calibration.costs}
    traced: dict[tuple[Method, bool], float] = {}
    styles: dict[tuple[Method, str, int], float] = {}
    took, work, measured = [], 0, 0.0
    for batch in batches:
        job, pairs = batch.jobs[0], len(batch.jobs)
        kind = kind_of(job)
        # a kind that was not measured is assumed to cost as much as the first one, which has the most work
        costs = by_kind.get(kind, calibration.costs[0])
        steps, covered = _steps(batch, costs.step)
        took.append(TASK_SECONDS + steps + pairs * at(costs.pair, job.height * job.width))
        work += pairs * job.work
        measured += pairs * covered if kind in by_kind else 0
        traced[kind.method, kind.masked] = costs.method
        side = max(job.height, job.width)  # a style is scaled to this side in its own proportions
        styles |= {(kind.method, style.sha256, side): costs.style for each in batch.jobs for style in each.styles}
    devices = len(calibration.devices)
    shared = max((sum(took) + sum(styles.values())) / devices, *took)
    rates = tuple(
        Rate(_name(batches, costs.kind), sample.pixels, sample.seconds) for costs in calibration.costs for sample in costs.step
    )
    return Estimate(
        seconds=round(calibration.start + sum(traced.values()) + shared, 1),
        devices=calibration.devices,
        measured=round(measured / work, 4) if work else 1.0,
        rates=rates,
    )


def _name(batches: Iterable[Batch], kind: Kind) -> str:
    return next(batch.jobs[0].recipe.name for batch in batches if kind_of(batch.jobs[0]) == kind)


def _steps(batch: Batch, samples: Sequence[Sample]) -> tuple[float, int]:
    """Return the seconds of a batch's steps, and the pixel-steps of one pair at no more than twice a measured size."""
    job, pairs = batch.jobs[0], len(batch.jobs)
    seconds, covered = 0.0, 0
    for level in levels(job.recipe.method, job.height, job.width):
        pixels = level.height * level.width
        seconds += level.steps * at(samples, pairs * pixels)
        if any(pairs * pixels <= 2 * sample.pixels for sample in samples):
            covered += level.steps * pixels
    return seconds, covered


def at(samples: Sequence[Sample], pixels: int) -> float:
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


def duration(seconds: float) -> str:
    """Format seconds for people: `50 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 180:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _told(shape: Shape) -> str:
    need = f"{shape.at_once} at once, {shape.memory_gib:.3g} GiB"
    line = f"  {shape.width} x {shape.height}: {_counted(shape.pairs, 'pair')}, {need}"
    if shape.fitting_size is None:
        return line
    return f"{line}: too much, tried all the same; about {shape.fitting_size} px on the longest side would fit: set size"


def _estimated(estimate: Estimate) -> list[str]:
    lines = [f"step of {rate.recipe} at {rate.pixels} pixels: {rate.seconds:.3g} s" for rate in estimate.rates]
    carried = (
        ""
        if estimate.measured > 0.995
        else f"; {1 - estimate.measured:.0%} of the work is carried over from other sizes or recipes"
    )
    devices = ", ".join(name.strip("/") for name in estimate.devices)
    return [*lines, f"estimate: {duration(estimate.seconds)} on {devices} once started{carried}"]


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN} more (--json has them all)"] if count > SHOWN else []
