"""Manifests of an inbox, and which of them need a run: new, changed, or not settled by their last run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nst_tasks import access, intake, ledger, manifest, storage
from nst_tasks.errors import InputError, ManifestError, NstError, SettingsError, StorageError, is_pairs_own, redact
from nst_tasks.reporting import Report
from nst_tasks.request import Request, is_text, unstorable_in
from nst_tasks.settings import Settings

SUFFIX = ".csv"


@dataclass(frozen=True)
class Found:
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


def check_places(request: Request, settings: Settings) -> None:
    """Refuse a sweep whose inbox or output is forbidden, or whose paths contain a secret; the request's manifest is the inbox.

    Raises:
        SettingsError: A path is refused; one line for each problem.
    """
    places = {"--inbox": request.manifest, "--out": request.out, "--recipe": request.recipe, "--weights": request.weights or ""}
    problems = unstorable_in(places)
    for option in ("--inbox", "--out"):
        try:
            intake.check_access(places[option], settings.access)
        except StorageError as error:
            problems.append(f"{option}: {error}")
    if not problems and access.is_below(request.out, request.manifest, os.path.realpath):
        problems.append("--out: is the inbox or lies in it, and nothing is written there; name another place")
    if problems:
        raise SettingsError("\n".join(problems))


def options(request: Request, settings: Settings) -> dict[str, Any]:
    """Return the options that decide the result of a run besides its manifest; the request's manifest is the inbox.

    Raises:
        SettingsError: An option is invalid, or the inbox or the output is forbidden; one line for each problem.
    """
    problems = []
    try:
        check_places(request, settings)
    except SettingsError as error:
        problems.append(str(error))
    try:
        recipe, weights_sha256 = intake.check_options(request, settings)
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(problems))
    return {
        "recipe": recipe.as_plain(),
        "size": request.size,
        "steps": request.steps,
        "precision": request.precision,
        "plateau": request.plateau,
        "backbone": request.backbone,
        "weights": weights_sha256,
        "strict": request.strict,
        "upscale": request.upscale,
    }


def look(request: Request, options: Mapping[str, Any], settings: Settings) -> list[Found]:
    """List the manifests directly in the inbox, by name, with their state by the ledger; subfolders hold images.

    Raises:
        StorageError: The inbox or the ledger cannot be read.
    """
    files = [name for name in storage.listing(request.manifest) if name.lower().endswith(SUFFIX)]
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(file[: -len(SUFFIX)], []).append(file)
    found = []
    for result in storage.each(lambda file: _look_at(file, alike, request, options, settings), files, settings.readers):
        if isinstance(result, NstError):
            raise result
        found.append(result)
    return found


def _look_at(
    file: str, alike: Mapping[str, list[str]], request: Request, options: Mapping[str, Any], settings: Settings
) -> Found:
    name, uri = file[: -len(SUFFIX)], storage.join(request.manifest, file)
    out = storage.join(request.out, name)
    if not is_text(file):
        return Found(file, uri, out, problem="its name is not UTF-8, in which Prefect would store it; rename it")
    if clashing := [other for other in alike[name] if other != file]:
        return Found(file, uri, out, problem=f"its output would be that of {', '.join(clashing)}; rename one of them")
    try:
        data = _bytes(uri, settings)
    except ManifestError as error:
        return Found(file, uri, out, problem=str(error))
    sha256 = hashlib.sha256(data).hexdigest()
    version, last, warning = ledger.version(redact(uri), sha256, options), None, ""
    try:
        last = ledger.newest(request.out, file)
    except ValueError as error:
        warning = str(error)
    except StorageError as error:
        if not is_pairs_own(error):
            raise
        warning = f"{redact(uri)}: run, for the ledger does not tell whether it was: {error}"
    settled = last is not None and last.settled and last.version == version
    misnamed = ""
    if name.startswith("_"):
        misnamed = "its name begins with _, as the folders of nst do; rename it"
    elif access.is_below(request.manifest, out, os.path.realpath):
        misnamed = "the inbox lies in what would be its output, and nothing is written there; rename it, or change --out"
    return Found(file, uri, out, sha256, version, settled, misnamed, warning)


def is_settled(found: Found, report: Report | None, strict: bool, settings: Settings) -> bool:
    """Return whether another run of this manifest would have the same result unless the manifest is edited.

    This holds if every row is done or is rejected for the manifest's own content. It does not hold if a pair failed, or if a
    recipe file or a setting of this machine is the cause.

    Raises:
        StorageError: The failure of the store concerns every manifest, or is temporary.
    """
    if found.problem:
        return bool(found.sha256)  # empty if two names clash: removing one file fixes the other
    if report is not None and report.counts["failed"]:
        return False
    if report is not None and not report.counts["rejected"]:
        return True
    try:
        data = _bytes(found.uri, settings)
    except ManifestError:
        return False
    if hashlib.sha256(data).hexdigest() != (report.manifest_sha256 if report else found.sha256):
        return False
    try:
        parsed = manifest.parse(data, storage.folder(found.uri))
    except ManifestError:
        return True
    if report is not None:
        return len(parsed.rejected) == report.counts["rejected"]
    return not parsed.pairs or (strict and bool(parsed.problems))


def _bytes(uri: str, settings: Settings) -> bytes:
    """Read the bytes of a manifest.

    Raises:
        ManifestError: This manifest cannot be read, and a retry would not help.
        StorageError: The failure of the store concerns every manifest, or is temporary.
    """
    try:
        return intake.manifest_bytes(uri, settings.access)
    except ManifestError as error:
        cause = error.__cause__
        if isinstance(cause, StorageError) and not is_pairs_own(cause):
            raise cause from error
        raise
