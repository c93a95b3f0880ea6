"""Manifests of an inbox, and which of them need a run: new, changed, or not settled by their last run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nst_tasks.errors import InputError, ManifestError, NstError, SettingsError, StorageError, is_pair_failure, redact
from nst_tasks.inputs import manifest
from nst_tasks.inputs.options import ResultOptions, SweepOptions, find_unstorable_uris, is_utf8
from nst_tasks.inputs.readers import read_manifest_bytes
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import ledger
from nst_tasks.outputs.report import Report
from nst_tasks.planning.prepare import check_options
from nst_tasks.storage import access, files
from nst_tasks.storage.parallel import map_parallel
from nst_tasks.storage.uri import get_folder, join_uri

MANIFEST_SUFFIX = ".csv"


@dataclass(frozen=True)
class InboxManifest:
    """A manifest in the inbox and its state by the ledger.

    Attributes:
        file: Its file name in the inbox.
        out: The output folder of its run.
        sha256, version: As in the ledger; empty if the file was not read.
        is_settled: True if there is nothing to run.
        problem: The reason why it cannot be run, or empty.
        warning: A problem of its ledger entry, or empty.
    """

    file: str
    uri: str
    out: str
    sha256: str = ""
    version: str = ""
    is_settled: bool = False
    problem: str = ""
    warning: str = ""


def check_sweep(inbox: str, out: str, options: SweepOptions, settings: Settings) -> None:
    """Refuse a sweep whose inbox or output is forbidden, or whose paths contain a secret.

    Raises:
        SettingsError: A path is refused; one line for each problem.
    """
    places = {"--inbox": inbox, "--out": out}
    problems = find_unstorable_uris(places | options.uris)
    for option, place in places.items():
        try:
            access.check_access(place, settings.access)
        except StorageError as error:
            problems.append(f"{option}: {error}")
    if not problems and access.is_below(out, inbox, os.path.realpath):
        problems.append("--out: is the inbox or lies in it, and nothing is written there; name another place")
    if problems:
        raise SettingsError("\n".join(problems))


def collect_result_options(inbox: str, out: str, options: SweepOptions, settings: Settings) -> dict[str, Any]:
    """Return the options that decide the result of a run besides its manifest, for the ledger's version of it.

    Raises:
        SettingsError: An option is invalid, or the inbox or the output is forbidden; one line for each problem.
    """
    problems = []
    try:
        check_sweep(inbox, out, options, settings)
    except SettingsError as error:
        problems.append(str(error))
    try:
        recipe, weights_sha256 = check_options(options, settings)
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(problems))
    decisive = options.model_dump(include={*ResultOptions.model_fields, "strict"})
    return decisive | {"recipe": recipe.as_plain(), "weights": weights_sha256}


def list_manifests(inbox: str, out: str, result_options: Mapping[str, Any], settings: Settings) -> list[InboxManifest]:
    """List the manifests directly in the inbox, by name, with their state by the ledger; subfolders hold images.

    Raises:
        StorageError: The inbox or the ledger cannot be read.
    """
    names = [name for name in files.list_files(inbox) if name.lower().endswith(MANIFEST_SUFFIX)]
    files_by_stem: dict[str, list[str]] = {}
    for file in names:
        files_by_stem.setdefault(file[: -len(MANIFEST_SUFFIX)], []).append(file)
    manifests = []
    for result in map_parallel(
        lambda file: _inspect_manifest(file, files_by_stem, inbox, out, result_options, settings), names, settings.readers
    ):
        if isinstance(result, NstError):
            raise result
        manifests.append(result)
    return manifests


def _inspect_manifest(
    file: str,
    files_by_stem: Mapping[str, list[str]],
    inbox: str,
    sweep_out: str,
    result_options: Mapping[str, Any],
    settings: Settings,
) -> InboxManifest:
    name, uri = file[: -len(MANIFEST_SUFFIX)], join_uri(inbox, file)
    out = join_uri(sweep_out, name)
    if not is_utf8(file):
        return InboxManifest(file, uri, out, problem="its name is not UTF-8, in which Prefect would store it; rename it")
    if clashing := [other for other in files_by_stem[name] if other != file]:
        return InboxManifest(file, uri, out, problem=f"its output would be that of {', '.join(clashing)}; rename one of them")
    try:
        data = _read_bytes(uri, settings)
    except ManifestError as error:
        return InboxManifest(file, uri, out, problem=str(error))
    sha256 = hashlib.sha256(data).hexdigest()
    version, last_entry, warning = ledger.compute_version(redact(uri), sha256, result_options), None, ""
    try:
        last_entry = ledger.read_newest(sweep_out, file)
    except ValueError as error:
        warning = str(error)
    except StorageError as error:
        if not is_pair_failure(error):
            raise
        warning = f"{redact(uri)}: run, for the ledger does not tell whether it was: {error}"
    is_current = last_entry is not None and last_entry.settled and last_entry.version == version
    name_problem = ""
    if name.startswith("_"):
        name_problem = "its name begins with _, as the folders of nst do; rename it"
    elif access.is_below(inbox, out, os.path.realpath):
        name_problem = "the inbox lies in what would be its output, and nothing is written there; rename it, or change --out"
    return InboxManifest(file, uri, out, sha256, version, is_current, name_problem, warning)


def is_settled(candidate: InboxManifest, report: Report | None, strict: bool, settings: Settings) -> bool:
    """Return whether another run of this manifest would have the same result unless the manifest is edited.

    This holds if every row is done or is rejected for the manifest's own content. It does not hold if a pair failed, or if a
    recipe file or a setting of this machine is the cause.

    Raises:
        StorageError: The failure of the store concerns every manifest, or is temporary.
    """
    if candidate.problem:
        return bool(candidate.sha256)  # empty if two names clash: removing one file fixes the other
    if report is not None and report.counts["failed"]:
        return False
    if report is not None and not report.counts["rejected"]:
        return True
    try:
        data = _read_bytes(candidate.uri, settings)
    except ManifestError:
        return False
    if hashlib.sha256(data).hexdigest() != (report.manifest_sha256 if report else candidate.sha256):
        return False
    try:
        parsed = manifest.parse(data, get_folder(candidate.uri))
    except ManifestError:
        return True
    if report is not None:
        return len(parsed.rejected) == report.counts["rejected"]
    return not parsed.pairs or (strict and bool(parsed.problems))


def _read_bytes(uri: str, settings: Settings) -> bytes:
    """Read the bytes of a manifest.

    Raises:
        ManifestError: This manifest cannot be read, and a retry would not help.
        StorageError: The failure of the store concerns every manifest, or is temporary.
    """
    try:
        return read_manifest_bytes(uri, settings.access)
    except ManifestError as error:
        cause = error.__cause__
        if isinstance(cause, StorageError) and not is_pair_failure(cause):
            raise cause from error
        raise
