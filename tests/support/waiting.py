"""Waiting for facts, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT = 300.0
"""Seconds after which a fact is taken never to come: far more than any takes on a machine with other work to do."""


def wait_until(ask: Callable[[], T], describe: Callable[[], object] = lambda: "it did not come") -> T:
    """Call `ask` until what it returns is true, and return that.

    Args:
        ask: Returns something false as long as the fact is not there; may raise to give up.
        describe: What to say if it never is.

    Raises:
        AssertionError: `TIMEOUT` seconds have passed.
    """
    deadline = time.monotonic() + TIMEOUT
    while not (found := ask()):
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)
    return found
