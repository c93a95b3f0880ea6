"""Versions of a cluster's workers, and the number of batches that they take."""

from __future__ import annotations

import pytest

import nst_tasks
from flows import task_runners
from nst_tasks.errors import SettingsError


def test_ray_batch_never_needs_more_cores_than_a_node() -> None:
    assert task_runners.count_ray_slots([{"CPU": 8.0}, {"CPU": 6.0}, {"memory": 1e9}]) == (3, {"num_cpus": 4})
    assert task_runners.count_ray_slots([{"CPU": 2.0}, {"CPU": 3.0}, {}]) == (1, {"num_cpus": 3})
    assert task_runners.count_ray_slots([{"CPU": 1.0}] * 5) == (5, {"num_cpus": 1})
    assert task_runners.count_ray_slots([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}]) == (2, {"num_gpus": 1})
    assert task_runners.count_ray_slots([{"CPU": 0.0}])[0] == task_runners.count_ray_slots([])[0] == 0


def test_workers_of_another_version_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"tcp://b: that worker has nst 0\.0\.1, this is .*; install one version on both"):
        task_runners.check_versions({"tcp://a": nst_tasks.__version__, "tcp://b": "0.0.1"})


def test_worker_import_error_is_shown_without_secrets() -> None:
    error = ModuleNotFoundError("no module https://user:hunter2@index/nst\nand\nmore")
    with pytest.raises(SettingsError) as caught:
        task_runners.check_versions({"tcp://b": error})
    assert str(caught.value) == (
        "tcp://b: that worker cannot import nst (ModuleNotFoundError: no module https://index/nst); "
        f"install nst {nst_tasks.__version__} there"
    )
