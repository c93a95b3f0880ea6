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

from nst_tasks import batching, intake, stopping, storage, work
from nst_tasks.batching import Batch
from nst_tasks.errors import NstError, at_most, ends_run, fit_to_log, is_transient
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import current, watch
from nst_tasks.settings import Run, Settings
from nst_tasks.source import Source

P = ParamSpec("P")
R = TypeVar("R")

AWAY_AFTER = 5
"""Consecutive batches with store failures after which a task run leaves its other batches to the retry, too."""

FAILURES_TOLD = 10
"""Maximum number of failed pairs in a task run's message."""


def _fit_to_log(shell: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that its exceptions hold no secrets: Prefect logs them and shows them as the state's message."""

    @functools.wraps(shell)
    def careful(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return shell(*arguments, **options)
        except Exception as error:
            raise fit_to_log(error) from None

    return careful


async def _is_worth_a_retry(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
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
        retry_delay_seconds=settings.delays,
        retry_jitter_factor=0.5,
        retry_condition_fn=_is_worth_a_retry,
    )


@task(cache_policy=NO_CACHE, persist_result=False)
@_fit_to_log
def inspect_pictures(uris: list[str], settings: Settings, found: dict[str, Source | NstError]) -> dict[str, Source | NstError]:
    """Read and identify, several at once, the images that are not in `found`, and add them to it.

    A retry in the same process has the same `found`, and so reads only the images again for which the store failed.

    Raises:
        StorageUnavailable: The store failed temporarily for at least one image, and a retry is left.
        StorageUnusable: The store rejects all reads, not only this image's.
    """
    left = [uri for uri in uris if uri not in found]
    results = storage.each(lambda uri: intake.inspect(uri, settings.max_pixels, settings.access), left, settings.readers)
    again: NstError | None = None
    for uri, result in zip(left, results, strict=True):
        if isinstance(result, NstError) and ends_run(result):
            raise result
        if isinstance(result, NstError) and is_transient(result) and not _is_last_attempt(settings):
            again = result
        else:
            found[uri] = result
    if again is not None:
        raise again
    return found


@contextlib.contextmanager
def _watched(run: Run) -> Iterator[None]:
    """Poll for the stop signal and log the warnings on a cluster worker, which the run's own `Watch` does not reach."""
    if current.get() is not None:
        yield
        return
    with stopping.heeded(run) as observer:
        yield
    for sentence in observer.summary:
        get_run_logger().warning(sentence)


def failed(batch: Batch, error: BaseException, run: Run) -> list[Outcome]:
    """Record the failure of a batch by `work.fail` and return its outcomes, with retries while the store fails.

    Raises:
        StorageUnavailable: The store kept failing through all retries.
        StorageUnusable: The store rejects all writes.
        Interrupted: The run was asked to stop.
    """
    return storage.patiently(lambda: work.fail(batch, error, run), run.settings, watch().stop, get_run_logger().warning)


def _share_name(parameters: dict[str, Any]) -> str:
    return batching.share_name(parameters["batches"])


# named by a function: a string would be a template of the parameters, and file names may hold anything
@task(cache_policy=NO_CACHE, persist_result=False, task_run_name=_share_name)  # type: ignore[arg-type]  # a class in Prefect
@_fit_to_log
def stylize_batches(batches: Sequence[Batch], run: Run) -> State[list[Outcome]]:
    """Stylize the pairs of some batches, one batch after the other; the state is Failed if no pair succeeded.

    A temporary store failure in one batch does not block the others: they are done first, and the retry finds them done.
    After `AWAY_AFTER` such batches in a row the others wait for the retry as well. At the last attempt the pairs of such a
    batch are tried one by one, so that only the affected pairs fail.

    Raises:
        StorageUnavailable: The store failed temporarily for at least one batch, and a retry is left.
        StorageUnusable: The store rejects all writes.
        Interrupted: The run was asked to stop.
    """
    outcomes: list[Outcome] = []
    again: NstError | None = None
    in_a_row = 0
    with _watched(run):
        left = deque(batches)
        while left:
            batch = left.popleft()
            try:
                outcomes += work.stylize(batch, run)
                in_a_row = 0
            except NstError as error:
                if ends_run(error):
                    raise
                if is_transient(error) and not _is_last_attempt(run.settings):
                    again, in_a_row = error, in_a_row + 1
                    if in_a_row == AWAY_AFTER:
                        break
                elif is_transient(error) and len(batch.jobs) > 1:
                    left.extendleft(Batch((job,)) for job in reversed(batch.jobs))
                else:
                    outcomes += failed(batch, error, run)
            except Exception as error:
                get_run_logger().error("%s: a defect, the other pairs go on", batch.name, exc_info=fit_to_log(error))
                outcomes += failed(batch, error, run)
    if again is not None:
        raise again
    errors = [f"{done.id}: {done.error}" for done in outcomes if done.status == Status.FAILED]
    if not outcomes:
        return Completed(name="Done elsewhere", message="another run is doing these pairs", data=outcomes)
    if not errors:
        return Completed(data=outcomes)
    message = "; ".join(at_most(FAILURES_TOLD, errors))
    if len(errors) < len(outcomes):
        return Completed(name="Completed with failures", message=message, data=outcomes)
    return Failed(message=message, data=outcomes)
