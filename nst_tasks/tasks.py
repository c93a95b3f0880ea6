"""Prefect tasks: thin shells over `intake` and `work` that add names, retries and states.

Transient failures of the store are raised, so that Prefect tries the task again after a backoff with jitter; at the last
attempt they become outcomes like any other failure. Everything else is decided in plain functions.
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
"""Batches of a task run for which the store failed one after the other: it is away, and the rest would only wait for it too."""

FAILURES_TOLD = 10
"""Pairs whose failure is part of a task run's message."""


def _fit_to_log(shell: Callable[P, R]) -> Callable[P, R]:
    """The same, but what it raises has no secret in it: Prefect logs it and shows it as the state's message."""

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
    """A task with the settings' retries, backoff and jitter: to be made once for many runs, as Prefect reads its source."""
    return shell.with_options(
        retries=settings.retries,
        retry_delay_seconds=settings.delays,
        retry_jitter_factor=0.5,
        retry_condition_fn=_is_worth_a_retry,
    )


@task(cache_policy=NO_CACHE, persist_result=False)
@_fit_to_log
def inspect_pictures(uris: list[str], settings: Settings, found: dict[str, Source | NstError]) -> dict[str, Source | NstError]:
    """Read and identify pictures that no earlier run knows, several at once, save those that are `found`; add them there.

    A thread that tries the task again has the same `found`, and so reads only those again for which the store failed.

    Raises:
        StorageUnavailable: of one picture at least. StorageUnusable: the store's refusal concerns every picture.
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
    """On a worker of a cluster, where the run's watch is not: heed the wish to stop, and log what would be told."""
    if current.get() is not None:
        yield
        return
    with stopping.heeded(run) as observer:
        yield
    for sentence in observer.summary:
        get_run_logger().warning(sentence)


def failed(batch: Batch, error: BaseException, run: Run) -> list[Outcome]:
    """The outcomes of a batch that could not be done, as `work.fail` has them, however often the store fails meanwhile.

    Raises:
        StorageUnavailable: it stayed away. StorageUnusable: nothing can be written any more. Interrupted: asked to stop.
    """
    return storage.patiently(lambda: work.fail(batch, error, run), run.settings, watch().stop, get_run_logger().warning)


def _share_name(parameters: dict[str, Any]) -> str:
    return batching.share_name(parameters["batches"])


# the name by a function: a string would be a template of the parameters, and a picture's name may hold anything
@task(cache_policy=NO_CACHE, persist_result=False, task_run_name=_share_name)  # type: ignore[arg-type]  # Prefect's own is a class
@_fit_to_log
def stylize_batches(batches: Sequence[Batch], run: Run) -> State[list[Outcome]]:
    """Stylize the pairs of some batches, one batch after the other; Failed when no pair succeeded.

    A batch for which the store fails for the moment keeps none of the others from being done: they come first, then the
    task is tried again, which finds them done. When it fails for several in a row, they wait for that too. At the last
    attempt the pairs of such a batch are tried one by one, so that only those fail that the store fails for.

    Raises:
        StorageUnavailable: of one batch at least. StorageUnusable, Interrupted: no other batch would fare better.
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
