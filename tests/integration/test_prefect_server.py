"""The server of a run's own, in processes of their own: here an API is configured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers import build_own_server_environment
from tests.support.waiting import wait_until

STARTED = """
import os
import sys
from flows import prefect_server
with prefect_server.start_in_background():
    assert "PREFECT_API_URL" not in os.environ
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    assert client.api_healthcheck() is None
    assert str(client.api_url).rstrip("/") == os.environ["PREFECT_API_URL"]
    assert str(client.api_url).startswith("http://127.0.0.1:")
assert "prefect.server.api.server" not in sys.modules, "a whole server was imported here, too"
print(prefect_server._started_servers[0].pid, os.environ.get("NST_IMAGE_ARTIFACTS"), flush=True)
"""

ELSEWHERE = """
from flows import task_runners
from nst_tasks.errors import SettingsError
try:
    task_runners._set_worker_api("tcp://elsewhere:1").__enter__()
except SettingsError as error:
    print(error)
with task_runners._set_worker_api(""):
    from prefect.settings import PREFECT_API_URL
    assert PREFECT_API_URL.value().rstrip("/") == os.environ["PREFECT_API_URL"]
"""

WAITING = """
import signal
signal.pause()
"""

LEFT = """
import os
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("none is left")
"""
"""Added to a program, tells whether a process of its own goes on."""

SLOW = """
from flows import prefect_server
from nst_tasks.errors import SettingsError
try:
    with prefect_server.start_in_background():
        pass
except SettingsError as error:
    print(error)
"""

TAKEN = """
import os, socket
taken = socket.create_server(("127.0.0.1", 0))
def create_taken(address, create=socket.create_server):
    socket.create_server = create
    return socket.socket(fileno=os.dup(taken.fileno()))  # its closing leaves the other one
socket.create_server = create_taken
"""
"""Before a program, makes the first port that it takes one on which somebody listens already."""

CONFIGURED = """
import os
from flows import prefect_server
with prefect_server.start_in_background():
    pass
print(prefect_server.has_own_server(), os.environ.get("PREFECT_API_URL"))
"""

BROKEN = """
from flows import prefect_server
try:
    with prefect_server.start_in_background():
        raise ValueError("the other work")
except ValueError as error:
    print(error)
"""


@pytest.fixture
def home(create_prefect_home: Callable[[], Path]) -> Path:
    return create_prefect_home()


def run_program(program: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """As in a folder of a user who has flows of their own."""
    (home / "flows").mkdir(exist_ok=True)
    (home / "flows" / "__init__.py").touch()
    command = [sys.executable, "-P", "-c", program]
    return subprocess.run(
        command, env=build_own_server_environment(home, **more), cwd=home, capture_output=True, text=True, check=True
    )


def test_own_server_takes_another_port_and_ends_with_its_run(home: Path) -> None:
    result = run_program(TAKEN + STARTED + ELSEWHERE, home)
    assert "address already in use" in result.stderr
    started_server, refusal = result.stdout.splitlines()
    pid, pictures_shown = started_server.split()
    assert not Path(f"/proc/{pid}").exists()
    assert pictures_shown == "0", "it has no UI to show them"
    assert refusal.startswith("PREFECT_API_URL: not set, but workers elsewhere report to that API")


def test_own_server_ignores_ctrl_c_and_ends_with_its_run(home: Path) -> None:
    command = [sys.executable, "-c", STARTED + WAITING]
    with subprocess.Popen(
        command, env=build_own_server_environment(home, NST_IMAGE_ARTIFACTS="7"), stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        pid, pictures_shown = map(int, run.stdout.readline().split())
        assert pictures_shown == 7, "what is set wins"
        assert os.getpgid(pid) != os.getpgid(run.pid), "a terminal interrupts all processes of a group"
        standard_output, of_the_run = (os.readlink(f"/proc/{of}/fd/{number}") for of, number in ((pid, 1), (run.pid, 1)))
        assert standard_output != of_the_run, "there is the run's result"
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_slow_own_server_is_stopped_with_one_sentence(home: Path) -> None:
    lines = run_program(SLOW + LEFT, home, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="0").stdout.splitlines()
    assert lines[0].startswith("the Prefect server that a run starts for itself did not come up (no answer within 0 s)")
    assert "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS" in lines[0]
    assert lines[1:] == ["none is left"]


def test_no_own_server_if_an_api_is_configured(home: Path) -> None:
    url = "http://127.0.0.1:1/api"
    assert run_program(CONFIGURED + LEFT, home, PREFECT_API_URL=url).stdout == f"False {url}\nnone is left\n"
    assert run_program(CONFIGURED + LEFT, home, PREFECT_SERVER_EPHEMERAL_ENABLED="false").stdout == "False None\nnone is left\n"
    (home / "profiles.toml").write_text(f'active = "own"\n[profiles.own]\nPREFECT_API_URL = "{url}"\n')
    assert run_program(CONFIGURED + LEFT, home).stdout == "False None\nnone is left\n"


def test_it_does_not_outlive_other_work_that_fails(home: Path) -> None:
    assert run_program(BROKEN + LEFT, home).stdout == "the other work\nnone is left\n"
