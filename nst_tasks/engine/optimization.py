"""Optimize one batch level by level, in chunks of steps, with progress, checkpoints and restarts at a lower learning rate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from nst_tasks.core import objective, optimizers, transfer, vgg
from nst_tasks.core.method import LARGE_IMAGE_PIXELS, LBFGS, Method
from nst_tasks.core.metrics import Quality
from nst_tasks.core.pyramid import Level, plan_levels
from nst_tasks.engine import checkpoint, checkpoint_store
from nst_tasks.engine.checkpoint import Checkpoint
from nst_tasks.engine.devices import Device
from nst_tasks.engine.divergence import find_divergence, find_ended_pairs, has_diverged
from nst_tasks.engine.evaluation import measure_quality
from nst_tasks.engine.hardware import detect_flipped_direction
from nst_tasks.engine.preprocessing import LoadedJob, postprocess, prepare_initial_image
from nst_tasks.engine.targets import build_targets
from nst_tasks.errors import DeadlineError, DivergedError, Interrupted, PairError, StorageError
from nst_tasks.images import codec
from nst_tasks.inputs import weights
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.layout import snapshot_path
from nst_tasks.outputs.loss_history import LevelHistory
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

CHUNK_SECONDS = 1.0
"""Target duration of a chunk, in seconds; progress, deadline and stop signal are checked between chunks."""


LR_BACKOFF = 0.1
"""Factor on the learning rate with which a pair whose loss blew up repeats the level."""


@dataclass(frozen=True)
class TransferResult:
    """Result of the optimization for one pair.

    Attributes:
        image: The network's image (H, W, 3) in [0, 1].
        histories: Loss history of each level.
        seconds: The pair's share of the compute time.
        restarted: True if the loss blew up once, so that a level was repeated at a lower learning rate.
        has_checkpoints: True if the output may hold checkpoints of the pair.
    """

    image: np.ndarray
    histories: list[LevelHistory]
    quality: Quality
    seconds: float
    restarted: bool
    has_checkpoints: bool


@dataclass(frozen=True)
class _Context:
    """Everything that the groups of one call of `optimize` share; `pair_count` is the number of pairs in the call."""

    pair_count: int
    run: Run
    device: Device
    backbone: vgg.Backbone
    progress: Progress
    writer: checkpoint_store.CheckpointWriter
    positions: Mapping[str, list[checkpoint_store.Position]]


@dataclass
class _Cursor:
    """Current checkpoint of a batch.

    Sole owner of the state, so that the previous one, gigabytes for a large image, is freed.
    """

    checkpoint: Checkpoint


def optimize(loaded_jobs: list[LoadedJob], run: Run, device: Device, progress: Progress) -> list[TransferResult | PairError]:
    """Optimize a batch from its last checkpoint; return, in order, the result of each pair or its own error.

    Raises:
        Interrupted: The run was stopped; a checkpoint is written.
        StorageError: The checkpoints cannot be listed, or the weights file cannot be read or has changed.
        StorageUnavailable: A checkpoint could not be read temporarily.
    """
    backbone = device.get_backbone(run.weights_sha256, lambda: build_backbone(run))
    results: dict[str, TransferResult | PairError] = {}
    with checkpoint_store.CheckpointWriter(run.out, progress.warn) as writer:
        positions = checkpoint_store.list_checkpoints(run.out, [ready.job.key for ready in loaded_jobs])
        context = _Context(len(loaded_jobs), run, device, backbone, progress, writer, positions)
        for members, cursor in _group_by_checkpoint(loaded_jobs, context):
            results |= {ready.job.id: result for ready, result in _optimize_group(members, cursor, context)}
    return [results[ready.job.id] for ready in loaded_jobs]


def _group_by_checkpoint(loaded_jobs: list[LoadedJob], context: _Context) -> list[tuple[list[LoadedJob], _Cursor]]:
    """Group resumed pairs that shared a batch and are at the same step; group pairs without a checkpoint separately."""
    method, schedule = loaded_jobs[0].job.recipe.method, _plan_levels(loaded_jobs[0])

    def is_compatible(at: Checkpoint) -> bool:
        k = at.state.level
        if k == len(schedule):  # finished: only the image is left to check
            return tuple(at.state.image.shape) == (1, schedule[-1].height, schedule[-1].width, 3)
        return (
            k < len(schedule) and at.state.step <= schedule[k].steps and transfer.is_compatible(method, at.state, schedule[k])
        )

    keys, observer = [ready.job.key for ready in loaded_jobs], context.progress
    checkpoints = checkpoint_store.load_latest(context.run.out, keys, context.positions, is_compatible, observer.warn)
    positions = {key: (at.state.level, at.state.step) for key, at in zip(keys, checkpoints, strict=True) if at is not None}

    def needs_restart(at: Checkpoint) -> bool:
        """Return whether a pair's loss blew up in a batch that has split since, whose other pairs continue without it."""
        k, here = at.state.level, (at.state.level, at.state.step)
        parted = any(positions.get(other, here) != here for other in at.batch_keys)
        return parted and k < len(schedule) and has_diverged(method, schedule[k], at, 0)

    groups: dict[object, list[tuple[LoadedJob, Checkpoint]]] = {}
    fresh = []
    for ready, at in zip(loaded_jobs, checkpoints, strict=True):
        if at is None:
            fresh.append(ready)
        else:  # plateaus may have ended levels at different steps, and a batch may have split
            group_key = (
                at.state.step,
                at.lr_reduced_from_level,
                *map(len, at.terms),
                at.batch_keys,
                needs_restart(at) and ready.job.key,
            )
            groups.setdefault(group_key, []).append((ready, at))
    resumed = [([ready for ready, _ in group], _Cursor(checkpoint.merge([at for _, at in group]))) for group in groups.values()]
    for members, cursor in resumed:
        _count_resumed_steps(observer, members, schedule, cursor.checkpoint)
    return resumed + ([(fresh, _Cursor(_create_checkpoint(fresh, method, schedule[0])))] if fresh else [])


def _count_resumed_steps(progress: Progress, loaded_jobs: list[LoadedJob], schedule: Sequence[Level], at: Checkpoint) -> None:
    """Add the steps in a checkpoint to the progress, and subtract the steps that a plateau made unnecessary."""
    for number, (level, terms) in enumerate(zip(schedule, at.terms, strict=False)):
        ended = number < at.state.level
        done = len(terms) - ended  # the last row of a finished level belongs to its result
        pixels = len(loaded_jobs) * level.height * level.width
        progress.add(steps_done=done * len(loaded_jobs), work_done=done * pixels)
        if ended:
            _subtract_skipped_steps(progress, loaded_jobs, level, done)


def _subtract_skipped_steps(progress: Progress, loaded_jobs: list[LoadedJob], level: Level, done: int) -> None:
    """Subtract from the progress totals the steps of a level that pairs skip by ending it after `done` steps."""
    if skipped := (level.steps - done) * len(loaded_jobs):
        progress.add(steps=-skipped, work=-skipped * level.height * level.width)


def _optimize_group(
    loaded_jobs: list[LoadedJob], cursor: _Cursor, context: _Context
) -> Iterator[tuple[LoadedJob, TransferResult | PairError]]:
    """Optimize a group from its checkpoint to the end; yield each pair with its result or error, restarted pairs last."""
    schedule = _plan_levels(loaded_jobs[0])
    deferred: list[Iterator[tuple[LoadedJob, TransferResult | PairError]]] = []
    while cursor.checkpoint.state.level < len(schedule):
        number = cursor.checkpoint.state.level
        level, method = schedule[number], _adjust_method(loaded_jobs[0], cursor.checkpoint.lr_reduced_from_level, number)
        try:
            with context.progress.count_computation():
                image, last_terms = _run_level(loaded_jobs, cursor, method, schedule, context)
        except DeadlineError as error:
            yield from ((ready, error) for ready in loaded_jobs)
            loaded_jobs = []
            break
        ended, terms = (
            find_ended_pairs(method, level, cursor.checkpoint),
            np.concatenate([cursor.checkpoint.terms[-1], last_terms[None]]),
        )
        continuing = [k for k in range(len(loaded_jobs)) if k not in ended]  # these continue beyond the others' plateau
        diverged = {k: why for k in ended if (why := find_divergence(method, level, number, terms[:, k])) is not None}
        healthy = [k for k in ended if k not in diverged]
        if bool(continuing) + bool(healthy) + len(diverged) > 1:  # the batch splits here: after a kill it must resume split
            context.writer.save([ready.job.key for ready in loaded_jobs], cursor.checkpoint)
        if continuing:
            deferred.append(
                _optimize_group(
                    [loaded_jobs[k] for k in continuing],
                    _Cursor(checkpoint.select_pairs(cursor.checkpoint, continuing)),
                    context,
                )
            )
        cursor.checkpoint = replace(cursor.checkpoint, terms=(*cursor.checkpoint.terms[:-1], terms))
        deferred += [
            _restart_level(loaded_jobs[k], checkpoint.select_pairs(cursor.checkpoint, [k]), why, level, context)
            for k, why in diverged.items()
        ]
        if not healthy:
            loaded_jobs = []
            break
        if len(healthy) < len(loaded_jobs):
            loaded_jobs, image = [loaded_jobs[k] for k in healthy], tf.gather(image, healthy)
            cursor.checkpoint = checkpoint.select_pairs(cursor.checkpoint, healthy)
        _subtract_skipped_steps(context.progress, loaded_jobs, level, cursor.checkpoint.state.step)
        cursor.checkpoint = _start_next_level(cursor.checkpoint, image, method, schedule)
    if loaded_jobs and context.pair_count > 1:  # so that a kill before the last marker repeats no step
        context.writer.save([ready.job.key for ready in loaded_jobs], cursor.checkpoint)
    for k, ready in enumerate(loaded_jobs):
        with context.progress.count_computation():
            result = _make_result(ready, checkpoint.select_pairs(cursor.checkpoint, [k]), schedule, context)
        yield ready, result
    for pairs in deferred:
        yield from pairs


def _run_level(
    loaded_jobs: list[LoadedJob], cursor: _Cursor, method: Method, schedule: Sequence[Level], context: _Context
) -> tuple[tf.Tensor, np.ndarray]:
    """Run steps of a level until it ends for one of the pairs; return the images (B, H, W, 3) and their terms (B, 3).

    Raises:
        DeadlineError: The batch took longer than its pairs may.
        Interrupted: The run was stopped.
    """
    run, backbone, observer, saver = context.run, context.backbone, context.progress, context.writer
    keys = [ready.job.key for ready in loaded_jobs]
    level, steps_before = schedule[cursor.checkpoint.state.level], sum(len(terms) - 1 for terms in cursor.checkpoint.terms[:-1])
    started_at = time.monotonic() - cursor.checkpoint.elapsed_seconds
    if level.height * level.width > LARGE_IMAGE_PIXELS:
        context.device.content_cache.clear()  # those of coarser levels: their memory is needed here
    targets = build_targets(loaded_jobs, method, level, backbone, context.device)
    chunk = 1
    while not find_ended_pairs(method, level, cursor.checkpoint):
        if observer.stop.is_set():
            if steps_before + cursor.checkpoint.state.step:
                saver.save(keys, cursor.checkpoint)
            raise Interrupted("interrupted between two chunks of steps")
        if run.pair_timeout and cursor.checkpoint.elapsed_seconds > run.pair_timeout * len(loaded_jobs):
            saver.save(keys, cursor.checkpoint)
            at = cursor.checkpoint.state
            raise DeadlineError(
                f"not done after --pair-timeout {run.pair_timeout:g} seconds, at step {at.step} of {level.steps} of level "
                f"{at.level} ({level.width} x {level.height}); raise it, and the pair goes on from there, "
                "or lower size or steps"
            )
        steps_done = steps_before + cursor.checkpoint.state.step
        chunk = min(chunk, level.steps - cursor.checkpoint.state.step)
        if method.plateau is not None:
            chunk = min(chunk, method.plateau.window - cursor.checkpoint.state.step % method.plateau.window)
        for every in filter(None, (run.snapshots, run.checkpoint_steps)):
            chunk = min(chunk, every - steps_done % every)
        chunk_started = time.monotonic()
        state, new_terms = transfer.advance(backbone, method, targets, cursor.checkpoint.state, chunk, level.steps)  # (n, B, 3)
        chunk_seconds = time.monotonic() - chunk_started
        cursor.checkpoint = _append_chunk(
            cursor.checkpoint, state, new_terms, chunk_started - started_at + chunk_seconds * np.arange(1, chunk + 1) / chunk
        )
        steps_done += chunk
        observer.add(steps_done=chunk * len(loaded_jobs), work_done=chunk * len(loaded_jobs) * level.height * level.width)
        if run.snapshots and steps_done % run.snapshots == 0:
            _write_snapshots(
                loaded_jobs,
                transfer.compute_result(backbone, method, targets, cursor.checkpoint.state)[0].numpy(),
                steps_done,
                run,
            )
        if level.height * level.width > LARGE_IMAGE_PIXELS:
            saver.wait_until_idle(observer.stop)  # a state still being written would be a third, besides this one and the next
        if saver.is_due(steps_done, run):
            saver.save(keys, cursor.checkpoint)
        chunk = int(np.clip(chunk * CHUNK_SECONDS / max(chunk_seconds, 1e-3), 1, 4 * chunk))
    return transfer.compute_result(backbone, method, targets, cursor.checkpoint.state)


def _create_checkpoint(loaded_jobs: list[LoadedJob], method: Method, level: Level) -> Checkpoint:
    """Return the checkpoint of a batch before its first step."""
    state = _create_state(loaded_jobs, method, level)
    return Checkpoint(state, state.image, (_make_empty_terms(len(loaded_jobs)),), (np.zeros(1),))


def _append_chunk(at: Checkpoint, state: transfer.TransferState, terms: np.ndarray, seconds: np.ndarray) -> Checkpoint:
    return replace(
        at,
        state=state,
        terms=(*at.terms[:-1], np.concatenate([at.terms[-1], terms])),
        seconds=(*at.seconds[:-1], np.concatenate([at.seconds[-1], seconds])),
    )


def _start_next_level(at: Checkpoint, image: tf.Tensor, method: Method, schedule: Sequence[Level]) -> Checkpoint:
    """Return the checkpoint before the next level's first step; after the last level, the one with the results."""
    next_level = at.state.level + 1
    if next_level == len(schedule):
        return replace(at, state=transfer.TransferState(image, objective.Nothing(), objective.Nothing(), next_level, 0))
    state = transfer.start_next_level(method, at.state, image, schedule[next_level])
    return Checkpoint(
        state,
        state.image,
        (*at.terms, _make_empty_terms(at.terms[-1].shape[1])),
        (*at.seconds, np.array([at.elapsed_seconds])),
        at.lr_reduced_from_level,
    )


def _restart_level(
    loaded: LoadedJob, at: Checkpoint, divergence: tuple[int, str], level: Level, context: _Context
) -> Iterator[tuple[LoadedJob, TransferResult | PairError]]:
    """Restart the level at a lower learning rate for a pair whose loss blew up, from the level's first image.

    Yield a DivergedError instead if it blew up before, or at step 0, or if the optimizer is L-BFGS.
    """
    step, sentence = divergence
    optimizer = loaded.job.recipe.method.optimizer
    if isinstance(optimizer, LBFGS) or step == 0 or at.lr_reduced_from_level is not None:
        repeat_note = (
            f", and did before at {1 / LR_BACKOFF:g} times the learning rate" if at.lr_reduced_from_level is not None else ""
        )
        yield loaded, DivergedError(f"{sentence}{repeat_note}; lower the weights or take another recipe")
        return
    discarded_steps = len(at.terms[-1]) - 1
    context.progress.add(steps_done=-discarded_steps, work_done=-discarded_steps * level.height * level.width)
    reduced_method = _adjust_method(loaded, at.state.level, at.state.level)
    first = Checkpoint(
        transfer.restart_level(reduced_method, at.state, at.level_start_image),
        at.level_start_image,
        (*at.terms[:-1], _make_empty_terms(1)),
        (*at.seconds[:-1], np.array([at.elapsed_seconds])),
        at.state.level,
    )
    yield from _optimize_group([loaded], _Cursor(first), context)


def _make_empty_terms(pairs: int) -> np.ndarray:
    return np.zeros((0, pairs, len(objective.TERMS)), np.float32)


def _plan_levels(loaded: LoadedJob) -> tuple[Level, ...]:
    return plan_levels(loaded.job.recipe.method, loaded.job.height, loaded.job.width)


def _adjust_method(loaded: LoadedJob, lr_reduced_from_level: int | None, level: int) -> Method:
    """Return the pair's method at a level, with a lower learning rate from `lr_reduced_from_level` on, if that is set."""
    method = loaded.job.recipe.method
    if lr_reduced_from_level is None or level < lr_reduced_from_level or isinstance(method.optimizer, LBFGS):
        return method
    return replace(method, optimizer=replace(method.optimizer, learning_rate=LR_BACKOFF * method.optimizer.learning_rate))


def _make_result(loaded: LoadedJob, at: Checkpoint, schedule: Sequence[Level], context: _Context) -> TransferResult:
    histories = []
    for number, level in enumerate(schedule):
        rates = optimizers.learning_rates(_adjust_method(loaded, at.lr_reduced_from_level, number).optimizer, level.steps)[
            : len(at.terms[number])
        ]
        histories.append(LevelHistory(number, level.height, level.width, at.terms[number][:, 0], rates, at.seconds[number]))
    image = np.clip(np.asarray(at.state.image)[0], 0.0, 1.0)
    measured = measure_quality(loaded, image, histories, context.backbone, context.device)
    has_checkpoints = context.writer.has_saved or loaded.job.key in context.positions
    return TransferResult(image, histories, measured, at.elapsed_seconds, at.lr_reduced_from_level is not None, has_checkpoints)


def _create_state(loaded_jobs: list[LoadedJob], method: Method, level: Level) -> transfer.TransferState:
    initial_images = np.stack([prepare_initial_image(ready, method, level.height, level.width) for ready in loaded_jobs])
    # an initial image that the manifest names gets no noise from the recipe
    seeds = [ready.job.pair.seed if ready.initial is None else None for ready in loaded_jobs]
    return transfer.start(method, initial_images, seeds, level.steps)


def _write_snapshots(loaded_jobs: list[LoadedJob], batch: np.ndarray, step: int, run: Run) -> None:
    for ready, image in zip(loaded_jobs, batch, strict=True):
        picture = codec.encode(postprocess(ready, image), None, "png", {"nst:pair": ready.job.id, "nst:step": str(step)})
        with contextlib.suppress(StorageError):  # a snapshot is optional: its failure must not fail the pair
            files.write(join_uri(run.out, snapshot_path(ready.job.id, step)), picture)


def build_backbone(run: Run) -> vgg.Backbone:
    """Build the backbone of a run.

    Raises:
        StorageError: The weights file cannot be read, or has changed since the run started.
    """
    data = (
        files.read(run.weights) if run.weights else None
    )  # `inputs.readers.read_weights` would report any failure as a bad option
    if weights.compute_sha256(run.backbone, data) != run.weights_sha256:
        raise StorageError("--weights: the file changed while the run was going on; run the same command again")
    return vgg.build(run.backbone, weights.load(run.backbone, data), flipped_direction=detect_flipped_direction())
