"""Run jobs on workers: submit batches, a bounded number at a time, and collect outcomes in order of completion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from prefect import get_run_logger, tags
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, as_completed, wait

from flows import runners
from flows.runners import Workers
from flows.watching import Follower
from nst_tasks import batching, claims, intake, stopping, storage
from nst_tasks.batching import Batch, Job
from nst_tasks.claims import Claim
from nst_tasks.errors import Interrupted, NstError, ends_run, is_transient, redact
from nst_tasks.manifest import Pair
from nst_tasks.outcome import Outcome
from nst_tasks.progress import watch
from nst_tasks.settings import Run, Settings
from nst_tasks.source import Source
from nst_tasks.tasks import failed, inspect_pictures, stylize_batches, with_retries

T = TypeVar("T")

INSPECTED_AT_ONCE = 100
"""Images inspected by one task run."""

HELD_SECONDS = 2.0
"""Seconds between two checks of pairs that another run has claimed."""

HELD_TOLD = 10
"""Maximum number of such pairs named in a log line; there may be a hundred thousand."""

LAST_SECONDS = 3.0
"""Seconds given to task runs in flight when a run ends early, before its own cluster does: a chunk of steps, a checkpoint."""


def inspected(pairs: Iterable[Pair], done: Iterable[Outcome], settings: Settings) -> dict[str, Source | NstError]:
    """Return the source, or the inspection error, of every image of the manifest by URI.

    An image is inspected once, in a task run, unless its source is known from earlier outcomes.

    Raises:
        NstError: An error that ends the run.
    """
    uris = intake.picture_uris(pairs)
    sources: dict[str, Source | NstError] = dict(intake.remembered(uris, done, settings.readers))
    unknown = [uri for uri in uris if uri not in sources]
    chunks = [unknown[k : k + INSPECTED_AT_ONCE] for k in range(0, len(unknown), INSPECTED_AT_ONCE)]
    shell = with_retries(inspect_pictures, settings)

    def submit(chunk: list[str]) -> PrefectFuture[Any]:
        first = chunks.index(chunk) * INSPECTED_AT_ONCE + 1
        name = f"inspect pictures {first}-{first + len(chunk) - 1} of {len(unknown)}"
        return shell.with_options(task_run_name=name).submit(chunk, settings, {})

    for chunk, future in windowed(chunks, submit, window=4):
        result = future.result(raise_on_failure=False)
        if isinstance(result, BaseException):
            if ends_run(result):
                raise result
            sources |= {uri: NstError(f"{redact(uri)}: could not be inspected ({result})") for uri in chunk}
        else:
            sources |= result
    return sources


def standing(run: Run) -> dict[str, Claim]:
    """Return the claims in the run's output by pair key; none if the store does not support claims."""
    if not run.exclusive:
        return {}
    return storage.patiently(lambda: claims.standing(run.out), run.settings, watch().stop, get_run_logger().warning)


def stylized(jobs: Sequence[Job], run: Run, workers: Workers, follower: Follower) -> list[Outcome]:
    """Run the jobs on the workers and return one outcome for each.

    Pairs whose process died come after all others, so that a pair that kills its process again delays no other pair. Pairs that
    were part of a crash in native code come last, each alone, so that the next crash identifies the pair.
    """
    dead = {key: claim.next_strikes for key, claim in standing(run).items() if not claim.is_live}
    alone = replace(workers, window=1, most_pairs=1)
    with stopping.told(run, watch()) if workers.elsewhere else contextlib.nullcontext():
        return [
            *_fanned_out([job for job in jobs if job.key not in dead], run, workers, follower),
            *_fanned_out([job for job in jobs if dead.get(job.key) == 0], run, workers, follower),
            *_fanned_out([job for job in jobs if dead.get(job.key, 0) > 0], run, alone, follower),
        ]


def _fanned_out(jobs: Sequence[Job], run: Run, workers: Workers, follower: Follower) -> list[Outcome]:
    """Run the jobs in batches and return their outcomes.

    Waits for pairs that another run has claimed. Batches of a lost task run are submitted again, each in a task run of its own.

    Raises:
        NstError: An error that ends the run.
        Interrupted: The run received a stop signal.
    """
    logger, observer = get_run_logger(), watch()
    told = len(observer.warnings)
    shell = with_retries(stylize_batches, run.settings)

    def submit(share: tuple[Batch, ...]) -> PrefectFuture[Any]:
        with tags(*{job.recipe.name for batch in share for job in batch.jobs}):
            return workers.submit(shell, {"batches": share, "run": run})

    outcomes: list[Outcome] = []
    waiting, held, lost = list(jobs), list[Job](), list[Job]()
    while waiting:
        found = batching.batches(waiting, workers.most_pairs, run.settings.device_memory_gib * 2**30, workers.on_gpus)
        for share, future in windowed(batching.shares(found, run.settings.task_runs), submit, workers.window):
            for sentence in observer.warnings[told:]:
                logger.warning(sentence)
            told = len(observer.warnings)
            result = runners.result(future)
            if isinstance(result, NstError) and ends_run(result):
                raise result
            if isinstance(result, BaseException):  # the task run itself was lost: the other pairs go on
                if len(share) > 1 and not is_transient(result):
                    lost += [job for batch in share for job in batch.jobs]
                    continue
                result = [o for batch in share for o in failed(batch, result, run)]
            outcomes += result
            observer.finish(o.id for o in result)
            follower.tell(result, future.task_run_id)
            done = {o.id for o in result}
            held += [job for batch in share for job in batch.jobs if job.id not in done]
            if workers.elsewhere:
                ours = [job for batch in share for job in batch.jobs if job.id in done]
                observer.add(steps_done=sum(job.steps for job in ours), work_done=sum(job.work for job in ours))
        waiting, held = _released(held, run)
    if lost:  # one of their batches may have killed the worker repeatedly: run each alone to find it
        logger.warning("task runs of %d pairs were lost; each batch has one of its own now, what is done stands", len(lost))
        alone = replace(run, settings=replace(run.settings, task_runs=len(lost)))
        outcomes += _fanned_out(lost, alone, workers, follower)
    return outcomes


def _released(held: list[Job], run: Run) -> tuple[list[Job], list[Job]]:
    """Wait until any of the pairs claimed by another run is free; return the free ones and those still claimed.

    Raises:
        Interrupted: The run received a stop signal while waiting.
    """
    if held:
        more = f" and {len(held) - HELD_TOLD} more" if len(held) > HELD_TOLD else ""
        get_run_logger().info("waiting for another run that is doing %s%s", ", ".join(job.id for job in held[:HELD_TOLD]), more)
    while held:
        live = {key for key, claim in standing(run).items() if claim.is_live}
        free = [job for job in held if job.key not in live]
        if free:
            return free, [job for job in held if job.key in live]
        if watch().stop.wait(HELD_SECONDS):
            raise Interrupted("interrupted while another run was doing the last pairs")
    return [], []


def windowed(
    items: Iterable[T], submit: Callable[[T], PrefectFuture[Any]], window: int
) -> Iterator[tuple[T, PrefectFuture[Any]]]:
    """Yield each item with its future in order of completion, with at most `window` futures in flight.

    The window is refilled before each item is yielded, so that work goes on while the caller handles it. `task.map` would
    submit all items at once: ten thousand pairs would wait in memory and in the API's queue.

    Raises:
        Interrupted: The run received a stop signal.
    """
    in_flight: dict[PrefectFuture[Any], T] = {}
    waiting, stop = iter(items), watch().stop

    def fill() -> None:
        while len(in_flight) < window and not stop.is_set():
            try:
                item = next(waiting)
            except StopIteration:
                return
            in_flight[submit(item)] = item

    try:
        while True:
            fill()
            if stop.is_set():
                raise Interrupted("interrupted before all was submitted")
            if not in_flight:
                return
            future = next(as_completed(list(in_flight)))
            item = in_flight.pop(future)
            fill()
            yield item, future
    except TerminationSignal:  # SIGTERM, as Prefect delivers it: workers stop after their current chunk of steps
        stop.set()
        raise
    finally:
        if in_flight:
            wait(list(in_flight), timeout=LAST_SECONDS)
