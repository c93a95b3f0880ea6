"""Files that a run writes besides its images: summary, rejected rows, report page and run record."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa

from nst_tasks import access, gallery, history, images, outcome, storage
from nst_tasks.core.flags import FLAGS
from nst_tasks.errors import NstError, StorageError, is_transient, redact
from nst_tasks.intake import Intake, read_outcomes
from nst_tasks.manifest import rejected_csv
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import watch
from nst_tasks.request import Request
from nst_tasks.settings import Run, Settings

T = TypeVar("T")

THUMBNAIL_HEIGHT = 128
"""Maximum height in pixels of the strips in the page; those in the output are higher."""

POINTS = 60
"""Maximum number of points of a loss curve at each level."""


@dataclass(frozen=True)
class Report:
    """Result of a run, fit to print as JSON: rows by status, a line for each failure and flag, URIs of the files."""

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
        """Counts in one line: `4 succeeded, 1 failed, 0 rejected, 2 skipped of 7 rows`."""
        counted = ", ".join(f"{self.counts[status]} {status}" for status in Status)
        return f"{counted} of {self.rows} rows"


def failures(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Format a line for each failed or rejected row, in row order."""
    broken = sorted((o for o in outcomes if o.is_broken), key=lambda o: o.row)
    return tuple(f"row {o.row}, {o.id}: {o.error}" if o.id else o.error for o in broken)


def flagged(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Format a line for each flag of each image, in row order, with its meaning and remedy."""
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
    """Write the files of a finished run into its folder and return the report.

    Raises:
        StorageError: A file cannot be written.
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
    page = _page(f"Run {run.id}", facts, outcomes, run.out, run.settings, "../../")
    if taken.manifest.rejected:
        rejected = rejected_csv(taken.manifest, storage.folder(request.manifest))
        storage.write(storage.join(folder, names["rejected"]), rejected)
    summary = pa.Table.from_pandas(outcome.summary(outcomes), preserve_index=False)
    storage.write(storage.join(folder, names["summary"]), history.to_parquet(summary))
    storage.write(storage.join(folder, names["report"]), page.encode())
    storage.write(storage.join(folder, names["run"]), (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return report


def rebuild(out: str, settings: Settings) -> tuple[str, int, list[str]]:
    """Write `OUT/report.html` from all outcome markers.

    Returns:
        The page's URI, the number of outcomes, and a warning for each marker that was ignored.

    Raises:
        StorageError: The output cannot be read or written, or holds no outcomes.
    """
    names = [name for name in storage.listing(storage.join(out, "outcomes")) if name.endswith(".json")]
    if not names:
        raise StorageError(f"{redact(out)}: holds no outcomes; give the folder that was given to --out")
    outcomes, warnings = read_outcomes(out, names, settings.readers)
    uri = storage.join(out, "report.html")
    page = _page("All pairs", {"out": redact(out)}, outcomes, out, settings, "")
    storage.write(uri, page.encode())
    return uri, len(outcomes), warnings


def _page(title: str, facts: dict[str, str], outcomes: list[Outcome], out: str, settings: Settings, base: str) -> str:
    shown = gallery.shown(outcomes)
    return gallery.page(title, facts, outcomes, thumbnails(out, shown, settings), curves(out, shown, settings), base)


def thumbnails(out: str, outcomes: list[Outcome], settings: Settings) -> dict[str, str]:
    """Read the thumbnail strips as `data:` URIs, by pair id.

    A file that is missing or not such an image is omitted: a page that is passed on must not carry the content of some other
    file that a link in the strip's place leads to.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """

    def embedded(data: bytes) -> str:
        strip = images.shrunk(data, THUMBNAIL_HEIGHT, settings.max_pixels)
        return "data:image/jpeg;base64," + base64.b64encode(strip).decode()

    return _of_each({o.id: o.thumbnail for o in outcomes}, out, settings, embedded)


def curves(out: str, outcomes: list[Outcome], settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Read the loss curves, as `history.curves` returns them, by pair id; a missing or damaged history is omitted.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """
    return _of_each({o.id: o.history for o in outcomes}, out, settings, lambda data: history.curves(data, POINTS))


def _of_each(paths: Mapping[str, str], out: str, settings: Settings, seen: Callable[[bytes], T]) -> dict[str, T]:
    """Read each file and decode it with `seen`, by pair id; a file that is missing or invalid is omitted.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """
    named = [(id, path) for id, path in paths.items() if path]
    written = watch().written

    def read(entry: tuple[str, str]) -> T:
        uri = storage.join(out, entry[1])
        data = written.get(uri, lambda: storage.read(uri))
        try:
            return seen(data)
        except ValueError as error:
            raise NstError(f"{entry[1]}: {error}") from error

    found = storage.each(read, named, settings.readers, access.is_local(out))
    for one in found:
        if isinstance(one, NstError) and is_transient(one):
            raise one
    return {id: one for (id, _), one in zip(named, found, strict=True) if not isinstance(one, NstError)}
