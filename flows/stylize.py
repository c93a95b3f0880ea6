"""The flow `stylize-manifest`: validate a manifest, run its pairs on workers, collect the outcomes, write the report."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, TypeVar

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import fanout, runners, watching
from flows.runners import Workers
from flows.watching import Follower
from nst_tasks import claims, intake, outcome, presets, reporting, resume, settings, storage, weights, work
from nst_tasks.core.method import MAX_STEPS, Precision
from nst_tasks.errors import (
    ClusterError,
    InputError,
    Interrupted,
    NstError,
    StorageError,
    at_most,
    fit_to_log,
    is_pairs_own,
    redact,
)
from nst_tasks.ledger import Result
from nst_tasks.manifest import archived, reasons
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import current, watch
from nst_tasks.recipes import MAX_SIZE, MIN_SIZE
from nst_tasks.reporting import Report
from nst_tasks.request import Request, Runner, checkpoint_interval, failure_limit
from nst_tasks.settings import Run, Settings

T = TypeVar("T")


LINES_LOGGED = 100
"""Maximum number of log lines for failures before any work, and for untrusted markers: a manifest may have 100,000 of each."""

MOST_THREADS = 64
"""Threads of the task runner; the window, not this number, bounds the batches in flight, see `runners`."""


REFUSED = "Refused"
WITH_FAILURES = "Completed with failures"
"""Names of final states for which Prefect has no type."""

MESSAGE_ANNOUNCED = 2000
"""Maximum length in characters of the message in a run's event: a message about a manifest can have a line for every row."""


INTERRUPTED = "interrupted; what is finished is safe: run the same command again"


BackboneName = Annotated[str, Field(json_schema_extra={"enum": [*weights.BACKBONES]})]
Size = Annotated[int | None, Field(json_schema_extra={"minimum": MIN_SIZE, "maximum": MAX_SIZE})]
Steps = Annotated[int | None, Field(json_schema_extra={"minimum": 0, "maximum": MAX_STEPS})]
"""Flow parameters with the limits shown in a deployment's form; values from the form are validated like all others."""


def _flow_run_name() -> str:
    return manifest_name(str(runtime.flow_run.parameters.get("manifest", "")))


def manifest_name(uri: str) -> str:
    """Return the short name of a manifest: its file name without folder and suffix."""
    return redact(uri).rpartition("/")[2].removesuffix(".csv") or "manifest"


@flow(
    name="stylize-manifest",
    flow_run_name=_flow_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_THREADS),  # type: ignore[arg-type]  # invariant in Prefect's own types
    persist_result=False,
)
def stylize_manifest(
    manifest: str,
    out: str,
    recipe: str = presets.DEFAULT,
    size: Size = None,
    steps: Steps = None,
    precision: Precision | None = None,
    plateau: float | None = None,
    backbone: BackboneName = weights.DEFAULT,
    weights_file: str | None = None,
    strict: bool = False,
    max_failures: str | None = None,
    upscale: bool = False,
    history_every: int = 1,
    snapshots: int | None = None,
    checkpoint_every: str = "30s",
    pair_timeout: float | None = None,
    runner: Runner = "threads",
) -> State[Report]:
    """Stylize every pair of a manifest.

    Args:
        manifest: URI of the CSV manifest, local or remote.
        out: URI of the folder for images, history, outcomes and the report.
        recipe: name that `nst recipes` lists, or URI of a TOML file; applies to rows that name no recipe.
        size: longest side of the results in pixels, for rows that give none; empty for the recipe's value.
        steps: optimization steps at full size, for rows that give none; empty for the recipe's value.
        precision: precision of the network, for rows that give none; empty for the recipe's value. auto means mixed, with
            bfloat16, where the flow's machine computes that fast.
        plateau: for rows that give none, end a level once its mean loss falls by no more than this share over 20 steps, such as
            0.01; 0 for never, empty for the recipe's value.
        backbone: network whose features are used.
        weights_file: URI of a Keras weights file for vgg19 or vgg16.
        strict: run nothing if any row is rejected.
        max_failures: the run ends Failed if more rows than this fail, such as 10 or 5%.
        upscale: enlarge images that are smaller than the size.
        history_every: record every N-th step in the loss history.
        snapshots: write the unfinished image beside the final one every N steps; empty for never.
        checkpoint_every: interval between checkpoints, in seconds of compute such as 30s, or in steps such as 50; 0 for never.
        pair_timeout: seconds of compute after which a pair fails; empty for no limit.
        runner: where batches run: in threads of the flow's process, or on the workers of a Dask or Ray cluster.
    """
    request = Request(
        storage.absolute(manifest), storage.absolute(out), intake.located(recipe), size, steps, backbone,
        storage.absolute(weights_file) if weights_file else None, strict, max_failures, upscale, history_every, snapshots,
        checkpoint_every, pair_timeout, runner, precision, plateau,
    )  # fmt: skip
    try:
        state = _carried_out(request)
    except (KeyboardInterrupt, TerminationSignal):
        announce(request, Result.INTERRUPTED, INTERRUPTED)
        raise
    except Exception as error:
        announce(request, Result.FAILED, str(fit_to_log(error)))
        raise
    ended = state.data if isinstance(state.data, Report) else None
    announce(request, result_of(state), state.message or "", ended)
    return state


def _carried_out(request: Request) -> State[Report]:
    """Run the manifest of a request and convert its report, or its exception, into a final state."""
    observer = watch()
    current.set(observer)
    try:
        configured = settings.from_environment()
        with runners.opened(request.runner, configured) as workers:
            report = run_manifest(request, configured, workers)
    except TerminationSignal:  # SIGTERM, as Prefect delivers it: threads stop after their current chunk of steps
        observer.stop.set()
        raise
    except InputError as error:
        return Failed(name=REFUSED, message=watching.refused(manifest_name(request.manifest), error), data=error)
    except Interrupted:
        return Cancelled(message=INTERRUPTED)
    except (StorageError, ClusterError) as error:
        if not is_pairs_own(error):
            observer.stop.set()  # all pairs are affected: stop those in flight, and a sweep's other manifests
        return Failed(message=f"the run could not go on, what is finished is safe: {error}", data=error)
    except PrefectException:
        raise
    except Exception as error:  # a bug: Prefect logs and shows the message
        raise fit_to_log(error) from None
    message = report.message
    if len(report.failures) > failure_limit(request.max_failures, report.rows):
        limit = f"above --max-failures {request.max_failures}" if request.max_failures else "none succeeded"
        return Failed(message=f"{message} ({limit})", data=report)
    if report.failures:
        return Completed(name=WITH_FAILURES, message=message, data=report)
    return Completed(message=message, data=report)


def start(request: Request) -> State[Any]:
    """Run the flow for a request and return its final state."""
    return stylize_manifest(
        manifest=request.manifest,
        out=request.out,
        recipe=request.recipe,
        size=request.size,
        steps=request.steps,
        precision=request.precision,
        plateau=request.plateau,
        backbone=request.backbone,
        weights_file=request.weights,
        strict=request.strict,
        max_failures=request.max_failures,
        upscale=request.upscale,
        history_every=request.history_every,
        snapshots=request.snapshots,
        checkpoint_every=request.checkpoint_every,
        pair_timeout=request.pair_timeout,
        runner=request.runner,
        return_state=True,
    )


def result_of(state: State[Any]) -> Result:
    """Return the ledger's result for the final state of a run."""
    if state.is_completed():
        return Result.FAILURES if state.name == WITH_FAILURES else Result.GOOD
    if state.is_cancelled():
        return Result.INTERRUPTED
    return Result.REFUSED if state.name == REFUSED else Result.FAILED


def announce(request: Request, result: Result, message: str, report: Report | None = None) -> None:
    """Emit the event that a manifest's run has ended, for Prefect automations.

    Triggers match on the event's resource; its payload holds details for people.
    """
    manifest = redact(request.manifest)
    payload: dict[str, Any] = {"out": redact(request.out), "message": message[:MESSAGE_ANNOUNCED]}
    if report is not None:
        payload |= {
            "rows": report.rows,
            "counts": report.counts,
            "run_id": report.run_id,
            "report": report.files["report"],
            "manifest_sha256": report.manifest_sha256,
        }
    emit_event(
        "nst.manifest.completed",
        resource={"prefect.resource.id": f"nst.manifest.{manifest}", "prefect.resource.name": manifest, "nst.result": result},
        payload=payload,
    )


def run_manifest(request: Request, settings: Settings, workers: Workers) -> Report:
    """Run a request inside a flow run and return its report.

    Raises:
        InputError: The request or its manifest is invalid as a whole; nothing ran.
        Interrupted: The run received a stop signal.
        StorageError: The output could not be listed, or a pair's files or the summary could not be written.
        ClusterError: The workers can no longer be reached.
    """
    logger, observer = get_run_logger(), watch()

    def patiently(function: Callable[[], T]) -> T:
        return storage.patiently(function, settings, observer.stop, logger.warning)

    began = datetime.now(UTC)
    taken = intake.prepare(request, settings)
    claims.watch_for_crashes()
    checkpoint_steps, checkpoint_seconds = checkpoint_interval(request.checkpoint_every)
    run = Run(
        id=f"{began:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        out=request.out,
        backbone=request.backbone,
        weights=request.weights,
        weights_sha256=taken.weights_sha256,
        history_every=request.history_every,
        settings=settings,
        snapshots=request.snapshots or 0,
        checkpoint_steps=checkpoint_steps,
        checkpoint_seconds=checkpoint_seconds,
        pair_timeout=request.pair_timeout or 0.0,
        exclusive=taken.exclusive,
    )
    folder = storage.join(request.out, "runs", run.id)
    patiently(lambda: storage.write(storage.join(folder, "manifest.csv"), archived(taken.manifest_bytes)))

    every_id = [pair.id for pair in taken.manifest.pairs]
    done, warnings = patiently(lambda: intake.finished(request.out, every_id, settings.readers))
    _log(logger, warnings)
    sources = fanout.inspected(taken.manifest.pairs, done.values(), settings)
    rows = intake.triage(taken, sources, request, done)
    why = reasons(taken.manifest)
    outcomes = [
        *(
            Outcome(id="", row=row.row, status=Status.REJECTED, run_id=run.id, error="; ".join(why[row.row]))
            for row in taken.manifest.rejected
        ),
        *_recorded([work.failure(pair.id, pair.row, error, run.id) for pair, error in rows.refused], run, patiently),
        *(replace(done[job.id], status=Status.SKIPPED, row=job.row) for job in rows.done),
        *(replace(done[job.id], row=job.row) for job in rows.quarantined),
    ]
    _sweep({job.key for job in (*rows.done, *rows.quarantined)}, run)
    _log(logger, reporting.failures(outcomes))

    follower = Follower(manifest_name(request.manifest), run, observer)
    observer.add(
        pairs=taken.manifest.rows,
        pairs_done=len(outcomes),
        steps=sum(job.steps for job in rows.to_do),
        work=sum(job.work for job in rows.to_do),
    )
    logger.info("%d rows: %d to do, %d skipped or refused", taken.manifest.rows, len(rows.to_do), len(outcomes))
    with watching.progress(follower):
        outcomes += fanout.stylized(rows.to_do, run, workers, follower)
    warnings += observer.summary
    assert sorted(o.row for o in outcomes) == sorted(
        [pair.row for pair in taken.manifest.pairs] + [row.row for row in taken.manifest.rejected]
    ), "every row has exactly one outcome"
    ids = Counter(o.id for o in outcomes if o.status != Status.REJECTED)
    assert ids == Counter(every_id), "every id has exactly one outcome"
    report = patiently(lambda: reporting.write(request, taken, run, folder, outcomes, warnings, began))
    follower.conclude(report, outcomes)
    return report


def _log(logger: Any, lines: Sequence[str]) -> None:
    """Log these lines as warnings, at most `LINES_LOGGED` of them."""
    for line in at_most(LINES_LOGGED, lines, "run.json has them all"):
        logger.warning(line)


def _recorded(failed: Sequence[Outcome], run: Run, patiently: Callable[[Callable[[], Outcome]], Outcome]) -> list[Outcome]:
    """Write the markers of failed outcomes in parallel, and return the outcomes.

    Raises:
        NstError: A marker could not be written.
    """
    found = storage.each(lambda o: patiently(partial(work.record_failure, o, run)), failed, run.settings.readers)
    for result in found:
        if isinstance(result, NstError):
            raise result
    return [result for result in found if isinstance(result, Outcome)]


def _sweep(keys: set[str], run: Run) -> None:
    """Remove leftovers of killed runs: partial files, and checkpoints and claims of pairs that are done."""
    for name in outcome.FOLDERS:
        with contextlib.suppress(StorageError):
            storage.sweep(storage.join(run.out, name), run.settings.lease_seconds)
    resume.remove(run.out, keys)
    for key, claim in fanout.standing(run).items():
        if key in keys and not claim.is_live:
            claims.release(run.out, claim)
