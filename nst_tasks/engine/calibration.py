"""Measure what the pairs of a plan cost on this device, by a few real steps with the code of a run.

Results are written to a temporary folder, so that reading, encoding and writing count too; nothing is written to the output.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf

from nst_tasks.core import transfer, vgg
from nst_tasks.core.memory import peak_bytes
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import Level, plan_levels
from nst_tasks.engine import checkpoint_store, devices, optimization
from nst_tasks.engine.costs import Calibration, Costs, Sample, StepKind, get_step_kind, interpolate_seconds
from nst_tasks.engine.devices import Device
from nst_tasks.engine.out_of_memory import is_out_of_memory
from nst_tasks.engine.preprocessing import evict_pictures, load_job, prepare_initial_image
from nst_tasks.engine.publish import publish
from nst_tasks.engine.targets import build_targets
from nst_tasks.errors import NstError, is_pair_failure
from nst_tasks.inputs.jobs import Batch, Job, group_into_batches
from nst_tasks.inputs.options import ResultOptions
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.progress import Progress, current_progress

DEFAULT_LIMIT_SECONDS = 40.0
"""Default time limit, in seconds, after which no measurement starts, except the first and smallest of all."""

MIN_MEASURED_SHARE = 0.9
"""Share of the work whose shapes are measured, the largest first; each shape gets a proportional share of the time."""

TIMED_CHUNK_SECONDS = 0.3
"""Duration, in seconds, of a chunk of steps timed together; the median of three chunks counts."""

MIN_LONGEST_SIDE = 256
"""Approximate longest side, in pixels, of the smallest size measured for a method of one level."""

STEPS_PER_SIZE = 10
"""Estimated number of steps to measure one size: one that may trace a graph, one to choose the chunk length, three chunks of
at least one, and the steps of a whole pair, three times."""

MAX_TRIED_BATCHES = 3
"""Maximum number of batches of one shape that are tried until one has only readable images."""


@dataclass
class _Measurements:
    """Measured seconds of one kind of pair, by pixels or in all, as in `engine.costs.Costs`."""

    step_seconds: dict[int, float] = field(default_factory=dict)
    pair_seconds: dict[int, float] = field(default_factory=dict)
    style_seconds: float = 0.0
    tracing_seconds: float = 0.0


@dataclass(frozen=True)
class _MeasurementContext:
    """Inputs common to all measurements of a shape; `deadline` is the time limit on the monotonic clock."""

    run: Run
    device: Device
    backbone: vgg.Backbone
    deadline: float

    @property
    def memory_bytes(self) -> float:
        """Device memory available to a batch, in bytes."""
        return self.run.settings.device_memory_gib * 2**30

    def can_afford(self, seconds: float) -> bool:
        """Return whether a measurement of this many seconds would end before the time limit."""
        return time.monotonic() + seconds <= self.deadline


def calibrate(
    jobs: Iterable[Job],
    options: ResultOptions,
    weights_sha256: str,
    settings: Settings,
    limit_seconds: float = DEFAULT_LIMIT_SECONDS,
) -> Calibration:
    """Measure what these jobs cost on a device, for about `limit_seconds` at most.

    Raises:
        StorageUnavailable: The images' store failed temporarily.
        StorageUnusable: The images' store denies all access.
        Interrupted: The run was stopped while waiting for a device.
    """
    names = devices.list_names()
    on_gpus = devices.has_gpus()
    max_pairs = devices.limit_batch_size(settings.batch, on_gpus)
    measurements: dict[StepKind, _Measurements] = {}
    with tempfile.TemporaryDirectory(prefix="nst-plan-") as folder, devices.acquire(current_progress()) as device:
        run = Run("plan", folder, options.backbone, options.weights, weights_sha256, 1, settings)
        started = time.monotonic()
        backbone = device.get_backbone(run.weights_sha256, lambda: optimization.build_backbone(run))
        build_seconds = time.monotonic() - started
        deadline = started + limit_seconds
        for group, share in _group_batches(group_into_batches(jobs, max_pairs, settings.device_memory_gib * 2**30, on_gpus)):
            seconds_left = deadline - time.monotonic()
            if measurements and seconds_left < 0:
                break
            context = _MeasurementContext(run, device, backbone, time.monotonic() + share * seconds_left)
            _measure_shape(group, measurements.setdefault(get_step_kind(group[0].jobs[0]), _Measurements()), context)
    costs = tuple(
        Costs(
            kind,
            _to_samples(measured.step_seconds),
            _to_samples(measured.pair_seconds),
            measured.style_seconds,
            measured.tracing_seconds,
        )
        for kind, measured in measurements.items()
        if measured.step_seconds and measured.pair_seconds
    )
    return Calibration(tuple(names), max_pairs, build_seconds, costs)


def _to_samples(measured: dict[int, float]) -> tuple[Sample, ...]:
    return tuple(Sample(pixels, measured[pixels]) for pixels in sorted(measured))


def _group_batches(batches: Iterable[Batch]) -> Iterator[tuple[list[Batch], float]]:
    """Yield the batches of each kind and shape, most work first, until `MIN_MEASURED_SHARE` of all work is covered.

    Each group comes with its share of the work that is not yet covered.
    """
    groups: dict[object, list[Batch]] = {}
    for batch in batches:
        job = batch.jobs[0]
        groups.setdefault((get_step_kind(job), len(batch.jobs), job.height, job.width), []).append(batch)
    work = {key: sum(job.pixel_steps for batch in group for job in batch.jobs) for key, group in groups.items()}
    work_left = sum(work.values()) * MIN_MEASURED_SHARE
    for key in sorted(groups, key=lambda key: -work[key]):
        yield groups[key], min(work[key] / work_left, 1.0) if work_left else 1.0
        work_left -= work[key]
        if work_left <= 0:
            return


def _measure_shape(group: list[Batch], measurements: _Measurements, context: _MeasurementContext) -> None:
    """Measure the pairs of one shape into `measurements`, from small sizes up, as far as time and memory allow."""
    sizes = _list_sizes(group[0].jobs[0])
    members = next(
        (
            batch.jobs
            for batch in group[:MAX_TRIED_BATCHES]
            if _can_read_images(_resize_jobs(batch.jobs, sizes[0]), context.run)
        ),
        (),
    )
    largest_jobs = []
    try:
        for size in sizes if members else ():
            jobs, pixels = _resize_jobs(members, size), len(members) * size[0] * size[1]
            too_long = measurements.step_seconds and not context.can_afford(
                STEPS_PER_SIZE * interpolate_seconds(_to_samples(measurements.step_seconds), pixels)
            )
            if (
                too_long
                or len(members) * peak_bytes(jobs[0].recipe.method, *size, context.device.is_gpu) > context.memory_bytes
            ):
                break
            largest_jobs = jobs
            if all(not 0.5 < pixels / measured < 2 for measured in measurements.step_seconds):
                first, measurements.step_seconds[pixels] = _time_steps(jobs, context)
                measurements.tracing_seconds = measurements.tracing_seconds or max(
                    first - measurements.step_seconds[pixels], 0.0
                )
        if largest_jobs:
            _measure_pair(largest_jobs, measurements, context)
    except (tf.errors.OpError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise


def _resize_jobs(jobs: Iterable[Job], size: tuple[int, int]) -> list[Job]:
    return [replace(job, height=size[0], width=size[1]) for job in jobs]


def _can_read_images(jobs: Iterable[Job], run: Run) -> bool:
    """Return whether all images of these jobs can be read; the run itself reports the unreadable ones."""
    try:
        for job in jobs:
            load_job(job, run)
    except NstError as error:
        if not is_pair_failure(error):
            raise
        return False
    return True


def _list_sizes(job: Job) -> list[tuple[int, int]]:
    """Return the job's own (height, width) and its successive halves, down to about its coarsest level, ascending."""
    coarsest, *finer = plan_levels(job.recipe.method, job.height, job.width)
    min_longest_side = max(coarsest.height, coarsest.width) if finer else MIN_LONGEST_SIDE
    sizes = [(job.height, job.width)]
    while max(sizes[-1]) >= 1.4 * min_longest_side and min(sizes[-1]) >= 64:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes[::-1]


def _time_steps(jobs: list[Job], context: _MeasurementContext) -> tuple[float, float]:
    """Return the seconds of a batch's first step, which may trace its graph, and of a later step."""
    method, backbone = jobs[0].recipe.method, context.backbone
    level = Level(jobs[0].height, jobs[0].width, steps=1000)  # only a few of them are run
    loaded = [load_job(job, context.run) for job in jobs]
    targets = build_targets(loaded, method, level, backbone, context.device)
    images = np.stack([prepare_initial_image(ready, method, level.height, level.width) for ready in loaded])
    state = transfer.start(method, images, [job.pair.seed for job in jobs])

    def time_advance(n: int) -> float:
        nonlocal state
        began = time.monotonic()
        state, _ = transfer.advance(backbone, method, targets, state, n, level.steps)
        return time.monotonic() - began

    first = time_advance(1)
    n = int(np.clip(TIMED_CHUNK_SECONDS / time_advance(1), 1, 100))
    return first, statistics.median(time_advance(n) / n for _ in range(3))


def _measure_pair(jobs: list[Job], measurements: _Measurements, context: _MeasurementContext) -> None:
    """Time everything a batch takes except its steps: with tracing, without tracing, and with cached styles as well.

    Each level has one step, since a level without steps would be skipped or start without an optimizer; the time of these steps
    is subtracted.
    """
    pixels = jobs[0].height * jobs[0].width
    if pixels in measurements.pair_seconds:
        return
    single_step_jobs = [replace(job, recipe=replace(job.recipe, method=_with_single_steps(job.recipe.method))) for job in jobs]
    styles = {style.sha256: style for job in jobs for style in job.styles}
    durations = []
    for styles_cached in (False, False, True):
        context.device.content_cache.clear()  # most pairs do not share their content
        evict_pictures(source for job in jobs for source in (job.content, job.init) if source)
        if not styles_cached:
            context.device.style_cache.clear()
            evict_pictures(styles.values())
        began = time.monotonic()
        loaded = [load_job(job, context.run) for job in single_step_jobs]
        for ready, result in zip(loaded, optimization.optimize(loaded, context.run, context.device, Progress()), strict=True):
            publish(ready, result, context.run)
        durations.append(time.monotonic() - began)
        checkpoint_store.delete_checkpoints(context.run.out, {job.key for job in single_step_jobs})
    traced_seconds, untraced_seconds, cached_seconds = durations
    if not measurements.pair_seconds:
        measurements.tracing_seconds += max(traced_seconds - untraced_seconds, 0.0)
        measurements.style_seconds = max(untraced_seconds - cached_seconds, 0.0) / len(styles)
    schedule, samples = (
        plan_levels(single_step_jobs[0].recipe.method, jobs[0].height, jobs[0].width),
        _to_samples(measurements.step_seconds),
    )
    step_seconds = sum(level.steps * interpolate_seconds(samples, len(jobs) * level.height * level.width) for level in schedule)
    measurements.pair_seconds[pixels] = max(cached_seconds - step_seconds, 0.0) / len(jobs)


def _with_single_steps(method: Method) -> Method:
    """Return the method with a single step on each level that has any."""
    pyramid = method.pyramid and replace(
        method.pyramid,
        coarse_steps=min(method.pyramid.coarse_steps, 1),
        first_steps=None if method.pyramid.first_steps is None else min(method.pyramid.first_steps, 1),
    )
    return replace(method, steps=min(method.steps, 1), pyramid=pyramid)
