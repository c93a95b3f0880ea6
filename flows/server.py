"""The server that a run starts where no Prefect API is configured: what it does without, and its start beside other work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from nst_tasks.errors import SettingsError

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # it comes up in 10 s; a machine that is busy with other runs took longer than the 20 s that Prefect waits
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # each pair's task run is told in three events: recorded singly, as by default, they take most of the server's time
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # it ends with the run, so nobody looks at its events, and no automation waits for them
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""Of that server; another one has its own environment."""

ATTEMPTS = 2
"""To start it: the port that it was to have may be taken by another just then."""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start it, where one is wanted, while something else is done; at the end it answers.

    Prefect would start it for its first client. It finds this one.

    Raises:
        SettingsError: it could not be started, in all its attempts.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings

    if PREFECT_API_URL.value() or not get_current_settings().server.ephemeral.enabled:
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    first, failures = SubprocessASGIServer(), list[Exception]()

    def start() -> None:
        while len(failures) < ATTEMPTS:
            server = SubprocessASGIServer()  # the same one each time, and for Prefect's first client, until it is stopped
            try:
                server.start()
                return
            except Exception as error:  # whatever Prefect raises
                server.stop()
                failures.append(error)

    thread = threading.Thread(target=start, name="server", daemon=True)
    thread.start()
    while first.server_process is None and thread.is_alive():
        time.sleep(0.01)  # until it has inherited standard error as it is now
    yield
    thread.join()
    if len(failures) == ATTEMPTS:
        raise SettingsError(
            f"the Prefect server that a run starts for itself did not come up ({failures[-1]}); look at what it wrote above, "
            "give it more time by PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or name one that runs by PREFECT_API_URL"
        ) from failures[-1]
