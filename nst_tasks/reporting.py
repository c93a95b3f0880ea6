"""What a run leaves behind besides its pictures: summary, rejected rows, report and the run's own record."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from nst_tasks import gallery, history, outcome, storage
from nst_tasks.core.flags import FLAGS
from nst_tasks.errors import NstError, StorageError, is_transient, redact
from nst_tasks.intake import Intake, read_outcomes
from nst_tasks.manifest import rejected_csv
from nst_tasks.outcome import Outcome, Status
from nst_tasks.request import Request
from nst_tasks.settings import Run, Settings

MOST_THUMBNAILS = 1000
"""Pairs whose thumbnails are put into a report; the page names the others without a picture."""


@dataclass(frozen=True)
class Report:
    """What a run came to: rows by status, every failure and flag in a line, where the files are. Fit to print as JSON."""

    run_id: str
    out: str
    rows: int
    counts: dict[str, int]
    failures: tuple[str, ...]
    flagged: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    files: dict[str, str]
    manifest_sha256: str

    @property
    def message(self) -> str:
        """The counts in one line: `4 succeeded, 1 failed, 0 rejected, 2 skipped of 7 rows`."""
        counted = ", ".join(f"{self.counts[status]} {status}" for status in Status)
        return f"{counted} of {self.rows} rows"


def failures(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """A line for each failed or rejected row, in the rows' order."""
    broken = sorted((o for o in outcomes if o.is_broken), key=lambda o: o.row)
    return tuple(f"row {o.row}, {o.id}: {o.error}" if o.id else o.error for o in broken)


def flagged(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """A line for each flag of each picture, in the rows' order: what it means and what may be done about it."""
    lines = []
    for o in sorted((o for o in outcomes if not o.is_broken), key=lambda o: o.row):
        for name in o.flags:
            said = f": {FLAGS[name].meaning}; {FLAGS[name].remedy}" if name in FLAGS else ""
            lines.append(f"row {o.row}, {o.id}: {name}{said}")
    return tuple(lines)


def write(
    request: Request,
    taken: Intake,
    run: Run,
    folder: str,
    outcomes: Iterable[Outcome],
    warnings: list[str],
    began: datetime,
) -> Report:
    """Write the files of a finished run into its folder.

    Raises:
        StorageError: one of them cannot be written.
    """
    outcomes = sorted(outcomes, key=lambda o: o.row)
    names = {"summary": "summary.parquet", "report": "report.html", "run": "run.json"}
    if taken.manifest.rejected:
        names["rejected"] = "rejected.csv"
    report = Report(
        run_id=run.id,
        out=redact(request.out),
        rows=len(outcomes),
        counts=outcome.counts(outcomes),
        failures=failures(outcomes),
        flagged=flagged(outcomes),
        warnings=tuple(warnings),
        seconds=round((datetime.now(UTC) - began).total_seconds(), 3),
        files={kind: redact(storage.join(folder, name)) for kind, name in names.items()},
        manifest_sha256=taken.manifest_sha256,
    )
    record = {
        **asdict(report),
        "began": began.isoformat(timespec="seconds"),
        "request": {name: redact(value) if isinstance(value, str) else value for name, value in asdict(request).items()},
        "weights_sha256": run.weights_sha256,
    }
    facts = {
        "manifest": redact(request.manifest),
        "recipe": redact(request.recipe),
        "backbone": request.backbone,
        "began": began.isoformat(timespec="seconds"),
        "took": f"{report.seconds:.0f} s",
    }
    page = gallery.page(f"Run {run.id}", facts, outcomes, thumbnails(run.out, outcomes, run.settings), "../../")
    if taken.manifest.rejected:
        rejected = rejected_csv(taken.manifest, storage.folder(request.manifest))
        storage.write(storage.join(folder, names["rejected"]), rejected)
    storage.write(storage.join(folder, names["summary"]), history.to_parquet(outcome.summary(outcomes)))
    storage.write(storage.join(folder, names["report"]), page.encode())
    storage.write(storage.join(folder, names["run"]), (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return report


def rebuild(out: str, settings: Settings) -> tuple[str, int, list[str]]:
    """Write `OUT/report.html` from all outcome markers: its URI, how many pairs it shows, and what was ignored.

    Raises:
        StorageError: the output cannot be read or written, or holds no outcome.
    """
    names = [name for name in storage.listing(storage.join(out, "outcomes")) if name.endswith(".json")]
    if not names:
        raise StorageError(f"{redact(out)}: holds no outcomes; give the folder that was given to --out")
    outcomes, warnings = read_outcomes(out, names, settings.readers)
    uri = storage.join(out, "report.html")
    facts = {"out": redact(out), "pairs": str(len(outcomes))}
    page = gallery.page("All pairs", facts, outcomes, thumbnails(out, outcomes, settings), "")
    storage.write(uri, page.encode())
    return uri, len(outcomes), warnings


def thumbnails(out: str, outcomes: list[Outcome], settings: Settings) -> dict[str, str]:
    """Thumbnail strips as `data:` URIs by pair id, of the first `MOST_THUMBNAILS` pairs that have one.

    What is no WebP is left out: a page that is passed on must not carry whatever a link in its place leads to.

    Raises:
        StorageUnavailable: the store failed for the moment; one that is gone for good is left out.
    """
    having = [o for o in outcomes if o.thumbnail][:MOST_THUMBNAILS]
    found = storage.each(lambda o: storage.read(storage.join(out, o.thumbnail)), having, settings.readers)
    for data in found:
        if isinstance(data, NstError) and is_transient(data):
            raise data
    return {
        o.id: "data:image/webp;base64," + base64.b64encode(data).decode()
        for o, data in zip(having, found, strict=True)
        if isinstance(data, bytes) and data.startswith(b"RIFF")
    }
