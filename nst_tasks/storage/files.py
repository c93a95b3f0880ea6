"""Read, write atomically, list and delete files on any fsspec store: local disk, S3, memory.

Functions of URIs. Errors of stores are translated by `error_mapping`. Beyond what fsspec promises, a write is whole or absent,
and listings are never stale.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import fsspec

from nst_tasks.errors import StorageError, StorageUnavailable, redact
from nst_tasks.storage.error_mapping import PRECONDITION_CODES, get_s3_error_code, translate_errors
from nst_tasks.storage.parallel import map_parallel
from nst_tasks.storage.uri import join_uri

T = TypeVar("T")


R = TypeVar("R")


@dataclass(frozen=True)
class Entry:
    """Size of an object in bytes, and a version string that changes whenever the object is rewritten."""

    size: int
    version: str


def read(uri: str) -> bytes:
    """Return all bytes of an object.

    Raises:
        StorageError: The object is missing, forbidden or not a file.
        StorageUnavailable: The store may answer later, or its answer broke off.
        StorageUnusable: The credentials are refused.
    """
    with translate_errors(uri):
        fs, path = _resolve_filesystem(uri)
        if type(fs) is fsspec.implementations.local.LocalFileSystem:  # same result, three times as fast for small files
            with open(path, "rb") as file:
                return file.read()
        data: bytes = fs.cat_file(path)
        return data


Content = bytes | Callable[[IO[bytes]], None]
"""Bytes to write, or a function that writes them to a file object; on local disk the function's output is streamed."""


def write(uri: str, data: Content) -> None:
    """Write an object atomically, creating its folders.

    Raises:
        StorageError: The name cannot be used.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The store is full or read-only, or permissions or credentials forbid writing.
    """
    with translate_errors(uri, writing=True):
        fs, path = _resolve_filesystem(uri)
        if _is_local_filesystem(fs):
            _write_local(path, data)
        else:
            fs.pipe_file(path, _to_bytes(data))  # one request, or a multipart upload completed at its end


def write_all(data_by_uri: Mapping[str, bytes]) -> None:
    """Write several objects, each atomically: in turn on local disk, where that is faster, in parallel elsewhere.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: As `write`, for the first object that could not be written.
    """
    local = not data_by_uri or _is_local_filesystem(_resolve_filesystem(next(iter(data_by_uri)))[0])
    for result in map_parallel(lambda uri: write(uri, data_by_uri[uri]), data_by_uri, 1 if local else len(data_by_uri)):
        if isinstance(result, StorageError):
            raise result


def _to_bytes(data: Content) -> bytes:
    if isinstance(data, bytes):
        return data
    file = io.BytesIO()
    data(file)
    return file.getvalue()


def create_if_absent(uri: str, data: bytes) -> bool:
    """Write an object unless it exists, and return whether this call wrote it.

    Stores for which `can_create_if_absent` is False overwrite instead. A local file is not synced to disk, so a power
    failure may leave it empty: use this for objects that count only while their writer lives.

    False may be wrong: a client that repeats a request whose answer was lost is refused because of its own object. A caller
    to whom that matters reads the object back.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: As `write`.
    """
    with translate_errors(uri, writing=True):
        fs, path = _resolve_filesystem(uri)
        try:
            if _is_local_filesystem(fs):
                _write_local(path, data, os.link, sync=False)
            else:
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # servers name the refusal differently, so ask whether the object exists
            if get_s3_error_code(error) not in PRECONDITION_CODES:
                raise
            if fs.exists(path):
                return False
            message = f"{redact(uri)}: the store failed for the moment (it refused an object because of one that is gone)"
            raise StorageUnavailable(message) from error
        return True


def delete(uri: str) -> None:
    """Delete an object; do nothing if it does not exist.

    Raises:
        StorageError: Deleting is forbidden.
        StorageUnavailable: The store may answer later.
    """
    with translate_errors(uri):  # without `writing`: credentials may allow writing and forbid deleting
        fs, path = _resolve_filesystem(uri)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def delete_stale_temporaries(uri: str, min_age_seconds: float) -> None:
    """Delete the temporary files that killed writes left directly in a local folder.

    Args:
        uri: The folder; on other stores nothing is done.
        min_age_seconds: The age in seconds above which a temporary file is deleted; younger ones may still be written.

    Raises:
        StorageError: The folder cannot be read or changed.
    """
    with translate_errors(uri):
        fs, path = _resolve_filesystem(uri)
        if not _is_local_filesystem(fs) or not os.path.isdir(path):
            return
        for entry in os.scandir(path):
            if entry.name.startswith(".") and entry.name.endswith(_TEMPORARY_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > min_age_seconds:
                        os.unlink(entry)


def can_create_if_absent(uri: str) -> bool:
    """Return whether `create_if_absent` below this prefix refuses to overwrite.

    Some servers ignore the condition, and some clients cannot send it.

    Raises:
        StorageError: The probe cannot be deleted.
        StorageUnavailable: The store does not answer.
    """
    probe = join_uri(uri, f".nst-probe-{secrets.token_hex(4)}")
    try:
        return create_if_absent(probe, b"one") and not create_if_absent(probe, b"two")
    except (StorageError, TypeError) as error:  # a client whose `pipe_file` takes no mode, a disk without links
        if isinstance(error, StorageUnavailable):
            raise
        return False
    finally:
        delete(probe)


def stat(uri: str) -> Entry | None:
    """Return the size and version of an object, or None if it does not exist.

    Raises:
        StorageError: The object is forbidden.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The credentials are refused.
    """
    with translate_errors(uri):
        fs, path = _resolve_filesystem(uri)
        try:
            return _to_entry(fs.info(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            if get_s3_error_code(error) in ("400", "403"):  # HEAD's answer has no body with a reason; GET's has
                fs.cat_file(path, start=0, end=1)
            raise


def list_files(uri: str, prefix: str = "") -> dict[str, Entry]:
    """Return the names and entries of the files directly in a folder, sorted by name; empty if the folder does not exist.

    Dot files are left out.

    Args:
        uri: The folder.
        prefix: The beginning of the names to list. S3 filters on the server; other stores list the whole folder.

    Raises:
        StorageError: The folder is forbidden.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The credentials are refused.
    """
    with translate_errors(uri):
        fs, path = _resolve_filesystem(uri)
        try:
            if prefix and uri.startswith(_S3_PROTOCOLS):
                infos = fs.find(path, maxdepth=1, prefix=prefix, detail=True).values()
            else:
                infos = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        # some object stores list the prefix itself, as an empty object
        file_infos = [info for info in infos if info["type"] == "file" and info["name"].rstrip("/") != path.rstrip("/")]
        files = {info["name"].rstrip("/").rpartition("/")[2]: _to_entry(info) for info in file_infos}
        return {name: files[name] for name in sorted(files) if name.startswith(prefix) and name and not name.startswith(".")}


def expand_glob(pattern: str) -> list[str]:
    """Return the files that match a glob pattern, sorted, without dot files.

    They are URIs if the pattern has a protocol, otherwise paths.

    Raises:
        StorageError: The pattern is not valid or its folder is forbidden.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The credentials are refused.
    """
    with translate_errors(pattern):
        fs, path = _resolve_filesystem(pattern)
        matching = (str(name) for name in fs.glob(path) if fs.isfile(name))
        names = sorted(name for name in matching if not name.rpartition("/")[2].startswith("."))
        return [fs.unstrip_protocol(name) for name in names] if "://" in pattern else names


def probe_writable(uri: str) -> None:
    """Write and delete a small object below a prefix, so that an unwritable output is detected before any compute.

    Raises:
        StorageError: The prefix cannot be written, or the probe cannot be deleted.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The store is full or read-only, or permissions or credentials forbid writing.
    """
    probe = join_uri(uri, f".nst-probe-{secrets.token_hex(4)}")
    write(probe, b"probe")
    delete(probe)


_S3_TIMEOUT_SECONDS = {"connect_timeout": 5, "read_timeout": 10}
"""Timeouts in seconds of the S3 client's connections and reads."""


_S3_MAX_ATTEMPTS = 3
"""Attempts of the S3 client, which cannot be interrupted; longer outages are for `call_with_retries`, which can be stopped."""


def _resolve_filesystem(uri: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, **_get_client_options(uri))
    except TypeError as error:  # a file system that needs more arguments than a URI holds
        raise ValueError("a URI is not enough for this protocol") from error
    if uri.startswith(_S3_PROTOCOLS):
        fs.retries = 2  # multiplies with the client's: 5 x 5 would spend minutes per request while a server is away
    return fs, path


_S3_PROTOCOLS = ("s3://", "s3a://")


def _get_client_options(uri: str) -> dict[str, Any]:
    """Return the client options for HTTP or S3; the user's fsspec configuration and environment take precedence for S3."""
    if uri.startswith(("http://", "https://")):
        from nst_tasks.storage import http  # imported here because aiohttp is slow to import

        return {"get_client": http.open_session}
    if not uri.startswith(_S3_PROTOCOLS):
        return {}
    configured = {**fsspec.config.conf.get("s3", {}), **fsspec.config.conf.get("s3a", {})}
    client: dict[str, Any] = dict(_S3_TIMEOUT_SECONDS)
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        client["retries"] = {"total_max_attempts": _S3_MAX_ATTEMPTS}
    # one stream per object: several would first ask for its size by HEAD, whose refusal gives no reason
    return {"max_concurrency": 1, **configured, "config_kwargs": {**client, **configured.get("config_kwargs", {})}}


def _is_local_filesystem(fs: Any) -> bool:
    return isinstance(fs, fsspec.implementations.local.LocalFileSystem)


_TEMPORARY_SUFFIX = ".nst.tmp"
"""Suffix of unfinished files; their names begin with a dot, which hides them from listings."""


def _write_local(path: str, data: Content, commit: Callable[[str, str], None] = os.replace, sync: bool = True) -> None:
    parent, _, name = path.rpartition("/")
    os.makedirs(parent or "/", exist_ok=True)
    temporary = (
        f"{parent}/.{name[:50]}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"  # same folder, hence same disk: renaming is atomic
    )
    try:
        with open(temporary, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        commit(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # gone after a rename, still there after a link
            os.unlink(temporary)


def _to_entry(info: Mapping[str, Any]) -> Entry:
    version_parts = [info.get(name) for name in ("ETag", "etag", "generation", "mtime", "ino", "created", "LastModified")]
    return Entry(int(info.get("size") or 0), "/".join(str(mark) for mark in version_parts if mark is not None))
