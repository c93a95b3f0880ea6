"""Checkpoints in the output: found and read, written off the compute path, removed.

`OUT/checkpoints/{key}.{level}-{step}.npz`, only while a pair is unfinished. A batch's next ones are written for all its pairs
before the last one of any is removed, so that after a kill at any moment all have one of the same step. Where a batch parts,
all have one of that very step before any of them goes on.
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
"""The longest that a run which is asked to stop waits for its last checkpoint to be written."""

Place = tuple[int, int]
"""Level and step."""


def uri(out: str, key: str, place: Place) -> str:
    """Where a pair's checkpoint of this place lies."""
    return storage.join(out, FOLDER, f"{key}.{place[0]}-{place[1]:06d}.npz")


def listed(out: str, keys: Sequence[str] = ()) -> dict[str, list[Place]]:
    """The places of every key's checkpoints, of these at least, the furthest first.

    Raises:
        StorageError: the store could not be listed.
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
    """Each pair's checkpoint to go on from, of the `listed` ones: of the furthest place that all have, or else its furthest.

    A checkpoint counts only if the companions that are here again were saved as well, or have gone on from there: alone a
    pair's last bits are others than in a batch, and a kill that comes while a batch's first checkpoints are written costs no
    more than that interval. One that is damaged, another's, or does not fit is told to `warn` and not used.

    Raises:
        StorageUnavailable: the store failed for the moment.
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
                raise  # to try again costs less than the work
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
        found = load(other, places[other][0])  # it may have stepped back since, alone, to an earlier step
        return found is not None and found.calmed_from is not None

    for place in sorted(set.intersection(*(set(places.get(key, ())) for key in keys)), reverse=True):
        together = [load(key, place) for key in keys]
        if all(together):
            return list(together)
    return [furthest(key) for key in keys]


def remove(out: str, keys: Collection[str]) -> None:
    """Remove every checkpoint of these pairs, as far as the store lets: the next run sweeps what is left."""
    with contextlib.suppress(StorageError):
        places = listed(out, [*keys]) if keys else {}
        for key in keys:
            for place in places.get(key, ()):
                storage.delete(uri(out, key, place))


@dataclass
class Saver:
    """Writes the checkpoints of one batch on a thread of its own, one at a time; a failed one is told and not missed."""

    out: str
    warn: Callable[[str], None]
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _last: Future[None] | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def has_saved(self) -> bool:
        """Whether one was written, or is being."""
        return self._last is not None

    @property
    def idle(self) -> bool:
        """Whether none is being written."""
        return self._last is None or self._last.done()

    def settle(self, stop: threading.Event) -> None:
        """Wait until what is being written is written, and its memory given back; no longer than until the run is to stop."""
        while self._last is not None and not self._last.done() and not stop.is_set():
            wait([self._last], 0.2)

    def due(self, done: int, run: Run) -> bool:
        """Whether it is time for a checkpoint after `done` steps; not while the last one is still being written."""
        if not self.idle:
            return False
        if run.checkpoint_steps:
            return done % run.checkpoint_steps == 0
        return 0 < run.checkpoint_seconds <= time.monotonic() - self._saved_at

    def save(self, keys: Sequence[str], at: Checkpoint) -> None:
        """Write the checkpoints of a batch with these keys; returns at once."""
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
