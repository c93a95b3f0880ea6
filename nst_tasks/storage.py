"""Read, write atomically, list and probe, on whatever fsspec reaches: a local folder, S3, memory.

Plain functions of URIs. Foreign errors are translated here once, into `StorageError` (for good) or `StorageUnavailable` (worth
a retry). What fsspec does not promise and we do: a write is whole or absent, and listings are never stale.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec

from nst_tasks.errors import NstError, StorageError, StorageUnavailable, redact

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Entry:
    """What a store says of an object without opening it: its size in bytes, and a version that changes when it is rewritten."""

    size: int
    version: str


def read(uri: str) -> bytes:
    """All bytes of an object.

    Raises:
        StorageError: it is missing, forbidden or not a file. StorageUnavailable: the store may answer later.
    """
    with _translated(uri):
        fs, path = _open(uri)
        data: bytes = fs.cat_file(path)
        return data


def write(uri: str, data: bytes) -> None:
    """Write an object whole or not at all, folders included.

    Raises:
        StorageError: it is forbidden or the disk is full. StorageUnavailable: the store may answer later.
    """
    with _translated(uri):
        fs, path = _open(uri)
        if _is_local(fs):
            _write_local(path, data)
        else:
            fs.pipe_file(path, data)  # one request, or a multipart upload completed at its end


def create(uri: str, data: bytes) -> bool:
    """Write an object only if there is none: whether this call wrote it. A store that `honours_create` denies overwrites.

    Raises:
        StorageError: it is forbidden or the disk is full. StorageUnavailable: the store may answer later.
    """
    with _translated(uri):
        fs, path = _open(uri)
        try:
            if _is_local(fs):
                _write_local(path, data, os.link)
            else:
                fs.pipe_file(path, data, mode="create")
        except OSError as error:  # the refusal's number differs by server: whether the object is there does not
            if isinstance(error, FileExistsError) or fs.exists(path):
                return False
            raise
        return True


def delete(uri: str) -> None:
    """Remove an object; one that is not there is no error.

    Raises:
        StorageError: it is forbidden. StorageUnavailable: the store may answer later.
    """
    with _translated(uri):
        fs, path = _open(uri)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def honours_create(uri: str) -> bool:
    """Whether `create` below this prefix refuses to overwrite; some servers ignore the condition, some clients know none.

    Raises:
        StorageError: the prefix cannot be written. StorageUnavailable: the store does not answer.
    """
    probe = join(uri, f".nst-probe-{secrets.token_hex(4)}")
    try:
        return create(probe, b"one") and not create(probe, b"two")
    except (StorageError, TypeError) as error:  # a client whose `pipe_file` takes no mode, a disk without links
        if isinstance(error, StorageUnavailable):
            raise
        return False
    finally:
        delete(probe)


def stat(uri: str) -> Entry | None:
    """Size and version of an object, or None where there is none."""
    with _translated(uri):
        fs, path = _open(uri)
        try:
            return _entry(fs.info(path))
        except FileNotFoundError:
            return None


def listing(uri: str) -> dict[str, Entry]:
    """Names and entries of the objects directly below a prefix, sorted by name; none where there is no such prefix."""
    with _translated(uri):
        fs, path = _open(uri)
        try:
            found = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        # some object stores list the prefix itself, as an empty object
        inside = [info for info in found if info["type"] == "file" and info["name"].rstrip("/") != path.rstrip("/")]
        files = {info["name"].rstrip("/").rpartition("/")[2]: _entry(info) for info in inside}
        return {name: files[name] for name in sorted(files) if name and not name.startswith(".")}


def expand(pattern: str) -> list[str]:
    """URIs of the files that match a glob pattern, sorted, no dot files; with the pattern's own protocol, if any."""
    with _translated(pattern):
        fs, path = _open(pattern)
        matching = (str(name) for name in fs.glob(path) if fs.isfile(name))
        found = sorted(name for name in matching if not name.rpartition("/")[2].startswith("."))
        return [fs.unstrip_protocol(name) for name in found] if "://" in pattern else found


def probe_writable(uri: str) -> None:
    """Write and delete a small object below a prefix, so that an output that cannot be written is known before any compute.

    Raises:
        StorageError: the prefix cannot be written. StorageUnavailable: the store does not answer.
    """
    probe = join(uri, f".nst-probe-{secrets.token_hex(4)}")
    write(probe, b"probe")
    with _translated(probe):
        fs, path = _open(probe)
        fs.rm_file(path)


def each(function: Callable[[T], R], items: Iterable[T], readers: int) -> list[R | NstError]:
    """`function` of each item on up to `readers` threads, in order; an `NstError` it raises takes its result's place."""

    def attempt(item: T) -> R | NstError:
        try:
            return function(item)
        except NstError as error:
            return error

    with ThreadPoolExecutor(max_workers=readers) as pool:
        return list(pool.map(attempt, items))


def join(base: str, *names: str) -> str:
    """A URI below another."""
    protocol, mark, path = base.rpartition("://")
    return protocol + mark + "/".join([path.rstrip("/"), *names])


def folder(uri: str) -> str:
    """The folder of an object's URI: what a manifest's relative URIs are resolved against."""
    protocol, mark, path = uri.rpartition("://")
    head, slash, _ = path.rpartition("/")
    return protocol + mark + (head or slash or ("" if mark else "."))


def absolute(uri: str) -> str:
    """A URI as it is, a local path made absolute: the same place whatever the working folder becomes."""
    return uri if "://" in uri else os.path.abspath(uri)


def _open(uri: str) -> tuple[Any, str]:
    options = {}
    if uri.startswith(("http://", "https://")):
        from nst_tasks import web  # here, because it takes a moment to import

        options["get_client"] = web.client
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(uri, use_listings_cache=False, **options)
        return found
    except TypeError as error:  # a file system that wants more than a URI says
        raise ValueError("a URI is not enough for this protocol") from error


def _is_local(fs: Any) -> bool:
    return isinstance(fs, fsspec.implementations.local.LocalFileSystem)


def _write_local(path: str, data: bytes, place: Callable[[str, str], None] = os.replace) -> None:
    parent, _, name = path.rpartition("/")
    os.makedirs(parent or "/", exist_ok=True)
    temporary = f"{parent}/.{name[:50]}.{secrets.token_hex(4)}.tmp"  # in the same folder: a rename stays on its disk
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # after a rename there is none
            os.unlink(temporary)


def _entry(info: Mapping[str, Any]) -> Entry:
    marks = [info.get(name) for name in ("ETag", "etag", "generation", "mtime", "ino", "created", "LastModified")]
    return Entry(int(info.get("size") or 0), "/".join(str(mark) for mark in marks if mark is not None))


_FOR_GOOD = {
    errno.EACCES: "access is denied",
    errno.EPERM: "access is denied",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or the user's limit allows",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EINVAL: "the store refuses the name or the request",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.EEXIST: "a file is in the way",
}
_FOR_GOOD_TYPES = {
    "NoCredentialsError": "no credentials are found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile",
    "PartialCredentialsError": "the credentials are incomplete; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "the AWS profile is not known; check AWS_PROFILE",
    "ParamValidationError": "the store refuses the name; check bucket and key",
    "InvalidRegionError": "the AWS region is not valid; check AWS_DEFAULT_REGION",
}
_HTTP_LATER = (408, 425, 429)
"""HTTP statuses below 500 that ask to come back later."""
_CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "s3fs", "requests", "httpx")


@contextlib.contextmanager
def _translated(uri: str) -> Iterator[None]:
    place = redact(uri)
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{place}: does not exist; check the name") from error
    except PermissionError as error:
        raise StorageError(f"{place}: access is denied; check the permissions or credentials") from error
    except NotADirectoryError as error:
        raise StorageError(f"{place}: {_FOR_GOOD[errno.ENOTDIR]}; choose another path") from error
    except IsADirectoryError as error:
        raise StorageError(f"{place}: {_FOR_GOOD[errno.EISDIR]}; choose another path") from error
    except FileExistsError as error:
        raise StorageError(f"{place}: {_FOR_GOOD[errno.EEXIST]}; choose another path") from error
    except ImportError as error:
        protocol = uri.partition("://")[0]
        raise StorageError(f"{place}: the file system for {protocol}:// is not installed ({error})") from error
    except NotImplementedError as error:
        raise StorageError(f"{place}: this kind of store cannot do that; choose another place") from error
    except OSError as error:
        if error.errno in _FOR_GOOD:
            raise StorageError(f"{place}: {_FOR_GOOD[error.errno]}") from error
        raise StorageUnavailable(f"{place}: the store failed for the moment ({_brief(error)})") from error
    except Exception as error:
        name = type(error).__name__
        if name in _FOR_GOOD_TYPES:
            raise StorageError(f"{place}: {_FOR_GOOD_TYPES[name]}") from error
        if isinstance(error, ValueError):  # an unknown protocol, an address or a name that cannot be taken apart
            raise StorageError(f"{place}: not a place that can be read or written; check protocol and name") from error
        status = getattr(error, "status", None)  # aiohttp's
        if isinstance(status, int) and 400 <= status < 500 and status not in _HTTP_LATER:
            raise StorageError(f"{place}: the server answers HTTP {status}; check address and permissions") from error
        if type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES:
            raise StorageUnavailable(f"{place}: the store failed for the moment ({_brief(error)})") from error
        raise


def _brief(error: BaseException) -> str:
    """The error's class and number only: its text may repeat a signed URL or a credential."""
    number = getattr(error, "errno", None)
    return f"{type(error).__name__}, {errno.errorcode.get(number, number)}" if number else type(error).__name__
