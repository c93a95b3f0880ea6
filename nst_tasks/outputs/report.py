"""Summary, rejected rows, report page and run.json of a finished run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from nst_tasks.core.flags import FLAGS
from nst_tasks.errors import NstError, StorageError, is_transient, redact
from nst_tasks.images.thumbnail import shrink_strip
from nst_tasks.inputs.manifest_export import export_rejected
from nst_tasks.inputs.options import RunOptions
from nst_tasks.inputs.readers import LoadedManifest
from nst_tasks.inputs.run import Run
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import loss_history, outcome
from nst_tasks.outputs.layout import (
    REPORT_PATH,
    RUN_FOLDER_TO_OUT,
    rejected_path,
    run_record_path,
    run_report_path,
    summary_path,
)
from nst_tasks.outputs.outcome import LOSS_KEYS, QUALITY_KEYS, Outcome, Status
from nst_tasks.outputs.outcome_store import list_outcome_ids, read_outcomes
from nst_tasks.outputs.report_page import render_page, select_shown
from nst_tasks.progress import current_progress
from nst_tasks.storage import access, files
from nst_tasks.storage.parallel import map_parallel
from nst_tasks.storage.uri import get_folder, join_uri

if TYPE_CHECKING:
    import pandas as pd


T = TypeVar("T")


MAX_STRIP_HEIGHT = 128
"""Maximum height in pixels of the strips in the page; those in the output are higher."""


MAX_CURVE_POINTS = 60
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


def list_failures(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Format a line for each failed or rejected row, in row order."""
    broken = sorted((o for o in outcomes if o.is_broken), key=lambda o: o.row)
    return tuple(f"row {o.row}, {o.id}: {o.error}" if o.id else o.error for o in broken)


def list_flags(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Format a line for each flag of each image, in row order, with its meaning and remedy."""
    lines = []
    for o in sorted((o for o in outcomes if not o.is_broken), key=lambda o: o.row):
        for name in o.flags:
            explanation = f": {FLAGS[name].meaning}; {FLAGS[name].remedy}" if name in FLAGS else ""
            lines.append(f"row {o.row}, {o.id}: {name}{explanation}")
    return tuple(lines)


def write_report(
    manifest: str,
    options: RunOptions,
    loaded_manifest: LoadedManifest,
    run: Run,
    outcomes: Iterable[Outcome],
    warnings: list[str],
    started_at: datetime,
) -> Report:
    """Write the files of a finished run and return the report.

    Raises:
        StorageError: A file cannot be written.
    """
    outcomes = sorted(outcomes, key=lambda o: o.row)
    paths = {"summary": summary_path(run.id), "report": run_report_path(run.id), "run": run_record_path(run.id)}
    if loaded_manifest.manifest.rejected:
        paths["rejected"] = rejected_path(run.id)
    uris = {kind: join_uri(run.out, path) for kind, path in paths.items()}
    report = Report(
        run_id=run.id,
        out=redact(run.out),
        rows=len(outcomes),
        counts=outcome.count_by_status(outcomes),
        failures=list_failures(outcomes),
        flagged=list_flags(outcomes),
        warnings=tuple(warnings),
        seconds=round((datetime.now(UTC) - started_at).total_seconds(), 3),
        files={kind: redact(uri) for kind, uri in uris.items()},
        manifest_sha256=loaded_manifest.manifest_sha256,
    )
    record = {
        **asdict(report),
        "began": started_at.isoformat(timespec="seconds"),
        "request": {
            name: redact(value) if isinstance(value, str) else value
            for name, value in {"manifest": manifest, "out": run.out, **options.model_dump()}.items()
        },
        "weights_sha256": run.weights_sha256,
    }
    facts = {
        "manifest": redact(manifest),
        "recipe": redact(options.recipe),
        "backbone": options.backbone,
        "began": started_at.isoformat(timespec="seconds"),
        "took": f"{report.seconds:.0f} s",
    }
    page = _render_page(f"Run {run.id}", facts, outcomes, run.out, run.settings, RUN_FOLDER_TO_OUT)
    if loaded_manifest.manifest.rejected:
        rejected = export_rejected(loaded_manifest.manifest, get_folder(manifest))
        files.write(uris["rejected"], rejected)
    summary = pa.Table.from_pandas(build_summary(outcomes), preserve_index=False)
    files.write(uris["summary"], loss_history.to_parquet(summary))
    files.write(uris["report"], page.encode())
    files.write(uris["run"], (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return report


def rebuild_report(out: str, settings: Settings) -> tuple[str, int, list[str]]:
    """Write `OUT/report.html` from all outcome markers.

    Returns:
        The page's URI, the number of outcomes, and a warning for each marker that was ignored.

    Raises:
        StorageError: The output cannot be read or written, or holds no outcomes.
    """
    ids = list_outcome_ids(out)
    if not ids:
        raise StorageError(f"{redact(out)}: holds no outcomes; give the folder that was given to --out")
    outcomes, warnings = read_outcomes(out, ids, settings.readers)
    uri = join_uri(out, REPORT_PATH)
    page = _render_page("All pairs", {"out": redact(out)}, outcomes, out, settings, "")
    files.write(uri, page.encode())
    return uri, len(outcomes), warnings


def _render_page(title: str, facts: dict[str, str], outcomes: list[Outcome], out: str, settings: Settings, base: str) -> str:
    shown = select_shown(outcomes)
    return render_page(title, facts, outcomes, read_thumbnails(out, shown, settings), read_curves(out, shown, settings), base)


def read_thumbnails(out: str, outcomes: list[Outcome], settings: Settings) -> dict[str, str]:
    """Read the thumbnail strips as `data:` URIs, by pair id.

    A file that is missing or not such an image is omitted: a page that is passed on must not carry the content of some other
    file that a link in the strip's place leads to.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """

    def encode_data_uri(data: bytes) -> str:
        strip = shrink_strip(data, MAX_STRIP_HEIGHT, settings.max_pixels)
        return "data:image/jpeg;base64," + base64.b64encode(strip).decode()

    return _read_each({o.id: o.thumbnail for o in outcomes}, out, settings, encode_data_uri)


def read_curves(out: str, outcomes: list[Outcome], settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Read loss curves by pair id, as `loss_history.extract_curves` returns them; a missing or damaged history is omitted.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """
    return _read_each(
        {o.id: o.history for o in outcomes}, out, settings, lambda data: loss_history.extract_curves(data, MAX_CURVE_POINTS)
    )


def _read_each(paths: Mapping[str, str], out: str, settings: Settings, decode: Callable[[bytes], T]) -> dict[str, T]:
    """Read each file and decode it with `decode`, by pair id; a file that is missing or invalid is omitted.

    Raises:
        StorageUnavailable: The store failed temporarily.
    """
    entries = [(id, path) for id, path in paths.items() if path]
    written = current_progress().written_files

    def read(entry: tuple[str, str]) -> T:
        uri = join_uri(out, entry[1])
        data = written.get_or_compute(uri, lambda: files.read(uri))
        try:
            return decode(data)
        except ValueError as error:
            raise NstError(f"{entry[1]}: {error}") from error

    results = map_parallel(read, entries, settings.readers, access.is_local(out))
    for result in results:
        if isinstance(result, NstError) and is_transient(result):
            raise result
    return {id: result for (id, _), result in zip(entries, results, strict=True) if not isinstance(result, NstError)}


SUMMARY_COLUMNS = (
    "id", "row", "status", "content", "style", "recipe", "precision", "backbone", "height", "width", "steps", "steps_done",
    "seed", "seconds",
    "total", "content_loss", "style_loss", "tv_loss",
    "style_gap", "style_gap_used", "content_cosine", "luminance_ssim", "flags", "image", "history", "key", "run_id", "error",
)  # fmt: skip


def build_summary(outcomes: list[Outcome]) -> pd.DataFrame:
    """Build the summary table: one row per manifest row, in manifest order, with `SUMMARY_COLUMNS`.

    The column `style_gap` is the mean over the held-out layers.
    """
    import pandas as pd  # imported here, because validating a manifest does not need it

    rows = [
        (
            o.id, o.row, str(o.status), o.content.uri if o.content else "", "|".join(style.uri for style in o.styles),
            o.recipe.get("name", ""), o.precision, o.backbone, o.height, o.width, o.steps, o.steps_done, o.seed, o.seconds,
            *(o.losses.get(term, float("nan")) for term in LOSS_KEYS),
            *(o.quality.get(name, float("nan")) for name in QUALITY_KEYS), "|".join(o.flags),
            o.image, o.history, o.key, o.run_id, o.error,
        )
        for o in sorted(outcomes, key=lambda o: o.row)
    ]  # fmt: skip
    return pd.DataFrame.from_records(rows, columns=list(SUMMARY_COLUMNS))
