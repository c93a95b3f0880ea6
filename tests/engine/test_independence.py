"""A pair's bytes: the same from one worker and from two at once, whoever its neighbours are."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from nst_tasks.engine import devices, run_batch
from nst_tasks.inputs.jobs import Batch, group_into_batches
from tests.support.jobs import run_into, two_jobs

ROOT = Path(__file__).parents[2]


def stylized(folder: Path, workers: int) -> None:
    """Run the pairs of `two_jobs` in batches, as a run does, into a folder named by the number of workers."""
    jobs = two_jobs(folder)
    found = group_into_batches(jobs, devices.limit_batch_size(4, on_gpus=False), 2**30)
    assert found == [Batch((job,)) for job in jobs]
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(lambda batch: run_batch.stylize(batch, run_into(folder / f"of{workers}")), found))


def test_two_workers_make_the_bytes_of_one(tmp_path: Path) -> None:
    """The second is a logical device, which a process must be given before TensorFlow's first operation."""
    stylized(tmp_path, 1)
    subprocess.run([sys.executable, "-m", "tests.engine.test_independence", str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    for id in "ab":
        one, two = ((tmp_path / f"of{workers}/images/{id}.png").read_bytes() for workers in (1, 2))
        assert one == two
        one, two = (pd.read_parquet(tmp_path / f"of{workers}/history/{id}.parquet") for workers in (1, 2))
        pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"), check_exact=True)
        assert np.isfinite(one.total).all()


if __name__ == "__main__":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    assert devices.list_names() == ["/CPU:0", "/CPU:1"]
    stylized(Path(sys.argv[1]), 2)
