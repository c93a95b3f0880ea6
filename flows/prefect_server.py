"""Local Prefect server that a run starts if no Prefect API is configured: its settings, and its start beside other work.

    python -m flows.prefect_server PORT

runs the server. It listens on loopback, and ends once its standard input is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from nst_tasks.engine.runtime import gc_frozen
from nst_tasks.errors import SettingsError

SERVER_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # it starts in 10 s; on a machine busy with other runs it took longer than the 20 s that Prefect waits
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # saves a second of its start; saving a block registers its type anyway
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    # each task run sends three events: recorded one by one, as by default, they take most of the server's time
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # the server ends with the run, so its events are never viewed, and no automation waits for them
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""Environment variables of the local server; a configured server has its own environment."""

MAX_START_ATTEMPTS = 2
"""Number of attempts to start it: another process may take its port, or another run may be creating its database."""

_started_servers: list[subprocess.Popen[bytes]] = []


def has_own_server() -> bool:
    """Return whether this process uses an API server that it started itself and that ends with it."""
    return bool(_started_servers)


@contextlib.contextmanager
def start_in_background() -> Iterator[None]:
    """Start the local server, if one is needed, during the block; afterwards it answers, until this process ends.

    Prefect would start it for its first client, and import a whole server into this process, which takes seconds and 80 MiB.
    Only Prefect's settings, whose import takes a second or two, say for certain if a server is needed. So it is started
    before, unless the environment names an API, and stopped again if a Prefect profile names one.

    Raises:
        SettingsError: The server could not be started in `MAX_START_ATTEMPTS` attempts.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    url = _start_server()
    try:
        yield
    except BaseException:
        _stop_servers()
        raise
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL, get_current_settings

    ephemeral_settings = get_current_settings().server.ephemeral
    if PREFECT_API_URL.value() or not ephemeral_settings.enabled:
        _stop_servers()
        return
    for attempt in range(MAX_START_ATTEMPTS):
        if attempt:
            url = _start_server()
        if (failure := _wait_until_ready(url, ephemeral_settings.startup_timeout_seconds)) is None:
            os.environ["PREFECT_API_URL"] = url  # also for child processes
            os.environ.setdefault("NST_IMAGE_ARTIFACTS", "0")  # it has no UI that would show them
            refresh_global_settings_context()
            return
        _stop_servers()
    raise SettingsError(
        f"the Prefect server that a run starts for itself did not come up ({failure}); look at what it wrote above, "
        "give it more time by PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or name one that runs by PREFECT_API_URL"
    )


def _start_server() -> str:
    """Start a server and return the URL of its API; it is stopped when this process ends at the latest."""
    with socket.create_server(("127.0.0.1", 0)) as free_socket:
        port = free_socket.getsockname()[1]
    command = [
        sys.executable,
        "-P",
        "-m",
        "flows.prefect_server",
        str(port),
    ]  # -P: this package, not `flows` in the working folder
    # its input is a pipe, closed when this process is killed; in its own session, Ctrl-C does not reach it before the run;
    # its output goes to standard error, because standard output is for the run's result
    _started_servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True))  # noqa: S603
    atexit.register(_stop_servers)
    return f"http://127.0.0.1:{port}/api"


def _wait_until_ready(url: str, seconds: float) -> str | None:
    """Wait until the server answers and return None, or return the reason why it does not within `seconds`."""
    import httpx  # a dependency of Prefect

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (code := _started_servers[-1].poll()) is not None:
            return f"it ended with exit code {code}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").is_success:
                return None
        time.sleep(0.1)
    return f"no answer within {seconds:g} s"


def _stop_servers() -> None:
    """Stop the started servers, by force after five seconds."""
    while _started_servers:
        with _started_servers.pop() as server:
            server.terminate()
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()


def _serve(port: int) -> None:
    with gc_frozen():
        import uvicorn
        from prefect.server.api.server import create_app

    threading.Thread(target=_exit_on_closed_input, daemon=True).start()
    uvicorn.run(create_app(ephemeral=True, final=True), host="127.0.0.1", port=port, log_level="error")


def _exit_on_closed_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
