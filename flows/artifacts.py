"""Log lines and artifacts of a run in the Prefect UI: progress, images, failures and the report.

Images are `data:` URIs, so that the UI shows them wherever the output is stored. If the API refuses an artifact, the run logs a
warning and goes on.
"""

from __future__ import annotations

import base64
import contextvars
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    ImageArtifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from nst_tasks.errors import InputError, NstError, limit_lines, split_reason_and_remedy
from nst_tasks.images.thumbnail import shrink_strip
from nst_tasks.inputs.run import Run
from nst_tasks.outputs.layout import HISTORY_FOLDER, IMAGES_FOLDER
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.report import Report
from nst_tasks.progress import Progress
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

PROGRESS_UPDATE_SECONDS = 5.0
"""Seconds between two updates of the progress artifact."""

MAX_PAIRS_LOGGED_SINGLY = 4
"""Maximum number of pairs of a task run that are logged in a line each; more are logged in one line together."""

MAX_ARTIFACT_HEIGHT = 128
"""Maximum height in pixels of an image artifact: the server stores it, and the UI shows it small."""

MAX_PROBLEMS_IN_MESSAGE = 50
"""Maximum number of problems in the state's message of a refused manifest."""

MAX_FAILURE_ROWS = 1000
"""Maximum number of rows in the table of failures; the summary has all of them."""


def build_artifact_key(name: str, kind: str) -> str:
    """Build the key that groups the versions of a manifest's artifact in the API: lowercase letters, digits and dashes."""
    return "-".join([*re.findall("[a-z0-9]+", name.lower()), kind])


@dataclass
class RunReporter:
    """Reporter of one run to Prefect: `name` is the flow run's, `progress` has the counts of the run."""

    name: str
    run: Run
    progress: Progress
    images_shown: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def estimate_seconds_left(self) -> float | None:
        """Estimate the remaining time from the pace so far; None before anything is done."""
        progress = self.progress
        left = max(progress.work - progress.work_done, 0)  # repeated steps are counted twice
        return left / progress.work_done * (time.monotonic() - self.started_at) if progress.work_done > 0 else None

    def describe_progress(self) -> str:
        """Describe the progress in words: `3 of 12 rows done, about 4 min left`."""
        progress, left = self.progress, self.estimate_seconds_left()
        remaining = f", {format_rough_duration(left)} left" if left is not None and progress.pairs_done < progress.pairs else ""
        return f"{progress.pairs_done} of {progress.pairs} rows done{remaining}"

    def compute_percent(self) -> float:
        """Return the percentage of the optimization that is done, or of the rows if none needs any."""
        progress = self.progress
        if 0 < progress.pairs <= progress.pairs_done:
            return 100.0  # pairs that failed, or that another run did, took fewer steps than planned
        share = (
            progress.work_done / progress.work
            if progress.work > 0
            else progress.pairs_done / progress.pairs
            if progress.pairs > 0
            else 0.0
        )
        return round(100 * min(max(share, 0.0), 1.0), 1)

    def report_outcomes(self, outcomes: Sequence[Outcome], task_run_id: UUID) -> None:
        """Log the outcomes of a task run and show its images, up to the settings' limit per run."""
        logger, progress_text = get_run_logger(), self.describe_progress()
        if len(outcomes) <= MAX_PAIRS_LOGGED_SINGLY:
            for o in outcomes:
                if o.is_broken:
                    logger.warning("%s: row %d, %s failed: %s", progress_text, o.row, o.id, o.error)
                else:
                    logger.info("%s: row %d, %s in %.0f s%s", progress_text, o.row, o.id, o.seconds, _format_flags(o))
        else:
            counted = Counter(str(o.status) for o in outcomes)
            logger.info("%s: %s", progress_text, ", ".join(f"{count} {status}" for status, count in sorted(counted.items())))
        for o in outcomes:
            if o.status == Status.SUCCEEDED and self.images_shown < self.run.settings.image_artifacts:
                self.images_shown += 1
                self._show_image(o, task_run_id)

    def _show_image(self, o: Outcome, task_run_id: UUID) -> None:
        try:
            uri = join_uri(self.run.out, o.thumbnail)
            strip_bytes = self.progress.written_files.get_or_compute(uri, lambda: files.read(uri))
            strip = shrink_strip(strip_bytes, MAX_ARTIFACT_HEIGHT, self.run.settings.max_pixels)
        except NstError:
            return  # the image itself is safe, and the report shows it too
        facts = f"{o.recipe['name']}, {o.width} x {o.height}, {o.steps} steps, {o.seconds:.0f} s{_format_flags(o)}"
        artifact = ImageArtifact(  # without a key, so that thousands of pairs do not fill the page of all artifacts
            image_url="data:image/jpeg;base64," + base64.b64encode(strip).decode(),
            description=f"**{escape_markdown(o.id)}**: content, style and result; {escape_markdown(facts)}",
            task_run_id=task_run_id,
        )
        call_api(artifact.create)

    def report_end(self, report: Report, outcomes: Iterable[Outcome]) -> None:
        """Log the result of the run, and show its failures with their remedies and the location of the report."""
        get_run_logger().info("%s; report: %s", report.message, report.files["report"])
        broken = sorted((o for o in outcomes if o.is_broken), key=lambda o: o.row)
        if broken:
            more = f"the first {MAX_FAILURE_ROWS} of " if len(broken) > MAX_FAILURE_ROWS else ""
            call_api(
                create_table_artifact,
                table=[_build_failure_row(o) for o in broken[:MAX_FAILURE_ROWS]],
                key=build_artifact_key(self.name, "failures"),
                description=f"{more}{len(broken)} failed or rejected rows of {report.rows}",
            )
        call_api(
            create_markdown_artifact,
            markdown=_render_report(self.name, report),
            key=build_artifact_key(self.name, "report"),
            description=report.message,
        )


def show_refusal(name: str, error: InputError) -> str:
    """Show why a manifest was refused, in a table with a row per problem, and return the text for the state's message."""
    lines = str(error).splitlines()
    call_api(
        create_table_artifact,
        table=[
            dict(zip(("reason", "remedy"), split_reason_and_remedy(line), strict=True)) for line in lines[:MAX_FAILURE_ROWS]
        ],
        key=build_artifact_key(name, "failures"),
        description=f"refused, nothing ran: {len(lines)} problem{'s' * (len(lines) > 1)}",
    )
    return "\n".join(limit_lines(MAX_PROBLEMS_IN_MESSAGE, lines))


def _build_failure_row(o: Outcome) -> dict[str, Any]:
    reason, remedy = split_reason_and_remedy(o.error)
    return {"row": o.row, "pair": o.id, "status": str(o.status), "reason": reason, "remedy": remedy}


def _render_report(name: str, report: Report) -> str:
    lines = [f"# {escape_markdown(name)}", "", f"Run {report.run_id}: {report.message}, in {report.seconds:.0f} s.", ""]
    lines += ["| what | where |", "|---|---|"]
    places = {**report.files, **{folder: f"{report.out}/{folder}" for folder in (IMAGES_FOLDER, HISTORY_FOLDER)}}
    lines += [f"| {kind} | {_format_code(uri)} |" for kind, uri in places.items()]
    for title, sentences in (("Flagged", report.flagged), ("Warnings", report.warnings)):
        if sentences:
            lines += ["", f"## {title}", "", *(f"- {escape_markdown(line)}" for line in sentences[:MAX_FAILURE_ROWS])]
    return "\n".join(lines)


def _format_code(text: str) -> str:
    return "`` " + text.replace("|", "\\|").replace("`", "'") + " ``"


def escape_markdown(text: str) -> str:
    """Escape text so that markdown shows it literally."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~-])", r"\\\1", text)


def _format_flags(o: Outcome) -> str:
    return f", look at it: {', '.join(o.flags)}" if o.flags else ""


def format_rough_duration(seconds: float) -> str:
    """Format a rough duration: `about 40 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"


def call_api(call: Callable[..., Any], **values: Any) -> Any:
    """Call the API and return its answer; if it fails, log a warning and return None: a lost artifact must not fail the run."""
    try:
        return call(**values)
    except Exception as error:
        get_run_logger().warning("the Prefect API did not take an artifact (%s); the run goes on", type(error).__name__)
        return None


@contextmanager
def publish_progress(reporter: RunReporter) -> Iterator[None]:
    """Keep a progress artifact of the run up to date during the block."""
    key = build_artifact_key(reporter.name, "progress")
    artifact = call_api(
        create_progress_artifact, progress=reporter.compute_percent(), key=key, description=reporter.describe_progress()
    )
    if artifact is None:
        yield
        return
    ended = threading.Event()

    def update() -> None:
        call_api(
            update_progress_artifact,
            artifact_id=artifact,
            progress=reporter.compute_percent(),
            description=reporter.describe_progress(),
        )

    def update_until_ended() -> None:
        last_sent = ""
        while not ended.wait(PROGRESS_UPDATE_SECONDS):
            if (current := f"{reporter.compute_percent()} {reporter.describe_progress()}") != last_sent:
                last_sent = current
                update()

    updater = threading.Thread(target=contextvars.copy_context().run, args=(update_until_ended,), name="artifacts", daemon=True)
    updater.start()
    try:
        yield
    finally:
        ended.set()
    updater.join()  # not reached after an exception: a run that is asked to stop does not wait for a last update
    update()
