"""From jobs to outcomes: batches go out to the workers, a bounded number at a time, and come back in whatever order."""

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
"""Pictures that one task run inspects."""

HELD_SECONDS = 2.0
"""Between two looks at pairs that another run is doing."""

HELD_TOLD = 10
"""Of these pairs, in a line of the log; there may be a hundred thousand."""

LAST_SECONDS = 3.0
"""For what is in flight when a run ends early: a chunk of steps and its checkpoint, before a cluster of its own is gone."""


def inspected(pairs: Iterable[Pair], done: Iterable[Outcome], settings: Settings) -> dict[str, Source | NstError]:
    """Every picture of the manifest, once: remembered from earlier outcomes, or inspected."""
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
    """The claims that hold in the output of a run, by key; none where its store does not honour them."""
    if not run.exclusive:
        return {}
    return storage.patiently(lambda: claims.standing(run.out), run.settings, watch().stop, get_run_logger().warning)


def stylized(jobs: Sequence[Job], run: Run, workers: Workers, follower: Follower) -> list[Outcome]:
    """Fan the jobs out and gather their outcomes, whatever becomes of each.

    Pairs that a process died over come after the others, so that one that takes its process down again keeps nothing else
    from being done; those that were part of a crash in native code come last, and each alone, so that the next crash tells
    which it is.
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
    """Outcomes of jobs that go out to the workers in batches."""
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
            if isinstance(result, BaseException):  # the task itself was lost: the other pairs go on
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
    if lost:  # with its worker, which one of them may have taken down over and over: each batch alone tells which
        logger.warning("task runs of %d pairs were lost; each batch has one of its own now, what is done stands", len(lost))
        alone = replace(run, settings=replace(run.settings, task_runs=len(lost)))
        outcomes += _fanned_out(lost, alone, workers, follower)
    return outcomes


def _released(held: list[Job], run: Run) -> tuple[list[Job], list[Job]]:
    """Pairs that another run was doing: those that it is done with, once there is one, and those that it still does."""
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
    """Each item with its future, as they finish, with at most `window` submitted at a time, also while the caller looks at one.

    `task.map` would submit them all at once: ten thousand pairs would wait in memory and in the API's queue.
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
    except TerminationSignal:  # SIGTERM, as Prefect delivers it: workers and threads stop after their current chunk of steps
        stop.set()
        raise
    finally:
        if in_flight:
            wait(list(in_flight), timeout=LAST_SECONDS)
