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

from flows import artifacts, fanout, task_runners
from flows.artifacts import RunReporter
from flows.task_runners import Workers
from nst_tasks.core.method import MAX_SIZE, MAX_STEPS, MIN_SIZE, Precision
from nst_tasks.engine import checkpoint_store
from nst_tasks.engine.publish import make_failed_outcome, record_failure
from nst_tasks.errors import (
    ClusterError,
    InputError,
    Interrupted,
    NstError,
    StorageError,
    is_pair_failure,
    limit_lines,
    redact,
    sanitize_for_log,
)
from nst_tasks.inputs import presets, settings, weights
from nst_tasks.inputs.manifest import group_problems_by_row
from nst_tasks.inputs.manifest_export import sanitize_manifest
from nst_tasks.inputs.options import Request, RunnerName, parse_checkpoint_interval, parse_failure_limit
from nst_tasks.inputs.readers import resolve_recipe_name
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import claims
from nst_tasks.outputs.layout import FOLDERS_PER_PAIR
from nst_tasks.outputs.ledger import RunResult
from nst_tasks.outputs.liveness import enable_crash_log
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.outcome_store import load_earlier_outcomes
from nst_tasks.outputs.report import Report, list_failures, write_report
from nst_tasks.planning.prepare import prepare
from nst_tasks.planning.triage import triage
from nst_tasks.progress import current_progress, progress_variable
from nst_tasks.storage import files
from nst_tasks.storage.parallel import map_parallel
from nst_tasks.storage.retry import call_with_retries
from nst_tasks.storage.uri import join_uri, make_absolute

T = TypeVar("T")


MAX_LOG_LINES = 100
"""Maximum number of log lines for failures before any work, and for untrusted markers: a manifest may have 100,000 of each."""

MAX_THREADS = 64
"""Threads of the task runner; the window, not this number, bounds the batches in flight, see `runners`."""


REFUSED = "Refused"
COMPLETED_WITH_FAILURES = "Completed with failures"
"""Names of final states for which Prefect has no type."""

MAX_EVENT_MESSAGE_LENGTH = 2000
"""Maximum length in characters of the message in a run's event: a message about a manifest can have a line for every row."""


INTERRUPTED_MESSAGE = "interrupted; what is finished is safe: run the same command again"


BackboneName = Annotated[str, Field(json_schema_extra={"enum": [*weights.BACKBONES]})]
Size = Annotated[int | None, Field(json_schema_extra={"minimum": MIN_SIZE, "maximum": MAX_SIZE})]
Steps = Annotated[int | None, Field(json_schema_extra={"minimum": 0, "maximum": MAX_STEPS})]
"""Flow parameters with the limits shown in a deployment's form; values from the form are validated like all others."""


def _format_flow_run_name() -> str:
    return manifest_name(str(runtime.flow_run.parameters.get("manifest", "")))


def manifest_name(uri: str) -> str:
    """Return the short name of a manifest: its file name without folder and suffix."""
    return redact(uri).rpartition("/")[2].removesuffix(".csv") or "manifest"


@flow(
    name="stylize-manifest",
    flow_run_name=_format_flow_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_THREADS),  # type: ignore[arg-type]  # invariant in Prefect's own types
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
    backbone: BackboneName = weights.DEFAULT_BACKBONE,
    weights_file: str | None = None,
    strict: bool = False,
    max_failures: str | None = None,
    upscale: bool = False,
    history_every: int = 1,
    snapshots: int | None = None,
    checkpoint_every: str = "30s",
    pair_timeout: float | None = None,
    runner: RunnerName = "threads",
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
        make_absolute(manifest), make_absolute(out), resolve_recipe_name(recipe), size, steps, backbone,
        make_absolute(weights_file) if weights_file else None, strict, max_failures, upscale, history_every, snapshots,
        checkpoint_every, pair_timeout, runner, precision, plateau,
    )  # fmt: skip
    try:
        state = _run_to_final_state(request)
    except (KeyboardInterrupt, TerminationSignal):
        emit_completion_event(request, RunResult.INTERRUPTED, INTERRUPTED_MESSAGE)
        raise
    except Exception as error:
        emit_completion_event(request, RunResult.FAILED, str(sanitize_for_log(error)))
        raise
    report = state.data if isinstance(state.data, Report) else None
    emit_completion_event(request, get_run_result(state), state.message or "", report)
    return state


def _run_to_final_state(request: Request) -> State[Report]:
    """Run the manifest of a request and convert its report, or its exception, into a final state."""
    progress = current_progress()
    progress_variable.set(progress)
    try:
        configured = settings.read_environment()
        with task_runners.open_workers(request.runner, configured) as workers:
            report = run_manifest(request, configured, workers)
    except TerminationSignal:  # SIGTERM, as Prefect delivers it: threads stop after their current chunk of steps
        progress.stop.set()
        raise
    except InputError as error:
        return Failed(name=REFUSED, message=artifacts.show_refusal(manifest_name(request.manifest), error), data=error)
    except Interrupted:
        return Cancelled(message=INTERRUPTED_MESSAGE)
    except (StorageError, ClusterError) as error:
        if not is_pair_failure(error):
            progress.stop.set()  # all pairs are affected: stop those in flight, and a sweep's other manifests
        return Failed(message=f"the run could not go on, what is finished is safe: {error}", data=error)
    except PrefectException:
        raise
    except Exception as error:  # a bug: Prefect logs and shows the message
        raise sanitize_for_log(error) from None
    message = report.message
    if len(report.failures) > parse_failure_limit(request.max_failures, report.rows):
        limit = f"above --max-failures {request.max_failures}" if request.max_failures else "none succeeded"
        return Failed(message=f"{message} ({limit})", data=report)
    if report.failures:
        return Completed(name=COMPLETED_WITH_FAILURES, message=message, data=report)
    return Completed(message=message, data=report)


def run_stylize_flow(request: Request) -> State[Any]:
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


def get_run_result(state: State[Any]) -> RunResult:
    """Return the ledger's result for the final state of a run."""
    if state.is_completed():
        return RunResult.FAILURES if state.name == COMPLETED_WITH_FAILURES else RunResult.GOOD
    if state.is_cancelled():
        return RunResult.INTERRUPTED
    return RunResult.REFUSED if state.name == REFUSED else RunResult.FAILED


def emit_completion_event(request: Request, result: RunResult, message: str, report: Report | None = None) -> None:
    """Emit the event that a manifest's run has ended, for Prefect automations.

    Triggers match on the event's resource; its payload holds details for people.
    """
    manifest = redact(request.manifest)
    payload: dict[str, Any] = {"out": redact(request.out), "message": message[:MAX_EVENT_MESSAGE_LENGTH]}
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
    logger, progress = get_run_logger(), current_progress()

    def retry(function: Callable[[], T]) -> T:
        return call_with_retries(function, settings.retry_delays, progress.stop, logger.warning)

    start_time = datetime.now(UTC)
    loaded = prepare(request, settings)
    enable_crash_log()
    checkpoint_steps, checkpoint_seconds = parse_checkpoint_interval(request.checkpoint_every)
    run = Run(
        id=f"{start_time:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        out=request.out,
        backbone=request.backbone,
        weights=request.weights,
        weights_sha256=loaded.weights_sha256,
        history_every=request.history_every,
        settings=settings,
        snapshots=request.snapshots or 0,
        checkpoint_steps=checkpoint_steps,
        checkpoint_seconds=checkpoint_seconds,
        pair_timeout=request.pair_timeout or 0.0,
        exclusive=loaded.exclusive,
    )
    folder = join_uri(request.out, "runs", run.id)
    retry(lambda: files.write(join_uri(folder, "manifest.csv"), sanitize_manifest(loaded.manifest_bytes)))

    pair_ids = [pair.id for pair in loaded.manifest.pairs]
    done, warnings = retry(lambda: load_earlier_outcomes(request.out, pair_ids, settings.readers))
    _log_warnings(logger, warnings)
    sources = fanout.inspect_images(loaded.manifest.pairs, done.values(), settings)
    rows = triage(loaded, sources, request, done)
    reasons_by_row = group_problems_by_row(loaded.manifest)
    outcomes = [
        *(
            Outcome(id="", row=row.row, status=Status.REJECTED, run_id=run.id, error="; ".join(reasons_by_row[row.row]))
            for row in loaded.manifest.rejected
        ),
        *_write_failure_markers(
            [make_failed_outcome(pair.id, pair.row, error, run.id) for pair, error in rows.refused], run, retry
        ),
        *(replace(done[job.id], status=Status.SKIPPED, row=job.row) for job in rows.done),
        *(replace(done[job.id], row=job.row) for job in rows.quarantined),
    ]
    _remove_leftovers({job.key for job in (*rows.done, *rows.quarantined)}, run)
    _log_warnings(logger, list_failures(outcomes))

    reporter = RunReporter(manifest_name(request.manifest), run, progress)
    progress.add(
        pairs=loaded.manifest.rows,
        pairs_done=len(outcomes),
        steps=sum(job.steps for job in rows.to_do),
        work=sum(job.pixel_steps for job in rows.to_do),
    )
    logger.info("%d rows: %d to do, %d skipped or refused", loaded.manifest.rows, len(rows.to_do), len(outcomes))
    with artifacts.publish_progress(reporter):
        outcomes += fanout.run_jobs(rows.to_do, run, workers, reporter)
    warnings += progress.warning_lines
    assert sorted(o.row for o in outcomes) == sorted(
        [pair.row for pair in loaded.manifest.pairs] + [row.row for row in loaded.manifest.rejected]
    ), "every row has exactly one outcome"
    ids = Counter(o.id for o in outcomes if o.status != Status.REJECTED)
    assert ids == Counter(pair_ids), "every id has exactly one outcome"
    report = retry(lambda: write_report(request, loaded, run, folder, outcomes, warnings, start_time))
    reporter.report_end(report, outcomes)
    return report


def _log_warnings(logger: Any, lines: Sequence[str]) -> None:
    """Log these lines as warnings, at most `MAX_LOG_LINES` of them."""
    for line in limit_lines(MAX_LOG_LINES, lines, "run.json has them all"):
        logger.warning(line)


def _write_failure_markers(
    failed: Sequence[Outcome], run: Run, retry: Callable[[Callable[[], Outcome]], Outcome]
) -> list[Outcome]:
    """Write the markers of failed outcomes in parallel, and return the outcomes.

    Raises:
        NstError: A marker could not be written.
    """
    results = map_parallel(lambda o: retry(partial(record_failure, o, run)), failed, run.settings.readers)
    for result in results:
        if isinstance(result, NstError):
            raise result
    return [result for result in results if isinstance(result, Outcome)]


def _remove_leftovers(keys: set[str], run: Run) -> None:
    """Remove leftovers of killed runs: partial files, and checkpoints and claims of pairs that are done."""
    for name in FOLDERS_PER_PAIR:
        with contextlib.suppress(StorageError):
            files.delete_stale_temporaries(join_uri(run.out, name), run.settings.lease_seconds)
    checkpoint_store.delete_checkpoints(run.out, keys)
    for key, claim in fanout.list_claims(run).items():
        if key in keys and not claim.is_live:
            claims.release(run.out, claim)
