"""Freed memory is reused: tested in processes of their own, by counting page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from nst_tasks.engine import runtime
runtime.{prepare}()
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
"""Pages of ten pieces of memory, each mapped by itself."""


def count_faults(prepare: str, **environment: str) -> int:
    """Return the page faults of a process that uses and frees memory ten times after this function of `runtime`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = PROGRAM.format(prepare=prepare)
    done = subprocess.run([sys.executable, "-c", program], env=plain | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="on Linux alone there is glibc, whose heap this is about")
def test_freed_memory_is_reused_unless_configured() -> None:
    assert count_faults("import_tensorflow") < PAGES // 10
    # the function by which TensorFlow's import sets the allocator: the import itself takes seconds
    assert count_faults("reuse_freed_memory", MALLOC_MMAP_THRESHOLD_=str(2**20)) > PAGES // 2
    assert count_faults("reuse_freed_memory", GLIBC_TUNABLES="glibc.malloc.tcache_count=7") > PAGES // 2
