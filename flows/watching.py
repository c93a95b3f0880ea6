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

from nst_tasks import images, storage
from nst_tasks.errors import InputError, NstError, at_most, reason_and_remedy
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import Watch
from nst_tasks.reporting import Report
from nst_tasks.settings import Run

PROGRESS_SECONDS = 5.0
"""Seconds between two updates of the progress artifact."""

TOLD_SINGLY = 4
"""Maximum number of pairs of a task run that are logged in a line each; more are logged in one line together."""

PICTURE_HEIGHT = 128
"""Maximum height in pixels of an image artifact: the server stores it, and the UI shows it small."""

REASONS_TOLD = 50
"""Maximum number of problems in the state's message of a refused manifest."""

FAILURES_SHOWN = 1000
"""Maximum number of rows in the table of failures; the summary has all of them."""


def artifact_key(name: str, kind: str) -> str:
    """Build the key that groups the versions of a manifest's artifact in the API: lowercase letters, digits and dashes."""
    return "-".join([*re.findall("[a-z0-9]+", name.lower()), kind])


@dataclass
class Follower:
    """Reporter of one run to Prefect: `name` is the flow run's, `observer` has the counts of the run."""

    name: str
    run: Run
    observer: Watch
    pictures: int = 0
    began: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float | None:
        """Estimate the remaining time from the pace so far; None before anything is done."""
        seen = self.observer
        left = max(seen.work - seen.work_done, 0)  # repeated steps are counted twice
        return left / seen.work_done * (time.monotonic() - self.began) if seen.work_done > 0 else None

    def standing(self) -> str:
        """Describe the progress in words: `3 of 12 rows done, about 4 min left`."""
        seen, left = self.observer, self.seconds_left()
        more = f", {in_words(left)} left" if left is not None and seen.pairs_done < seen.pairs else ""
        return f"{seen.pairs_done} of {seen.pairs} rows done{more}"

    def percent(self) -> float:
        """Return the percentage of the optimization that is done, or of the rows if none needs any."""
        seen = self.observer
        if 0 < seen.pairs <= seen.pairs_done:
            return 100.0  # pairs that failed, or that another run did, took fewer steps than planned
        share = seen.work_done / seen.work if seen.work > 0 else seen.pairs_done / seen.pairs if seen.pairs > 0 else 0.0
        return round(100 * min(max(share, 0.0), 1.0), 1)

    def tell(self, outcomes: Sequence[Outcome], task_run_id: UUID) -> None:
        """Log the outcomes of a task run and show its images, up to the settings' limit per run."""
        logger, standing = get_run_logger(), self.standing()
        if len(outcomes) <= TOLD_SINGLY:
            for o in outcomes:
                if o.is_broken:
                    logger.warning("%s: row %d, %s failed: %s", standing, o.row, o.id, o.error)
                else:
                    logger.info("%s: row %d, %s in %.0f s%s", standing, o.row, o.id, o.seconds, _flags(o))
        else:
            counted = Counter(str(o.status) for o in outcomes)
            logger.info("%s: %s", standing, ", ".join(f"{count} {status}" for status, count in sorted(counted.items())))
        for o in outcomes:
            if o.status == Status.SUCCEEDED and self.pictures < self.run.settings.image_artifacts:
                self.pictures += 1
                self._show(o, task_run_id)

    def _show(self, o: Outcome, task_run_id: UUID) -> None:
        try:
            uri = storage.join(self.run.out, o.thumbnail)
            stored = self.observer.written.get(uri, lambda: storage.read(uri))
            strip = images.shrunk(stored, PICTURE_HEIGHT, self.run.settings.max_pixels)
        except NstError:
            return  # the image itself is safe, and the report shows it too
        facts = f"{o.recipe['name']}, {o.width} x {o.height}, {o.steps} steps, {o.seconds:.0f} s{_flags(o)}"
        artifact = ImageArtifact(  # without a key, so that thousands of pairs do not fill the page of all artifacts
            image_url="data:image/jpeg;base64," + base64.b64encode(strip).decode(),
            description=f"**{plain(o.id)}**: content, style and result; {plain(facts)}",
            task_run_id=task_run_id,
        )
        taken(artifact.create)

    def conclude(self, report: Report, outcomes: Iterable[Outcome]) -> None:
        """Log the result of the run, and show its failures with their remedies and the location of the report."""
        get_run_logger().info("%s; report: %s", report.message, report.files["report"])
        broken = sorted((o for o in outcomes if o.is_broken), key=lambda o: o.row)
        if broken:
            more = f"the first {FAILURES_SHOWN} of " if len(broken) > FAILURES_SHOWN else ""
            taken(
                create_table_artifact,
                table=[_row(o) for o in broken[:FAILURES_SHOWN]],
                key=artifact_key(self.name, "failures"),
                description=f"{more}{len(broken)} failed or rejected rows of {report.rows}",
            )
        taken(
            create_markdown_artifact,
            markdown=_markdown(self.name, report),
            key=artifact_key(self.name, "report"),
            description=report.message,
        )


def refused(name: str, error: InputError) -> str:
    """Show why a manifest was refused, in a table with a row per problem, and return the text for the state's message."""
    lines = str(error).splitlines()
    taken(
        create_table_artifact,
        table=[dict(zip(("reason", "remedy"), reason_and_remedy(line), strict=True)) for line in lines[:FAILURES_SHOWN]],
        key=artifact_key(name, "failures"),
        description=f"refused, nothing ran: {len(lines)} problem{'s' * (len(lines) > 1)}",
    )
    return "\n".join(at_most(REASONS_TOLD, lines))


def _row(o: Outcome) -> dict[str, Any]:
    reason, remedy = reason_and_remedy(o.error)
    return {"row": o.row, "pair": o.id, "status": str(o.status), "reason": reason, "remedy": remedy}


def _markdown(name: str, report: Report) -> str:
    lines = [f"# {plain(name)}", "", f"Run {report.run_id}: {report.message}, in {report.seconds:.0f} s.", ""]
    lines += ["| what | where |", "|---|---|"]
    places = {**report.files, "images": f"{report.out}/images", "history": f"{report.out}/history"}
    lines += [f"| {kind} | {_code(uri)} |" for kind, uri in places.items()]
    for title, sentences in (("Flagged", report.flagged), ("Warnings", report.warnings)):
        if sentences:
            lines += ["", f"## {title}", "", *(f"- {plain(line)}" for line in sentences[:FAILURES_SHOWN])]
    return "\n".join(lines)


def _code(text: str) -> str:
    return "`` " + text.replace("|", "\\|").replace("`", "'") + " ``"


def plain(text: str) -> str:
    """Escape text so that markdown shows it literally."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~-])", r"\\\1", text)


def _flags(o: Outcome) -> str:
    return f", look at it: {', '.join(o.flags)}" if o.flags else ""


def in_words(seconds: float) -> str:
    """Format a rough duration: `about 40 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"


def taken(call: Callable[..., Any], **values: Any) -> Any:
    """Call the API and return its answer; if it fails, log a warning and return None: a lost artifact must not fail the run."""
    try:
        return call(**values)
    except Exception as error:
        get_run_logger().warning("the Prefect API did not take an artifact (%s); the run goes on", type(error).__name__)
        return None


@contextmanager
def progress(follower: Follower) -> Iterator[None]:
    """Keep a progress artifact of the run up to date during the block."""
    key = artifact_key(follower.name, "progress")
    artifact = taken(create_progress_artifact, progress=follower.percent(), key=key, description=follower.standing())
    if artifact is None:
        yield
        return
    ended = threading.Event()

    def update() -> None:
        taken(update_progress_artifact, artifact_id=artifact, progress=follower.percent(), description=follower.standing())

    def keep() -> None:
        told = ""
        while not ended.wait(PROGRESS_SECONDS):
            if (now := f"{follower.percent()} {follower.standing()}") != told:
                told = now
                update()

    keeper = threading.Thread(target=contextvars.copy_context().run, args=(keep,), name="progress", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
    keeper.join()  # not reached after an exception: a run that is asked to stop does not wait for a last update
    update()
