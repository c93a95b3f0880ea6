"""Stores that fail, wait or count as a test says."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class MemoryStore(MemoryFileSystem):
    """A store in memory of its own, found by its protocol; a test subclasses it and overrides the calls that are to fail."""

    protocol = "memorystore"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.store, cls.pseudo_dirs = {}, [""]
        fsspec.register_implementation(cls.protocol, cls, clobber=True)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace(f"{cls.protocol}://", "memory://")))


class FlakyFileSystem(LocalFileSystem):
    """The local disk, on which some reads of a file, after the spared ones, fail as in an object store under load."""

    protocol = "flaky"
    spared: Counter[str] = Counter()
    failing: Counter[str] = Counter()
    asked: Counter[str] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("flaky://"))

    def cat_file(self, path: str, *rest: Any, **more: Any) -> bytes:
        name = path.rpartition("/")[2]
        self.asked[name] += 1
        if self.spared[name] > 0:
            self.spared[name] -= 1
        elif self.failing[name] > 0:
            self.failing[name] -= 1
            raise OSError(errno.EIO, "503 Slow Down")
        return super().cat_file(path, *rest, **more)
