"""Sort manifest rows into jobs to do, finished, quarantined and refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nst_tasks.core.method import Precision
from nst_tasks.core.vgg_layers import check_layers, min_side
from nst_tasks.errors import NstError, PictureError, redact
from nst_tasks.images.picture import Source
from nst_tasks.images.resize import fit_size, has_same_aspect
from nst_tasks.inputs import presets, weights
from nst_tasks.inputs.columns import IMAGE_COLUMNS
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.manifest import Pair
from nst_tasks.inputs.options import ResultOptions
from nst_tasks.inputs.readers import LoadedManifest
from nst_tasks.inputs.recipe import Overrides, Recipe, override
from nst_tasks.outputs.outcome import Outcome
from nst_tasks.outputs.outcome_store import is_done, is_quarantined


@dataclass(frozen=True)
class Triage:
    """Rows in four groups: jobs to do, jobs with a result, jobs not to be retried, and pairs that cannot become jobs."""

    to_do: tuple[Job, ...]
    done: tuple[Job, ...]
    quarantined: tuple[Job, ...]
    refused: tuple[tuple[Pair, NstError], ...]


def triage(
    loaded_manifest: LoadedManifest,
    sources: Mapping[str, Source | NstError],
    options: ResultOptions,
    outcomes: Mapping[str, Outcome],
) -> Triage:
    """Resolve every row to a job and compare it with the earlier outcome of its id; each group keeps the order of the rows.

    For a row of precision `auto`, a result in the precision that `auto` stands for on another machine counts too.
    """
    recipe_cache: dict[tuple[Any, ...], Recipe] = {}

    def resolve_pair(pair: Pair, auto: Precision) -> Job:
        return build_job(pair, sources, options, loaded_manifest.weights_sha256, loaded_manifest.recipes, auto, recipe_cache)

    other_precision: Precision = "mixed" if loaded_manifest.auto_precision == "float32" else "float32"
    to_do: list[Job] = []
    done_jobs: list[Job] = []
    quarantined: list[Job] = []
    refused: list[tuple[Pair, NstError]] = []
    for pair in loaded_manifest.manifest.pairs:
        try:
            job = resolve_pair(pair, loaded_manifest.auto_precision)
            if (
                job.id in outcomes
                and not is_done(job, outcomes)
                and get_requested_precision(pair, options, loaded_manifest.recipes) == "auto"
            ):
                job_elsewhere = resolve_pair(pair, other_precision)
                job = job_elsewhere if is_done(job_elsewhere, outcomes) else job
        except NstError as error:
            refused.append((pair, error))
            continue
        (done_jobs if is_done(job, outcomes) else quarantined if is_quarantined(job, outcomes) else to_do).append(job)
    return Triage(tuple(to_do), tuple(done_jobs), tuple(quarantined), tuple(refused))


def build_job(
    pair: Pair,
    sources: Mapping[str, Source | NstError],
    options: ResultOptions,
    weights_sha256: str,
    recipes_by_name: Mapping[str, Recipe] = presets.PRESETS,
    auto_precision: Precision = "float32",
    recipe_cache: dict[tuple[Any, ...], Recipe] | None = None,
) -> Job:
    """Build a row's job: its recipe with the overrides of run and row, its sources, and the size of its result.

    Args:
        pair: The row.
        sources: Each image by URI, or the error with which its inspection failed.
        options: The options of the run, which apply where the row leaves a cell empty.
        weights_sha256: The SHA-256 of the backbone's weights.
        recipes_by_name: The recipes by preset name or URI.
        auto_precision: The precision that `auto` stands for.
        recipe_cache: A cache of recipes with overrides applied, so that rows share one recipe object and its cached properties.

    Raises:
        NstError: An image cannot be read or is too small for the network, or the initial image or mask differs from the
            content in proportions.
    """

    def get_source(uri: str) -> Source:
        found = sources[uri]
        if isinstance(found, NstError):
            raise found
        return found

    content, styles = get_source(pair.content), tuple(map(get_source, pair.styles))
    optional_images = {column: get_source(uri) for column, uri in pair.image_uris if column in IMAGE_COLUMNS}
    for column, image in optional_images.items():
        if not has_same_aspect(image.height, image.width, content.height, content.width):
            raise PictureError(
                f"{redact(image.uri)}: {image.width} x {image.height} pixels have not the proportions of the content's "
                f"{content.width} x {content.height}; give for {column} a picture framed as the content, of any size"
            )
    recipe_cache = {} if recipe_cache is None else recipe_cache
    cache_key = pair.recipe, pair.overrides, auto_precision
    recipe = recipe_cache.get(cache_key) or recipe_cache.setdefault(
        cache_key, _override_recipe(pair, options, recipes_by_name, auto_precision)
    )
    check_layers(weights.get_architecture(options.backbone), recipe.method.layers)
    least_side = min_side(recipe.method.layers)
    for image in (content, *styles):
        height, width = fit_size(image.height, image.width, recipe.size, options.upscale)
        if min(height, width) < least_side:
            raise PictureError(
                f"{redact(image.uri)}: {width} x {height} pixels at size {recipe.size} leave a side below "
                f"{least_side}, the least "
                f"that the network can see; give a larger or less narrow picture, or a larger size"
            )
    height, width = fit_size(content.height, content.width, recipe.size, options.upscale)
    return Job(
        pair=pair,
        recipe=recipe,
        content=content,
        styles=styles,
        init=optional_images.get("init"),
        mask=optional_images.get("mask"),
        upscale=options.upscale,
        height=height,
        width=width,
        weights_sha256=weights_sha256,
    )


def _override_recipe(pair: Pair, options: ResultOptions, known: Mapping[str, Recipe], auto: Precision) -> Recipe:
    recipe = override(known[pair.recipe or options.recipe], pair.overrides.with_defaults(options.overrides))
    return override(recipe, Overrides(precision=auto)) if recipe.method.precision == "auto" else recipe


def get_requested_precision(pair: Pair, options: ResultOptions, known: Mapping[str, Recipe]) -> Precision:
    """Return the precision set by the row, or else by the run, or else by the recipe; it may be `auto`."""
    return pair.overrides.precision or options.precision or known[pair.recipe or options.recipe].method.precision
