"""Optimize one batch level by level, in chunks of steps, with progress, checkpoints and restarts at a lower learning rate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from nst_tasks import checkpoint, hardware, images, loading, measuring, outcome, resume, storage, weights
from nst_tasks.checkpoint import Checkpoint
from nst_tasks.core import backbones, objective, optimizers, transfer
from nst_tasks.core.method import LARGE, LBFGS, Method
from nst_tasks.core.pyramid import Level, levels
from nst_tasks.core.quality import Quality
from nst_tasks.devices import Device
from nst_tasks.errors import DeadlineError, DivergedError, Interrupted, PairError, StorageError
from nst_tasks.history import LevelHistory
from nst_tasks.loading import Loaded
from nst_tasks.progress import Watch
from nst_tasks.settings import Run

CHUNK_SECONDS = 1.0
"""Target duration of a chunk, in seconds; progress, deadline and stop signal are checked between chunks."""

CALMER = 0.1
"""Factor on the learning rate with which a pair whose loss blew up repeats the level."""

EXPLODED = 1e4
"""Multiple of the largest of a level's first ten losses above which a loss has exploded: no descent recovers from there."""


@dataclass(frozen=True)
class Result:
    """Result of the optimization for one pair.

    Attributes:
        image: The network's image (H, W, 3) in [0, 1].
        levels: Loss history of each level.
        seconds: The pair's share of the compute time.
        stepped_back: True if the loss blew up once, so that a level was repeated at a lower learning rate.
        has_checkpoints: True if the output may hold checkpoints of the pair.
    """

    image: np.ndarray
    levels: list[LevelHistory]
    quality: Quality
    seconds: float
    stepped_back: bool
    has_checkpoints: bool


@dataclass(frozen=True)
class _Tools:
    """Everything that the groups of one call of `optimize` share; `pairs` is the number of pairs in the call."""

    pairs: int
    run: Run
    device: Device
    backbone: backbones.Backbone
    observer: Watch
    saver: resume.Saver
    places: Mapping[str, list[resume.Place]]


@dataclass
class _Cursor:
    """Current checkpoint of a batch.

    Sole owner of the state, so that the previous one, gigabytes for a large image, is freed.
    """

    at: Checkpoint


def optimize(loaded: list[Loaded], run: Run, device: Device, observer: Watch) -> list[Result | PairError]:
    """Optimize a batch from its last checkpoint; return, in order, the result of each pair or its own error.

    Raises:
        Interrupted: The run was stopped; a checkpoint is written.
        StorageError: The checkpoints cannot be listed, or the weights file cannot be read or has changed.
        StorageUnavailable: A checkpoint could not be read temporarily.
    """
    backbone = device.backbone(run.weights_sha256, lambda: build_backbone(run))
    results: dict[str, Result | PairError] = {}
    with resume.Saver(run.out, observer.warn) as saver:
        places = resume.listed(run.out, [ready.job.key for ready in loaded])
        tools = _Tools(len(loaded), run, device, backbone, observer, saver, places)
        for members, cursor in _standing(loaded, tools):
            results |= {ready.job.id: result for ready, result in _carried_out(members, cursor, tools)}
    return [results[ready.job.id] for ready in loaded]


def _standing(loaded: list[Loaded], tools: _Tools) -> list[tuple[list[Loaded], _Cursor]]:
    """Group resumed pairs that shared a batch and are at the same step; group pairs without a checkpoint separately."""
    method, schedule = loaded[0].job.recipe.method, _schedule(loaded[0])

    def fits(at: Checkpoint) -> bool:
        k = at.state.level
        if k == len(schedule):  # finished: only the image is left to check
            return tuple(at.state.image.shape) == (1, schedule[-1].height, schedule[-1].width, 3)
        return k < len(schedule) and at.state.step <= schedule[k].steps and transfer.fits(method, at.state, schedule[k])

    keys, observer = [ready.job.key for ready in loaded], tools.observer
    found = resume.resumed(tools.run.out, keys, tools.places, fits, observer.warn)
    stands = {key: (at.state.level, at.state.step) for key, at in zip(keys, found, strict=True) if at is not None}

    def steps_back(at: Checkpoint) -> bool:
        """Return whether a pair's loss blew up in a batch that has split since, whose other pairs continue without it."""
        k, here = at.state.level, (at.state.level, at.state.step)
        parted = any(stands.get(other, here) != here for other in at.companions)
        return parted and k < len(schedule) and _is_lost(method, schedule[k], at, 0)

    groups: dict[object, list[tuple[Loaded, Checkpoint]]] = {}
    fresh = []
    for ready, at in zip(loaded, found, strict=True):
        if at is None:
            fresh.append(ready)
        else:  # plateaus may have ended levels at different steps, and a batch may have split
            alike = (at.state.step, at.calmed_from, *map(len, at.terms), at.companions, steps_back(at) and ready.job.key)
            groups.setdefault(alike, []).append((ready, at))
    standing = [
        ([ready for ready, _ in group], _Cursor(checkpoint.merge([at for _, at in group]))) for group in groups.values()
    ]
    for members, cursor in standing:
        _tell(observer, members, schedule, cursor.at)
    return standing + ([(fresh, _Cursor(_begun(fresh, method, schedule[0])))] if fresh else [])


def _tell(observer: Watch, loaded: list[Loaded], schedule: Sequence[Level], at: Checkpoint) -> None:
    """Add the steps in a checkpoint to the progress, and subtract the steps that a plateau made unnecessary."""
    for number, (level, terms) in enumerate(zip(schedule, at.terms, strict=False)):
        ended = number < at.state.level
        done = len(terms) - ended  # the last row of a finished level belongs to its result
        pixels = len(loaded) * level.height * level.width
        observer.add(steps_done=done * len(loaded), work_done=done * pixels)
        if ended:
            _spare(observer, loaded, level, done)


def _spare(observer: Watch, loaded: list[Loaded], level: Level, done: int) -> None:
    """Subtract from the progress totals the steps of a level that pairs skip by ending it after `done` steps."""
    if spared := (level.steps - done) * len(loaded):
        observer.add(steps=-spared, work=-spared * level.height * level.width)


def _carried_out(loaded: list[Loaded], cursor: _Cursor, tools: _Tools) -> Iterator[tuple[Loaded, Result | PairError]]:
    """Optimize a group from its checkpoint to the end; yield each pair with its result or error, restarted pairs last."""
    schedule = _schedule(loaded[0])
    again: list[Iterator[tuple[Loaded, Result | PairError]]] = []
    while cursor.at.state.level < len(schedule):
        number = cursor.at.state.level
        level, method = schedule[number], _method(loaded[0], cursor.at.calmed_from, number)
        try:
            with tools.observer.compute():
                image, last = _stepped(loaded, cursor, method, schedule, tools)
        except DeadlineError as error:
            yield from ((ready, error) for ready in loaded)
            loaded = []
            break
        ended, terms = _ended(method, level, cursor.at), np.concatenate([cursor.at.terms[-1], last[None]])
        going = [k for k in range(len(loaded)) if k not in ended]  # these continue beyond the others' plateau
        blown = {k: why for k in ended if (why := _blown_up(method, level, number, terms[:, k])) is not None}
        healthy = [k for k in ended if k not in blown]
        if bool(going) + bool(healthy) + len(blown) > 1:  # the batch splits here: after a kill it must resume split
            tools.saver.save([ready.job.key for ready in loaded], cursor.at)
        if going:
            again.append(_carried_out([loaded[k] for k in going], _Cursor(checkpoint.take(cursor.at, going)), tools))
        cursor.at = replace(cursor.at, terms=(*cursor.at.terms[:-1], terms))
        again += [_stepped_back(loaded[k], checkpoint.take(cursor.at, [k]), why, level, tools) for k, why in blown.items()]
        if not healthy:
            loaded = []
            break
        if len(healthy) < len(loaded):
            loaded, image = [loaded[k] for k in healthy], tf.gather(image, healthy)
            cursor.at = checkpoint.take(cursor.at, healthy)
        _spare(tools.observer, loaded, level, cursor.at.state.step)
        cursor.at = _ascended(cursor.at, image, method, schedule)
    if loaded and tools.pairs > 1:  # so that a kill before the last marker repeats no step
        tools.saver.save([ready.job.key for ready in loaded], cursor.at)
    for k, ready in enumerate(loaded):
        with tools.observer.compute():
            result = _result(ready, checkpoint.take(cursor.at, [k]), schedule, tools)
        yield ready, result
    for pairs in again:
        yield from pairs


def _stepped(
    loaded: list[Loaded], cursor: _Cursor, method: Method, schedule: Sequence[Level], tools: _Tools
) -> tuple[tf.Tensor, np.ndarray]:
    """Run steps of a level until it ends for one of the pairs; return the images (B, H, W, 3) and their terms (B, 3).

    Raises:
        DeadlineError: The batch took longer than its pairs may.
        Interrupted: The run was stopped.
    """
    run, backbone, observer, saver = tools.run, tools.backbone, tools.observer, tools.saver
    keys = [ready.job.key for ready in loaded]
    level, before = schedule[cursor.at.state.level], sum(len(terms) - 1 for terms in cursor.at.terms[:-1])
    began = time.monotonic() - cursor.at.elapsed
    if level.height * level.width > LARGE:
        tools.device.contents.clear()  # those of coarser levels: their memory is needed here
    targets = measuring.targets(loaded, method, level, backbone, tools.device)
    chunk = 1
    while not _ended(method, level, cursor.at):
        if observer.stop.is_set():
            if before + cursor.at.state.step:
                saver.save(keys, cursor.at)
            raise Interrupted("interrupted between two chunks of steps")
        if run.pair_timeout and cursor.at.elapsed > run.pair_timeout * len(loaded):
            saver.save(keys, cursor.at)
            raise DeadlineError(
                f"not done after --pair-timeout {run.pair_timeout:g} seconds, at step {cursor.at.state.step} of {level.steps} "
                f"of level {cursor.at.state.level} ({level.width} x {level.height}); raise it, and the pair goes on from "
                "there, or lower size or steps"
            )
        done = before + cursor.at.state.step
        chunk = min(chunk, level.steps - cursor.at.state.step)
        if method.plateau is not None:
            chunk = min(chunk, method.plateau.window - cursor.at.state.step % method.plateau.window)
        for every in filter(None, (run.snapshots, run.checkpoint_steps)):
            chunk = min(chunk, every - done % every)
        started = time.monotonic()
        state, more = transfer.advance(backbone, method, targets, cursor.at.state, chunk, level.steps)  # (n, B, 3)
        took = time.monotonic() - started
        cursor.at = _extended(cursor.at, state, more, started - began + took * np.arange(1, chunk + 1) / chunk)
        done += chunk
        observer.add(steps_done=chunk * len(loaded), work_done=chunk * len(loaded) * level.height * level.width)
        if run.snapshots and done % run.snapshots == 0:
            _snapshot(loaded, transfer.result(backbone, method, targets, cursor.at.state)[0].numpy(), done, run)
        if level.height * level.width > LARGE:
            saver.settle(observer.stop)  # a state still being written would be a third, besides this one and the next
        if saver.due(done, run):
            saver.save(keys, cursor.at)
        chunk = int(np.clip(chunk * CHUNK_SECONDS / max(took, 1e-3), 1, 4 * chunk))
    return transfer.result(backbone, method, targets, cursor.at.state)


def _begun(loaded: list[Loaded], method: Method, level: Level) -> Checkpoint:
    """Return the checkpoint of a batch before its first step."""
    state = _start(loaded, method, level)
    return Checkpoint(state, state.image, (_no_rows(len(loaded)),), (np.zeros(1),))


def _extended(at: Checkpoint, state: transfer.TransferState, terms: np.ndarray, seconds: np.ndarray) -> Checkpoint:
    return replace(
        at,
        state=state,
        terms=(*at.terms[:-1], np.concatenate([at.terms[-1], terms])),
        seconds=(*at.seconds[:-1], np.concatenate([at.seconds[-1], seconds])),
    )


def _ascended(at: Checkpoint, image: tf.Tensor, method: Method, schedule: Sequence[Level]) -> Checkpoint:
    """Return the checkpoint before the next level's first step; after the last level, the one with the results."""
    following = at.state.level + 1
    if following == len(schedule):
        return replace(at, state=transfer.TransferState(image, objective.Nothing(), objective.Nothing(), following, 0))
    state = transfer.ascend(method, at.state, image, schedule[following])
    return Checkpoint(
        state,
        state.image,
        (*at.terms, _no_rows(at.terms[-1].shape[1])),
        (*at.seconds, np.array([at.elapsed])),
        at.calmed_from,
    )


def _stepped_back(
    ready: Loaded, at: Checkpoint, why: tuple[int, str], level: Level, tools: _Tools
) -> Iterator[tuple[Loaded, Result | PairError]]:
    """Restart the level at a lower learning rate for a pair whose loss blew up, from the level's first image.

    Yield a DivergedError instead if it blew up before, or at step 0, or if the optimizer is L-BFGS.
    """
    step, sentence = why
    optimizer = ready.job.recipe.method.optimizer
    if isinstance(optimizer, LBFGS) or step == 0 or at.calmed_from is not None:
        again = f", and did before at {1 / CALMER:g} times the learning rate" if at.calmed_from is not None else ""
        yield ready, DivergedError(f"{sentence}{again}; lower the weights or take another recipe")
        return
    wasted = len(at.terms[-1]) - 1
    tools.observer.add(steps_done=-wasted, work_done=-wasted * level.height * level.width)
    calmer = _method(ready, at.state.level, at.state.level)
    first = Checkpoint(
        transfer.restart(calmer, at.state, at.first),
        at.first,
        (*at.terms[:-1], _no_rows(1)),
        (*at.seconds[:-1], np.array([at.elapsed])),
        at.state.level,
    )
    yield from _carried_out([ready], _Cursor(first), tools)


def _no_rows(pairs: int) -> np.ndarray:
    return np.zeros((0, pairs, len(objective.TERMS)), np.float32)


def _schedule(ready: Loaded) -> tuple[Level, ...]:
    return levels(ready.job.recipe.method, ready.job.height, ready.job.width)


def _method(ready: Loaded, calmed_from: int | None, level: int) -> Method:
    """Return the pair's method at a level, with a lower learning rate from level `calmed_from` on unless that is None."""
    method = ready.job.recipe.method
    if calmed_from is None or level < calmed_from or isinstance(method.optimizer, LBFGS):
        return method
    return replace(method, optimizer=replace(method.optimizer, learning_rate=CALMER * method.optimizer.learning_rate))


def _result(ready: Loaded, at: Checkpoint, schedule: Sequence[Level], tools: _Tools) -> Result:
    histories = []
    for number, level in enumerate(schedule):
        rates = optimizers.learning_rates(_method(ready, at.calmed_from, number).optimizer, level.steps)[
            : len(at.terms[number])
        ]
        histories.append(LevelHistory(number, level.height, level.width, at.terms[number][:, 0], rates, at.seconds[number]))
    image = np.clip(np.asarray(at.state.image)[0], 0.0, 1.0)
    measured = measuring.quality_of(ready, image, histories, tools.backbone, tools.device)
    has_checkpoints = tools.saver.has_saved or ready.job.key in tools.places
    return Result(image, histories, measured, at.elapsed, at.calmed_from is not None, has_checkpoints)


def _start(loaded: list[Loaded], method: Method, level: Level) -> transfer.TransferState:
    firsts = np.stack([loading.initial(ready, method, level.height, level.width) for ready in loaded])
    # an initial image that the manifest names gets no noise from the recipe
    seeds = [ready.job.seed if ready.initial is None else None for ready in loaded]
    return transfer.start(method, firsts, seeds, level.steps)


def _snapshot(loaded: list[Loaded], batch: np.ndarray, step: int, run: Run) -> None:
    for ready, image in zip(loaded, batch, strict=True):
        picture = images.encode(loading.finished(ready, image), None, "png", {"nst:pair": ready.job.id, "nst:step": str(step)})
        with contextlib.suppress(StorageError):  # a snapshot is optional: its failure must not fail the pair
            storage.write(storage.join(run.out, outcome.snapshot_path(ready.job.id, step)), picture)


def _ended(method: Method, level: Level, at: Checkpoint) -> list[int]:
    """Return the indices of the pairs whose level is over, or an empty list while the whole batch continues.

    A pair whose loss blew up stays in the batch until another pair's level is over, or all have blown up.
    """
    pairs = range(at.terms[-1].shape[1])
    through = {k for k in pairs if at.state.step == level.steps or _is_flat(method, at, k)}
    lost = {k for k in pairs if _is_lost(method, level, at, k)}
    return sorted(through | lost) if through or len(lost) == len(pairs) else []


def _is_flat(method: Method, at: Checkpoint, k: int) -> bool:
    totals = at.terms[-1][:, k].sum(axis=1, dtype=np.float64)
    return method.plateau is not None and method.plateau.is_reached(totals)


def _is_lost(method: Method, level: Level, at: Checkpoint, k: int) -> bool:
    """Return whether a pair's loss blew up; never with L-BFGS, which may recover."""
    if isinstance(method.optimizer, LBFGS):
        return False
    return _blown_up(method, level, at.state.level, at.terms[-1][:, k]) is not None


def _blown_up(method: Method, level: Level, number: int, terms: np.ndarray) -> tuple[int, str] | None:
    """Return the first step of terms (n, 3) whose loss is not finite or exploded, and a sentence naming the term, or None."""
    bad = ~np.isfinite(terms)
    if isinstance(method.optimizer, LBFGS) and not bad[-1].any():
        return None  # it recovers from non-finite values: only the last row counts
    where = f"of level {number} ({level.width} x {level.height})"
    if bad.any():
        step, term = np.argwhere(bad)[0]
        return int(step), f"the {objective.TERMS[term]} loss is not a finite number at step {step} {where}"
    total = terms.sum(axis=1, dtype=np.float64)
    high = EXPLODED * total[:10].max(initial=0.0)
    if method.clip or not (exploded := np.flatnonzero(total > high)).size:  # a clipped image's loss is bounded
        return None
    step = int(exploded[0])
    term = int(np.argmax(terms[step]))
    return step, f"the {objective.TERMS[term]} loss exploded to {terms[step, term]:.3g} at step {step} {where}"


def build_backbone(run: Run) -> backbones.Backbone:
    """Build the backbone of a run.

    Raises:
        StorageError: The weights file cannot be read, or has changed since the run started.
    """
    data = storage.read(run.weights) if run.weights else None  # `intake.read_weights` would report any failure as a bad option
    if weights.sha256(run.backbone, data) != run.weights_sha256:
        raise StorageError("--weights: the file changed while the run was going on; run the same command again")
    return backbones.build(run.backbone, weights.load(run.backbone, data), turns=hardware.turns())
