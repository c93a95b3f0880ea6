"""The server that a run starts where no Prefect API is configured: what it does without, and its start beside other work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # each pair's task run is told in three events: recorded singly, as by default, they take most of the server's time
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # it ends with the run, so nobody looks at its events, and no automation waits for them
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""Of that server; another one has its own environment."""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start it, where one is wanted, while something else is done; at the end it answers, or could not be started.

    Prefect starts it for its first client, and waits some seconds. It finds this one; after a failure it tries once more, and
    says what is wrong.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings

    if PREFECT_API_URL.value() or not get_current_settings().server.ephemeral.enabled:
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()

    def start() -> None:
        try:
            server.start()
        except Exception:  # of which Prefect would start another beside it, and at the end stop that one alone
            server.stop()

    thread = threading.Thread(target=start, name="server", daemon=True)
    thread.start()
    while server.server_process is None and thread.is_alive():
        time.sleep(0.01)  # until it has inherited standard error as it is now
    yield
    thread.join()
