"""Plan of a run: rows by what will happen to them, memory, and a time estimate from measured steps.

Pure, no TensorFlow. Measurements come from `engine.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nst_tasks.core.memory import fitting_size, peak_bytes
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.engine.costs import Calibration, Sample, StepKind, get_step_kind, interpolate_seconds
from nst_tasks.inputs.jobs import Batch, Job, group_into_batches
from nst_tasks.inputs.manifest import Manifest
from nst_tasks.inputs.settings import Settings
from nst_tasks.planning.dry_run import Findings
from nst_tasks.planning.triage import Triage

MAX_LISTED_ITEMS = 5
"""Limit of the printed plan on shapes, on groups of rows with the same result and on ids per group; the JSON has all."""


TASK_OVERHEAD_SECONDS = 0.05
"""Seconds of a batch's Prefect task run, claim and check for finished pairs: a constant, because they are not measured."""


@dataclass(frozen=True)
class ShapeSummary:
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
class StepTime:
    """Measured seconds of one step of a recipe at one number of pixels."""

    recipe: str
    pixels: int
    seconds: float


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated seconds of a run once it has started; `measured` is the share of its work whose kind and size were timed."""

    seconds: float
    devices: tuple[str, ...]
    measured: float
    rates: tuple[StepTime, ...]


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
    shapes: tuple[ShapeSummary, ...]
    estimate: TimeEstimate | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def format_lines(self) -> list[str]:
        """Return the plan as lines to print."""
        lines = [
            *self.warnings,
            *self.problems,
            f"{_format_count(self.rows, 'row')}: {self.done} done, {self.to_do} to do, {self.rejected} rejected, "
            f"{self.refused} refused, {self.quarantined} quarantined",
            f"pictures: {_format_count(self.contents, 'content')}, {_format_count(self.styles, 'style')}; "
            f"{self.unknown_pictures} to inspect",
        ]
        if self.same_picture:
            duplicates = sum(len(ids) - 1 for ids in self.same_picture)
            lines.append(
                f"{_format_count(duplicates, 'row')} would make a picture that another row makes too; each is made by itself:"
            )
            lines += [
                f"  {' = '.join(ids[:MAX_LISTED_ITEMS])}{' = ...' if len(ids) > MAX_LISTED_ITEMS else ''}"
                for ids in self.same_picture[:MAX_LISTED_ITEMS]
            ]
            lines += _format_omitted(len(self.same_picture))
        if self.to_do:
            if self.batches is not None:
                lines.append(f"batches: {self.batches}")
            lines.append(f"memory, of {self.memory_gib:g} GiB (NST_DEVICE_MEMORY_GIB):")
            lines += [_format_shape(shape) for shape in self.shapes[:MAX_LISTED_ITEMS]]
            lines += _format_omitted(len(self.shapes))
            lines += ["estimate: none, nothing was measured"] if self.estimate is None else _format_estimate(self.estimate)
        return lines


def build_plan(manifest: Manifest, findings: Findings, settings: Settings, calibration: Calibration | None) -> Plan:
    """Build the plan of a run from the findings before its first step, and a calibration if there is one."""
    memory = settings.device_memory_gib * 2**30
    to_do = findings.rows.to_do
    max_pairs = calibration.max_pairs if calibration else settings.batch or 1
    on_gpus = calibration is not None and calibration.on_gpus
    batches = group_into_batches(to_do, max_pairs, memory, on_gpus)
    pairs = manifest.pairs
    return Plan(
        rows=manifest.rows,
        rejected=len(manifest.rejected),
        refused=len(findings.rows.refused),
        done=len(findings.rows.done),
        quarantined=len(findings.rows.quarantined),
        to_do=len(to_do),
        same_picture=_group_identical_results(findings.rows),
        contents=len({pair.content for pair in pairs}),
        styles=len({style for pair in pairs for style in pair.styles}),
        unknown_pictures=findings.unknown_pictures,
        batches=len(batches) if calibration or settings.batch == 1 or not to_do else None,
        memory_gib=settings.device_memory_gib,
        shapes=_summarize_shapes(batches, memory, on_gpus),
        estimate=_estimate_time(batches, calibration) if calibration and calibration.costs else None,
        problems=findings.problems,
        warnings=findings.warnings,
    )


def _group_identical_results(rows: Triage) -> tuple[tuple[str, ...], ...]:
    by_key: dict[str, list[Job]] = {}
    for job in (*rows.to_do, *rows.done, *rows.quarantined):
        by_key.setdefault(job.key, []).append(job)
    identical = [sorted(jobs, key=lambda job: job.row) for jobs in by_key.values() if len(jobs) > 1]
    return tuple(tuple(job.id for job in jobs) for jobs in sorted(identical, key=lambda jobs: jobs[0].row))


def _summarize_shapes(batches: Iterable[Batch], memory_bytes: float, on_gpus: bool) -> tuple[ShapeSummary, ...]:
    batches_by_shape: dict[tuple[int, int, int], list[Batch]] = {}
    for batch in batches:
        job = batch.jobs[0]
        pair_bytes = peak_bytes(job.recipe.method, job.height, job.width, on_gpus)
        batches_by_shape.setdefault((job.height, job.width, pair_bytes), []).append(batch)
    shapes = []
    for (height, width, pair_bytes), members in batches_by_shape.items():
        at_once = max(len(batch.jobs) for batch in members)
        fitting = None
        if pair_bytes > memory_bytes:
            fitting = fitting_size(members[0].jobs[0].recipe.method, height, width, memory_bytes, on_gpus)
        pairs = sum(len(batch.jobs) for batch in members)
        shapes.append(ShapeSummary(width, height, pairs, at_once, round(at_once * pair_bytes / 2**30, 3), fitting))
    return tuple(sorted(shapes, key=lambda shape: -shape.memory_gib))


def _estimate_time(batches: Sequence[Batch], calibration: Calibration) -> TimeEstimate:
    by_kind = {costs.kind: costs for costs in calibration.costs}
    tracing_seconds: dict[tuple[Method, bool], float] = {}
    style_seconds: dict[tuple[Method, str, int], float] = {}
    batch_seconds, work, measured_work = [], 0, 0.0
    for batch in batches:
        job, pairs = batch.jobs[0], len(batch.jobs)
        kind = get_step_kind(job)
        # a kind that was not measured is assumed to cost as much as the first one, which has the most work
        costs = by_kind.get(kind, calibration.costs[0])
        steps, covered = _estimate_steps(batch, costs.step_samples)
        batch_seconds.append(
            TASK_OVERHEAD_SECONDS + steps + pairs * interpolate_seconds(costs.pair_samples, job.height * job.width)
        )
        work += pairs * job.pixel_steps
        measured_work += pairs * covered if kind in by_kind else 0
        tracing_seconds[kind.method, kind.masked] = costs.tracing_seconds
        side = max(job.height, job.width)  # a style is scaled to this side in its own proportions
        style_seconds |= {
            (kind.method, style.sha256, side): costs.style_seconds for each in batch.jobs for style in each.styles
        }
    devices = len(calibration.devices)
    parallel_seconds = max((sum(batch_seconds) + sum(style_seconds.values())) / devices, *batch_seconds)
    rates = tuple(
        StepTime(_find_recipe_name(batches, costs.kind), sample.pixels, sample.seconds)
        for costs in calibration.costs
        for sample in costs.step_samples
    )
    return TimeEstimate(
        seconds=round(calibration.backbone_seconds + sum(tracing_seconds.values()) + parallel_seconds, 1),
        devices=calibration.devices,
        measured=round(measured_work / work, 4) if work else 1.0,
        rates=rates,
    )


def _find_recipe_name(batches: Iterable[Batch], kind: StepKind) -> str:
    return next(batch.jobs[0].recipe.name for batch in batches if get_step_kind(batch.jobs[0]) == kind)


def _estimate_steps(batch: Batch, samples: Sequence[Sample]) -> tuple[float, int]:
    """Return the seconds of a batch's steps, and the pixel-steps of one pair at no more than twice a measured size."""
    job, pairs = batch.jobs[0], len(batch.jobs)
    seconds, covered = 0.0, 0
    for level in plan_levels(job.recipe.method, job.height, job.width):
        pixels = level.height * level.width
        seconds += level.steps * interpolate_seconds(samples, pairs * pixels)
        if any(pairs * pixels <= 2 * sample.pixels for sample in samples):
            covered += level.steps * pixels
    return seconds, covered


def format_duration(seconds: float) -> str:
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


def _format_shape(shape: ShapeSummary) -> str:
    need = f"{shape.at_once} at once, {shape.memory_gib:.3g} GiB"
    line = f"  {shape.width} x {shape.height}: {_format_count(shape.pairs, 'pair')}, {need}"
    if shape.fitting_size is None:
        return line
    return f"{line}: too much, tried all the same; about {shape.fitting_size} px on the longest side would fit: set size"


def _format_estimate(estimate: TimeEstimate) -> list[str]:
    lines = [f"step of {rate.recipe} at {rate.pixels} pixels: {rate.seconds:.3g} s" for rate in estimate.rates]
    extrapolation_note = (
        ""
        if estimate.measured > 0.995
        else f"; {1 - estimate.measured:.0%} of the work is carried over from other sizes or recipes"
    )
    devices = ", ".join(name.strip("/") for name in estimate.devices)
    return [*lines, f"estimate: {format_duration(estimate.seconds)} on {devices} once started{extrapolation_note}"]


def _format_count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _format_omitted(count: int) -> list[str]:
    return [f"  and {count - MAX_LISTED_ITEMS} more (--json has them all)"] if count > MAX_LISTED_ITEMS else []
