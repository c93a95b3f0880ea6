"""Stop signals for remote workers, through a store with temporary failures."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs.stop_signal import forward_stop
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from tests.support.jobs import run_into
from tests.support.stores import MemoryStore


class FlakyStore(MemoryStore):
    """Store in memory whose next writes fail temporarily."""

    protocol = "stumbling"
    failures_left = 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if FlakyStore.failures_left > 0:
            FlakyStore.failures_left -= 1
            raise OSError(errno.EIO, "503 Slow Down")
        super().pipe_file(path, value, mode, **options)


@pytest.fixture
def flaky_store() -> Iterator[type[FlakyStore]]:
    FlakyStore.store.clear()
    yield FlakyStore
    FlakyStore.failures_left = 0


RUN = run_into("stumbling://out", settings=Settings(retries=3, retry_seconds=0.01))
STOP = "stumbling://out/runs/run/stop"


def test_stop_signal_survives_temporary_store_failures(flaky_store: type[FlakyStore]) -> None:
    flaky_store.failures_left, observer = 2, Progress()
    with forward_stop(RUN, observer):
        observer.stop.set()
        until = time.monotonic() + 30
        while files.stat(STOP) is None and time.monotonic() < until:
            time.sleep(0.01)
    assert files.stat(STOP) is not None


def test_exception_that_ends_the_run_stops_workers(flaky_store: type[FlakyStore]) -> None:
    flaky_store.failures_left, observer = 2, Progress()
    with pytest.raises(RuntimeError), forward_stop(RUN, observer):
        raise RuntimeError
    assert files.stat(STOP) is not None
    assert not observer.stop.is_set()  # other runs may share it


def test_finished_run_writes_no_stop_signal(flaky_store: type[FlakyStore]) -> None:
    with forward_stop(RUN, Progress()):
        pass
    assert files.stat(STOP) is None
    flaky_store.failures_left, observer = 1, Progress()
    with forward_stop(run_into("stumbling://out", settings=Settings(retry_seconds=600)), observer):
        observer.stop.set()
        while flaky_store.failures_left:
            time.sleep(0.01)
    assert files.stat(STOP) is None  # its next attempt would come in ten minutes
