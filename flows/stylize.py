"""The flow `stylize-manifest`: validate a manifest, run its pairs on workers, collect the outcomes, write the report."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import TerminationSignal
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, fanout, task_runners
from flows.artifacts import RunReporter
from flows.states import INTERRUPTED_MESSAGE, get_run_result, report_state, run_to_final_state
from flows.task_runners import Workers
from nst_tasks.engine import checkpoint_store
from nst_tasks.engine.publish import make_failed_outcome, record_failure
from nst_tasks.errors import (
    NstError,
    StorageError,
    limit_lines,
    redact,
    sanitize_for_log,
)
from nst_tasks.inputs.manifest import group_problems_by_row
from nst_tasks.inputs.manifest_export import sanitize_manifest
from nst_tasks.inputs.options import RunOptions, parse_checkpoint_interval
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings, read_environment
from nst_tasks.outputs import claims
from nst_tasks.outputs.layout import FOLDERS_PER_PAIR, manifest_path
from nst_tasks.outputs.ledger import RunResult
from nst_tasks.outputs.liveness import enable_crash_log
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.outcome_store import load_earlier_outcomes
from nst_tasks.outputs.report import Report, list_failures, write_report
from nst_tasks.planning.prepare import prepare
from nst_tasks.planning.triage import triage
from nst_tasks.progress import current_progress, start_progress
from nst_tasks.storage import files
from nst_tasks.storage.parallel import map_parallel
from nst_tasks.storage.retry import call_with_retries
from nst_tasks.storage.uri import join_uri, make_absolute

T = TypeVar("T")


MAX_LOG_LINES = 100
"""Maximum number of log lines for failures before any work, and for untrusted markers: a manifest may have 100,000 of each."""

MAX_THREADS = 64
"""Threads of the task runner; the window, not this number, bounds the batches in flight, see `runners`."""


MAX_EVENT_MESSAGE_LENGTH = 2000
"""Maximum length in characters of the message in a run's event: a message about a manifest can have a line for every row."""


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
def stylize_manifest(manifest: str, out: str, options: RunOptions = RunOptions()) -> State[Report]:  # noqa: B008
    """Stylize every pair of a manifest.

    Args:
        manifest: URI of the CSV manifest, local or remote.
        out: URI of the folder for images, history, outcomes and the report.
        options: how images look, where batches run, how much may fail, what is recorded on the way.
    """
    manifest, out = make_absolute(manifest), make_absolute(out)
    start_progress()

    def run() -> State[Report]:
        settings = read_environment()
        with task_runners.open_workers(options.runner, settings) as workers:
            return report_state(run_manifest(manifest, out, options, settings, workers), options.max_failures)

    try:
        state = run_to_final_state(run, "run", partial(artifacts.show_refusal, manifest_name(manifest)))
    except (KeyboardInterrupt, TerminationSignal):
        emit_completion_event(manifest, out, RunResult.INTERRUPTED, INTERRUPTED_MESSAGE)
        raise
    except Exception as error:
        emit_completion_event(manifest, out, RunResult.FAILED, str(sanitize_for_log(error)))
        raise
    report = state.data if isinstance(state.data, Report) else None
    emit_completion_event(manifest, out, get_run_result(state), state.message or "", report)
    return state


def emit_completion_event(manifest: str, out: str, result: RunResult, message: str, report: Report | None = None) -> None:
    """Emit the event that a manifest's run has ended, for Prefect automations.

    Triggers match on the event's resource; its payload holds details for people.
    """
    manifest = redact(manifest)
    payload: dict[str, Any] = {"out": redact(out), "message": message[:MAX_EVENT_MESSAGE_LENGTH]}
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


def run_manifest(manifest: str, out: str, options: RunOptions, settings: Settings, workers: Workers) -> Report:
    """Run a manifest inside a flow run and return its report.

    Raises:
        InputError: An option or the manifest is invalid as a whole; nothing ran.
        Interrupted: The run received a stop signal.
        StorageError: The output could not be listed, or a pair's files or the summary could not be written.
        ClusterError: The workers can no longer be reached.
    """
    logger, progress = get_run_logger(), current_progress()

    def retry(function: Callable[[], T]) -> T:
        return call_with_retries(function, settings.retry_delays, progress.stop, logger.warning)

    start_time = datetime.now(UTC)
    loaded = prepare(manifest, out, options, settings)
    enable_crash_log()
    checkpoint_steps, checkpoint_seconds = parse_checkpoint_interval(options.checkpoint_every)
    run = Run(
        id=f"{start_time:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        out=out,
        backbone=options.backbone,
        weights=options.weights,
        weights_sha256=loaded.weights_sha256,
        history_every=options.history_every,
        settings=settings,
        snapshots=options.snapshots or 0,
        checkpoint_steps=checkpoint_steps,
        checkpoint_seconds=checkpoint_seconds,
        pair_timeout=options.pair_timeout or 0.0,
        exclusive=loaded.exclusive,
    )
    copy_uri = join_uri(out, manifest_path(run.id))
    retry(lambda: files.write(copy_uri, sanitize_manifest(loaded.manifest_bytes)))

    pair_ids = [pair.id for pair in loaded.manifest.pairs]
    done, warnings = retry(lambda: load_earlier_outcomes(out, pair_ids, settings.readers))
    _log_warnings(logger, warnings)
    sources = fanout.inspect_images(loaded.manifest.pairs, done.values(), settings)
    rows = triage(loaded, sources, options, done)
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

    reporter = RunReporter(manifest_name(manifest), run, progress)
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
    report = retry(lambda: write_report(manifest, options, loaded, run, outcomes, warnings, start_time))
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
