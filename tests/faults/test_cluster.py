"""Workers in other processes, as on other machines: real schedulers and workers, killed, stopped and sought in vain."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import DaskCluster, dask_cluster
from survival import STEPS, assert_nothing_lost, assert_same_results, write_manifest

from flows.terminal import run_flow
from nst_tasks import claims
from nst_tasks.progress import Watch, current
from nst_tasks.request import Request


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), here])}
    with dask_cluster(tmp_path_factory.mktemp("dask"), 2, environment) as running:
        yield running


def pid_of(claim: claims.Claim) -> int:
    return int(claim.process.partition(".")[0])


def test_a_worker_killed_in_the_middle_costs_one_resume(
    flow_api: str, calm: str, cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no two batches compute at a time where one GPU is announced: each claim is of another process."""
    monkeypatch.setenv("NST_DASK_ADDRESS", cluster.address)
    manifest, out = write_manifest(str(tmp_path / "in")), tmp_path / "out"
    killed, seen, over = [], Watch(), threading.Event()

    def kill() -> None:
        while not over.wait(0.01):
            checkpoints = {path.name.partition(".")[0] for path in out.glob("checkpoints/*.npz")}
            for key, claim in claims.standing(str(out)).items():
                if key in checkpoints:
                    killed.append((key, pid_of(claim)))
                    os.kill(killed[0][1], signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    token = current.set(seen)
    try:
        ended = run_flow(
            Request(manifest, str(out), backbone="tiny", size=96, steps=STEPS, checkpoint_every="3", runner="dask")
        )
    finally:
        current.reset(token)
        over.set()
        killer.join()
    assert ended.exit_code == 0, ended.message
    assert killed and killed[0][1] in [worker.pid for worker in cluster.workers]
    assert_nothing_lost(str(out))
    assert_same_results(str(out), calm)
