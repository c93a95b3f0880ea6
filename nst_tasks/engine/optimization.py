"""Optimize one batch level by level, from its last checkpoint, with restarts at a lower learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from nst_tasks.core import objective, optimizers, transfer, vgg
from nst_tasks.core.method import LBFGS, Method
from nst_tasks.core.metrics import Quality
from nst_tasks.core.pyramid import Level, plan_levels
from nst_tasks.engine import checkpoint, checkpoint_store
from nst_tasks.engine.checkpoint import Checkpoint, PairHistory
from nst_tasks.engine.checkpoint_store import CheckpointWriter
from nst_tasks.engine.devices import Device
from nst_tasks.engine.divergence import find_divergence
from nst_tasks.engine.evaluation import measure_quality
from nst_tasks.engine.hardware import detect_flipped_direction
from nst_tasks.engine.lockstep import Context, Group, run_level
from nst_tasks.engine.preprocessing import LoadedJob, prepare_initial_image
from nst_tasks.errors import DeadlineError, DivergedError, PairError, StorageError
from nst_tasks.inputs import weights
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.loss_history import LevelHistory
from nst_tasks.progress import Progress
from nst_tasks.storage import files

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


def optimize(loaded_jobs: list[LoadedJob], run: Run, device: Device, progress: Progress) -> list[TransferResult | PairError]:
    """Optimize a batch from its last checkpoint; return, in order, the result of each pair or its own error.

    The pairs go through the levels in lockstep: one whose level has ended waits unchanged until it has ended for all. A pair
    whose loss blew up is then taken out, and repeats the level alone at a lower learning rate after the others are done.

    Raises:
        Interrupted: The run was stopped; a checkpoint is written.
        StorageError: The weights file cannot be read or has changed.
        StorageUnavailable: The checkpoints could not be listed or read temporarily.
        StorageUnusable: The store rejects the whole run.
    """
    backbone = device.get_backbone(run.weights_sha256, lambda: build_backbone(run))
    job, keys = loaded_jobs[0].job, [loaded.job.key for loaded in loaded_jobs]
    schedule = plan_levels(job.recipe.method, job.height, job.width)
    results: dict[str, TransferResult | PairError] = {}
    with CheckpointWriter(run.out, progress.warn) as writer:
        positions = checkpoint_store.find_checkpoints(run.out, keys, progress.warn)
        context = Context(len(loaded_jobs), schedule, run, device, backbone, progress, writer, positions)
        for group in _resume(loaded_jobs, context):
            results.update(_optimize_group(group, context))
    return [results[loaded.job.id] for loaded in loaded_jobs]


def _resume(loaded_jobs: list[LoadedJob], context: Context) -> list[Group]:
    """Group the pairs by the position of their checkpoints, restarted ones alone; those without one are the last group."""
    method, schedule, keys = loaded_jobs[0].job.recipe.method, context.schedule, [loaded.job.key for loaded in loaded_jobs]

    def is_compatible(at: Checkpoint) -> bool:
        return checkpoint.is_compatible(at, method, schedule)

    found = checkpoint_store.load_latest(context.run.out, keys, context.positions, is_compatible, context.progress.warn)
    # a kill may have cut the first save short: its pairs start together again, as a GPU's last bits depend on the batch
    starts_together = None in found
    groups: dict[object, list[tuple[LoadedJob, Checkpoint]]] = {}
    fresh = []
    for loaded, at in zip(loaded_jobs, found, strict=True):
        if at is None or (starts_together and not at.restarted and at.state.level < len(schedule)):
            fresh.append(loaded)
            continue
        groups.setdefault((at.position, at.restarted and loaded.job.key), []).append((loaded, at))
        for number, (level, seconds) in enumerate(zip(schedule, at.histories[0].seconds, strict=False)):
            done = len(seconds) - 1
            context.count_steps(level, done, skipped=level.steps - done if number < at.state.level else 0)
    resumed = [Group([loaded for loaded, _ in group], checkpoint.merge([at for _, at in group])) for group in groups.values()]
    return resumed + ([Group(fresh, _create_checkpoint(fresh, method, schedule[0]))] if fresh else [])


def _optimize_group(group: Group, context: Context) -> Iterator[tuple[str, TransferResult | PairError]]:
    """Optimize a group to the end; yield the id of each pair with its result or error, restarted pairs last."""
    restarts: list[Group] = []
    while group.loaded_jobs and group.checkpoint.state.level < len(context.schedule):
        number = group.checkpoint.state.level
        level, recipe_method = context.schedule[number], group.loaded_jobs[0].job.recipe.method
        method = _adjust_method(recipe_method, group.checkpoint.lr_reduced_from_level, number)
        try:
            with context.progress.count_computation():
                image, terms = run_level(group, method, level, context)
        except DeadlineError as error:
            yield from ((loaded.job.id, error) for loaded in group.loaded_jobs)
            group.loaded_jobs = []
            break
        rows = [np.vstack([history.terms[-1], terms[k]]) for k, history in enumerate(group.checkpoint.histories)]
        divergences = [find_divergence(method, level, number, each) for each in rows]
        if any(divergences) and len(divergences) > 1:  # the pairs part here, and after a kill they must do so again
            group.save(context.writer)
        for k, divergence in enumerate(divergences):
            try:
                if divergence is not None:
                    restarts.append(_restart_level(group, k, divergence, context))
            except DivergedError as error:
                yield group.loaded_jobs[k].job.id, error
        kept = [k for k, divergence in enumerate(divergences) if divergence is None]
        _start_next_level(group, kept, image, terms, method, context)
    if group.loaded_jobs and context.pair_count > 1:  # so that a kill before the last marker repeats no step
        group.save(context.writer)
    for k, loaded in enumerate(group.loaded_jobs):
        with context.progress.count_computation():
            result = _make_result(loaded, checkpoint.select_pairs(group.checkpoint, [k]), context)
        yield loaded.job.id, result
    for restarted in restarts:
        yield from _optimize_group(restarted, context)


def _create_checkpoint(loaded_jobs: list[LoadedJob], method: Method, level: Level) -> Checkpoint:
    """Return the checkpoint of a batch before its first step."""
    images = np.stack([prepare_initial_image(loaded, method, level.height, level.width) for loaded in loaded_jobs])
    # an initial image that the manifest names gets no noise from the recipe
    seeds = [loaded.job.pair.seed if loaded.initial is None else None for loaded in loaded_jobs]
    state = transfer.start(method, images, seeds, level.steps)
    return Checkpoint(state, state.image, (PairHistory(),) * len(loaded_jobs))


def _start_next_level(
    group: Group, kept: list[int], image: tf.Tensor, terms: np.ndarray, method: Method, context: Context
) -> None:
    """Move the pairs at the `kept` indices, and only them, to the next level, or after the last level to their results.

    Args:
        image: The results (B, H, W, 3) of the level.
        terms: The terms (B, 3) of the results.
    """
    number = group.checkpoint.state.level
    if len(kept) < len(group.loaded_jobs):
        group.loaded_jobs = [group.loaded_jobs[k] for k in kept]
        if not kept:
            return
        group.checkpoint, image, terms = checkpoint.select_pairs(group.checkpoint, kept), tf.gather(image, kept), terms[kept]
    level, histories = context.schedule[number], group.checkpoint.histories
    context.count_steps(level, skipped=sum(level.steps - len(history.terms[-1]) for history in histories))
    if number + 1 == len(context.schedule):
        state = transfer.TransferState(image, objective.Nothing(), objective.Nothing(), number + 1, 0)
    else:
        state = transfer.start_next_level(method, group.checkpoint.state, image, context.schedule[number + 1])
    group.checkpoint = replace(
        group.checkpoint,
        state=state,
        level_start_image=state.image,
        histories=tuple(history.finish_level(row) for history, row in zip(histories, terms, strict=True)),
    )


def _restart_level(group: Group, k: int, divergence: tuple[int, str], context: Context) -> Group:
    """Return the k-th pair of a group alone, at the start of the level, with a lower learning rate.

    Raises:
        DivergedError: Its loss blew up before, or at step 0, or the optimizer is L-BFGS.
    """
    loaded, at = group.loaded_jobs[k], checkpoint.select_pairs(group.checkpoint, [k])
    method, number, (step, sentence) = loaded.job.recipe.method, at.state.level, divergence
    if isinstance(method.optimizer, LBFGS) or step == 0 or at.restarted:
        repeated = f", and did before at {1 / LR_BACKOFF:g} times the learning rate" if at.restarted else ""
        raise DivergedError(f"{sentence}{repeated}; lower the weights or take another recipe")
    (history,) = at.histories
    context.count_steps(context.schedule[number], done=-len(history.terms[-1]))
    state = transfer.restart_level(_adjust_method(method, number, number), at.state, at.level_start_image)
    return Group([loaded], Checkpoint(state, at.level_start_image, (history.restart_level(),), number))


def _adjust_method(method: Method, lr_reduced_from_level: int | None, level: int) -> Method:
    """Return the method at a level, with a lower learning rate from `lr_reduced_from_level` on, if that is set."""
    if lr_reduced_from_level is None or level < lr_reduced_from_level:
        return method
    return replace(method, optimizer=replace(method.optimizer, learning_rate=LR_BACKOFF * method.optimizer.learning_rate))


def _make_result(loaded: LoadedJob, at: Checkpoint, context: Context) -> TransferResult:
    (history,), method, levels = at.histories, loaded.job.recipe.method, []
    for number, level in enumerate(context.schedule):
        terms, seconds = history.terms[number], history.seconds[number]
        rates = optimizers.learning_rates(_adjust_method(method, at.lr_reduced_from_level, number).optimizer, level.steps)
        levels.append(LevelHistory(number, level.height, level.width, terms, rates[: len(terms)], seconds))
    image = np.clip(np.asarray(at.state.image)[0], 0.0, 1.0)
    quality = measure_quality(loaded, image, levels, context.backbone, context.device)
    has_checkpoints = context.writer.has_saved or loaded.job.key in context.positions
    return TransferResult(image, levels, quality, history.elapsed_seconds, at.restarted, has_checkpoints)


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
