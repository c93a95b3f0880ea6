"""Stop signal for workers in other processes: the file `OUT/runs/{run}/stop`, in the store that all of them reach.

Threads of the run's process read the stop event of its `Watch`; a worker of a cluster, possibly on another machine, polls
the file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from nst_tasks import storage
from nst_tasks.errors import Interrupted, StorageError
from nst_tasks.progress import Watch, current
from nst_tasks.settings import Run

SECONDS = 1.0
"""Seconds between two polls of a worker: about the duration of a chunk of steps."""

FAREWELL_SECONDS = 3.0
"""Maximum seconds that a run ended by an exception retries to write the stop file while the store fails."""


def _uri(run: Run) -> str:
    return storage.join(run.out, "runs", run.id, "stop")


@contextlib.contextmanager
def told(run: Run, observer: Watch) -> Iterator[None]:
    """Write the stop file once the run's stop event is set during the block, or when the block raises."""
    broken, ended = threading.Event(), threading.Event()

    def tell() -> None:
        while not (observer.stop.wait(0.1) or broken.is_set()):
            if ended.is_set():
                return
        with contextlib.suppress(StorageError, Interrupted):  # without the file, the workers finish their current tasks
            storage.patiently(lambda: storage.write(_uri(run), b""), run.settings, ended, lambda sentence: None)

    telling = threading.Thread(target=tell, name="tell to stop", daemon=True)
    telling.start()
    try:
        yield
    except BaseException:
        broken.set()
        telling.join(FAREWELL_SECONDS)
        raise
    finally:
        ended.set()
        telling.join()


@contextlib.contextmanager
def heeded(run: Run) -> Iterator[Watch]:
    """Provide a `Watch` for a worker's part of the run, whose stop event is set soon after the stop file appears.

    Raises:
        Interrupted: The run was already asked to stop.
    """
    observer, ended = Watch(), threading.Event()

    def look() -> None:
        with contextlib.suppress(StorageError):
            if storage.stat(_uri(run)):
                observer.stop.set()

    def keep_looking() -> None:
        while not ended.wait(SECONDS):
            look()

    look()
    if observer.stop.is_set():
        raise Interrupted("interrupted before it began")
    looking = threading.Thread(target=keep_looking, name="heed", daemon=True)
    looking.start()
    token = current.set(observer)
    try:
        yield observer
    finally:
        current.reset(token)
        ended.set()
        looking.join(SECONDS)
