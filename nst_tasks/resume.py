"""Checkpoints in the output: list, read, write in the background and delete them.

The files are `OUT/checkpoints/{key}.{level}-{step}.npz` and exist only while a pair is unfinished. A batch's new ones are
written for all its pairs before any pair's previous one is deleted, so that after a kill at any moment all pairs have one of
the same step. Where a batch splits, all pairs have one of that very step before any of them continues.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from types import TracebackType

from nst_tasks import checkpoint, storage
from nst_tasks.checkpoint import Checkpoint
from nst_tasks.errors import StorageError, is_pairs_own
from nst_tasks.settings import Run

FOLDER = "checkpoints"

FAREWELL_SECONDS = 3.0
"""Maximum time, in seconds, that a stopped or failed batch waits for its last checkpoint to be written."""

Place = tuple[int, int]
"""Level and step of a checkpoint."""


def uri(out: str, key: str, place: Place) -> str:
    """Return the URI of a pair's checkpoint of this level and step."""
    return storage.join(out, FOLDER, f"{key}.{place[0]}-{place[1]:06d}.npz")


def listed(out: str, keys: Sequence[str] = ()) -> dict[str, list[Place]]:
    """Return the (level, step) of every checkpoint by key, furthest first.

    Args:
        keys: The keys needed, to narrow the listing by their common prefix; others may be included.

    Raises:
        StorageError: The store could not be listed.
    """
    found: dict[str, list[Place]] = {}
    for name in storage.listing(storage.join(out, FOLDER), os.path.commonprefix(keys)):
        key, _, place = name.removesuffix(".npz").partition(".")
        level, _, step = place.partition("-")
        if name.endswith(".npz") and level.isdecimal() and step.isdecimal():
            found.setdefault(key, []).append((int(level), int(step)))
    return {key: sorted(places, reverse=True) for key, places in found.items()}


def resumed(
    out: str,
    keys: Sequence[str],
    places: Mapping[str, Sequence[Place]],
    fits: Callable[[Checkpoint], bool],
    warn: Callable[[str], None],
) -> list[Checkpoint | None]:
    """Read the checkpoint from which each pair resumes: the furthest that all pairs have in common, or else its own furthest.

    A pair's own furthest counts only if its companions among `keys` were saved there too or are further: a pair alone differs
    in its last bits from the same pair in a batch, and a kill while a batch's first checkpoints are written costs no more than
    one interval. A checkpoint that is damaged, belongs to another pair or does not fit is reported to `warn` and ignored.

    Args:
        places: Existing checkpoints, as from `listed`.
        fits: Predicate: the checkpoint matches the pair's method and schedule.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """

    def load(key: str, place: Place) -> Checkpoint | None:
        at = uri(out, key, place)
        if storage.stat(at) is None:
            return None
        try:
            found = checkpoint.decode(storage.read(at), key)
            if (found.state.level, found.state.step) != place or not fits(found):
                raise ValueError("it does not fit the pair")
        except (ValueError, StorageError) as error:
            if not is_pairs_own(error):
                raise  # a retry costs less than repeating the steps
            warn(f"{FOLDER}/{at.rpartition('/')[2]}: ignored, {error}")
            return None
        return found

    def furthest(key: str) -> Checkpoint | None:
        for place in places.get(key, ()):
            found = load(key, place)
            if found and all(has_come(other, place) for other in found.companions if other in keys):
                return found
        return None

    def has_come(other: str, place: Place) -> bool:
        if other not in places or places[other][0] >= place:
            return other in places
        found = load(other, places[other][0])  # it may have restarted its level alone since
        return found is not None and found.calmed_from is not None

    for place in sorted(set.intersection(*(set(places.get(key, ())) for key in keys)), reverse=True):
        together = [load(key, place) for key in keys]
        if all(together):
            return list(together)
    return [furthest(key) for key in keys]


def remove(out: str, keys: Collection[str]) -> None:
    """Delete every checkpoint of these pairs; ignore store errors, since the next run deletes what is left."""
    with contextlib.suppress(StorageError):
        places = listed(out, [*keys]) if keys else {}
        for key in keys:
            for place in places.get(key, ()):
                storage.delete(uri(out, key, place))


@dataclass
class Saver:
    """Background writer of a batch's checkpoints, one at a time; a write that fails is only reported to `warn`."""

    out: str
    warn: Callable[[str], None]
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _last: Future[None] | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def has_saved(self) -> bool:
        """Return whether a checkpoint was written or is being written."""
        return self._last is not None

    @property
    def idle(self) -> bool:
        """Return whether no checkpoint is being written."""
        return self._last is None or self._last.done()

    def settle(self, stop: threading.Event) -> None:
        """Wait until the current checkpoint is written and its memory freed, or until `stop` is set."""
        while self._last is not None and not self._last.done() and not stop.is_set():
            wait([self._last], 0.2)

    def due(self, done: int, run: Run) -> bool:
        """Return whether a checkpoint is due after `done` steps; never while the previous one is being written."""
        if not self.idle:
            return False
        if run.checkpoint_steps:
            return done % run.checkpoint_steps == 0
        return 0 < run.checkpoint_seconds <= time.monotonic() - self._saved_at

    def save(self, keys: Sequence[str], at: Checkpoint) -> None:
        """Start writing the checkpoints of a batch with these keys, and return at once."""
        self._saved_at = time.monotonic()
        self._last = self._thread.submit(self._write, list(keys), at)

    def _write(self, keys: list[str], at: Checkpoint) -> None:
        place = (at.state.level, at.state.step)
        try:
            held = replace(checkpoint.on_host(at), companions=tuple(keys))
            for k, key in enumerate(keys):
                one = checkpoint.take(held, [k])
                storage.write(uri(self.out, key, place), functools.partial(checkpoint.write, one, key))
            places = listed(self.out, keys)
            for key in keys:
                for older in set(places.get(key, ())) - {place}:
                    storage.delete(uri(self.out, key, older))
        except (StorageError, MemoryError) as error:
            why = "out of memory" if isinstance(error, MemoryError) else error
            self.warn(f"no checkpoint was written at level {place[0]}, step {place[1]}: {why}")

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._last is not None:
            wait([self._last], None if error is None else FAREWELL_SECONDS)
        self._thread.shutdown(wait=False)
