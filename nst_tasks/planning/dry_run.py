"""List what a run would do, without doing it."""

from __future__ import annotations

from dataclasses import dataclass

from nst_tasks.errors import NstError
from nst_tasks.images.picture import Source
from nst_tasks.inputs.options import ResultOptions
from nst_tasks.inputs.readers import LoadedManifest
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs.outcome_store import load_earlier_outcomes
from nst_tasks.planning.inspection import find_known_sources, inspect_image, list_image_uris
from nst_tasks.planning.triage import Triage, triage
from nst_tasks.storage.parallel import map_parallel


@dataclass(frozen=True)
class Findings:
    """Result of inspecting a run before its first step: its rows in groups, and the number of images that no marker describes.

    A problem makes a row fail; a warning, such as a damaged marker, only makes it run again.
    """

    rows: Triage
    unknown_pictures: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect_inputs(out: str, options: ResultOptions, loaded_manifest: LoadedManifest, settings: Settings) -> Findings:
    """Inspect everything that a run into `out` inspects before its first step, without writing anything."""
    pairs = loaded_manifest.manifest.pairs
    done, warnings = load_earlier_outcomes(out, (pair.id for pair in pairs), settings.readers)
    uris = list_image_uris(pairs)
    sources: dict[str, Source | NstError] = dict(find_known_sources(uris, done.values(), settings.readers))
    unknown = [uri for uri in uris if uri not in sources]
    results = map_parallel(lambda uri: inspect_image(uri, settings.max_pixels, settings.access), unknown, settings.readers)
    sources |= dict(zip(unknown, results, strict=True))
    rows = triage(loaded_manifest, sources, options, done)
    problems = [str(problem) for problem in loaded_manifest.manifest.problems]
    problems += [f"row {pair.row}, {pair.id}: {error}" for pair, error in rows.refused]
    problems += [f"row {job.row}, {job.id}: {done[job.id].error}" for job in rows.quarantined]
    return Findings(rows, len(unknown), tuple(problems), tuple(warnings))


@dataclass(frozen=True)
class DryRunSummary:
    """Summary of a dry run: the number of rows and of finished ones, and one line per row to do, problem and warning."""

    rows: int
    done: int
    to_do: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def format_lines(self) -> list[str]:
        """Return the summary as lines to print."""
        total = f"{self.rows} rows: {self.done} done, {len(self.to_do)} to do"
        return [*self.warnings, *self.problems, *self.to_do, total]


def summarize_dry_run(out: str, options: ResultOptions, loaded_manifest: LoadedManifest, settings: Settings) -> DryRunSummary:
    """Summarize what a run would do, with one line for each row that it would process."""
    findings = inspect_inputs(out, options, loaded_manifest, settings)
    to_do = (
        f"row {job.row}, {job.id}: {job.name}, {job.recipe.name}, {job.width} x {job.height}, {job.steps} steps"
        for job in findings.rows.to_do
    )
    return DryRunSummary(
        loaded_manifest.manifest.rows, len(findings.rows.done), tuple(to_do), findings.problems, findings.warnings
    )
