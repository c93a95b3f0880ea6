"""Checkpoints in the output: list, read, write in the background and delete them.

The files are `OUT/checkpoints/{key}.{level}-{step}.npz` and exist only while a pair is unfinished. A batch's new ones are
written for all its pairs before any pair's previous one is deleted, so that after a kill at any moment all pairs have one of
the same step.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType

from nst_tasks.engine import checkpoint
from nst_tasks.engine.checkpoint import Checkpoint
from nst_tasks.errors import StorageError, is_pair_failure
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.layout import CHECKPOINTS_FOLDER, checkpoint_path, parse_checkpoint_name
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

FINAL_SAVE_TIMEOUT = 3.0
"""Maximum time, in seconds, that a stopped or failed batch waits for its last checkpoint to be written."""

Position = tuple[int, int]
"""Level and step of a checkpoint."""


def list_checkpoints(out: str, keys: Sequence[str] = ()) -> dict[str, list[Position]]:
    """Return the (level, step) of every checkpoint by key, furthest first.

    Args:
        keys: The keys needed, to narrow the listing by their common prefix; others may be included.

    Raises:
        StorageError: The store could not be listed.
    """
    positions: dict[str, list[Position]] = {}
    for name in files.list_files(join_uri(out, CHECKPOINTS_FOLDER), os.path.commonprefix(keys)):
        if parts := parse_checkpoint_name(name):
            key, level, step = parts
            positions.setdefault(key, []).append((level, step))
    return {key: sorted(places, reverse=True) for key, places in positions.items()}


def find_checkpoints(out: str, keys: Sequence[str], warn: Callable[[str], None]) -> dict[str, list[Position]]:
    """Return the same as `list_checkpoints`; if the store refuses to list them, report that to `warn` and return none.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects the whole run.
    """
    try:
        return list_checkpoints(out, keys)
    except StorageError as error:
        if not is_pair_failure(error):
            raise
        warn(f"{CHECKPOINTS_FOLDER}: ignored, {error}")
        return {}


def load_latest(
    out: str,
    keys: Sequence[str],
    positions: Mapping[str, Sequence[Position]],
    is_compatible: Callable[[Checkpoint], bool],
    warn: Callable[[str], None],
) -> list[Checkpoint | None]:
    """Read each pair's furthest checkpoint, if any; of pairs that were saved together, the furthest that they have in common.

    A kill between two pairs' writes leaves some of a group with a checkpoint that the others lack: the group goes on from the
    one before, together, as a GPU's last bits depend on the batch. A checkpoint that is damaged, belongs to another pair or
    does not fit is reported to `warn` and ignored.

    Args:
        positions: Existing checkpoints, as from `list_checkpoints`.
        is_compatible: Predicate: the checkpoint matches the pair's method and schedule.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """

    def load(key: str, place: Position) -> Checkpoint | None:
        path = checkpoint_path(key, *place)
        location = join_uri(out, path)
        if files.stat(location) is None:
            return None
        try:
            found = checkpoint.decode(files.read(location), key)
            if found.position != place or not is_compatible(found):
                raise ValueError("it does not fit the pair")
        except (ValueError, StorageError) as error:
            if not is_pair_failure(error):
                raise  # a retry costs less than repeating the steps
            warn(f"{path}: ignored, {error}")
            return None
        return found

    def load_group(group: Sequence[str]) -> list[Checkpoint | None]:
        for place in sorted(set.intersection(*(set(positions[key]) for key in group)), reverse=True):
            common = [load(key, place) for key in group]
            if all(common):
                return common
        return [next(filter(None, (load(key, place) for place in positions[key])), None) for key in group]

    found: dict[str, Checkpoint | None] = {}
    for group in _group_by_common_positions({key: positions[key] for key in keys if positions.get(key)}):
        found.update(zip(group, load_group(group), strict=True))
    return [found.get(key) for key in keys]


def _group_by_common_positions(positions: Mapping[str, Sequence[Position]]) -> list[list[str]]:
    """Group the keys so that those with a position in common, directly or through others, are together."""
    groups: list[tuple[list[str], set[Position]]] = []
    for key, own in positions.items():
        touched = [group for group in groups if not group[1].isdisjoint(own)]
        groups = [group for group in groups if group[1].isdisjoint(own)]
        groups.append(([*(other for keys, _ in touched for other in keys), key], set(own).union(*(at for _, at in touched))))
    return [keys for keys, _ in groups]


def delete_checkpoints(out: str, keys: Collection[str]) -> None:
    """Delete every checkpoint of these pairs; ignore store errors, since the next run deletes what is left."""
    with contextlib.suppress(StorageError):
        positions = list_checkpoints(out, [*keys]) if keys else {}
        for key in keys:
            for place in positions.get(key, ()):
                files.delete(join_uri(out, checkpoint_path(key, *place)))


@dataclass
class CheckpointWriter:
    """Background writer of a batch's checkpoints, one at a time; a write that fails is only reported to `warn`."""

    out: str
    warn: Callable[[str], None]
    _executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _last_write: Future[None] | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def has_saved(self) -> bool:
        """Return whether a checkpoint was written or is being written."""
        return self._last_write is not None

    @property
    def is_idle(self) -> bool:
        """Return whether no checkpoint is being written."""
        return self._last_write is None or self._last_write.done()

    def wait_until_idle(self, stop: threading.Event) -> None:
        """Wait until the current checkpoint is written and its memory freed, or until `stop` is set."""
        while self._last_write is not None and not self._last_write.done() and not stop.is_set():
            wait([self._last_write], 0.2)

    def is_due(self, steps_done: int, run: Run) -> bool:
        """Return whether a checkpoint is due after `steps_done` steps; never while the previous one is being written."""
        if not self.is_idle:
            return False
        if run.checkpoint_steps:
            return steps_done % run.checkpoint_steps == 0
        return 0 < run.checkpoint_seconds <= time.monotonic() - self._saved_at

    def save(self, keys: Sequence[str], at: Checkpoint) -> None:
        """Start writing the checkpoints of a batch with these keys, and return at once."""
        self._saved_at = time.monotonic()
        self._last_write = self._executor.submit(self._write, list(keys), at)

    def _write(self, keys: list[str], at: Checkpoint) -> None:
        place = at.position
        try:
            batch = checkpoint.to_host(at)
            for k, key in enumerate(keys):
                single = checkpoint.select_pairs(batch, [k])
                files.write(join_uri(self.out, checkpoint_path(key, *place)), functools.partial(checkpoint.write, single, key))
            places = list_checkpoints(self.out, keys)
            for key in keys:
                for other in places.get(key, ()):
                    # none that is further: after an error this write may be late. But a restarted level counts from 0 again
                    if other < place or (at.restarted and other != place):
                        files.delete(join_uri(self.out, checkpoint_path(key, *other)))
        except (StorageError, MemoryError) as error:
            why = "out of memory" if isinstance(error, MemoryError) else error
            self.warn(f"no checkpoint was written at level {place[0]}, step {place[1]}: {why}")

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._last_write is not None:
            wait([self._last_write], None if error is None else FINAL_SAVE_TIMEOUT)
        self._executor.shutdown(wait=False)
