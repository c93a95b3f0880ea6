"""Read manifests, recipe files and weights files from disk or a store, within the allowed places."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nst_tasks.core.method import Precision
from nst_tasks.errors import ManifestError, SettingsError, StorageError, is_transient, redact
from nst_tasks.inputs import manifest, presets, recipe_file
from nst_tasks.inputs.csv_text import check_size
from nst_tasks.inputs.manifest import Manifest
from nst_tasks.inputs.recipe import Recipe
from nst_tasks.storage import access, files
from nst_tasks.storage.access import DEFAULT_ACCESS, Access, check_access
from nst_tasks.storage.uri import get_folder


@dataclass(frozen=True)
class LoadedManifest:
    """A parsed manifest with its bytes, and the weights and recipes that the run will use.

    `recipes` holds every recipe that its rows or the request may name, by preset name or URI. `exclusive` is true if the
    output store honours conditional creates, so that only one of several runs can claim a pair. `auto_precision` is the
    precision that `auto` stands for on this machine.
    """

    manifest: Manifest
    manifest_bytes: bytes
    weights_sha256: str
    recipes: Mapping[str, Recipe]
    exclusive: bool
    auto_precision: Precision = "float32"

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest's bytes."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()


def read_manifest_bytes(uri: str, allowed: Access = DEFAULT_ACCESS) -> bytes:
    """Read the bytes of a manifest.

    Raises:
        ManifestError: The file is missing, unreachable, forbidden or too large.
    """
    try:
        check_access(uri, allowed)
        if entry := files.stat(uri):
            check_size(entry.size)  # before reading, because the file may be of any size
        return files.read(uri)
    except StorageError as error:
        raise ManifestError(f"manifest {error}") from error
    except ManifestError as error:
        raise ManifestError(f"manifest {redact(uri)}: {error}") from error


def read_manifest(uri: str, allowed: Access = DEFAULT_ACCESS) -> tuple[bytes, Manifest]:
    """Read and parse a manifest; rows that name a forbidden URI are rejected.

    Raises:
        ManifestError: The file cannot be read or is not a manifest; one line for each problem.
    """
    data = read_manifest_bytes(uri, allowed)
    try:
        return data, manifest.parse(data, get_folder(uri), find_uri_problem=_build_uri_check(uri, allowed))
    except ManifestError as error:
        raise ManifestError("\n".join(f"manifest {redact(uri)}: {line}" for line in str(error).splitlines())) from error


def _build_uri_check(manifest_uri: str, allowed: Access) -> Callable[[str], str | None]:
    """Return a cached function from a URI to why this manifest may not name it, or None; symbolic links are resolved."""
    own = access.restrict_for_manifest(allowed, manifest_uri)
    real = functools.cache(os.path.realpath)
    return functools.cache(lambda uri: access.explain_refusal(uri, own, real))


def load_recipes(
    uri: str, data: bytes, parsed: Manifest, allowed: Access = DEFAULT_ACCESS
) -> tuple[Manifest, dict[str, Recipe]]:
    """Load the recipe files that rows name, and reject the rows whose file is invalid.

    Each file is read once, however many rows name it.

    Args:
        uri: The URI of the manifest.
        data: Its bytes.
        parsed: Its rows, as `read_manifest` returns them.
        allowed: The places that may be read.

    Returns:
        The manifest, and every recipe by preset name or URI.

    Raises:
        SettingsError: The store of a recipe file failed temporarily.
    """
    known = dict(presets.PRESETS)
    recipe_problems = {}
    for file in sorted({pair.recipe for pair in parsed.pairs if pair.recipe} - {*known}):
        try:
            known[file] = find_recipe(file, allowed)
        except SettingsError as error:
            if error.__cause__ is not None and is_transient(error.__cause__):
                raise
            recipe_problems[file] = [line.removeprefix("recipe ") for line in str(error).splitlines()]
    if recipe_problems:
        parsed = manifest.parse(data, get_folder(uri), recipe_problems, _build_uri_check(uri, allowed))
    return parsed, known


def find_recipe(name: str, allowed: Access = DEFAULT_ACCESS) -> Recipe:
    """Return the preset of this name, or read the recipe file of this URI.

    Raises:
        SettingsError: There is no such preset, or the file is unreadable, forbidden or invalid; one line for each problem.
    """
    if not recipe_file.is_recipe_file(name):
        return presets.find_preset(name)
    place = redact(name)
    try:
        check_access(name, allowed)
        if entry := files.stat(name):
            recipe_file.check_size(entry.size)  # before reading, because the file may be of any size
        return recipe_file.parse(files.read(name), place.rpartition("/")[2][: -len(".toml")])
    except StorageError as error:
        raise SettingsError(f"recipe {error}") from error
    except SettingsError as error:
        raise SettingsError("\n".join(f"recipe {place}: {line}" for line in str(error).splitlines())) from error


def read_weights(uri: str | None, allowed: Access = DEFAULT_ACCESS) -> bytes | None:
    """Read the bytes of a weights file, or return None if no file is given.

    Raises:
        SettingsError: The file is missing, unreadable or forbidden.
    """
    if uri is None:
        return None
    try:
        check_access(uri, allowed)
        return files.read(uri)
    except StorageError as error:
        raise SettingsError(f"--weights: {error}") from error
