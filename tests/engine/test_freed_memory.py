"""Freed memory is kept: in processes of their own, whose page faults are counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from nst_tasks.engine import runtime
runtime.import_tensorflow()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
SIZE = 36 * 2**20  # the C library itself keeps no more than 32 MiB

def use():
    at = ctypes.c_void_p(library.malloc(ctypes.c_size_t(SIZE)))
    library.memset(at, 1, ctypes.c_size_t(SIZE))
    library.free(at)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

PAGES = 10 * 36 * 2**20 // 4096
"""Of ten pieces of memory, were all of them mapped anew."""


def faults(**more: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=plain | more, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="on Linux alone there is glibc, whose heap this is about")
def test_freed_memory_is_reused_unless_configured() -> None:
    assert faults() < PAGES // 10
    assert faults(MALLOC_MMAP_THRESHOLD_=str(2**20)) > PAGES // 2
    assert faults(GLIBC_TUNABLES="glibc.malloc.tcache_count=7") > PAGES // 2
