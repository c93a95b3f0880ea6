"""More than one device: workers in other processes, as on other machines, sought in vain, killed, stopped; and in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.schemas.objects import State

from flows import stylize, task_runners
from flows.console import run_flow
from nst_tasks.errors import SettingsError
from nst_tasks.inputs.options import RunnerName, RunOptions
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import claims
from nst_tasks.progress import Progress, progress_variable
from tests.support.servers import DaskCluster, find_free_ports, run_dask_cluster
from tests.support.survival import ROWS, STEPS, assert_nothing_lost, assert_same_results, build_command, write_inputs
from tests.support.waiting import TIMEOUT, wait_until


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DaskCluster]:
    """Run a cluster of as many workers as the test's parameter says."""
    with run_dask_cluster(tmp_path, request.param, os.environ) as dask_cluster:
        yield dask_cluster


OPTIONS = RunOptions(backbone="tiny", size=96, steps=STEPS, checkpoint_every="3", runner="dask")


def start_flow(manifest: str, out: Path) -> State[Any]:
    return stylize.stylize_manifest(manifest, str(out), OPTIONS, return_state=True)


@pytest.mark.parametrize("cluster", [2], indirect=True)
def test_killed_cluster_worker_costs_one_resume(
    flow_api: str, calm: str, cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_DASK_ADDRESS", cluster.address)
    manifest, out = write_inputs(str(tmp_path / "in")), tmp_path / "out"
    killed_pids, claims_per_process, end_event = list[int](), list[int](), threading.Event()

    def interfere() -> None:
        while not end_event.wait(0.02):
            current_claims = claims.current_claims(str(out))
            held = Counter(int(claim.process.partition(".")[0]) for claim in current_claims.values() if claim.is_live)
            claims_per_process.extend(held.values())
            keys_with_checkpoint = {path.name.partition(".")[0] for path in out.glob("checkpoints/*.npz")}
            resumable = [claim for key, claim in current_claims.items() if key in keys_with_checkpoint and claim.is_live]
            if resumable and not killed_pids:
                killed_pids.append(int(resumable[0].process.partition(".")[0]))
                os.kill(killed_pids[0], signal.SIGKILL)

    interference, progress = threading.Thread(target=interfere), Progress()
    interference.start()
    token = progress_variable.set(progress)
    try:
        state = start_flow(manifest, out)
    finally:
        progress_variable.reset(token)
        end_event.set()
        interference.join()
    assert state.is_completed(), state.message
    assert len(killed_pids) == 1 and killed_pids[0] in [worker.pid for worker in cluster.workers]
    assert max(claims_per_process) == 1  # although each would take two tasks, and three are handed over
    assert_nothing_lost(str(out))
    assert_same_results(str(out), calm)
    assert (progress.pairs_done, progress.steps_done, progress.work_done) == (4, progress.steps, progress.work)


@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_lost_scheduler_ends_the_run_with_one_sentence(
    flow_api: str, cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_DASK_ADDRESS", cluster.address)
    manifest, out, end_event = write_inputs(str(tmp_path / "in")), tmp_path / "out", threading.Event()

    def kill() -> None:
        while not end_event.wait(0.02):
            if list(out.glob("claims/*.json")):
                cluster.scheduler.end(signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = run_flow(manifest, str(out), OPTIONS)
    finally:
        end_event.set()
        killer.join()
    assert result.exit_code == 1
    assert result.message == (
        "the run could not go on, what is finished is safe: the cluster's scheduler went away; start it again, and the same "
        "command goes on"
    )


def processes(session: int) -> list[str]:
    """List the running processes of a session by their command lines."""
    listing = subprocess.run(["ps", "-s", str(session), "-o", "stat=,args="], capture_output=True, text=True, check=False)
    return [line for line in listing.stdout.splitlines() if not line.startswith("Z")]


def test_local_workers_stop_with_the_run(flow_api: str, tmp_path: Path) -> None:
    """Ctrl-C in a terminal, which reaches every process of the run."""
    out = tmp_path / "out"
    command = build_command(write_inputs(str(tmp_path / "in")), str(out), 5000, "--runner", "dask", "--checkpoint-every", "20")
    environment = {**os.environ, "NST_LOCAL_WORKERS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            wait_until(lambda: list(out.glob("checkpoints/*.npz")) or process.poll() is not None)
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    wait_until(lambda: processes(process.pid) == [], lambda: processes(process.pid))
    assert list(out.glob("checkpoints/*.npz"))
    assert claims.current_claims(str(out)) == {}  # the worker heard of it, and ended by itself


def test_ray_gives_the_bytes_of_threads(flow_api: str, calm: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "NST_LOCAL_WORKERS": "1"}
    ray = build_command(write_inputs(str(tmp_path / "in")), str(out), STEPS, "--runner", "ray")
    log, workers, deadline = tmp_path / "log", set[str](), time.monotonic() + TIMEOUT
    with (
        log.open("wb") as message,
        subprocess.Popen(ray, env=environment, stdout=message, stderr=message, start_new_session=True) as run,
    ):
        while run.poll() is None:
            if time.monotonic() > deadline:
                run.kill()
            workers |= {claim.process.partition(".")[0] for claim in claims.current_claims(str(out)).values()}
            time.sleep(0.02)
    assert run.returncode == 0, log.read_text()
    assert workers and str(run.pid) not in workers  # none by a thread of the run
    assert_nothing_lost(str(out))
    assert_same_results(str(out), calm)


TWO_DEVICES = """
import itertools, sys, threading
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from flows import stylize, task_runners
from nst_tasks.engine import devices
from nst_tasks.inputs.options import RunOptions
from nst_tasks.inputs.settings import Settings
from nst_tasks.progress import Progress, progress_variable
from nst_tasks.core import transfer
with task_runners.open_workers("threads", Settings()) as workers:
    print(workers.window, end=" ")
calls, both, original_advance = itertools.count(), threading.Barrier(2, timeout=120), transfer.advance
def advance(*arguments):
    if next(calls) < 2:  # the first pair waits for the second, which is on the other device
        both.wait()
    return original_advance(*arguments)
transfer.advance = advance
at_once = []
progress_variable.set(Progress(on_change=lambda progress: at_once.append(progress.computing)))
options = RunOptions(backbone="tiny", size=96, steps=int(sys.argv[3]))
state = stylize.stylize_manifest(*sys.argv[1:3], options, return_state=True)
print(devices.list_names(), max(at_once), state.type.value)
"""


def test_two_devices_give_the_bytes_of_one(flow_api: str, calm: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ids = ("best", "falling")
    rows = "".join(line for line in ROWS.splitlines(keepends=True) if line.startswith(("id", *ids)))
    two = [sys.executable, "-c", TWO_DEVICES, write_inputs(str(tmp_path / "in"), rows), str(out), str(STEPS)]
    result = subprocess.run(two, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert result.stdout == "6 ['/CPU:0', '/CPU:1'] 2 COMPLETED\n", result.stderr
    assert_nothing_lost(str(out), rows)
    assert_same_results(str(out), calm, ids)


def refusal(runner: RunnerName, settings: Settings) -> str:
    @flow
    def open_workers_in_flow() -> None:
        with task_runners.open_workers(runner, settings):
            raise AssertionError("opened")

    with pytest.raises(SettingsError) as refusal_info:
        open_workers_in_flow()
    return str(refusal_info.value)


@pytest.mark.usefixtures("flow_api")
def test_a_cluster_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    port = find_free_ports(1)[0]
    for runner, name in (("dask", "dask_address"), ("ray", "ray_address")):
        for address, why in ((f"127.0.0.1:{port}", "Connection refused"), ("tcp://host", "it names no host and port")):
            message = refusal(runner, Settings(**{name: address}))  # type: ignore[arg-type]
            assert message.startswith(f"NST_{name.upper()}: '{address}' does not answer ({why}); start that cluster")
    message = refusal("dask", Settings(dask_address="tcp://me:secret@host:1"))
    assert message.startswith("NST_DASK_ADDRESS: tcp://host:1 has a password or a query") and "secret" not in message
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    assert refusal("ray", Settings()) == "--runner ray: prefect-ray is not installed; add it with: pip install 'nst[ray]'"


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_workers_elsewhere_need_an_api_that_they_can_reach(cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="PREFECT_API_URL: not set, but workers elsewhere report to that API"):
        task_runners.open_workers("dask", Settings(dask_address=cluster.address)).__enter__()
