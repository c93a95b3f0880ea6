"""Validate all inputs before computing, and report every problem at once."""

from __future__ import annotations

from collections.abc import Mapping

from nst_tasks.engine.hardware import detect_precision
from nst_tasks.errors import InputError, SettingsError, StorageError
from nst_tasks.inputs import presets, weights
from nst_tasks.inputs.options import SweepOptions, find_unstorable_uris
from nst_tasks.inputs.readers import LoadedManifest, find_recipe, load_recipes, read_manifest, read_weights
from nst_tasks.inputs.recipe import Recipe
from nst_tasks.inputs.settings import Settings
from nst_tasks.planning.triage import get_requested_precision
from nst_tasks.storage import files
from nst_tasks.storage.access import check_output


def prepare(manifest: str, out: str, options: SweepOptions, settings: Settings, *, will_write: bool = True) -> LoadedManifest:
    """Validate all inputs of a run before computing, and report every problem at once.

    Without `will_write`, access to the output is checked but nothing is written to test it.

    Raises:
        InputError: The manifest, an option or the output is invalid; one line for each problem.
    """
    problems = find_unstorable_uris({"manifest": manifest, "--out": out, **options.uris})
    data, parsed = b"", None
    known: dict[str, Recipe] = dict(presets.PRESETS)
    try:
        data, parsed = read_manifest(manifest, settings.access)
        parsed, known = load_recipes(manifest, data, parsed, settings.access)
    except InputError as error:
        problems.append(str(error))
    recipe, weights_sha256, option_problems = _resolve_options(options, settings, known)
    problems += option_problems
    if parsed is not None:
        if options.strict and parsed.problems:
            problems += [str(problem) for problem in parsed.problems]
        elif not parsed.pairs:
            problems += [str(problem) for problem in parsed.problems] + ["manifest: no row is usable; correct the rows above"]
    exclusive = False
    if not problems:
        try:
            check_output(out, settings.access)
            if will_write:
                files.probe_writable(out)
                exclusive = files.can_create_if_absent(out)
        except StorageError as error:
            problems.append(f"--out: the output cannot be written: {error}")
    if problems or parsed is None:
        raise InputError("\n".join(problems))
    known[options.recipe] = recipe
    requested_precisions = {get_requested_precision(pair, options, known) for pair in parsed.pairs}
    # the hardware is examined only if a row needs it
    auto = detect_precision() if "auto" in requested_precisions else "float32"
    return LoadedManifest(parsed, data, weights_sha256, known, exclusive, auto)


def check_options(options: SweepOptions, settings: Settings) -> tuple[Recipe, str]:
    """Return the recipe and the SHA-256 of the weights that options name, without reading a manifest.

    Raises:
        InputError: An option is invalid; one line for each problem.
    """
    recipe, weights_sha256, problems = _resolve_options(options, settings, presets.PRESETS)
    if problems:
        raise InputError("\n".join(problems))
    return recipe, weights_sha256


def _resolve_options(options: SweepOptions, settings: Settings, known: Mapping[str, Recipe]) -> tuple[Recipe, str, list[str]]:
    """Return the recipe, the SHA-256 of the weights, and one line for each invalid option."""
    problems = []
    weights_sha256 = ""
    try:
        weights_sha256 = weights.compute_sha256(options.backbone, read_weights(options.weights, settings.access))
    except InputError as error:
        problems.append(f"--{str(error).removeprefix('--')}")
    try:
        recipe = known.get(options.recipe) or find_recipe(options.recipe, settings.access)
    except SettingsError as error:
        problems += [f"--{line}" for line in str(error).splitlines()]
        recipe = presets.PRESETS[presets.DEFAULT]  # a stand-in, so that the other options are checked too
    return recipe, weights_sha256, problems + options.find_problems(recipe)
