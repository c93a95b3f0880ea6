"""Stop signal for workers in other processes: the file `OUT/runs/{run}/stop`, in the store that all of them reach.

Threads of the run's process read the stop event of its `Progress`; a worker of a cluster, possibly on another machine, polls
the file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from nst_tasks.errors import Interrupted, StorageError
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.layout import stop_path
from nst_tasks.progress import Progress, progress_variable
from nst_tasks.storage import files
from nst_tasks.storage.retry import call_with_retries
from nst_tasks.storage.uri import join_uri

POLL_SECONDS = 1.0
"""Seconds between two polls of a worker: about the duration of a chunk of steps."""

STOP_WRITE_TIMEOUT = 3.0
"""Maximum seconds that a run ended by an exception retries to write the stop file while the store fails."""


def _stop_uri(run: Run) -> str:
    return join_uri(run.out, stop_path(run.id))


@contextlib.contextmanager
def forward_stop(run: Run, progress: Progress) -> Iterator[None]:
    """Write the stop file once the run's stop event is set during the block, or when the block raises."""
    failed, ended = threading.Event(), threading.Event()

    def write_stop_file() -> None:
        while not (progress.stop.wait(0.1) or failed.is_set()):
            if ended.is_set():
                return
        with contextlib.suppress(StorageError, Interrupted):  # without the file, the workers finish their current tasks
            call_with_retries(lambda: files.write(_stop_uri(run), b""), run.settings.retry_delays, ended, lambda sentence: None)

    writer = threading.Thread(target=write_stop_file, name="write stop signal", daemon=True)
    writer.start()
    try:
        yield
    except BaseException:
        failed.set()
        writer.join(STOP_WRITE_TIMEOUT)
        raise
    finally:
        ended.set()
        writer.join()


@contextlib.contextmanager
def watch_stop(run: Run) -> Iterator[Progress]:
    """Provide a `Progress` for a worker's part of the run, whose stop event is set soon after the stop file appears.

    Raises:
        Interrupted: The run was already asked to stop.
    """
    progress, ended = Progress(), threading.Event()

    def check_stop_file() -> None:
        with contextlib.suppress(StorageError):
            if files.stat(_stop_uri(run)):
                progress.stop.set()

    def poll() -> None:
        while not ended.wait(POLL_SECONDS):
            check_stop_file()

    check_stop_file()
    if progress.stop.is_set():
        raise Interrupted("interrupted before it began")
    poller = threading.Thread(target=poll, name="poll stop signal", daemon=True)
    poller.start()
    token = progress_variable.set(progress)
    try:
        yield progress
    finally:
        progress_variable.reset(token)
        ended.set()
        poller.join(POLL_SECONDS)
