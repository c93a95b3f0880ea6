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

from nst_tasks import batching, devices, fitting, loading, measuring, optimization, planning, resume, work
from nst_tasks.batching import Batch, Job
from nst_tasks.core import backbones, transfer
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import Level, levels
from nst_tasks.devices import Device
from nst_tasks.errors import NstError, is_pairs_own
from nst_tasks.planning import Calibration, Costs, Kind, Sample
from nst_tasks.progress import Watch, watch
from nst_tasks.request import Request
from nst_tasks.settings import Run, Settings

SECONDS = 40.0
"""Default time limit, in seconds, after which no measurement starts, except the first and smallest of all."""

ENOUGH = 0.9
"""Share of the work whose shapes are measured, the largest first; each shape gets a proportional share of the time."""

CHUNK_SECONDS = 0.3
"""Duration, in seconds, of a chunk of steps timed together; the median of three chunks counts."""

SMALLEST = 256
"""Approximate longest side, in pixels, of the smallest size measured for a method of one level."""

STEPS = 10
"""Estimated number of steps to measure one size: one that may trace a graph, one to choose the chunk length, three chunks of
at least one, and the steps of a whole pair, three times."""

TRIED = 3
"""Maximum number of batches of one shape that are tried until one has only readable images."""


@dataclass
class _Found:
    """Measured seconds of one kind of pair: `step` and `pair` by pixels, `style` and `method` as in `planning.Costs`."""

    step: dict[int, float] = field(default_factory=dict)
    pair: dict[int, float] = field(default_factory=dict)
    style: float = 0.0
    method: float = 0.0


@dataclass(frozen=True)
class _Bench:
    """Inputs common to all measurements of a shape; `until` is the time limit on the monotonic clock."""

    run: Run
    device: Device
    backbone: backbones.Backbone
    until: float

    @property
    def memory(self) -> float:
        """Device memory available to a batch, in bytes."""
        return self.run.settings.device_memory_gib * 2**30

    def affords(self, seconds: float) -> bool:
        """Return whether a measurement of this many seconds would end before the time limit."""
        return time.monotonic() + seconds <= self.until


def calibrate(
    jobs: Iterable[Job], request: Request, weights_sha256: str, settings: Settings, seconds: float = SECONDS
) -> Calibration:
    """Measure what these jobs of a request cost on a device, for about `seconds` at most.

    Raises:
        StorageUnavailable: The images' store failed temporarily.
        StorageUnusable: The images' store denies all access.
        Interrupted: The run was stopped while waiting for a device.
    """
    names = devices.names()
    on_gpus = devices.are_gpus()
    most = devices.most_pairs(settings.batch, on_gpus)
    found: dict[Kind, _Found] = {}
    with tempfile.TemporaryDirectory(prefix="nst-plan-") as folder, devices.lease(watch()) as device:
        run = Run("plan", folder, request.backbone, request.weights, weights_sha256, request.history_every, settings)
        began = time.monotonic()
        backbone = device.backbone(run.weights_sha256, lambda: optimization.build_backbone(run))
        start = time.monotonic() - began
        until = began + seconds
        for group, share in _groups(batching.batches(jobs, most, settings.device_memory_gib * 2**30, on_gpus)):
            left = until - time.monotonic()
            if found and left < 0:
                break
            bench = _Bench(run, device, backbone, time.monotonic() + share * left)
            _measure(group, found.setdefault(planning.kind_of(group[0].jobs[0]), _Found()), bench)
    costs = tuple(
        Costs(kind, _samples(of_kind.step), _samples(of_kind.pair), of_kind.style, of_kind.method)
        for kind, of_kind in found.items()
        if of_kind.step and of_kind.pair
    )
    return Calibration(tuple(names), most, start, costs)


def _samples(measured: dict[int, float]) -> tuple[Sample, ...]:
    return tuple(Sample(pixels, measured[pixels]) for pixels in sorted(measured))


def _groups(batches: Iterable[Batch]) -> Iterator[tuple[list[Batch], float]]:
    """Yield the batches of each kind and shape, most work first, until `ENOUGH` of all work is covered.

    Each group comes with its share of the work that is not yet covered.
    """
    alike: dict[object, list[Batch]] = {}
    for batch in batches:
        job = batch.jobs[0]
        alike.setdefault((planning.kind_of(job), len(batch.jobs), job.height, job.width), []).append(batch)
    work = {key: sum(job.work for batch in group for job in batch.jobs) for key, group in alike.items()}
    left = sum(work.values()) * ENOUGH
    for key in sorted(alike, key=lambda key: -work[key]):
        yield alike[key], min(work[key] / left, 1.0) if left else 1.0
        left -= work[key]
        if left <= 0:
            return


def _measure(group: list[Batch], found: _Found, bench: _Bench) -> None:
    """Measure the pairs of one shape into `found`, from small sizes up, as far as time and memory allow."""
    sizes = _sizes(group[0].jobs[0])
    members = next((batch.jobs for batch in group[:TRIED] if _are_readable(_sized(batch.jobs, sizes[0]), bench.run)), ())
    reached = []
    try:
        for size in sizes if members else ():
            jobs, pixels = _sized(members, size), len(members) * size[0] * size[1]
            too_long = found.step and not bench.affords(STEPS * planning.at(_samples(found.step), pixels))
            if too_long or len(members) * batching.memory(jobs[0].recipe.method, *size, bench.device.is_gpu) > bench.memory:
                break
            reached = jobs
            if all(not 0.5 < pixels / measured < 2 for measured in found.step):
                first, found.step[pixels] = _step_seconds(jobs, bench)
                found.method = found.method or max(first - found.step[pixels], 0.0)
        if reached:
            _measure_pair(reached, found, bench)
    except (tf.errors.OpError, MemoryError) as error:
        if not fitting.is_out_of_memory(error):
            raise


def _sized(jobs: Iterable[Job], size: tuple[int, int]) -> list[Job]:
    return [replace(job, height=size[0], width=size[1]) for job in jobs]


def _are_readable(jobs: Iterable[Job], run: Run) -> bool:
    """Return whether all images of these jobs can be read; the run itself reports the unreadable ones."""
    try:
        for job in jobs:
            loading.load(job, run)
    except NstError as error:
        if not is_pairs_own(error):
            raise
        return False
    return True


def _sizes(job: Job) -> list[tuple[int, int]]:
    """Return the job's own (height, width) and its successive halves, down to about its coarsest level, ascending."""
    coarsest, *finer = levels(job.recipe.method, job.height, job.width)
    least = max(coarsest.height, coarsest.width) if finer else SMALLEST
    found = [(job.height, job.width)]
    while max(found[-1]) >= 1.4 * least and min(found[-1]) >= 64:
        found.append((found[-1][0] // 2, found[-1][1] // 2))
    return found[::-1]


def _step_seconds(jobs: list[Job], bench: _Bench) -> tuple[float, float]:
    """Return the seconds of a batch's first step, which may trace its graph, and of a later step."""
    method, backbone = jobs[0].recipe.method, bench.backbone
    level = Level(jobs[0].height, jobs[0].width, steps=1000)  # only a few of them are run
    loaded = [loading.load(job, bench.run) for job in jobs]
    targets = measuring.targets(loaded, method, level, backbone, bench.device)
    images = np.stack([loading.initial(ready, method, level.height, level.width) for ready in loaded])
    state = transfer.start(method, images, [job.seed for job in jobs])

    def advanced(n: int) -> float:
        nonlocal state
        began = time.monotonic()
        state, _ = transfer.advance(backbone, method, targets, state, n, level.steps)
        return time.monotonic() - began

    first = advanced(1)
    n = int(np.clip(CHUNK_SECONDS / advanced(1), 1, 100))
    return first, statistics.median(advanced(n) / n for _ in range(3))


def _measure_pair(jobs: list[Job], found: _Found, bench: _Bench) -> None:
    """Time everything a batch takes except its steps: with tracing, without tracing, and with cached styles as well.

    Each level has one step, since a level without steps would be skipped or start without an optimizer; the time of these steps
    is subtracted.
    """
    pixels = jobs[0].height * jobs[0].width
    if pixels in found.pair:
        return
    brief = [replace(job, recipe=replace(job.recipe, method=_with_single_steps(job.recipe.method))) for job in jobs]
    styles = {style.sha256: style for job in jobs for style in job.styles}
    took = []
    for styles_known in (False, False, True):
        bench.device.contents.clear()  # most pairs do not share their content
        loading.forget(source for job in jobs for source in (job.content, job.init) if source)
        if not styles_known:
            bench.device.statistics.clear()
            loading.forget(styles.values())
        began = time.monotonic()
        loaded = [loading.load(job, bench.run) for job in brief]
        for ready, result in zip(loaded, optimization.optimize(loaded, bench.run, bench.device, Watch()), strict=True):
            work.publish(ready, result, bench.run)
        took.append(time.monotonic() - began)
        resume.remove(bench.run.out, {job.key for job in brief})
    traced, anew, known = took
    if not found.pair:
        found.method += max(traced - anew, 0.0)
        found.style = max(anew - known, 0.0) / len(styles)
    schedule, samples = levels(brief[0].recipe.method, jobs[0].height, jobs[0].width), _samples(found.step)
    steps = sum(level.steps * planning.at(samples, len(jobs) * level.height * level.width) for level in schedule)
    found.pair[pixels] = max(known - steps, 0.0) / len(jobs)


def _with_single_steps(method: Method) -> Method:
    """Return the method with a single step on each level that has any."""
    pyramid = method.pyramid and replace(
        method.pyramid,
        coarse_steps=min(method.pyramid.coarse_steps, 1),
        first_steps=None if method.pyramid.first_steps is None else min(method.pyramid.first_steps, 1),
    )
    return replace(method, steps=min(method.steps, 1), pyramid=pyramid)
