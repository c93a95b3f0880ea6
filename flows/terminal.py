"""The flow under a terminal: a progress bar, signals, and an exit code."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.stylize import INTERRUPTED, stylize_manifest
from nst_tasks.errors import InputError, SettingsError, redact
from nst_tasks.progress import Watch, current
from nst_tasks.reporting import Report
from nst_tasks.request import Request


@dataclass(frozen=True)
class Ended:
    """How a flow run ended: its state's name and message, the exit code, and the report if it got that far."""

    name: str
    message: str
    exit_code: int
    report: Report | None


STOPPED = Ended("Cancelled", INTERRUPTED, 130, None)

GRACE_SECONDS = 3.8
"""From the end of what cannot be interrupted to a last clean-up of at most a second, whatever a thread still waits for."""


def run_flow(request: Request) -> Ended:
    """Run `stylize_manifest` with a progress bar on standard error; SIGINT and SIGTERM end it between two chunks of steps.

    Raises:
        InputError: the request is refused, or the Prefect API does not answer.
    """
    _require_api()
    with _progress_bar() as watch, _signals(watch):
        token = current.set(watch)
        try:
            state = stylize_manifest(
                manifest=request.manifest,
                out=request.out,
                recipe=request.recipe,
                size=request.size,
                steps=request.steps,
                backbone=request.backbone,
                weights_file=request.weights,
                strict=request.strict,
                max_failures=request.max_failures,
                upscale=request.upscale,
                history_every=request.history_every,
                snapshots=request.snapshots,
                checkpoint_every=request.checkpoint_every,
                pair_timeout=request.pair_timeout,
                return_state=True,
            )
        except (KeyboardInterrupt, TerminationSignal):
            return STOPPED
        finally:
            current.reset(token)
    if state.is_cancelled() or (watch.stop.is_set() and state.is_crashed()):
        return STOPPED
    result = state.result(raise_on_failure=False)
    if isinstance(result, InputError):
        raise result
    report = result if isinstance(result, Report) else None
    failed = report is None or bool(report.failures)
    return Ended(state.name or "", state.message or "", 1 if failed else 0, report)


def _require_api() -> None:
    """Refuse to start against a Prefect API that is configured and does not answer: Prefect itself would wait and retry.

    Raises:
        SettingsError: it does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return  # Prefect starts a server of its own for the run
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:  # whatever the client raises before its own health check
        problem = error
    if problem is not None:
        raise SettingsError(
            f"PREFECT_API_URL: {redact(url)} does not answer ({type(problem).__name__}); start that server, correct the "
            "address, or unset it to run without one"
        )


@contextmanager
def _signals(watch: Watch) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the run to stop, the second SIGINT ends it where it is."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        asked = True
        watch.stop.set()
        threading.Thread(target=_leave, args=(watch,), name="leave", daemon=True).start()
        print("nst: stopping after the current steps; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(watch: Watch) -> None:
    """End the process of a run that was asked to stop, should anything still hold it up: a store that does not answer, a delay.

    A preempted machine is gone within seconds, and everything that counts is written already.
    """
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until:
        time.sleep(0.1)
        if watch.computing:
            until = time.monotonic() + GRACE_SECONDS
    print(INTERRUPTED, file=sys.stderr, flush=True)
    # what would run at a normal exit, such as the end of the server that Prefect started: if it is quick
    last = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    last.start()
    last.join(1.0)
    os._exit(130)


@contextmanager
def _progress_bar() -> Iterator[Watch]:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("starting", total=None)

        def show(watch: Watch) -> None:
            text = f"{watch.pairs_done}/{watch.pairs} pairs  {watch.steps_done}/{watch.steps} steps"
            bar.update(line, description=text, total=watch.work or None, completed=watch.work_done)

        yield Watch(changed=show)
