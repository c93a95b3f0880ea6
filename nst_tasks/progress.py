"""Progress, warnings and stop event of a run, shared by the threads of one process.

A context variable carries the `Progress`: Prefect copies the context into its worker threads, so neither flow nor task needs a
parameter that the Prefect API could not store. Without one, as in a worker process elsewhere, updates have no effect.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from nst_tasks.cache import ByteLRU

MAX_WARNINGS = 1000
"""Maximum number of warnings kept of a run: a problem that affects every pair may occur a hundred thousand times."""

WRITTEN_CACHE_BYTES = 2**26
"""Capacity of `Watch.written` in bytes: the thumbnails and histories of about a thousand pairs."""


@dataclass
class Progress:
    """Counts, warnings and stop event of a run in progress.

    Attributes:
        on_change: Called after each change of a count.
        work: Compute in pixel-steps (pixels times steps), a unit proportional to time.
        computing: Number of computations in progress that cannot be interrupted.
        parent: Watch to which the counts are added as well.
        written_files: Files that this process has just written and will show, by URI, to save reading them back from the store.
    """

    on_change: Callable[[Progress], None] = lambda watch: None
    pairs: int = 0
    pairs_done: int = 0
    steps: int = 0
    steps_done: int = 0
    work: int = 0
    work_done: int = 0
    computing: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    warnings: list[str] = field(default_factory=list)
    parent: Progress | None = None
    written_files: ByteLRU = field(default_factory=lambda: ByteLRU(WRITTEN_CACHE_BYTES))
    _finished_ids: set[str] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)
    _dropped_warnings: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: int) -> None:
        """Add to the named counts, here and in `whole`, and call `changed`."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)
        self.on_change(self)
        if self.parent is not None:
            self.parent.add(**counts)

    def create_part(self) -> Progress:
        """Create a watch for one of several runs: it shares the stop event, and its counts are added to these as well."""
        return Progress(stop=self.stop, parent=self)

    def mark_done(self, ids: Iterable[str]) -> None:
        """Count these pairs as done, each only once, however often it is reported."""
        with self._lock:
            new = {*ids} - self._finished_ids
            self._finished_ids |= new
        self.add(pairs_done=len(new))

    @contextlib.contextmanager
    def count_computation(self) -> Iterator[None]:
        """Count a computation that cannot be interrupted in `computing` during the block."""
        self.add(computing=1)
        try:
            yield
        finally:
            self.add(computing=-1)

    def warn(self, sentence: str) -> None:
        """Record a problem that does not harm the result, once, up to `MAX_WARNINGS` in all."""
        with self._lock:
            if sentence in self._warned:
                return
            if len(self._warned) == MAX_WARNINGS:
                self._dropped_warnings += 1
                return
            self._warned.add(sentence)
            self.warnings.append(sentence)

    @property
    def warning_lines(self) -> list[str]:
        """Warnings, and a last line with the number of dropped ones."""
        return [*self.warnings, *([f"and {self._dropped_warnings} more warnings"] if self._dropped_warnings else [])]


progress_variable: ContextVar[Progress | None] = ContextVar("nst_watch", default=None)


def current_progress() -> Progress:
    """Return the progress of the run that this code is part of, or a new one without effect."""
    return progress_variable.get() or Progress()


def start_progress() -> None:
    """Give this context a progress if it has none."""
    progress_variable.set(current_progress())
