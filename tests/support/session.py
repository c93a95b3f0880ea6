"""What the processes of a test session share: folders that one of them fills, and servers that one of them starts."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file
        yield


def make_once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of this name below the session's folder, filled by the first process that asks for it."""
    with _locked(folder / f"{name}.lock"):
        if not (folder / name).exists():
            unfinished = folder / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder / name)
    return folder / name


@contextmanager
def share_server(
    folder: Path, name: str, start: Callable[[Path], AbstractContextManager[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Yield how to reach a server, which the first process that needs it starts and ends when no other needs it any more.

    Args:
        folder: The session's folder.
        name: Name of the server.
        start: Starts it, given an empty folder, and yields how to reach it, as JSON holds it.
    """
    facts, lock = folder / f"{name}.json", folder / f"{name}.lock"

    def retire() -> bool:
        """Let no process find the server any more, unless one needs it."""
        with _locked(lock):
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            facts.unlink()
            return True

    with ExitStack() as started, (folder / f"{name}.users").open("w") as users:
        with _locked(lock):
            starts_it = not facts.exists()
            if starts_it:
                reached = started.enter_context(start(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))))
                facts.write_text(json.dumps(reached))
            fcntl.flock(users, fcntl.LOCK_SH)  # for as long as this process needs it, or lives
        try:
            yield json.loads(facts.read_text())
        finally:
            while starts_it and not retire():
                time.sleep(0.1)
