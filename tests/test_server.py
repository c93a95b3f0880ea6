"""The server of a run's own, in processes of their own: here an API is configured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STARTED = """
import sys
from flows import server
with server.starting():
    pass
from prefect.client.orchestration import get_client
started = sys.modules["prefect.server.api.server"].SubprocessASGIServer().server_process
with get_client(sync_client=True) as client:
    assert client.api_healthcheck() is None
    assert str(client.api_url).startswith("http://127.0.0.1:")
assert sys.modules["prefect.server.api.server"].SubprocessASGIServer().server_process is started
print(started.pid)
"""

SLOW = """
import os
from flows import server
from nst_tasks.errors import SettingsError
try:
    with server.starting():
        pass
except SettingsError as error:
    print(error)
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("none is left")
"""

SECOND = """
import sys
from prefect.server.api.server import SubprocessASGIServer as Server
from flows import server
started = []
def failing_once(self, start=Server.start):  # stands for a port that somebody else took
    started.append(self)
    if len(started) == 1:
        raise RuntimeError("taken")
    start(self)
Server.start = failing_once
with server.starting():
    pass
assert len(started) == 2 and started[0] is not started[1]
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    assert client.api_healthcheck() is None
assert Server() is started[1]
print("it answers")
"""

CONFIGURED = """
import sys
from flows import server
with server.starting():
    pass
print("prefect.server.api.server" in sys.modules)
"""


def ended(program: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**others, "PREFECT_HOME": str(home), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", **more}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)


def test_it_answers_when_the_other_work_is_done_is_the_one_that_prefect_uses_and_ends_with_the_process(tmp_path: Path) -> None:
    pid = int(ended(STARTED, tmp_path).stdout)
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_does_not_answer_in_time_is_stopped_and_told_in_one_sentence(tmp_path: Path) -> None:
    told = ended(SLOW, tmp_path, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="0").stdout.splitlines()
    assert told[0].startswith("the Prefect server that a run starts for itself did not come up (Timed out")
    assert "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS" in told[0]
    assert told[1:] == ["none is left"]


def test_after_a_failure_another_is_started_and_is_the_one_that_prefect_uses(tmp_path: Path) -> None:
    assert ended(SECOND, tmp_path).stdout == "it answers\n"


def test_where_an_api_is_configured_or_a_server_of_ones_own_forbidden_none_is_started(tmp_path: Path) -> None:
    assert ended(CONFIGURED, tmp_path, PREFECT_API_URL="http://127.0.0.1:1/api").stdout == "False\n"
    assert ended(CONFIGURED, tmp_path, PREFECT_SERVER_EPHEMERAL_ENABLED="false").stdout == "False\n"
