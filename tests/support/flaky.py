"""A store that fails for the moment, as often as a test says."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class FlakyFileSystem(LocalFileSystem):
    """The local disk, but after the spared ones some reads fail as in an object store that asks to come back later."""

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
