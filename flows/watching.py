"""What a person sees of a run in the Prefect UI: its log, and artifacts for progress, pictures, failures and the report.

The pictures are `data:` URIs, so that the UI shows them wherever the output lies. An artifact that the API does not take is a
line in the log and no failure of the run.
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

from nst_tasks import storage
from nst_tasks.errors import StorageError, reason_and_remedy
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import Watch
from nst_tasks.reporting import Report
from nst_tasks.settings import Run

PROGRESS_SECONDS = 5.0
"""Between two updates of the progress artifact."""

TOLD_SINGLY = 4
"""Pairs of one task run that are each a line of the log; more are one line together."""

FAILURES_SHOWN = 1000
"""Rows of the table of failures; the summary has all of them."""


def artifact_key(name: str, kind: str) -> str:
    """The key under which the API keeps the versions of one manifest's artifact: lowercase letters, digits and dashes."""
    return "-".join([*re.findall("[a-z0-9]+", name.lower()), kind])


@dataclass
class Follower:
    """Tells of one run as it goes: `name` is the flow run's, `observer` may have counted other runs before this one."""

    name: str
    run: Run
    observer: Watch
    pictures: int = 0
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._before = self._counts()

    def _counts(self) -> tuple[int, int, int, int]:
        seen = self.observer
        return seen.pairs, seen.pairs_done, seen.work, seen.work_done

    def counts(self) -> tuple[int, int, int, int]:
        """Rows, rows done, pixel-steps, pixel-steps done of this run alone."""
        rows, done, work, worked = (now - then for now, then in zip(self._counts(), self._before, strict=True))
        return rows, done, work, worked

    def seconds_left(self) -> float | None:
        """As long as the rest takes at the pace so far; None before anything is done."""
        _, _, work, worked = self.counts()
        return (work - worked) / worked * (time.monotonic() - self.began) if worked > 0 else None

    def standing(self) -> str:
        """How far the run is, in words: `3 of 12 rows done, about 4 min left`."""
        rows, done, _, _ = self.counts()
        left = self.seconds_left()
        return f"{done} of {rows} rows done" + (f", {in_words(left)} left" if left is not None and done < rows else "")

    def percent(self) -> float:
        """The share of the optimization that is done, or of the rows where there is none to do."""
        rows, done, work, worked = self.counts()
        share = worked / work if work > 0 else done / rows if rows > 0 else 0.0
        return round(100 * min(max(share, 0.0), 1.0), 1)

    def tell(self, outcomes: Sequence[Outcome], task_run_id: UUID) -> None:
        """Log what a task run came to, and show its pictures, as many as the settings allow in one run."""
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
            strip = storage.read(storage.join(self.run.out, o.thumbnail))
        except StorageError:
            return  # the picture itself is safe, and the report shows it too
        facts = f"{o.recipe['name']}, {o.width} x {o.height}, {o.steps} steps, {o.seconds:.0f} s{_flags(o)}"
        artifact = ImageArtifact(  # without a key: the API's page of all artifacts is not for thousands of pairs
            image_url="data:image/webp;base64," + base64.b64encode(strip).decode(),
            description=f"**{_plain(o.id)}**: content, style and result; {_plain(facts)}",
            task_run_id=task_run_id,
        )
        _taken(artifact.create)

    def conclude(self, report: Report, outcomes: Iterable[Outcome]) -> None:
        """Log what the run came to; show its failures with their remedies, and where the report lies."""
        get_run_logger().info("%s; report: %s", report.message, report.files["report"])
        broken = sorted((o for o in outcomes if o.is_broken), key=lambda o: o.row)
        if broken:
            more = f"the first {FAILURES_SHOWN} of " if len(broken) > FAILURES_SHOWN else ""
            _taken(
                create_table_artifact,
                table=[_row(o) for o in broken[:FAILURES_SHOWN]],
                key=artifact_key(self.name, "failures"),
                description=f"{more}{len(broken)} failed or rejected rows of {report.rows}",
            )
        _taken(
            create_markdown_artifact,
            markdown=_markdown(self.name, report),
            key=artifact_key(self.name, "report"),
            description=report.message,
        )


def _row(o: Outcome) -> dict[str, Any]:
    reason, remedy = reason_and_remedy(o.error)
    return {"row": o.row, "pair": o.id, "status": str(o.status), "reason": reason, "remedy": remedy}


def _markdown(name: str, report: Report) -> str:
    lines = [f"# {_plain(name)}", "", f"Run {report.run_id}: {report.message}, in {report.seconds:.0f} s.", ""]
    lines += ["| what | where |", "|---|---|"]
    places = {**report.files, "images": f"{report.out}/images", "history": f"{report.out}/history"}
    lines += [f"| {kind} | {_code(uri)} |" for kind, uri in places.items()]
    for title, sentences in (("Flagged", report.flagged), ("Warnings", report.warnings)):
        if sentences:
            lines += ["", f"## {title}", "", *(f"- {_plain(line)}" for line in sentences[:FAILURES_SHOWN])]
    return "\n".join(lines)


def _code(text: str) -> str:
    return "`` " + text.replace("|", "\\|").replace("`", "'") + " ``"


def _plain(text: str) -> str:
    """Text as markdown that shows it as it is, whatever is in it."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~-])", r"\\\1", text)


def _flags(o: Outcome) -> str:
    return f", look at it: {', '.join(o.flags)}" if o.flags else ""


def in_words(seconds: float) -> str:
    """A duration that is only roughly known: `about 40 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"


def _taken(call: Callable[..., Any], **values: Any) -> Any:
    """What the API answers, or None where it does not: a run is not to fail for want of something to look at."""
    try:
        return call(**values)
    except Exception as error:
        get_run_logger().warning("the Prefect API did not take an artifact (%s); the run goes on", type(error).__name__)
        return None


@contextmanager
def progress(follower: Follower) -> Iterator[None]:
    """Keep a progress artifact of the run until its end."""
    key = artifact_key(follower.name, "progress")
    artifact = _taken(create_progress_artifact, progress=follower.percent(), key=key, description=follower.standing())
    if artifact is None:
        yield
        return
    ended = threading.Event()

    def update() -> None:
        _taken(update_progress_artifact, artifact_id=artifact, progress=follower.percent(), description=follower.standing())

    def keep() -> None:
        told = follower.counts()
        while not ended.wait(PROGRESS_SECONDS):
            if follower.counts() != told:
                told = follower.counts()
                update()

    keeper = threading.Thread(target=contextvars.copy_context().run, args=(keep,), name="progress", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        if not follower.observer.stop.is_set():  # who asked to stop does not wait for a last word
            keeper.join()
            update()
