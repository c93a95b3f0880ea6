"""Call a function again after delays while the store is temporarily unavailable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from nst_tasks.errors import Interrupted, StorageError, is_transient

T = TypeVar("T")


def call_with_retries(
    function: Callable[[], T], delays: Iterable[float], stop: threading.Event, log: Callable[[str], None]
) -> T:
    """Call a function, retry it after each of the delays while its error is transient, and return its result.

    Args:
        function: The function to call.
        delays: Seconds before each retry, such as `Settings.retry_delays`.
        stop: The run's stop signal.
        log: A function that logs a message about each retry.

    Raises:
        Interrupted: The run was asked to stop during a delay.
        Exception: The function's own error, if it is not transient or the last attempt fails.
    """
    for delay in delays:
        try:
            return function()
        except StorageError as error:
            if not is_transient(error):
                raise
            log(f"{error}; trying again in {delay:g} s")
            if stop.wait(delay):
                raise Interrupted("interrupted while waiting for the store") from error
    return function()
