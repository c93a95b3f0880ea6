"""Prefect tasks: thin shells over `intake` and `work` that add names, retries and states.

Transient failures of the store are raised, so that Prefect retries the task after a backoff with jitter; at the last attempt
they become outcomes like any other failure. Everything else is decided in plain functions.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from prefect.tasks import Task

from nst_tasks.engine import run_batch
from nst_tasks.errors import NstError, is_fatal_to_run, is_transient, limit_lines, sanitize_for_log
from nst_tasks.images.picture import Source
from nst_tasks.inputs.jobs import Batch, format_share_name
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.stop_signal import watch_stop
from nst_tasks.planning.inspection import inspect_image
from nst_tasks.progress import current_progress, progress_variable
from nst_tasks.storage.parallel import map_parallel
from nst_tasks.storage.retry import call_with_retries

P = ParamSpec("P")
R = TypeVar("R")

MAX_STORE_FAILURES_IN_A_ROW = 5
"""Consecutive batches with store failures after which a task run leaves its other batches to the retry, too."""

MAX_FAILURES_IN_MESSAGE = 10
"""Maximum number of failed pairs in a task run's message."""


def _redact_exceptions(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that its exceptions hold no secrets: Prefect logs them and shows them as the state's message."""

    @functools.wraps(function)
    def wrapper(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise sanitize_for_log(error) from None

    return wrapper


async def _is_retryable(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    try:
        await state.aresult()
    except BaseException as error:
        return is_transient(error)
    return False


def _is_last_attempt(settings: Settings) -> bool:
    return int(runtime.task_run.run_count or 0) > settings.retries


def with_retries(shell: Task[Any, Any], settings: Settings) -> Task[Any, Any]:
    """Return the task with the settings' retries, backoff and jitter.

    Make it once for many task runs, because Prefect reads the task's source each time.
    """
    return shell.with_options(
        retries=settings.retries,
        retry_delay_seconds=settings.retry_delays,
        retry_jitter_factor=0.5,
        retry_condition_fn=_is_retryable,
    )


@task(cache_policy=NO_CACHE, persist_result=False)
@_redact_exceptions
def inspect_pictures(uris: list[str], settings: Settings, found: dict[str, Source | NstError]) -> dict[str, Source | NstError]:
    """Read and identify, several at once, the images that are not in `found`, and add them to it.

    A retry in the same process has the same `found`, and so reads only the images again for which the store failed.

    Raises:
        StorageUnavailable: The store failed temporarily for at least one image, and a retry is left.
        StorageUnusable: The store rejects all reads, not only this image's.
    """
    remaining = [uri for uri in uris if uri not in found]
    results = map_parallel(lambda uri: inspect_image(uri, settings.max_pixels, settings.access), remaining, settings.readers)
    retryable_error: NstError | None = None
    for uri, result in zip(remaining, results, strict=True):
        if isinstance(result, NstError) and is_fatal_to_run(result):
            raise result
        if isinstance(result, NstError) and is_transient(result) and not _is_last_attempt(settings):
            retryable_error = result
        else:
            found[uri] = result
    if retryable_error is not None:
        raise retryable_error
    return found


@contextlib.contextmanager
def _follow_stop_signal(run: Run) -> Iterator[None]:
    """Poll for the stop signal and log the warnings on a cluster worker, which the run's own `Watch` does not reach."""
    if progress_variable.get() is not None:
        yield
        return
    with watch_stop(run) as progress:
        yield
    for sentence in progress.warning_lines:
        get_run_logger().warning(sentence)


def record_batch_failure(batch: Batch, error: BaseException, run: Run) -> list[Outcome]:
    """Record the failure of a batch and return its outcomes, with retries while the store fails.

    Raises:
        StorageUnavailable: The store kept failing through all retries.
        StorageUnusable: The store rejects all writes.
        Interrupted: The run was asked to stop.
    """
    return call_with_retries(
        lambda: run_batch.fail_batch(batch, error, run),
        run.settings.retry_delays,
        current_progress().stop,
        get_run_logger().warning,
    )


def _name_task_run(parameters: dict[str, Any]) -> str:
    return format_share_name(parameters["batches"])


# named by a function: a string would be a template of the parameters, and file names may hold anything
@task(cache_policy=NO_CACHE, persist_result=False, task_run_name=_name_task_run)  # type: ignore[arg-type]  # a class in Prefect
@_redact_exceptions
def stylize_batches(batches: Sequence[Batch], run: Run) -> State[list[Outcome]]:
    """Stylize the pairs of some batches, one batch after the other; the state is Failed if no pair succeeded.

    A temporary store failure in one batch does not block the others: they are done first, and the retry finds them done.
    After `MAX_STORE_FAILURES_IN_A_ROW` such batches in a row the others wait for the retry as well. At the last attempt
    the pairs of such a batch are tried one by one, so that only the affected pairs fail.

    Raises:
        StorageUnavailable: The store failed temporarily for at least one batch, and a retry is left.
        StorageUnusable: The store rejects all writes.
        Interrupted: The run was asked to stop.
    """
    outcomes: list[Outcome] = []
    retryable_error: NstError | None = None
    consecutive_failures = 0
    with _follow_stop_signal(run):
        remaining = deque(batches)
        while remaining:
            batch = remaining.popleft()
            try:
                outcomes += run_batch.stylize(batch, run)
                consecutive_failures = 0
            except NstError as error:
                if is_fatal_to_run(error):
                    raise
                if is_transient(error) and not _is_last_attempt(run.settings):
                    retryable_error, consecutive_failures = error, consecutive_failures + 1
                    if consecutive_failures == MAX_STORE_FAILURES_IN_A_ROW:
                        break
                elif is_transient(error) and len(batch.jobs) > 1:
                    remaining.extendleft(Batch((job,)) for job in reversed(batch.jobs))
                else:
                    outcomes += record_batch_failure(batch, error, run)
            except Exception as error:
                get_run_logger().error("%s: a defect, the other pairs go on", batch.name, exc_info=sanitize_for_log(error))
                outcomes += record_batch_failure(batch, error, run)
    if retryable_error is not None:
        raise retryable_error
    errors = [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.status == Status.FAILED]
    if not outcomes:
        return Completed(name="Done elsewhere", message="another run is doing these pairs", data=outcomes)
    if not errors:
        return Completed(data=outcomes)
    message = "; ".join(limit_lines(MAX_FAILURES_IN_MESSAGE, errors))
    if len(errors) < len(outcomes):
        return Completed(name="Completed with failures", message=message, data=outcomes)
    return Failed(message=message, data=outcomes)
