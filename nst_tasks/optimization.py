"""One batch through the core: level by level, in chunks of steps, with progress, checkpoints and steps back."""

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
"""Compute between two looks at progress, deadline and interruption."""

CALMER = 0.1
"""Share of its learning rate with which a pair whose loss blew up is taken through the level again."""

EXPLODED = 1e4
"""A loss this many times the largest of its level's first ten has exploded: no descent comes back from there."""


@dataclass(frozen=True)
class Result:
    """What the optimization gave for one pair: the network's image (H, W, 3), history, quality, its share of seconds.

    `stepped_back` tells whether its loss blew up once, and a level was gone through again at a lower rate; `has_checkpoints`,
    whether any may lie in the output.
    """

    image: np.ndarray
    levels: list[LevelHistory]
    quality: Quality
    seconds: float
    stepped_back: bool
    has_checkpoints: bool


@dataclass(frozen=True)
class _Tools:
    """What the steps of every batch of one call need; `pairs` are those of the call."""

    pairs: int
    run: Run
    device: Device
    backbone: backbones.Backbone
    observer: Watch
    saver: resume.Saver
    places: Mapping[str, list[resume.Place]]


@dataclass
class _Cursor:
    """Where a batch stands. The one reference to it: whoever kept the state before would keep gigabytes of a large picture."""

    at: Checkpoint


def optimize(loaded: list[Loaded], run: Run, device: Device, observer: Watch) -> list[Result | PairError]:
    """Carry out the method on a batch from its last checkpoint: results in order, a pair's own error in place of its result.

    Raises:
        Interrupted: the run was asked to stop; a checkpoint is written. StorageUnavailable: none could be read for the moment.
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
    """The batch by where its pairs stand, so that those go on together that did before, and are at the same step."""
    method, schedule = loaded[0].job.recipe.method, _schedule(loaded[0])

    def fits(at: Checkpoint) -> bool:
        k = at.state.level
        if k == len(schedule):  # finished: its image is all that is left to look at
            return tuple(at.state.image.shape) == (1, schedule[-1].height, schedule[-1].width, 3)
        return k < len(schedule) and at.state.step <= schedule[k].steps and transfer.fits(method, at.state, schedule[k])

    keys, observer = [ready.job.key for ready in loaded], tools.observer
    found = resume.resumed(tools.run.out, keys, tools.places, fits, observer.warn)
    stands = {key: (at.state.level, at.state.step) for key, at in zip(keys, found, strict=True) if at is not None}

    def steps_back(at: Checkpoint) -> bool:
        """Whether a pair's loss blew up in a batch that has parted since: those who go on from the same place do so without."""
        k, here = at.state.level, (at.state.level, at.state.step)
        parted = any(stands.get(other, here) != here for other in at.companions)
        return parted and k < len(schedule) and _is_lost(method, schedule[k], at, 0)

    groups: dict[object, list[tuple[Loaded, Checkpoint]]] = {}
    fresh = []
    for ready, at in zip(loaded, found, strict=True):
        if at is None:
            fresh.append(ready)
        else:  # plateaus may have cut other levels at other steps, and a batch may have parted
            alike = (at.state.step, at.calmed_from, *map(len, at.terms), at.companions, steps_back(at) and ready.job.key)
            groups.setdefault(alike, []).append((ready, at))
    standing = [
        ([ready for ready, _ in group], _Cursor(checkpoint.merge([at for _, at in group]))) for group in groups.values()
    ]
    for members, cursor in standing:
        _tell(observer, members, schedule, cursor.at)
    return standing + ([(fresh, _Cursor(_begun(fresh, method, schedule[0])))] if fresh else [])


def _tell(observer: Watch, loaded: list[Loaded], schedule: Sequence[Level], at: Checkpoint) -> None:
    """Count what was done before, and what a plateau has spared."""
    for number, (level, terms) in enumerate(zip(schedule, at.terms, strict=False)):
        ended = number < at.state.level
        done = len(terms) - ended  # the last row of a level that has ended is its result's
        pixels = len(loaded) * level.height * level.width
        observer.add(steps_done=done * len(loaded), work_done=done * pixels)
        if ended:
            _spare(observer, loaded, level, done)


def _spare(observer: Watch, loaded: list[Loaded], level: Level, done: int) -> None:
    """Count no longer on those of a level's steps that pairs, having done so many, do without."""
    if spared := (level.steps - done) * len(loaded):
        observer.add(steps=-spared, work=-spared * level.height * level.width)


def _carried_out(loaded: list[Loaded], cursor: _Cursor, tools: _Tools) -> Iterator[tuple[Loaded, Result | PairError]]:
    """Each pair with what becomes of it, from where the batch stands to its end; those that step back come last."""
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
        going = [k for k in range(len(loaded)) if k not in ended]  # past the others' plateau
        blown = {k: why for k in ended if (why := _blown_up(method, level, number, terms[:, k])) is not None}
        healthy = [k for k in ended if k not in blown]
        if bool(going) + bool(healthy) + len(blown) > 1:  # each goes on apart from here: so it does after a kill, too
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
    if loaded and tools.pairs > 1:  # so that a kill before the last pair's marker leaves nothing of these to do again
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
    """Steps of a level until it ends for one of the pairs; the images that these came to, and their terms (B, 3).

    Raises:
        DeadlineError: the batch took longer than its pairs may. Interrupted: the run was asked to stop.
    """
    run, backbone, observer, saver = tools.run, tools.backbone, tools.observer, tools.saver
    keys = [ready.job.key for ready in loaded]
    level, before = schedule[cursor.at.state.level], sum(len(terms) - 1 for terms in cursor.at.terms[:-1])
    began = time.monotonic() - cursor.at.elapsed
    if level.height * level.width > LARGE:
        tools.device.contents.clear()  # of coarser levels: what they take is wanted here
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
            saver.settle(observer.stop)  # what is still being written would be a third state, besides this one and the next
        if saver.due(done, run):
            saver.save(keys, cursor.at)
        chunk = int(np.clip(chunk * CHUNK_SECONDS / max(took, 1e-3), 1, 4 * chunk))
    return transfer.result(backbone, method, targets, cursor.at.state)


def _begun(loaded: list[Loaded], method: Method, level: Level) -> Checkpoint:
    """A batch before its first step."""
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
    """The batch before the next level's first step; after the last level, with its results."""
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
    """A pair whose loss blew up, once more from the level's first image at a lower learning rate; what blows up again fails."""
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
    """The method at a level of a pair that was stepped back at `calmed_from`, if it was."""
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
    # a picture that somebody chose to start from is taken as it is, without the recipe's noise
    seeds = [ready.job.seed if ready.initial is None else None for ready in loaded]
    return transfer.start(method, firsts, seeds, level.steps)


def _snapshot(loaded: list[Loaded], batch: np.ndarray, step: int, run: Run) -> None:
    for ready, image in zip(loaded, batch, strict=True):
        picture = images.encode(loading.finished(ready, image), None, "png", {"nst:pair": ready.job.id, "nst:step": str(step)})
        with contextlib.suppress(StorageError):  # something to look at: not worth the pair, should the store fail just now
            storage.write(storage.join(run.out, outcome.snapshot_path(ready.job.id, step)), picture)


def _ended(method: Method, level: Level, at: Checkpoint) -> list[int]:
    """The pairs whose level is over, none while all go on; pairs whose loss blew up go along until another's level is over."""
    pairs = range(at.terms[-1].shape[1])
    through = {k for k in pairs if at.state.step == level.steps or _is_flat(method, at, k)}
    lost = {k for k in pairs if _is_lost(method, level, at, k)}
    return sorted(through | lost) if through or len(lost) == len(pairs) else []


def _is_flat(method: Method, at: Checkpoint, k: int) -> bool:
    totals = at.terms[-1][:, k].sum(axis=1, dtype=np.float64)
    return method.plateau is not None and method.plateau.is_reached(totals)


def _is_lost(method: Method, level: Level, at: Checkpoint, k: int) -> bool:
    """Whether a pair's loss blew up; L-BFGS may come back from there."""
    if isinstance(method.optimizer, LBFGS):
        return False
    return _blown_up(method, level, at.state.level, at.terms[-1][:, k]) is not None


def _blown_up(method: Method, level: Level, number: int, terms: np.ndarray) -> tuple[int, str] | None:
    """The first step of a level's rows (n, 3) at which the loss is not finite or has exploded, and a sentence with its term."""
    bad = ~np.isfinite(terms)
    if isinstance(method.optimizer, LBFGS) and not bad[-1].any():
        return None  # it comes back from the values that are not: only what it ends with counts
    where = f"of level {number} ({level.width} x {level.height})"
    if bad.any():
        step, term = np.argwhere(bad)[0]
        return int(step), f"the {objective.TERMS[term]} loss is not a finite number at step {step} {where}"
    total = terms.sum(axis=1, dtype=np.float64)
    high = EXPLODED * total[:10].max(initial=0.0)
    if method.clip or not (exploded := np.flatnonzero(total > high)).size:  # a clipped image is never far from any other
        return None
    step = int(exploded[0])
    term = int(np.argmax(terms[step]))
    return step, f"the {objective.TERMS[term]} loss exploded to {terms[step, term]:.3g} at step {step} {where}"


def build_backbone(run: Run) -> backbones.Backbone:
    """The backbone of a run.

    Raises:
        StorageError: its weights file cannot be read, or is another by now.
    """
    data = storage.read(run.weights) if run.weights else None  # not by `intake`, for whom any failure is an option's
    if weights.sha256(run.backbone, data) != run.weights_sha256:
        raise StorageError("--weights: the file changed while the run was going on; run the same command again")
    return backbones.build(run.backbone, weights.load(run.backbone, data), turns=hardware.turns())
