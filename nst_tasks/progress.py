"""Progress, warnings and stop event of a run, shared by the threads of one process.

A context variable carries the `Watch`: Prefect copies the context into its worker threads, so neither flow nor task needs a
parameter that the Prefect API could not store. Without one, as in a worker process elsewhere, updates have no effect.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from nst_tasks.kept import Kept

WARNINGS_KEPT = 1000
"""Maximum number of warnings kept of a run: a problem that affects every pair may occur a hundred thousand times."""

WRITTEN_BYTES = 2**26
"""Capacity of `Watch.written` in bytes: the thumbnails and histories of about a thousand pairs."""


@dataclass
class Watch:
    """Counts, warnings and stop event of a run in progress.

    Attributes:
        changed: Called after each change of a count.
        work: Compute in pixel-steps (pixels times steps), a unit proportional to time.
        computing: Number of computations in progress that cannot be interrupted.
        whole: Watch to which the counts are added as well.
        written: Files that this process has just written and will show, by URI, to save reading them back from the store.
    """

    changed: Callable[[Watch], None] = lambda watch: None
    pairs: int = 0
    pairs_done: int = 0
    steps: int = 0
    steps_done: int = 0
    work: int = 0
    work_done: int = 0
    computing: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    warnings: list[str] = field(default_factory=list)
    whole: Watch | None = None
    written: Kept = field(default_factory=lambda: Kept(WRITTEN_BYTES))
    _finished: set[str] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)
    _not_kept: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: int) -> None:
        """Add to the named counts, here and in `whole`, and call `changed`."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)
        self.changed(self)
        if self.whole is not None:
            self.whole.add(**counts)

    def part(self) -> Watch:
        """Create a watch for one of several runs: it shares the stop event, and its counts are added to these as well."""
        return Watch(stop=self.stop, whole=self)

    def finish(self, ids: Iterable[str]) -> None:
        """Count these pairs as done, each only once, however often it is reported."""
        with self._lock:
            new = {*ids} - self._finished
            self._finished |= new
        self.add(pairs_done=len(new))

    @contextlib.contextmanager
    def compute(self) -> Iterator[None]:
        """Count a computation that cannot be interrupted in `computing` during the block."""
        self.add(computing=1)
        try:
            yield
        finally:
            self.add(computing=-1)

    def warn(self, sentence: str) -> None:
        """Record a problem that does not harm the result, once, up to `WARNINGS_KEPT` in all."""
        with self._lock:
            if sentence in self._warned:
                return
            if len(self._warned) == WARNINGS_KEPT:
                self._not_kept += 1
                return
            self._warned.add(sentence)
            self.warnings.append(sentence)

    @property
    def summary(self) -> list[str]:
        """Warnings, and a last line with the number of dropped ones."""
        return [*self.warnings, *([f"and {self._not_kept} more warnings"] if self._not_kept else [])]


current: ContextVar[Watch | None] = ContextVar("nst_watch", default=None)


def watch() -> Watch:
    """Return the watch of the run that this code is part of, or a new one without effect."""
    return current.get() or Watch()
