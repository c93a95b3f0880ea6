"""Run jobs on workers: submit batches, a bounded number at a time, and collect outcomes in order of completion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from prefect import get_run_logger, tags
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, as_completed, wait

from flows import task_runners
from flows.artifacts import RunReporter
from flows.task_runners import Workers
from nst_tasks.errors import Interrupted, NstError, is_fatal_to_run, is_transient, redact
from nst_tasks.images.picture import Source
from nst_tasks.inputs.jobs import Batch, Job, group_into_batches, split_into_shares
from nst_tasks.inputs.manifest import Pair
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import claims
from nst_tasks.outputs.claims import Claim
from nst_tasks.outputs.outcome import Outcome
from nst_tasks.outputs.stop_signal import forward_stop
from nst_tasks.planning.inspection import find_known_sources, list_image_uris
from nst_tasks.progress import current_progress
from nst_tasks.storage.retry import call_with_retries
from nst_tasks.tasks import inspect_pictures, record_batch_failure, stylize_batches, with_retries

T = TypeVar("T")

IMAGES_PER_INSPECTION = 100
"""Images inspected by one task run."""

CLAIM_POLL_SECONDS = 2.0
"""Seconds between two checks of pairs that another run has claimed."""

MAX_CLAIMED_PAIRS_LOGGED = 10
"""Maximum number of such pairs named in a log line; there may be a hundred thousand."""

SHUTDOWN_TIMEOUT_SECONDS = 3.0
"""Seconds given to task runs in flight when a run ends early, before its own cluster does: a chunk of steps, a checkpoint."""


def inspect_images(pairs: Iterable[Pair], done: Iterable[Outcome], settings: Settings) -> dict[str, Source | NstError]:
    """Return the source, or the inspection error, of every image of the manifest by URI.

    An image is inspected once, in a task run, unless its source is known from earlier outcomes.

    Raises:
        NstError: An error that ends the run.
    """
    uris = list_image_uris(pairs)
    sources: dict[str, Source | NstError] = dict(find_known_sources(uris, done, settings.readers))
    unknown = [uri for uri in uris if uri not in sources]
    chunks = [unknown[k : k + IMAGES_PER_INSPECTION] for k in range(0, len(unknown), IMAGES_PER_INSPECTION)]
    task = with_retries(inspect_pictures, settings)

    def submit(chunk: list[str]) -> PrefectFuture[Any]:
        first = chunks.index(chunk) * IMAGES_PER_INSPECTION + 1
        name = f"inspect pictures {first}-{first + len(chunk) - 1} of {len(unknown)}"
        return task.with_options(task_run_name=name).submit(chunk, settings, {})

    for chunk, future in submit_in_window(chunks, submit, window=4):
        result = future.result(raise_on_failure=False)
        if isinstance(result, BaseException):
            if is_fatal_to_run(result):
                raise result
            sources |= {uri: NstError(f"{redact(uri)}: could not be inspected ({result})") for uri in chunk}
        else:
            sources |= result
    return sources


def list_claims(run: Run) -> dict[str, Claim]:
    """Return the claims in the run's output by pair key; none if the store does not support claims."""
    if not run.exclusive:
        return {}
    return call_with_retries(
        lambda: claims.current_claims(run.out), run.settings.retry_delays, current_progress().stop, get_run_logger().warning
    )


def run_jobs(jobs: Sequence[Job], run: Run, workers: Workers, reporter: RunReporter) -> list[Outcome]:
    """Run the jobs on the workers and return one outcome for each.

    Pairs whose process died come after all others, so that a pair that kills its process again delays no other pair. Pairs that
    were part of a crash in native code come last, each alone, so that the next crash identifies the pair.
    """
    strikes_by_key = {key: claim.next_strikes for key, claim in list_claims(run).items() if not claim.is_live}
    single_pair_workers = replace(workers, window=1, max_pairs=1)
    with forward_stop(run, current_progress()) if workers.out_of_process else contextlib.nullcontext():
        return [
            *_run_batches([job for job in jobs if job.key not in strikes_by_key], run, workers, reporter),
            *_run_batches([job for job in jobs if strikes_by_key.get(job.key) == 0], run, workers, reporter),
            *_run_batches([job for job in jobs if strikes_by_key.get(job.key, 0) > 0], run, single_pair_workers, reporter),
        ]


def _run_batches(jobs: Sequence[Job], run: Run, workers: Workers, reporter: RunReporter) -> list[Outcome]:
    """Run the jobs in batches and return their outcomes.

    Waits for pairs that another run has claimed. Batches of a lost task run are submitted again, each in a task run of its own.

    Raises:
        NstError: An error that ends the run.
        Interrupted: The run received a stop signal.
    """
    logger, progress = get_run_logger(), current_progress()
    logged_count = len(progress.warnings)
    task = with_retries(stylize_batches, run.settings)

    def submit(share: tuple[Batch, ...]) -> PrefectFuture[Any]:
        with tags(*{job.recipe.name for batch in share for job in batch.jobs}):
            return workers.submit(task, {"batches": share, "run": run})

    outcomes: list[Outcome] = []
    waiting, claimed, lost = list(jobs), list[Job](), list[Job]()
    while waiting:
        pending_batches = group_into_batches(
            waiting, workers.max_pairs, run.settings.device_memory_gib * 2**30, workers.on_gpus
        )
        for share, future in submit_in_window(
            split_into_shares(pending_batches, run.settings.task_runs), submit, workers.window
        ):
            for sentence in progress.warnings[logged_count:]:
                logger.warning(sentence)
            logged_count = len(progress.warnings)
            result = task_runners.get_result(future)
            if isinstance(result, NstError) and is_fatal_to_run(result):
                raise result
            if isinstance(result, BaseException):  # the task run itself was lost: the other pairs go on
                if len(share) > 1 and not is_transient(result):
                    lost += [job for batch in share for job in batch.jobs]
                    continue
                result = [o for batch in share for o in record_batch_failure(batch, result, run)]
            outcomes += result
            progress.mark_done(o.id for o in result)
            reporter.report_outcomes(result, future.task_run_id)
            done = {o.id for o in result}
            claimed += [job for batch in share for job in batch.jobs if job.id not in done]
            if workers.out_of_process:
                finished_jobs = [job for batch in share for job in batch.jobs if job.id in done]
                progress.add(
                    steps_done=sum(job.steps for job in finished_jobs), work_done=sum(job.pixel_steps for job in finished_jobs)
                )
        waiting, claimed = wait_for_claimed(claimed, run)
    if lost:  # one of their batches may have killed the worker repeatedly: run each alone to find it
        logger.warning("task runs of %d pairs were lost; each batch has one of its own now, what is done stands", len(lost))
        one_batch_per_task = replace(run, settings=run.settings.model_copy(update={"task_runs": len(lost)}))
        outcomes += _run_batches(lost, one_batch_per_task, workers, reporter)
    return outcomes


def wait_for_claimed(claimed: Iterable[Job], run: Run) -> tuple[list[Job], list[Job]]:
    """Wait until any of the pairs claimed by another run is free; return the free ones and those still claimed, in row order.

    Raises:
        Interrupted: The run received a stop signal while waiting.
    """
    claimed = sorted(claimed, key=lambda job: job.row)  # their task runs end in any order
    if claimed:
        more = f" and {len(claimed) - MAX_CLAIMED_PAIRS_LOGGED} more" if len(claimed) > MAX_CLAIMED_PAIRS_LOGGED else ""
        get_run_logger().info(
            "waiting for another run that is doing %s%s", ", ".join(job.id for job in claimed[:MAX_CLAIMED_PAIRS_LOGGED]), more
        )
    while claimed:
        live = {key for key, claim in list_claims(run).items() if claim.is_live}
        free = [job for job in claimed if job.key not in live]
        if free:
            return free, [job for job in claimed if job.key in live]
        if current_progress().stop.wait(CLAIM_POLL_SECONDS):
            raise Interrupted("interrupted while another run was doing the last pairs")
    return [], []


def submit_in_window(
    items: Iterable[T], submit: Callable[[T], PrefectFuture[Any]], window: int
) -> Iterator[tuple[T, PrefectFuture[Any]]]:
    """Yield each item with its future in order of completion, with at most `window` futures in flight.

    The window is refilled before each item is yielded, so that work goes on while the caller handles it. `task.map` would
    submit all items at once: ten thousand pairs would wait in memory and in the API's queue.

    Raises:
        Interrupted: The run received a stop signal.
    """
    in_flight: dict[PrefectFuture[Any], T] = {}
    waiting, stop = iter(items), current_progress().stop

    def submit_next() -> None:
        while len(in_flight) < window and not stop.is_set():
            try:
                item = next(waiting)
            except StopIteration:
                return
            in_flight[submit(item)] = item

    try:
        while True:
            submit_next()
            if stop.is_set():
                raise Interrupted("interrupted before all was submitted")
            if not in_flight:
                return
            future = next(as_completed(list(in_flight)))
            item = in_flight.pop(future)
            submit_next()
            yield item, future
    except TerminationSignal:  # SIGTERM, as Prefect delivers it: workers stop after their current chunk of steps
        stop.set()
        raise
    finally:
        if in_flight:
            wait(list(in_flight), timeout=SHUTDOWN_TIMEOUT_SECONDS)
