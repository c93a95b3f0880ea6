"""Prepare a run: read the manifest, validate all inputs, find finished pairs, inspect the images, build the jobs.

No TensorFlow and no Prefect: `nst validate` is built on this module and answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from nst_tasks import access, hardware, images, manifest, outcome, presets, recipe_file, recipes, storage, weights
from nst_tasks.access import ANYWHERE, Access
from nst_tasks.batching import Job
from nst_tasks.core.architecture import check_layers, smallest_side
from nst_tasks.core.method import Precision
from nst_tasks.errors import (
    InputError,
    ManifestError,
    NstError,
    PictureError,
    SettingsError,
    StorageError,
    is_pairs_own,
    is_transient,
    redact,
)
from nst_tasks.manifest import Manifest, Pair
from nst_tasks.outcome import Outcome, Status
from nst_tasks.recipes import Recipe
from nst_tasks.request import Request, option_problems, unstorable
from nst_tasks.settings import Settings
from nst_tasks.source import Source


@dataclass(frozen=True)
class Intake:
    """A parsed manifest with its bytes, and the weights and recipes that the run will use.

    `recipes` holds every recipe that its rows or the request may name, by preset name or URI. `exclusive` is true if the
    output store honours conditional creates, so that only one of several runs can claim a pair. `auto` is the precision that
    `auto` stands for on this machine.
    """

    manifest: Manifest
    manifest_bytes: bytes
    weights_sha256: str
    recipes: Mapping[str, Recipe]
    exclusive: bool
    auto: Precision = "float32"

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest's bytes."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()


def manifest_bytes(uri: str, allowed: Access = ANYWHERE) -> bytes:
    """Read the bytes of a manifest.

    Raises:
        ManifestError: The file is missing, unreachable, forbidden or too large.
    """
    try:
        check_access(uri, allowed)
        if entry := storage.stat(uri):
            manifest.check_size(entry.size)  # before reading, because the file may be of any size
        return storage.read(uri)
    except StorageError as error:
        raise ManifestError(f"manifest {error}") from error
    except ManifestError as error:
        raise ManifestError(f"manifest {redact(uri)}: {error}") from error


def read_manifest(uri: str, allowed: Access = ANYWHERE) -> tuple[bytes, Manifest]:
    """Read and parse a manifest; rows that name a forbidden URI are rejected.

    Raises:
        ManifestError: The file cannot be read or is not a manifest; one line for each problem.
    """
    data = manifest_bytes(uri, allowed)
    try:
        return data, manifest.parse(data, storage.folder(uri), fault=_fault_of(uri, allowed))
    except ManifestError as error:
        raise ManifestError("\n".join(f"manifest {redact(uri)}: {line}" for line in str(error).splitlines())) from error


def _fault_of(manifest_uri: str, allowed: Access) -> Callable[[str], str | None]:
    """Return a cached function from a URI to why this manifest may not name it, or None; symbolic links are resolved."""
    own = access.for_manifest(allowed, manifest_uri)
    real = functools.cache(os.path.realpath)
    return functools.cache(lambda uri: access.fault(uri, own, real))


def check_access(uri: str, allowed: Access) -> None:
    """Refuse a URI outside the allowed places, symbolic links resolved, and a local device or pipe.

    Raises:
        StorageError: The URI is forbidden, or names a device or a pipe.
    """
    if reason := access.fault(uri, allowed, os.path.realpath):
        raise StorageError(f"{redact(uri)}: {reason}")
    if access.is_local(uri):
        with contextlib.suppress(OSError, ValueError):  # a missing file is reported when it is opened
            mode = os.stat(access.local_path(uri)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StorageError(f"{redact(uri)}: is a device or a pipe, which may have no end; name a file")


def with_recipes(uri: str, data: bytes, parsed: Manifest, allowed: Access = ANYWHERE) -> tuple[Manifest, dict[str, Recipe]]:
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
    unusable = {}
    for file in sorted({pair.recipe for pair in parsed.pairs if pair.recipe} - {*known}):
        try:
            known[file] = find_recipe(file, allowed)
        except SettingsError as error:
            if error.__cause__ is not None and is_transient(error.__cause__):
                raise
            unusable[file] = [line.removeprefix("recipe ") for line in str(error).splitlines()]
    if unusable:
        parsed = manifest.parse(data, storage.folder(uri), unusable, _fault_of(uri, allowed))
    return parsed, known


def find_recipe(name: str, allowed: Access = ANYWHERE) -> Recipe:
    """Return the preset of this name, or read the recipe file of this URI.

    Raises:
        SettingsError: There is no such preset, or the file is unreadable, forbidden or invalid; one line for each problem.
    """
    if not recipe_file.is_file(name):
        return presets.find(name)
    place = redact(name)
    try:
        check_access(name, allowed)
        if entry := storage.stat(name):
            recipe_file.check_size(entry.size)  # before reading, because the file may be of any size
        return recipe_file.parse(storage.read(name), place.rpartition("/")[2][: -len(".toml")])
    except StorageError as error:
        raise SettingsError(f"recipe {error}") from error
    except SettingsError as error:
        raise SettingsError("\n".join(f"recipe {place}: {line}" for line in str(error).splitlines())) from error


def located(recipe: str) -> str:
    """Return a recipe name that is valid in any working folder: the path of a file is made absolute."""
    return storage.absolute(recipe) if recipe_file.is_file(recipe) else recipe


def prepare(request: Request, settings: Settings, *, writing: bool = True) -> Intake:
    """Validate all inputs of a run before computing, and report every problem at once.

    Without `writing`, access to the output is checked but nothing is written to test it.

    Raises:
        InputError: The manifest, an option or the output is invalid; one line for each problem.
    """
    problems = unstorable(request)
    data, parsed = b"", None
    known: dict[str, Recipe] = dict(presets.PRESETS)
    try:
        data, parsed = read_manifest(request.manifest, settings.access)
        parsed, known = with_recipes(request.manifest, data, parsed, settings.access)
    except InputError as error:
        problems.append(str(error))
    recipe, weights_sha256, wrong = _options(request, settings, known)
    problems += wrong
    if parsed is not None:
        if request.strict and parsed.problems:
            problems += [str(problem) for problem in parsed.problems]
        elif not parsed.pairs:
            problems += [str(problem) for problem in parsed.problems] + ["manifest: no row is usable; correct the rows above"]
    exclusive = False
    if not problems:
        try:
            check_output(request.out, settings.access)
            if writing:
                storage.probe_writable(request.out)
                exclusive = storage.honours_create(request.out)
        except StorageError as error:
            problems.append(f"--out: the output cannot be written: {error}")
    if problems or parsed is None:
        raise InputError("\n".join(problems))
    known[request.recipe] = recipe
    asked = {_precision(pair, request, known) for pair in parsed.pairs}
    auto = hardware.auto_precision() if "auto" in asked else "float32"  # the hardware is examined only if a row needs it
    return Intake(parsed, data, weights_sha256, known, exclusive, auto)


def check_options(request: Request, settings: Settings) -> tuple[Recipe, str]:
    """Return the recipe and the SHA-256 of the weights that a request names, without reading its manifest.

    Raises:
        InputError: An option is invalid; one line for each problem.
    """
    recipe, weights_sha256, problems = _options(request, settings, presets.PRESETS)
    if problems:
        raise InputError("\n".join(problems))
    return recipe, weights_sha256


def _options(request: Request, settings: Settings, known: Mapping[str, Recipe]) -> tuple[Recipe, str, list[str]]:
    """Return the recipe, the SHA-256 of the weights, and one line for each invalid option."""
    problems = []
    weights_sha256 = ""
    try:
        weights_sha256 = weights.sha256(request.backbone, read_weights(request.weights, settings.access))
    except InputError as error:
        problems.append(f"--{str(error).removeprefix('--')}")
    try:
        recipe = known.get(request.recipe) or find_recipe(request.recipe, settings.access)
    except SettingsError as error:
        problems += [f"--{line}" for line in str(error).splitlines()]
        recipe = presets.PRESETS[presets.DEFAULT]  # a stand-in, so that the other options are checked too
    return recipe, weights_sha256, problems + option_problems(request, recipe)


def read_weights(uri: str | None, allowed: Access = ANYWHERE) -> bytes | None:
    """Read the bytes of a weights file, or return None if no file is given.

    Raises:
        SettingsError: The file is missing, unreadable or forbidden.
    """
    if uri is None:
        return None
    try:
        check_access(uri, allowed)
        return storage.read(uri)
    except StorageError as error:
        raise SettingsError(f"--weights: {error}") from error


def check_output(out: str, allowed: Access) -> None:
    """Refuse a forbidden output, and one that contains a symbolic link to a forbidden place.

    Raises:
        StorageError: The output or the target of a link is forbidden.
    """
    check_access(out, allowed)
    if allowed.roots and access.is_local(out):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(access.local_path(out)) as entries:
            for link in (entry.path for entry in entries if entry.is_symlink()):
                check_access(link, allowed)


def finished(out: str, ids: Iterable[str], readers: int) -> tuple[dict[str, Outcome], list[str]]:
    """Load the outcomes of earlier runs for these ids, and return a warning for each marker that cannot be trusted.

    A marker counts only while the image and the loss history that it names exist and have the sizes that it records.
    """
    wanted = set(ids)
    names = [name for name in storage.listing(storage.join(out, "outcomes")) if name.removesuffix(".json") in wanted]
    beside = {folder: storage.listing(storage.join(out, folder)) if names else {} for folder in ("images", "history")}
    outcomes, warnings = read_outcomes(out, names, readers)
    found = {}
    for done in outcomes:
        if done.status == Status.SUCCEEDED and not _is_beside(done, beside):
            warnings.append(f"outcomes/{done.id}.json: ignored, its picture or history is missing or of another size")
        else:
            found[done.id] = done
    return found, warnings


def read_outcomes(out: str, names: Iterable[str], readers: int) -> tuple[list[Outcome], list[str]]:
    """Load the markers of these names below OUT/outcomes, and return a warning for each that is damaged or misnamed.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all requests.
    """
    names = list(names)
    markers = [storage.join(out, "outcomes", name) for name in names]
    found = storage.each(storage.read, markers, readers, access.is_local(out))
    outcomes, warnings = [], []
    for name, data in zip(names, found, strict=True):  # parsed on one thread: parsing JSON holds the interpreter lock
        try:
            if isinstance(data, NstError):
                raise data
            done = outcome.from_json(data)
            if f"{done.id}.json" != name:
                raise ValueError(f"it is the marker of {done.id}")
        except ValueError as error:
            warnings.append(f"outcomes/{name}: ignored, {error}")
        except NstError as error:
            if not is_pairs_own(error):
                raise
            warnings.append(str(error))
        else:
            outcomes.append(done)
    return outcomes, warnings


def _is_beside(done: Outcome, beside: Mapping[str, Mapping[str, storage.Entry]]) -> bool:
    for path, size in ((done.image, done.image_bytes), (done.history, done.history_bytes)):
        folder, _, name = path.partition("/")
        entry = beside.get(folder, {}).get(name)
        if entry is None or entry.size != size:
            return False
    return True


def remembered(uris: Iterable[str], done: Iterable[Outcome], readers: int) -> dict[str, Source]:
    """Return the sources that earlier outcomes describe and that are unchanged, by their version in the store.

    These images need not be read again.
    """
    described = (source for result in done for source in (result.content, *result.styles, result.init, result.mask))
    seen = {source.uri: source for source in described if source is not None}
    candidates = sorted(uri for uri in uris if redact(uri) in seen)
    entries = storage.each(storage.stat, candidates, readers, all(map(access.is_local, candidates)))
    found = {}
    for uri, entry in zip(candidates, entries, strict=True):
        source = seen[redact(uri)]
        if isinstance(entry, storage.Entry) and entry.version and entry.version == source.version:
            found[uri] = Source(uri, source.sha256, source.version, source.height, source.width)
    return found


def inspect(uri: str, max_pixels: int, allowed: Access = ANYWHERE) -> Source:
    """Read an image file's bytes for their SHA-256, and its header for its size.

    Exchanging a symbolic link after this check gains nothing: every later read compares the SHA-256.

    Raises:
        PictureError: The file is not an image, or too large.
        StorageError: The file is missing, unreadable or forbidden.
    """
    check_access(uri, allowed)
    entry = storage.stat(uri)  # before the bytes, so that the next run notices a rewrite in between
    try:
        images.check_size(entry.size if entry else 0, max_pixels)
        data = storage.read(uri)
        height, width = images.probe(data, max_pixels)
    except PictureError as error:
        raise PictureError(f"{redact(uri)}: {error}") from error
    return Source(uri, hashlib.sha256(data).hexdigest(), entry.version if entry else "", height, width)


def picture_uris(pairs: Iterable[Pair]) -> list[str]:
    """Return the URI of every image that these rows name, once, sorted."""
    return sorted({uri for pair in pairs for _, uri in pair.pictures})


@dataclass(frozen=True)
class Triage:
    """Rows in four groups: jobs to do, jobs with a result, jobs not to be retried, and pairs that cannot become jobs."""

    to_do: tuple[Job, ...]
    done: tuple[Job, ...]
    quarantined: tuple[Job, ...]
    refused: tuple[tuple[Pair, NstError], ...]


def triage(taken: Intake, sources: Mapping[str, Source | NstError], request: Request, done: Mapping[str, Outcome]) -> Triage:
    """Resolve every row to a job and compare it with the earlier outcome of its id; each group keeps the order of the rows.

    For a row of precision `auto`, a result in the precision that `auto` stands for on another machine counts too.
    """
    settled: dict[tuple[Any, ...], Recipe] = {}

    def of(pair: Pair, auto: Precision) -> Job:
        return resolve(pair, sources, request, taken.weights_sha256, taken.recipes, auto, settled)

    elsewhere: Precision = "mixed" if taken.auto == "float32" else "float32"
    to_do: list[Job] = []
    there: list[Job] = []
    quarantined: list[Job] = []
    refused: list[tuple[Pair, NstError]] = []
    for pair in taken.manifest.pairs:
        try:
            job = of(pair, taken.auto)
            if job.id in done and not is_done(job, done) and _precision(pair, request, taken.recipes) == "auto":
                there_too = of(pair, elsewhere)
                job = there_too if is_done(there_too, done) else job
        except NstError as error:
            refused.append((pair, error))
            continue
        (there if is_done(job, done) else quarantined if is_quarantined(job, done) else to_do).append(job)
    return Triage(tuple(to_do), tuple(there), tuple(quarantined), tuple(refused))


def done_meanwhile(job: Job, out: str, run_id: str) -> Outcome | None:
    """Return the outcome of this job if it was written in the meantime, or None.

    A result counts if it is of any run, also of an attempt of this one that a failure of the store cut short. A failure counts
    only if it is of the run `run_id`, in which another attempt would fail in the same way.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all requests.
    """
    for done in read_outcomes(out, [f"{job.id}.json"], 1)[0]:
        if done.status == Status.FAILED and (done.run_id, done.key) == (run_id, job.key):
            return done
        files = ((done.image, done.image_bytes), (done.history, done.history_bytes))
        if is_done(job, {job.id: done}) and all(_has_size(storage.join(out, path), size) for path, size in files):
            return done
    return None


def _has_size(uri: str, size: int) -> bool:
    entry = storage.stat(uri)
    return entry is not None and entry.size == size


def is_done(job: Job, done: Mapping[str, Outcome]) -> bool:
    """Return whether an earlier outcome already holds this job's result."""
    before = done.get(job.id)
    return before is not None and before.status == Status.SUCCEEDED and before.key == job.key


def is_quarantined(job: Job, done: Mapping[str, Outcome]) -> bool:
    """Return whether an earlier outcome excludes this job from another attempt."""
    before = done.get(job.id)
    return before is not None and outcome.QUARANTINED in before.flags and before.key == job.key


def resolve(
    pair: Pair,
    sources: Mapping[str, Source | NstError],
    request: Request,
    weights_sha256: str,
    known: Mapping[str, Recipe] = presets.PRESETS,
    auto: Precision = "float32",
    settled: dict[tuple[Any, ...], Recipe] | None = None,
) -> Job:
    """Build a row's job: its recipe with the overrides of run and row, its sources, and the size of its result.

    Args:
        pair: The row.
        sources: Each image by URI, or the error with which its inspection failed.
        request: The options of the run, which apply where the row leaves a cell empty.
        weights_sha256: The SHA-256 of the backbone's weights.
        known: The recipes by preset name or URI.
        auto: The precision that replaces `auto`.
        settled: A cache of recipes with overrides applied, so that rows share one recipe object and its cached properties.

    Raises:
        NstError: An image cannot be read or is too small for the network, or the initial image or mask differs from the
            content in proportions.
    """

    def source(uri: str) -> Source:
        found = sources[uri]
        if isinstance(found, NstError):
            raise found
        return found

    content, styles = source(pair.content), tuple(map(source, pair.styles))
    init = source(pair.init_picture) if pair.init_picture else None
    mask = source(pair.mask) if pair.mask else None
    for column, framed in (("init", init), ("mask", mask)):
        if framed and not images.same_proportions(framed.height, framed.width, content.height, content.width):
            raise PictureError(
                f"{redact(framed.uri)}: {framed.width} x {framed.height} pixels have not the proportions of the content's "
                f"{content.width} x {content.height}; give for {column} a picture framed as the content, of any size"
            )
    settled = {} if settled is None else settled
    own = (*_OVERRIDES(pair), auto)
    recipe = settled.get(own) or settled.setdefault(own, _recipe(pair, request, known, auto))
    check_layers(weights.architecture(request.backbone), recipe.method.layers)
    least = smallest_side(recipe.method.layers)
    for seen in (content, *styles):
        height, width = images.fit(seen.height, seen.width, recipe.size, request.upscale)
        if min(height, width) < least:
            raise PictureError(
                f"{redact(seen.uri)}: {width} x {height} pixels at size {recipe.size} leave a side below {least}, the least "
                f"that the network can see; give a larger or less narrow picture, or a larger size"
            )
    height, width = images.fit(content.height, content.width, recipe.size, request.upscale)
    return Job(
        id=pair.id,
        row=pair.row,
        content=content,
        styles=styles,
        style_weights=pair.style_weights,
        recipe=recipe,
        seed=pair.seed,
        init=init,
        keep_color=pair.keep_color,
        mask=mask,
        upscale=request.upscale,
        format=pair.format,
        height=height,
        width=width,
        weights_sha256=weights_sha256,
    )


_OVERRIDES = attrgetter(
    "recipe", "size", "steps", "init", "content_weight", "style_weight", "tv_weight", "precision", "plateau"
)  # fmt: skip
"""Getter of the cells of a row that select or override its recipe."""


def _recipe(pair: Pair, request: Request, known: Mapping[str, Recipe], auto: Precision) -> Recipe:
    asked = _precision(pair, request, known)
    return recipes.override(
        known[pair.recipe or request.recipe],
        size=pair.size if pair.size is not None else request.size,
        steps=pair.steps if pair.steps is not None else request.steps,
        init=pair.init,
        content_weight=pair.content_weight,
        style_weight=pair.style_weight,
        tv_weight=pair.tv_weight,
        precision=auto if asked == "auto" else asked,
        plateau=pair.plateau if pair.plateau is not None else request.plateau,
    )


def _precision(pair: Pair, request: Request, known: Mapping[str, Recipe]) -> Precision:
    """Return the precision set by the row, or else by the run, or else by the recipe; it may be `auto`."""
    return pair.precision or request.precision or known[pair.recipe or request.recipe].method.precision


@dataclass(frozen=True)
class Findings:
    """Result of inspecting a run before its first step: its rows in groups, and the number of images that no marker describes.

    A problem makes a row fail; a warning, such as a damaged marker, only makes it run again.
    """

    rows: Triage
    unknown_pictures: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def look(request: Request, taken: Intake, settings: Settings) -> Findings:
    """Inspect everything that a run inspects before its first step, without writing anything."""
    pairs = taken.manifest.pairs
    done, warnings = finished(request.out, (pair.id for pair in pairs), settings.readers)
    uris = picture_uris(pairs)
    sources: dict[str, Source | NstError] = dict(remembered(uris, done.values(), settings.readers))
    unknown = [uri for uri in uris if uri not in sources]
    found = storage.each(lambda uri: inspect(uri, settings.max_pixels, settings.access), unknown, settings.readers)
    sources |= dict(zip(unknown, found, strict=True))
    rows = triage(taken, sources, request, done)
    problems = [str(problem) for problem in taken.manifest.problems]
    problems += [f"row {pair.row}, {pair.id}: {error}" for pair, error in rows.refused]
    problems += [f"row {job.row}, {job.id}: {done[job.id].error}" for job in rows.quarantined]
    return Findings(rows, len(unknown), tuple(problems), tuple(warnings))


@dataclass(frozen=True)
class Survey:
    """Summary of a dry run: the number of rows and of finished ones, and one line per row to do, problem and warning."""

    rows: int
    done: int
    to_do: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the summary as lines to print."""
        total = f"{self.rows} rows: {self.done} done, {len(self.to_do)} to do"
        return [*self.warnings, *self.problems, *self.to_do, total]


def survey(request: Request, taken: Intake, settings: Settings) -> Survey:
    """Summarize what a run would do, with one line for each row that it would process."""
    found = look(request, taken, settings)
    to_do = (
        f"row {job.row}, {job.id}: {job.name}, {job.recipe.name}, {job.width} x {job.height}, {job.steps} steps"
        for job in found.rows.to_do
    )
    return Survey(taken.manifest.rows, len(found.rows.done), tuple(to_do), found.problems, found.warnings)


def probe(pairs: Iterable[Pair], settings: Settings) -> list[str]:
    """Open every image of these rows and return one line for each that fails, with the first row that names it."""
    rows: dict[str, str] = {}
    for pair in pairs:
        for column, uri in pair.pictures:
            rows.setdefault(uri, f"row {pair.row}, column {column}")
    found = storage.each(lambda uri: inspect(uri, settings.max_pixels, settings.access), rows, settings.readers)
    return [f"{rows[uri]}: {result}" for uri, result in zip(rows, found, strict=True) if isinstance(result, NstError)]
