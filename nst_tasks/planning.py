"""What a run would do, need and take: from the rows that are to do, and a few steps measured on this device, to a plan.

Pure, no TensorFlow: `calibration` measures, this reckons. The seconds of a step grow with the pixels that it works on, all
pairs of a batch together; they are read between measured sizes off a line, and beyond the largest in proportion.
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
"""Shapes, and pairs of one and the same picture, that the printed plan names; the JSON has all."""

TASK_SECONDS = 0.05
"""A batch's task run in Prefect, its claim and its look at what is done: a constant, as they are not measured here."""


@dataclass(frozen=True)
class Kind:
    """What decides, besides the pixels, how long a step takes: the method's structure, the styles, a mask."""

    method: Method
    styles: int
    masked: bool


def kind_of(job: Job) -> Kind:
    """The kind of a job; those of one batch are of one kind."""
    return Kind(structure(job.recipe.method), len(job.styles), job.mask is not None)


@dataclass(frozen=True)
class Sample:
    """Seconds that something took at so many pixels."""

    pixels: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """What one kind of pair was measured to cost on a device, samples by ascending pixels.

    step: one step, by the pixels of all pairs of the batch. pair: everything but the steps, from reading the content to writing
    the result, on all levels, by the pixels of the result. style: reading a style picture and its statistics, once for each
    structure and size. method: once for each, to trace its graphs.
    """

    kind: Kind
    step: tuple[Sample, ...]
    pair: tuple[Sample, ...]
    style: float
    method: float


@dataclass(frozen=True)
class Calibration:
    """What was measured on this machine: its devices, the most pairs that it batches, the seconds to build the backbone."""

    devices: tuple[str, ...]
    most: int
    start: float
    costs: tuple[Costs, ...]

    @property
    def on_gpus(self) -> bool:
        """Whether it was measured on GPUs."""
        return "GPU" in self.devices[0]


@dataclass(frozen=True)
class Shape:
    """Pairs of one size and memory need, and of the longest side that would fit where one alone exceeds the device's memory."""

    width: int
    height: int
    pairs: int
    at_once: int
    memory_gib: float
    fitting_size: int | None


@dataclass(frozen=True)
class Rate:
    """A recipe's step at one size, as measured."""

    recipe: str
    pixels: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """How long a run takes once it has started; `measured` is the share of work whose kind and size were timed."""

    seconds: float
    devices: tuple[str, ...]
    measured: float
    rates: tuple[Rate, ...]


@dataclass(frozen=True)
class Plan:
    """What a run would do; every count is of rows, but for pictures and batches. What was not calibrated is None.

    same_picture: ids of rows that would come to the very same picture. unknown_pictures: those that no earlier run describes,
    so that they are read whole before the first step. shapes: the largest memory need first.
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
        """The plan in lines to print."""
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
    """The plan of a run that has found this before its first step."""
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
        # without a figure of its own: as the kind that has the most work, which is measured first
        costs = by_kind.get(kind, calibration.costs[0])
        steps, covered = _steps(batch, costs.step)
        took.append(TASK_SECONDS + steps + pairs * at(costs.pair, job.height * job.width))
        work += pairs * job.work
        measured += pairs * covered if kind in by_kind else 0
        traced[kind.method, kind.masked] = costs.method
        side = max(job.height, job.width)  # whatever the other one: a style is fitted to it in its own proportions
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
    """Seconds of a batch's steps, and the pixel-steps of one pair that lie no further than a factor of two from a sample."""
    job, pairs = batch.jobs[0], len(batch.jobs)
    seconds, covered = 0.0, 0
    for level in levels(job.recipe.method, job.height, job.width):
        pixels = level.height * level.width
        seconds += level.steps * at(samples, pairs * pixels)
        if any(pairs * pixels <= 2 * sample.pixels for sample in samples):
            covered += level.steps * pixels
    return seconds, covered


def at(samples: Sequence[Sample], pixels: int) -> float:
    """Seconds at so many pixels: between two samples on a line, below the smallest as there, beyond the largest in proportion.

    A step on few pixels takes its least whatever their number; one on many takes a time in proportion to them.
    """
    if pixels <= samples[0].pixels:
        return samples[0].seconds
    for low, high in pairwise(samples):
        if pixels <= high.pixels:
            share = (pixels - low.pixels) / (high.pixels - low.pixels)
            return low.seconds + share * (high.seconds - low.seconds)
    return samples[-1].seconds * pixels / samples[-1].pixels


def duration(seconds: float) -> str:
    """Seconds as a person says them: `50 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
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
