"""Freed memory is kept: in processes of their own, whose page faults are counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from nst_tasks import quiet
quiet.import_tensorflow()
import tensorflow as tf

@tf.function
def more(x):
    return x + 1.0

x = tf.ones((10 * 2**20,))  # 40 MiB: the C library itself keeps no more than 32
for _ in range(60):  # TensorFlow holds some results for a while
    more(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    more(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

PAGES = 10 * 40 * 2**20 // 4096
"""Of ten results, were all of them mapped anew."""


def faults(**more: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=plain | more, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="on Linux alone there is glibc, whose heap this is about")
def test_results_are_written_where_earlier_ones_were_unless_the_environment_decides() -> None:
    assert faults() < PAGES // 10
    assert faults(MALLOC_MMAP_THRESHOLD_=str(2**20)) > PAGES // 2
    assert faults(GLIBC_TUNABLES="glibc.malloc.tcache_count=7") > PAGES // 2
