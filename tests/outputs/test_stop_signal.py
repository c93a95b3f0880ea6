"""The wish to stop, told to workers elsewhere through a store that stumbles."""

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


class Stumbling(MemoryStore):
    """Memory whose next writes fail for the moment."""

    protocol = "stumbling"
    failing = 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if Stumbling.failing > 0:
            Stumbling.failing -= 1
            raise OSError(errno.EIO, "503 Slow Down")
        super().pipe_file(path, value, mode, **more)


@pytest.fixture
def stumbling() -> Iterator[type[Stumbling]]:
    Stumbling.store.clear()
    yield Stumbling
    Stumbling.failing = 0


RUN = run_into("stumbling://out", settings=Settings(retries=3, retry_seconds=0.01))
STOP = "stumbling://out/runs/run/stop"


def test_workers_are_told_to_stop_although_the_store_stumbles(stumbling: type[Stumbling]) -> None:
    stumbling.failing, observer = 2, Progress()
    with forward_stop(RUN, observer):
        observer.stop.set()
        until = time.monotonic() + 30
        while files.stat(STOP) is None and time.monotonic() < until:
            time.sleep(0.01)
    assert files.stat(STOP) is not None


def test_workers_are_told_when_an_exception_ends_the_run(stumbling: type[Stumbling]) -> None:
    stumbling.failing, observer = 2, Progress()
    with pytest.raises(RuntimeError), forward_stop(RUN, observer):
        raise RuntimeError
    assert files.stat(STOP) is not None
    assert not observer.stop.is_set()  # it may be that of other runs as well


def test_finished_run_writes_no_stop_signal(stumbling: type[Stumbling]) -> None:
    with forward_stop(RUN, Progress()):
        pass
    assert files.stat(STOP) is None
    stumbling.failing, observer = 1, Progress()
    with forward_stop(run_into("stumbling://out", settings=Settings(retry_seconds=600)), observer):
        observer.stop.set()
        while stumbling.failing:
            time.sleep(0.01)
    assert files.stat(STOP) is None  # its next attempt would come in ten minutes
