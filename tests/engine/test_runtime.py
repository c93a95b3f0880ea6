"""TensorFlow as nst imports it, and the memory that is reused: in processes of their own, since here it is imported already."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

IMPORT = """
import sys
from nst_tasks.engine import runtime
runtime.import_tensorflow()
import tensorflow as tf
assert tf.reduce_sum(tf.ones((2, 3))).numpy() == 6.0
assert "keras" not in sys.modules
print(tf.keras.layers.Dense.__name__)
import keras
print(keras.layers.Dense.__name__)
"""

SET_ALLOCATOR = """
from nst_tasks.engine import runtime
runtime.reuse_freed_memory()
"""

FREEZE = """
import gc
from nst_tasks.engine import runtime
with runtime.gc_frozen():
    made = [[]]
print(gc.isenabled(), made in gc.get_objects())
"""

COUNT_FAULTS = """
import ctypes, resource
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

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has glibc, whose allocator these test")


def run_program(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these variables alone configuring the allocator."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    return subprocess.run([sys.executable, "-c", program], env=plain | environment, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def import_process() -> subprocess.CompletedProcess[str]:
    """Import TensorFlow in a process, and on Linux count its page faults then; the import takes seconds."""
    return run_program(IMPORT + (COUNT_FAULTS if sys.platform == "linux" else ""))


def test_tensorflow_is_imported_quietly_without_keras(import_process: subprocess.CompletedProcess[str]) -> None:
    assert import_process.stdout.split()[:2] == ["Dense", "Dense"]
    assert len(import_process.stdout.split()) <= 3
    assert import_process.stderr == ""


@on_linux
def test_freed_memory_is_reused(import_process: subprocess.CompletedProcess[str]) -> None:
    assert int(import_process.stdout.split()[-1]) < PAGES // 10


@on_linux
@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_configured_allocator_is_left_alone(name: str) -> None:
    """TensorFlow's import sets the allocator by the same function."""
    values = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}
    assert int(run_program(SET_ALLOCATOR + COUNT_FAULTS, **{name: values[name]}).stdout) > PAGES // 2


def test_imports_of_a_run_are_frozen_from_gc() -> None:
    assert run_program(FREEZE).stdout.split() == ["True", "False"]
