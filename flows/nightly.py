"""The flow `nightly`: run every new or changed manifest of an inbox, and record the results in a ledger."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed
from prefect.utilities.urls import url_for

from flows import stylize
from flows.artifacts import call_api, escape_markdown
from flows.states import COMPLETED_WITH_FAILURES, INTERRUPTED_MESSAGE, get_run_result, run_to_final_state
from nst_tasks.errors import (
    ClusterError,
    Interrupted,
    NstError,
    StorageError,
    is_pair_failure,
    redact,
)
from nst_tasks.inputs.options import RunOptions, SweepOptions
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings, read_environment
from nst_tasks.outputs import claims, ledger
from nst_tasks.outputs.layout import LEDGER_FOLDER
from nst_tasks.outputs.ledger import Entry, RunResult
from nst_tasks.outputs.report import Report
from nst_tasks.planning.inbox import InboxManifest, collect_result_options, is_settled, list_manifests
from nst_tasks.progress import current_progress, progress_variable, start_progress
from nst_tasks.storage import files
from nst_tasks.storage.retry import call_with_retries
from nst_tasks.storage.uri import join_uri, make_absolute

T = TypeVar("T")

CLAIM_KEY = "nightly"
"""Key of the claim that a sweep holds below the ledger, so that no two sweeps write to one output at the same time.

Effective only if the store supports conditional creates.
"""

MAX_MANIFESTS_SHOWN = 500
"""Maximum number of manifests in a sweep's artifact."""


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        entries: New ledger entries by the manifest's file name.
        unchanged: Number of manifests that needed no run.
    """

    entries: dict[str, Entry]
    unchanged: int

    @property
    def unsuccessful_count(self) -> int:
        """Number of manifests run with any result but `good`."""
        return sum(entry.result is not RunResult.GOOD for entry in self.entries.values())

    @property
    def message(self) -> str:
        """Counts in one line."""
        counts = Counter(entry.result for entry in self.entries.values())
        return (
            f"{len(self.entries) + self.unchanged} manifests: {counts[RunResult.GOOD]} good, {counts[RunResult.FAILURES]} with "
            f"failures, {counts[RunResult.REFUSED]} refused, {counts[RunResult.FAILED]} failed, {self.unchanged} unchanged"
        )


def _format_flow_run_name() -> str:
    return f"nightly {datetime.now(UTC):%Y-%m-%d %H:%M}"


@flow(name="nightly", flow_run_name=_format_flow_run_name, persist_result=False)
def nightly(inbox: str, out: str, options: SweepOptions = SweepOptions()) -> State[SweepResult]:  # noqa: B008
    """Stylize every manifest of an inbox that is new or has changed since its last good run, one after the other.

    Args:
        inbox: URI of the folder or prefix that holds the manifests; nothing in it is moved, deleted or written.
        out: URI of the folder for all output; each manifest has a subfolder of its own name.
        options: how images look, where batches run, and how much of a manifest may fail.
    """
    inbox, out = make_absolute(inbox), make_absolute(out)
    start_progress()
    return run_to_final_state(lambda: _sweep_state(inbox, out, sweep(inbox, out, options, read_environment())), "sweep")


def _sweep_state(inbox: str, out: str, result: SweepResult | None) -> State[SweepResult]:
    """Return the final state of a sweep with this result; None stands for another sweep in progress."""
    if result is None:
        return Cancelled(message=f"another sweep into {redact(out)} is going on; nothing was run")
    if not (result.entries or result.unchanged):  # stores cannot distinguish an empty prefix from a misspelled one
        message = f"no manifest in {redact(inbox)}; if there should be one, correct --inbox"
        get_run_logger().warning(message)
        return Completed(message=message, data=result)
    if not result.unsuccessful_count:
        return Completed(message=result.message, data=result)
    if all(entry.result in (RunResult.REFUSED, RunResult.FAILED) for entry in result.entries.values()):
        return Failed(message=result.message, data=result)
    return Completed(name=COMPLETED_WITH_FAILURES, message=result.message, data=result)


def sweep(inbox: str, out: str, options: SweepOptions, settings: Settings) -> SweepResult | None:
    """Run a sweep inside a flow run; return None if another sweep is in progress.

    Raises:
        InputError: An option is wrong; nothing ran.
        Interrupted: The sweep received a stop signal.
        StorageError: The inbox, the ledger or the whole output cannot be read or written.
        ClusterError: The workers can no longer be reached.
    """
    result_options = collect_result_options(inbox, out, options, settings)
    exclusive = _call_with_retries(lambda: files.can_create_if_absent(out), settings)
    run = Run(
        id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        out=join_uri(out, LEDGER_FOLDER),
        backbone=options.backbone,
        weights=None,
        weights_sha256="",
        history_every=1,
        settings=settings,
        exclusive=exclusive,
    )
    if not exclusive:
        get_run_logger().warning("%s: its store ignores conditional creates, so start no second sweep", redact(out))
    with claims.hold([CLAIM_KEY], run) as held_keys:
        if not held_keys:
            return None
        manifests = _call_with_retries(lambda: list_manifests(inbox, out, result_options, settings), settings)
        for warning in (manifest.warning for manifest in manifests if manifest.warning):
            get_run_logger().warning(warning)
        to_run = [manifest for manifest in manifests if not manifest.is_settled]
        get_run_logger().info("%d manifests in %s, %d to run", len(manifests), redact(inbox), len(to_run))
        result = SweepResult({}, len(manifests) - len(to_run))
        try:
            for manifest in to_run:
                result.entries[manifest.file] = _run_manifest(manifest, out, options, result_options, settings)
        finally:
            _publish_table(result)
    return result


def _run_manifest(
    manifest: InboxManifest, out: str, options: SweepOptions, result_options: dict[str, Any], settings: Settings
) -> Entry:
    """Run one manifest and write its ledger entry, whether or not the run succeeds.

    Raises:
        Interrupted: The sweep received a stop signal.
        StorageError: The failure would affect every other manifest too.
        ClusterError: The workers can no longer be reached.
    """
    start_time = datetime.now(UTC)

    def record_entry(result: RunResult, message: str, state: State[Any] | None = None, report: Report | None = None) -> Entry:
        """Write the ledger entry and return it; a failure that affects only this manifest is logged."""
        sha256 = report.manifest_sha256 if report else manifest.sha256
        settled = result != RunResult.INTERRUPTED and _call_with_retries(
            lambda: is_settled(manifest, report, options.strict, settings), settings
        )
        entry = Entry(
            manifest=redact(manifest.uri),
            sha256=sha256,
            version=ledger.compute_version(redact(manifest.uri), sha256, result_options),
            settled=settled,
            result=result,
            counts=report.counts if report else {},
            message=message,
            run_id=report.run_id if report else "",
            flow_run_id=str(state.state_details.flow_run_id or "") if state else "",
            began=start_time.isoformat(),
            ended=datetime.now(UTC).isoformat(),
        )
        try:
            _call_with_retries(lambda: ledger.write(out, manifest.file, entry), settings)
        except StorageError as error:
            if not is_pair_failure(error):
                raise
            get_run_logger().warning(
                "%s: not in the ledger, and so run again by the next sweep: %s", redact(manifest.uri), error
            )
        return entry

    if current_progress().stop.is_set():
        raise Interrupted("interrupted before the next manifest")
    if manifest.problem:
        get_run_logger().warning("%s: %s", redact(manifest.uri), manifest.problem)
        stylize.emit_completion_event(manifest.uri, manifest.out, RunResult.REFUSED, manifest.problem)
        return record_entry(RunResult.REFUSED, manifest.problem)
    token = progress_variable.set(current_progress().create_part())
    try:
        run_options = RunOptions(**options.model_dump())
        state = stylize.stylize_manifest(manifest.uri, manifest.out, run_options, return_state=True)
    except (KeyboardInterrupt, TerminationSignal):
        with contextlib.suppress(NstError):
            record_entry(RunResult.INTERRUPTED, INTERRUPTED_MESSAGE)
        raise
    finally:
        progress_variable.reset(token)
    data = state.result(raise_on_failure=False)
    result, message = get_run_result(state), state.message or ""
    report = data if isinstance(data, Report) else None
    if isinstance(data, (StorageError, ClusterError)) and not is_pair_failure(data):
        with contextlib.suppress(NstError):
            record_entry(result, message, state)
        raise data
    entry = record_entry(result, message, state, report)
    if result is RunResult.INTERRUPTED:
        raise Interrupted(INTERRUPTED_MESSAGE)
    return entry


def _call_with_retries(function: Callable[[], T], settings: Settings) -> T:
    return call_with_retries(function, settings.retry_delays, current_progress().stop, get_run_logger().warning)


def _publish_table(result: SweepResult) -> None:
    """Publish a table of the sweep in the Prefect UI, with links to the flow runs."""
    lines = [result.message, "", "| manifest | result | what came of it | flow run |", "|---|---|---|---|"]
    for file, entry in list(result.entries.items())[:MAX_MANIFESTS_SHOWN]:
        url = url_for("flow-run", obj_id=entry.flow_run_id) if entry.flow_run_id else None
        message = redact(entry.message.partition("\n")[0][:300])
        lines.append(
            f"| {escape_markdown(redact(file))} | {entry.result} | {escape_markdown(message)} | "
            f"{f'[open]({url})' if url else ''} |"
        )
    if len(result.entries) > MAX_MANIFESTS_SHOWN:
        lines.append(f"\nand {len(result.entries) - MAX_MANIFESTS_SHOWN} more: the ledger has them all")
    call_api(create_markdown_artifact, markdown="\n".join(lines), key="nightly", description="The manifests of a sweep")
