"""How far a run is, told upwards, and whether it should stop, told downwards, between threads of one process.

A context variable carries the `Watch`: Prefect copies the context into its worker threads, so neither flow nor task needs a
parameter that the Prefect API could not store. Where nobody watches (a worker process elsewhere), all of it is silent.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from nst_tasks.kept import Kept

WARNINGS_KEPT = 1000
"""Of a run, at most: what goes wrong for every pair may do so a hundred thousand times."""

WRITTEN_BYTES = 2**26
"""For the thumbnails and histories of about a thousand pairs."""


@dataclass
class Watch:
    """Counts of a run in progress; `work` is in pixel-steps (pixels times steps), the unit in which time passes evenly.

    `written` holds by URI what this process has just written and will show: it need not be read back from the store.
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
        """Add to the named counts and tell the watcher."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)
        self.changed(self)
        if self.whole is not None:
            self.whole.add(**counts)

    def part(self) -> Watch:
        """A watch of one of several runs: its counts are added to these as well, and a wish to stop reaches it."""
        return Watch(stop=self.stop, whole=self)

    def finish(self, ids: Iterable[str]) -> None:
        """Count these pairs as done, each once, however often and by whom it is told."""
        with self._lock:
            new = {*ids} - self._finished
            self._finished |= new
        self.add(pairs_done=len(new))

    @contextlib.contextmanager
    def compute(self) -> Iterator[None]:
        """For as long as something is computed that cannot be interrupted, `computing` is above 0."""
        self.add(computing=1)
        try:
            yield
        finally:
            self.add(computing=-1)

    def warn(self, sentence: str) -> None:
        """Tell once what went wrong without harm to the result, as far as there is room."""
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
        """The warnings, and a line that says how many there were no room for."""
        return [*self.warnings, *([f"and {self._not_kept} more warnings"] if self._not_kept else [])]


current: ContextVar[Watch | None] = ContextVar("nst_watch", default=None)


def watch() -> Watch:
    """The watch of the run that this code is part of, or a silent one."""
    return current.get() or Watch()
