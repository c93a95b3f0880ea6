"""The wish to stop, told to workers in other processes: `OUT/runs/{run}/stop`, in the store that all of them reach.

A thread learns it from its run's `Watch`; a worker of a cluster, which may be on another machine, looks here.
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
"""Between two looks of a worker: about as long as a chunk of steps."""

FAREWELL_SECONDS = 3.0
"""The longest that a run which an exception ends waits until its workers are told, while the store fails."""


def _uri(run: Run) -> str:
    return storage.join(run.out, "runs", run.id, "stop")


@contextlib.contextmanager
def told(run: Run, observer: Watch) -> Iterator[None]:
    """Meanwhile the run's workers are told to stop once its watch is, and when an exception ends it early."""
    broken, ended = threading.Event(), threading.Event()

    def tell() -> None:
        while not (observer.stop.wait(0.1) or broken.is_set()):
            if ended.is_set():
                return
        with contextlib.suppress(StorageError, Interrupted):  # then they end what they have begun
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
    """A watch for what a worker does of the run, asked to stop soon after the run is.

    Raises:
        Interrupted: the run was asked to stop before.
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
