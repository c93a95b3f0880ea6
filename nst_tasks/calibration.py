"""How long things take on this device: a few real steps of the pairs that a plan is for, by the code of a run.

Results go to a temporary folder, so that reading, encoding and writing count too; nothing goes to the output.
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
"""After which nothing more is begun to be measured; the first, smallest measurement of all is always made."""

ENOUGH = 0.9
"""Share of the work whose shapes are measured, the largest shares first; each has its share of the seconds."""

CHUNK_SECONDS = 0.3
"""Of steps timed together; three such chunks are, and the middle one counts."""

SMALLEST = 256
"""Longest side, in pixels, from about which on the shapes of a method of one level are measured."""

STEPS = 10
"""Of a size, done to measure it: one that may trace a graph, one to see how many fit a chunk, three chunks of one or more, and
those of a pair's whole way, three times."""

TRIED = 3
"""Batches of one shape whose pictures are tried, should the first ones not be readable."""


@dataclass
class _Found:
    """What was measured of one kind."""

    step: dict[int, float] = field(default_factory=dict)
    pair: dict[int, float] = field(default_factory=dict)
    style: float = 0.0
    method: float = 0.0


@dataclass(frozen=True)
class _Bench:
    """What every measurement needs."""

    run: Run
    device: Device
    backbone: backbones.Backbone
    until: float

    @property
    def memory(self) -> float:
        """Bytes that a batch may take on the device."""
        return self.run.settings.device_memory_gib * 2**30

    def affords(self, seconds: float) -> bool:
        """Whether something that may take so long is to be begun."""
        return time.monotonic() + seconds <= self.until


def calibrate(
    jobs: Iterable[Job], request: Request, weights_sha256: str, settings: Settings, seconds: float = SECONDS
) -> Calibration:
    """Measure, for about so many seconds at most, what these jobs of a request cost on a device.

    Raises:
        StorageUnavailable: the pictures' store failed for the moment. StorageUnusable: it lets nobody in.
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
    """Batches of one kind and shape, the most work first, until `ENOUGH` of it all; and their share of what is left of it."""
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
    """Add what the pairs of one shape cost, from small sizes up, as far as the seconds and the memory allow."""
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
    """Whether all pictures of these jobs can be read; the run will tell of those that cannot."""
    try:
        for job in jobs:
            loading.load(job, run)
    except NstError as error:
        if not is_pairs_own(error):
            raise
        return False
    return True


def _sizes(job: Job) -> list[tuple[int, int]]:
    """The job's own (height, width) and its halves, down to about its coarsest level, ascending."""
    coarsest, *finer = levels(job.recipe.method, job.height, job.width)
    least = max(coarsest.height, coarsest.width) if finer else SMALLEST
    found = [(job.height, job.width)]
    while max(found[-1]) >= 1.4 * least and min(found[-1]) >= 64:
        found.append((found[-1][0] // 2, found[-1][1] // 2))
    return found[::-1]


def _step_seconds(jobs: list[Job], bench: _Bench) -> tuple[float, float]:
    """Seconds of the first step of a batch, which may trace its graph, and of one of the following."""
    method, backbone = jobs[0].recipe.method, bench.backbone
    level = Level(jobs[0].height, jobs[0].width, steps=1000)  # of which a few are done
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
    """Time the whole way of a batch but for its steps: with graphs to trace, with none, and with the styles known as well.

    Each of its levels has one step, for without any it would be left out or begin without an optimizer; what the steps take is
    taken off.
    """
    pixels = jobs[0].height * jobs[0].width
    if pixels in found.pair:
        return
    brief = [replace(job, recipe=replace(job.recipe, method=_with_single_steps(job.recipe.method))) for job in jobs]
    styles = {style.sha256: style for job in jobs for style in job.styles}
    took = []
    for styles_known in (False, False, True):
        bench.device.contents.clear()  # a pair's is its own, more often than not
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
    """The method with one step on each level that has any."""
    pyramid = method.pyramid and replace(
        method.pyramid,
        coarse_steps=min(method.pyramid.coarse_steps, 1),
        first_steps=None if method.pyramid.first_steps is None else min(method.pyramid.first_steps, 1),
    )
    return replace(method, steps=min(method.steps, 1), pyramid=pyramid)
