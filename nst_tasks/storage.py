"""Read, write, list and probe files by URI on any store that fsspec supports: local disk, S3, memory.

Plain functions of URIs. Errors of other libraries are translated here, once, by the tables below, into `StorageUnavailable`
(worth a retry), `StorageUnusable` (the run cannot go on) or plain `StorageError` (only this object fails). Beyond fsspec's
own guarantees, writes are atomic and listings are never stale.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import fsspec

from nst_tasks.errors import Interrupted, NstError, StorageError, StorageUnavailable, StorageUnusable, is_transient, redact
from nst_tasks.settings import Settings

T = TypeVar("T")
R = TypeVar("R")


QUICK_SECONDS = 0.001
"""Average time per local file up to which `each` reads files one after the other."""

GRACE_SECONDS = 0.05
"""Extra time that `each` allows for slow local files before it starts threads."""


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
    with _translated(uri):
        fs, path = _open(uri)
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
    with _translated(uri, writing=True):
        fs, path = _open(uri)
        if _is_local(fs):
            _write_local(path, data)
        else:
            fs.pipe_file(path, _bytes(data))  # one request, or a multipart upload completed at its end


def write_all(files: Mapping[str, bytes]) -> None:
    """Write several objects, each atomically: in turn on local disk, where that is faster, in parallel elsewhere.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: As `write`, for the first object that could not be written.
    """
    local = not files or _is_local(_open(next(iter(files)))[0])
    for written in each(lambda uri: write(uri, files[uri]), files, 1 if local else len(files)):
        if isinstance(written, StorageError):
            raise written


def _bytes(data: Content) -> bytes:
    if isinstance(data, bytes):
        return data
    file = io.BytesIO()
    data(file)
    return file.getvalue()


def create(uri: str, data: bytes) -> bool:
    """Write an object unless it exists, and return whether this call wrote it.

    Stores for which `honours_create` is False overwrite instead. A local file is not synced to disk, so a power failure may
    leave it empty: use this for objects that count only while their writer lives.

    False may be wrong: a client that repeats a request whose answer was lost is refused because of its own object. A caller
    to whom that matters reads the object back.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: As `write`.
    """
    with _translated(uri, writing=True):
        fs, path = _open(uri)
        try:
            if _is_local(fs):
                _write_local(path, data, os.link, lasting=False)
            else:
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # servers name the refusal differently, so ask whether the object exists
            if _code(error) not in _CONDITION_CODES:
                raise
            if fs.exists(path):
                return False
            told = f"{redact(uri)}: the store failed for the moment (it refused an object because of one that is gone)"
            raise StorageUnavailable(told) from error
        return True


def delete(uri: str) -> None:
    """Delete an object; do nothing if it does not exist.

    Raises:
        StorageError: Deleting is forbidden.
        StorageUnavailable: The store may answer later.
    """
    with _translated(uri):  # without `writing`: credentials may allow writing and forbid deleting
        fs, path = _open(uri)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def sweep(uri: str, seconds: float) -> None:
    """Delete the temporary files that killed writes left directly in a local folder.

    Args:
        uri: The folder; on other stores nothing is done.
        seconds: The age in seconds above which a temporary file is deleted; younger ones may still be written.

    Raises:
        StorageError: The folder cannot be read or changed.
    """
    with _translated(uri):
        fs, path = _open(uri)
        if not _is_local(fs) or not os.path.isdir(path):
            return
        for entry in os.scandir(path):
            if entry.name.startswith(".") and entry.name.endswith(_TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > seconds:
                        os.unlink(entry)


def honours_create(uri: str) -> bool:
    """Return whether `create` below this prefix refuses to overwrite.

    Some servers ignore the condition, and some clients cannot send it.

    Raises:
        StorageError: The probe cannot be deleted.
        StorageUnavailable: The store does not answer.
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
    """Return the size and version of an object, or None if it does not exist.

    Raises:
        StorageError: The object is forbidden.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The credentials are refused.
    """
    with _translated(uri):
        fs, path = _open(uri)
        try:
            return _entry(fs.info(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            if _code(error) in ("400", "403"):  # HEAD's answer has no body with a reason; GET's has
                fs.cat_file(path, start=0, end=1)
            raise


def listing(uri: str, prefix: str = "") -> dict[str, Entry]:
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
    with _translated(uri):
        fs, path = _open(uri)
        try:
            if prefix and uri.startswith(_S3_PROTOCOLS):
                found = fs.find(path, maxdepth=1, prefix=prefix, detail=True).values()
            else:
                found = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        # some object stores list the prefix itself, as an empty object
        inside = [info for info in found if info["type"] == "file" and info["name"].rstrip("/") != path.rstrip("/")]
        files = {info["name"].rstrip("/").rpartition("/")[2]: _entry(info) for info in inside}
        return {name: files[name] for name in sorted(files) if name.startswith(prefix) and name and not name.startswith(".")}


def expand(pattern: str) -> list[str]:
    """Return the files that match a glob pattern, sorted, without dot files.

    They are URIs if the pattern has a protocol, otherwise paths.

    Raises:
        StorageError: The pattern is not valid or its folder is forbidden.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The credentials are refused.
    """
    with _translated(pattern):
        fs, path = _open(pattern)
        matching = (str(name) for name in fs.glob(path) if fs.isfile(name))
        found = sorted(name for name in matching if not name.rpartition("/")[2].startswith("."))
        return [fs.unstrip_protocol(name) for name in found] if "://" in pattern else found


def probe_writable(uri: str) -> None:
    """Write and delete a small object below a prefix, so that an unwritable output is detected before any compute.

    Raises:
        StorageError: The prefix cannot be written, or the probe cannot be deleted.
        StorageUnavailable: The store may answer later.
        StorageUnusable: The store is full or read-only, or permissions or credentials forbid writing.
    """
    probe = join(uri, f".nst-probe-{secrets.token_hex(4)}")
    write(probe, b"probe")
    delete(probe)


def each(function: Callable[[T], R], items: Iterable[T], readers: int, near: bool = False) -> list[R | NstError]:
    """Apply a function to each item on a thread pool, and return the results in order, an `NstError` in place of a result.

    Args:
        function: The function to apply; an `NstError` that it raises becomes the item's result.
        items: Its arguments.
        readers: The largest number of threads.
        near: Whether the items are files on this machine. They are then read in the calling thread as long as each takes
            less than `QUICK_SECONDS` on average: a file in the page cache is read faster than Python switches threads.
    """

    def attempt(item: T) -> R | NstError:
        try:
            return function(item)
        except NstError as error:
            return error

    items = list(items)
    if min(readers, len(items)) < 2:
        return [attempt(item) for item in items]
    here = list[R | NstError]()
    if near:
        began = time.perf_counter()
        while len(here) < len(items) and time.perf_counter() - began < GRACE_SECONDS + QUICK_SECONDS * len(here):
            here.append(attempt(items[len(here)]))
    left = items[len(here) :]
    # in chunks: passing one item to a thread takes as long as reading a small local file
    some = max(1, min(64, len(left) // (4 * readers)))
    parts = [left[first : first + some] for first in range(0, len(left), some)]
    with ThreadPoolExecutor(max_workers=readers) as pool:
        return here + [result for part in pool.map(lambda part: [*map(attempt, part)], parts) for result in part]


def patiently(function: Callable[[], T], settings: Settings, stop: threading.Event, tell: Callable[[str], None]) -> T:
    """Call a function, retry it after each of the settings' delays while its error is transient, and return its result.

    Args:
        function: The function to call.
        settings: The settings with the delays.
        stop: The run's stop signal.
        tell: A function that logs a message about each retry.

    Raises:
        Interrupted: The run was asked to stop during a delay.
        Exception: The function's own error, if it is not transient or the last attempt fails.
    """
    for delay in settings.delays:
        try:
            return function()
        except StorageError as error:
            if not is_transient(error):
                raise
            tell(f"{error}; trying again in {delay:g} s")
            if stop.wait(delay):
                raise Interrupted("interrupted while waiting for the store") from error
    return function()


def join(base: str, *names: str) -> str:
    """Return a URI with names appended to its path."""
    protocol, mark, path = base.rpartition("://")
    return protocol + mark + "/".join([path.rstrip("/"), *names])


def folder(uri: str) -> str:
    """Return the folder of an object's URI; a manifest's relative URIs are resolved against it."""
    protocol, mark, path = uri.rpartition("://")
    head, slash, _ = path.rpartition("/")
    return protocol + mark + (head or slash or ("" if mark else "."))


def absolute(uri: str) -> str:
    """Return a URI unchanged, or a local path made absolute, so that it does not depend on the working folder."""
    return uri if "://" in uri else os.path.abspath(uri)


_S3_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 10}
"""Timeouts in seconds of the S3 client's connections and reads."""

_S3_ATTEMPTS = 3
"""Attempts of the S3 client, which cannot be interrupted; longer outages are for `patiently`, which can be stopped."""


def _open(uri: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, **_client_options(uri))
    except TypeError as error:  # a file system that needs more arguments than a URI holds
        raise ValueError("a URI is not enough for this protocol") from error
    if uri.startswith(_S3_PROTOCOLS):
        fs.retries = 2  # multiplies with the client's: 5 x 5 would spend minutes per request while a server is away
    return fs, path


_S3_PROTOCOLS = ("s3://", "s3a://")


def _client_options(uri: str) -> dict[str, Any]:
    """Return the client options for HTTP or S3; the user's fsspec configuration and environment take precedence for S3."""
    if uri.startswith(("http://", "https://")):
        from nst_tasks import web  # imported here because aiohttp is slow to import

        return {"get_client": web.client}
    if not uri.startswith(_S3_PROTOCOLS):
        return {}
    asked = {**fsspec.config.conf.get("s3", {}), **fsspec.config.conf.get("s3a", {})}
    client: dict[str, Any] = dict(_S3_TIMEOUTS)
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        client["retries"] = {"total_max_attempts": _S3_ATTEMPTS}
    # one stream per object: several would first ask for its size by HEAD, whose refusal gives no reason
    return {"max_concurrency": 1, **asked, "config_kwargs": {**client, **asked.get("config_kwargs", {})}}


def _is_local(fs: Any) -> bool:
    return isinstance(fs, fsspec.implementations.local.LocalFileSystem)


_TEMPORARY = ".nst.tmp"
"""Suffix of unfinished files; their names begin with a dot, which hides them from listings."""


def _write_local(path: str, data: Content, place: Callable[[str, str], None] = os.replace, lasting: bool = True) -> None:
    parent, _, name = path.rpartition("/")
    os.makedirs(parent or "/", exist_ok=True)
    temporary = f"{parent}/.{name[:50]}.{secrets.token_hex(4)}{_TEMPORARY}"  # same folder, hence same disk: renaming is atomic
    try:
        with open(temporary, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        place(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # gone after a rename, still there after a link
            os.unlink(temporary)


def _entry(info: Mapping[str, Any]) -> Entry:
    marks = [info.get(name) for name in ("ETag", "etag", "generation", "mtime", "ino", "created", "LastModified")]
    return Entry(int(info.get("size") or 0), "/".join(str(mark) for mark in marks if mark is not None))


_NO_ACCESS = "access is denied; check the permissions or credentials"
_BY_NUMBER: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (StorageError, "does not exist; check the name"),
    errno.EACCES: (StorageError, _NO_ACCESS),
    errno.EPERM: (StorageError, _NO_ACCESS),
    errno.ENOSPC: (StorageUnusable, "the disk is full; make room and run the same command again"),
    errno.EDQUOT: (StorageUnusable, "the disk quota is used up; make room and run the same command again"),
    errno.EROFS: (StorageUnusable, "the file system is read-only; make it writable and run the same command again"),
    errno.EFBIG: (StorageError, "the file is larger than the file system or the user's limit allows"),
    errno.ENAMETOOLONG: (StorageError, "the name is too long"),
    errno.EINVAL: (StorageError, "the store refuses the name or the request"),
    errno.ENOTDIR: (StorageError, "a part of the path is a file, not a folder; choose another path"),
    errno.EISDIR: (StorageError, "it is a folder, not a file; choose another path"),
    errno.EEXIST: (StorageError, "a file is in the way; choose another path"),
}
"""Translation of operating system error numbers; any other number counts as transient."""

_NUMBER_OF_TYPE = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    FileExistsError: errno.EEXIST,
}
"""Error numbers for file systems that raise these exceptions without one."""

_EXPIRED = (StorageUnusable, "access is denied, the credentials have expired; renew them and run the same command again")
_INVALID = (StorageUnusable, "access is denied, the credentials are not valid; correct them and run the same command again")
_FULL = (StorageUnusable, "the store is full; make room and run the same command again")
_LATER = (StorageUnavailable, "")
_BY_CODE: dict[str, tuple[type[StorageError], str]] = {
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), _EXPIRED),
    **dict.fromkeys(("InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "SignatureDoesNotMatch"), _INVALID),
    **dict.fromkeys(("QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "507"), _FULL),
    "AccountProblem": (StorageUnusable, "access is denied, the account is not in order; ask the store's provider"),
    "RequestTimeTooSkewed": (StorageUnusable, "access is denied, this machine's clock is wrong; set it and run again"),
    # bytes damaged in transit, or a multipart upload completed by a request whose answer was lost
    **dict.fromkeys(("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "InvalidPart", "NoSuchUpload"), _LATER),
}
"""Translation of S3 error codes for which s3fs's error number is too coarse."""

_CONDITION_CODES = ("PreconditionFailed", "ConditionalRequestConflict", "409", "412")

_BY_CLASS: dict[str, tuple[type[StorageError], str]] = {
    "NoCredentialsError": (
        StorageUnusable, "no credentials are found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile",
    ),
    "PartialCredentialsError": (
        StorageUnusable, "the credentials are incomplete; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "ProfileNotFound": (StorageUnusable, "the AWS profile is not known; check AWS_PROFILE"),
    "InvalidRegionError": (StorageUnusable, "the AWS region is not valid; check AWS_DEFAULT_REGION"),
    **dict.fromkeys(("SSOTokenLoadError", "TokenRetrievalError", "UnauthorizedSSOTokenError"), _EXPIRED),
    "ParamValidationError": (StorageError, "the store refuses the name; check bucket and key"),
}  # fmt: skip
"""Translation of errors that a client raises before any request, by class name so that botocore need not be imported."""

_HTTP_LATER = (408, 425, 429)
"""HTTP statuses below 500 that are transient: timeout, too early, too many requests."""

_CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "s3fs", "requests", "httpx")
"""Packages whose other errors are transient connection failures."""


@contextlib.contextmanager
def _translated(uri: str, writing: bool = False) -> Iterator[None]:
    """Translate the errors of fsspec and its clients into `StorageError` and its subclasses.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: As `_verdict` decides; a defect of ours passes unchanged.
    """
    try:
        yield
    except Exception as error:
        found = _verdict(error, uri, writing)
        if found is None:
            raise
        kind, sentence = found
        if kind is StorageUnavailable:
            sentence = f"the store failed for the moment ({_brief(error)})"
        raise kind(f"{redact(uri)}: {sentence}") from error


def _verdict(error: Exception, uri: str, writing: bool) -> tuple[type[StorageError], str] | None:
    """Return the class and sentence that translate a foreign error, or None if it is a defect of ours."""
    if (code := _code(error)) in _BY_CODE:
        return _BY_CODE[code]
    if isinstance(error, ImportError):
        return StorageError, f"the file system for {uri.partition('://')[0]}:// is not installed ({error})"
    if isinstance(error, NotImplementedError):
        return StorageError, "this kind of store cannot do that; choose another place"
    if isinstance(error, OSError):
        number = next((of for kind, of in _NUMBER_OF_TYPE.items() if isinstance(error, kind)), error.errno)
        kind, sentence = _BY_NUMBER.get(number or 0, _LATER)
        if number == errno.EINVAL and code:
            sentence += f" ({code})"
        # an unreadable object fails only its pairs; an unwritable output fails all
        return (StorageUnusable if writing and sentence == _NO_ACCESS else kind), sentence
    if type(error).__name__ in _BY_CLASS:
        return _BY_CLASS[type(error).__name__]
    if isinstance(error, ValueError):  # an unknown protocol, or an address or name that cannot be parsed
        return StorageError, "not a place that can be read or written; check protocol and name"
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int) and 400 <= status < 500 and status not in _HTTP_LATER:
        return StorageError, f"the server answers HTTP {status}; check address and permissions"
    if type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES:
        return _LATER
    return None


def _code(error: Exception) -> str:
    """Return the S3 error code behind an error of s3fs, or "": a name, or an HTTP status if the answer had no body."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _brief(error: BaseException) -> str:
    """Return only the error's class and number: its text may contain a signed URL or a credential."""
    number = getattr(error, "errno", None)
    return f"{type(error).__name__}, {errno.errorcode.get(number, number)}" if number else type(error).__name__
