"""The server that a run starts where no Prefect API is configured: what it does without, and its start beside other work.

    python -m flows.server PORT

is that server: it listens on loopback, and ends once nobody holds its standard input open any more.
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

from nst_tasks.errors import SettingsError

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # it comes up in 10 s; a machine that is busy with other runs took longer than the 20 s that Prefect waits
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # a second of its start; who saves a block registers its type then
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    # each pair's task run is told in three events: recorded singly, as by default, they take most of the server's time
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # it ends with the run, so nobody looks at its events, and no automation waits for them
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""Of that server; another one has its own environment."""

ATTEMPTS = 2
"""To start it: the port that it was to have may be taken by another just then, or its database be made by another run."""

_started: list[subprocess.Popen[bytes]] = []


def is_own() -> bool:
    """Whether the API that this process uses is one that it has started, and that ends with it."""
    return bool(_started)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start it, where one is wanted, while something else is done; at the end it answers, and is this process's until its own.

    Prefect would start it for its first client, and import all of a server into this process for that: seconds, and 80 MiB.
    Whether one is wanted is only known for certain once Prefect's settings are imported, which takes a second or two by itself:
    unless the environment names an API it is started before, and stopped again where a profile does.

    Raises:
        SettingsError: it could not be started, in all its attempts.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    url = _start()
    try:
        yield
    except BaseException:
        _stop()
        raise
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL, get_current_settings

    own = get_current_settings().server.ephemeral
    if PREFECT_API_URL.value() or not own.enabled:
        _stop()
        return
    for attempt in range(ATTEMPTS):
        if attempt:
            url = _start()
        if (failure := _silence(url, own.startup_timeout_seconds)) is None:
            os.environ["PREFECT_API_URL"] = url  # for processes that this one starts, too
            os.environ.setdefault("NST_IMAGE_ARTIFACTS", "0")  # it has no UI that would show them
            refresh_global_settings_context()
            return
        _stop()
    raise SettingsError(
        f"the Prefect server that a run starts for itself did not come up ({failure}); look at what it wrote above, "
        "give it more time by PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or name one that runs by PREFECT_API_URL"
    )


def _start() -> str:
    """The address of the API of a server that has been started, and is stopped at this process's end at the latest."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "flows.server", str(port)]  # these flows, not a folder of that name in the user's
    # its input is a pipe that breaks when this process is killed; in a session of its own no Ctrl-C reaches it before the run
    # what it says goes to standard error, for on standard output is the run's result
    _started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True))  # noqa: S603
    atexit.register(_stop)
    return f"http://127.0.0.1:{port}/api"


def _silence(url: str, seconds: float) -> str | None:
    """Why the server does not answer after so many seconds; None as soon as it does."""
    import httpx  # Prefect's

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (code := _started[-1].poll()) is not None:
            return f"it ended with exit code {code}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").is_success:
                return None
        time.sleep(0.1)
    return f"no answer within {seconds:g} s"


def _stop() -> None:
    """Have it end, by force after five seconds."""
    while _started:
        with _started.pop() as server:
            server.terminate()
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()


def _serve(port: int) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_input, daemon=True).start()
    uvicorn.run(create_app(ephemeral=True, final=True), host="127.0.0.1", port=port, log_level="error")


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
