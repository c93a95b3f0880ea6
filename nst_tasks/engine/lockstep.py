"""Run pairs through one level in lockstep, in chunks of steps, with progress, deadline, snapshots and checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from nst_tasks.core import transfer, vgg
from nst_tasks.core.method import LARGE_IMAGE_PIXELS, Method
from nst_tasks.core.pyramid import Level
from nst_tasks.engine.checkpoint import Checkpoint
from nst_tasks.engine.checkpoint_store import CheckpointWriter, Position
from nst_tasks.engine.devices import Device
from nst_tasks.engine.divergence import has_ended
from nst_tasks.engine.preprocessing import LoadedJob, postprocess
from nst_tasks.engine.targets import build_targets
from nst_tasks.errors import DeadlineError, Interrupted, StorageError
from nst_tasks.images import codec
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.layout import snapshot_path
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

CHUNK_SECONDS = 1.0
"""Target duration of a chunk, in seconds; progress, deadline and stop signal are checked between chunks."""


@dataclass(frozen=True)
class Context:
    """Everything that the groups of one call of `optimize` share; `pair_count` is the number of pairs in the call."""

    pair_count: int
    schedule: tuple[Level, ...]
    run: Run
    device: Device
    backbone: vgg.Backbone
    progress: Progress
    writer: CheckpointWriter
    positions: Mapping[str, list[Position]]

    def count_steps(self, level: Level, done: int = 0, skipped: int = 0) -> None:
        """Add steps of a level to the progress, and subtract from its totals the steps that a plateau made unnecessary."""
        pixels = level.height * level.width
        self.progress.add(steps_done=done, work_done=done * pixels, steps=-skipped, work=-skipped * pixels)


@dataclass
class Group:
    """Pairs that are optimized in lockstep, and their checkpoint.

    Sole owner of the state, so that the previous one, gigabytes for a large image, is freed.
    """

    loaded_jobs: list[LoadedJob]
    checkpoint: Checkpoint

    def find_moving_pairs(self, method: Method, level: Level) -> list[int]:
        """Return the indices of the pairs whose level has not ended."""
        number, histories = self.checkpoint.state.level, self.checkpoint.histories
        return [k for k, history in enumerate(histories) if not has_ended(method, level, number, history.terms[-1])]

    def save(self, writer: CheckpointWriter) -> None:
        """Start writing the pairs' checkpoints."""
        writer.save([loaded.job.key for loaded in self.loaded_jobs], self.checkpoint)


def run_level(group: Group, method: Method, level: Level, context: Context) -> tuple[tf.Tensor, np.ndarray]:
    """Run steps of a level until it has ended for all pairs; return the images (B, H, W, 3) and their terms (B, 3).

    Raises:
        DeadlineError: The group took longer than its pairs may.
        Interrupted: The run was stopped.
    """
    run, backbone, progress, writer = context.run, context.backbone, context.progress, context.writer
    is_large = level.height * level.width > LARGE_IMAGE_PIXELS
    timed_until = time.monotonic()
    if is_large:
        context.device.content_cache.clear()  # those of coarser levels: their memory is needed here
    targets = build_targets(group.loaded_jobs, method, level, backbone, context.device)
    chunk = 1
    while moving := group.find_moving_pairs(method, level):
        _check_limits(group, level, context)
        step, histories = group.checkpoint.state.step, list(group.checkpoint.histories)
        chunk = min(chunk, level.steps - step)
        if method.plateau is not None:
            chunk = min(chunk, method.plateau.window - step % method.plateau.window)
        for every in filter(None, (run.snapshots, run.checkpoint_steps)):
            chunk = min(chunk, *(every - histories[k].steps_done % every for k in moving))
        started_at = time.monotonic()
        state, terms = transfer.advance(backbone, method, targets, group.checkpoint.state, chunk, level.steps)  # (n, B, 3)
        if len(moving) < len(histories):
            state = transfer.hold_pairs(group.checkpoint.state, state, [k in moving for k in range(len(histories))])
        ended_at = time.monotonic()
        for k in moving:
            histories[k] = histories[k].add_steps(terms[:, k], (ended_at - timed_until) / len(moving))
        timed_until = ended_at
        group.checkpoint = replace(group.checkpoint, state=state, histories=tuple(histories))
        context.count_steps(level, done=chunk * len(moving))
        steps_done = {k: histories[k].steps_done for k in moving}
        if due := [k for k in moving if run.snapshots and steps_done[k] % run.snapshots == 0]:
            images = transfer.compute_result(backbone, method, targets, state)[0]
            for k in due:
                _write_snapshot(group.loaded_jobs[k], images[k].numpy(), steps_done[k], run)
        if is_large:
            writer.wait_until_idle(progress.stop)  # a state still being written would be a third, besides this one and the next
        if writer.is_due(max(steps_done.values()), run):
            group.save(writer)
        chunk = int(np.clip(chunk * CHUNK_SECONDS / max(ended_at - started_at, 1e-3), 1, 4 * chunk))
    return transfer.compute_result(backbone, method, targets, group.checkpoint.state)


def _check_limits(group: Group, level: Level, context: Context) -> None:
    """Save the group and raise if the run was stopped (Interrupted) or its pairs took too long (DeadlineError)."""
    at, timeout = group.checkpoint, context.run.pair_timeout
    if context.progress.stop.is_set():
        if any(history.steps_done for history in at.histories):
            group.save(context.writer)
        raise Interrupted("interrupted between two chunks of steps")
    if timeout and sum(history.elapsed_seconds for history in at.histories) > timeout * len(at.histories):
        group.save(context.writer)
        raise DeadlineError(
            f"not done after --pair-timeout {timeout:g} seconds, at step {at.state.step} of {level.steps} of level "
            f"{at.state.level} ({level.width} x {level.height}); raise it, and the pair goes on from there, "
            "or lower size or steps"
        )


def _write_snapshot(loaded: LoadedJob, image: np.ndarray, step: int, run: Run) -> None:
    picture = codec.encode(postprocess(loaded, image), None, "png", {"nst:pair": loaded.job.id, "nst:step": str(step)})
    with contextlib.suppress(StorageError):  # a snapshot is optional: its failure must not fail the pair
        files.write(join_uri(run.out, snapshot_path(loaded.job.id, step)), picture)
