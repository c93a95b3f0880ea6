"""Identify the input images of a manifest: SHA-256, size and store version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from nst_tasks.errors import NstError, PictureError, redact
from nst_tasks.images import codec
from nst_tasks.images.picture import Source
from nst_tasks.inputs.manifest import Pair
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs.outcome import Outcome
from nst_tasks.storage import access, files
from nst_tasks.storage.access import DEFAULT_ACCESS, Access, check_access
from nst_tasks.storage.parallel import map_parallel


def find_known_sources(uris: Iterable[str], outcomes: Iterable[Outcome], readers: int) -> dict[str, Source]:
    """Return the sources that earlier outcomes describe and that are unchanged, by their version in the store.

    These images need not be read again.
    """
    described = (source for result in outcomes for source in (result.content, *result.styles, result.init, result.mask))
    source_by_uri = {source.uri: source for source in described if source is not None}
    candidates = sorted(uri for uri in uris if redact(uri) in source_by_uri)
    entries = map_parallel(files.stat, candidates, readers, all(map(access.is_local, candidates)))
    found = {}
    for uri, entry in zip(candidates, entries, strict=True):
        source = source_by_uri[redact(uri)]
        if isinstance(entry, files.Entry) and entry.version and entry.version == source.version:
            found[uri] = Source(uri, source.sha256, source.version, source.height, source.width)
    return found


def inspect_image(uri: str, max_pixels: int, allowed: Access = DEFAULT_ACCESS) -> Source:
    """Read an image file's bytes for their SHA-256, and its header for its size.

    Exchanging a symbolic link after this check gains nothing: every later read compares the SHA-256.

    Raises:
        PictureError: The file is not an image, or too large.
        StorageError: The file is missing, unreadable or forbidden.
    """
    check_access(uri, allowed)
    entry = files.stat(uri)  # before the bytes, so that the next run notices a rewrite in between
    try:
        codec.check_file_size(entry.size if entry else 0, max_pixels)
        data = files.read(uri)
        height, width = codec.read_size(data, max_pixels)
    except PictureError as error:
        raise PictureError(f"{redact(uri)}: {error}") from error
    return Source(uri, hashlib.sha256(data).hexdigest(), entry.version if entry else "", height, width)


def list_image_uris(pairs: Iterable[Pair]) -> list[str]:
    """Return the URI of every image that these rows name, once, sorted."""
    return sorted({uri for pair in pairs for _, uri in pair.image_uris})


def probe_images(pairs: Iterable[Pair], settings: Settings) -> list[str]:
    """Open every image of these rows and return one line for each that fails, with the first row that names it."""
    rows: dict[str, str] = {}
    for pair in pairs:
        for column, uri in pair.image_uris:
            rows.setdefault(uri, f"row {pair.row}, column {column}")
    results = map_parallel(lambda uri: inspect_image(uri, settings.max_pixels, settings.access), rows, settings.readers)
    return [f"{rows[uri]}: {result}" for uri, result in zip(rows, results, strict=True) if isinstance(result, NstError)]
