"""Flow runs on a terminal: progress bar, signals and exit code."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from flows import nightly, stylize
from flows.nightly import SweepResult
from flows.states import INTERRUPTED_MESSAGE
from nst_tasks.errors import InputError, SettingsError, redact
from nst_tasks.inputs.options import RunOptions, SweepOptions
from nst_tasks.outputs.report import Report
from nst_tasks.progress import Progress, progress_variable


@dataclass(frozen=True)
class FlowEnd:
    """End of a flow run: its state's name and message, the exit code, and the report if there is one."""

    name: str
    message: str
    exit_code: int
    report: Report | None


STOPPED = FlowEnd("Cancelled", INTERRUPTED_MESSAGE, 130, None)

FORCED_EXIT_DELAY = 3.8
"""Seconds from the end of uninterruptible computation to the forced exit, which itself takes at most one more."""


def run_flow(manifest: str, out: str, options: RunOptions) -> FlowEnd:
    """Run `stylize_manifest` with a progress bar on standard error; SIGINT and SIGTERM end it between two chunks of steps.

    Raises:
        InputError: The input is refused, or the Prefect API does not answer.
    """
    state = _run_with_progress(partial(stylize.stylize_manifest, manifest, out, options, return_state=True))
    if state is None or state.is_cancelled():
        return STOPPED
    result = state.result(raise_on_failure=False)
    if isinstance(result, InputError):
        raise result
    report = result if isinstance(result, Report) else None
    failed = report is None or bool(report.failures)
    return FlowEnd(state.name or "", state.message or "", 1 if failed else 0, report)


def run_sweep(inbox: str, out: str, options: SweepOptions) -> tuple[FlowEnd, SweepResult | None]:
    """Run `nightly` once, as `run_flow` does, and also return the sweep's result, or None if it did not finish.

    Raises:
        InputError: An option is wrong, or the Prefect API does not answer.
    """
    state = _run_with_progress(partial(nightly.nightly, inbox, out, options, return_state=True))
    if state is None:
        return STOPPED, None
    result = state.result(raise_on_failure=False)
    if isinstance(result, InputError):
        raise result
    sweep_result = result if isinstance(result, SweepResult) else None
    return FlowEnd(
        state.name or "", state.message or "", 0 if sweep_result and not sweep_result.unsuccessful_count else 1, None
    ), sweep_result


def _run_with_progress(call: Callable[[], State[Any]]) -> State[Any] | None:
    """Run a flow under the progress bar and return its final state, or None if it was stopped before its end."""
    require_api()
    with _show_progress_bar() as progress, _handle_signals(progress):
        token = progress_variable.set(progress)
        try:
            state = call()
        except (KeyboardInterrupt, TerminationSignal):
            return None
        finally:
            progress_variable.reset(token)
        return None if progress.stop.is_set() and (state.is_cancelled() or state.is_crashed()) else state


def require_api() -> str | None:
    """Return the URL of the configured Prefect API, or None if none is configured.

    Prefect itself would wait and retry if the API does not answer.

    Raises:
        SettingsError: The API does not answer.
    """
    url: str | None = PREFECT_API_URL.value()
    if not url:
        return None  # Prefect starts one for the run
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:  # the client raises errors of many kinds before its own health check
        problem = error
    if problem is not None:
        raise SettingsError(
            f"PREFECT_API_URL: {redact(url)} does not answer ({type(problem).__name__}); start that server, correct the "
            "address, or unset it to run without one"
        )
    return url


@contextmanager
def _handle_signals(progress: Progress) -> Iterator[None]:
    """Ask the run to stop at the first SIGINT or SIGTERM, and raise `KeyboardInterrupt` at a later SIGINT."""
    asked = False

    def handle_signal(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        asked = True
        progress.stop.set()
        threading.Thread(target=_force_exit, args=(progress,), name="force exit", daemon=True).start()
        print("nst: stopping after the current steps; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    previous_handlers = {number: signal.signal(number, handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _force_exit(progress: Progress) -> None:
    """Exit the process of a stopped run even if something blocks it, such as a retry delay or a store that does not answer.

    A preempted machine is gone within seconds, and everything that counts is already written.
    """
    deadline = time.monotonic() + FORCED_EXIT_DELAY
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if progress.computing:
            deadline = time.monotonic() + FORCED_EXIT_DELAY
    print(INTERRUPTED_MESSAGE, file=sys.stderr, flush=True)
    # run the exit functions for at most a second, such as the one that stops the run's own server; standard error is
    # discarded, as they may complain about a cluster that the run is still waiting for
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    exit_functions = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    exit_functions.start()
    exit_functions.join(1.0)
    os._exit(130)


@contextmanager
def _show_progress_bar() -> Iterator[Progress]:
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
    with ProgressBar(*columns, console=console, disable=not console.is_terminal) as bar:
        bar_task = bar.add_task("starting", total=None)

        def update_bar(progress: Progress) -> None:
            text = f"{progress.pairs_done}/{progress.pairs} pairs  {progress.steps_done}/{progress.steps} steps"
            bar.update(bar_task, description=text, total=progress.work or None, completed=progress.work_done)

        yield Progress(on_change=update_bar)
