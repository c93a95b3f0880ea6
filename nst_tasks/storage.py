"""Read, write atomically, list and probe, on whatever fsspec reaches: a local folder, S3, memory.

Plain functions of URIs. Foreign errors are translated here once, by the tables below, into `StorageUnavailable` (worth a
retry), `StorageUnusable` (no use going on) or plain `StorageError` (this object's own failure). What fsspec does not promise
and we do: a write is whole or absent, and listings are never stale.
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
"""For a file on this machine, what is quick; see `each`."""

GRACE_SECONDS = 0.05
"""After which files that are not quick are waited for together."""


@dataclass(frozen=True)
class Entry:
    """What a store says of an object without opening it: its size in bytes, and a version that changes when it is rewritten."""

    size: int
    version: str


def read(uri: str) -> bytes:
    """All bytes of an object.

    Raises:
        StorageError: it is missing, forbidden or not a file. StorageUnavailable: the store may answer later, or its answer
            broke off. StorageUnusable: the credentials are refused.
    """
    with _translated(uri):
        fs, path = _open(uri)
        if type(fs) is fsspec.implementations.local.LocalFileSystem:  # as it would, but in a third of its time for a small file
            with open(path, "rb") as file:
                return file.read()
        data: bytes = fs.cat_file(path)
        return data


Content = bytes | Callable[[IO[bytes]], None]
"""What is to be written, or a function that writes it into a file: on a local disk it is then never in memory as a whole."""


def write(uri: str, data: Content) -> None:
    """Write an object whole or not at all, folders included.

    Raises:
        StorageError: the name cannot be used. StorageUnavailable: the store may answer later. StorageUnusable: nothing can be
            written there: it is full, read-only, or the permissions or credentials do not allow it.
    """
    with _translated(uri, writing=True):
        fs, path = _open(uri)
        if _is_local(fs):
            _write_local(path, data)
        else:
            fs.pipe_file(path, _bytes(data))  # one request, or a multipart upload completed at its end


def write_all(files: Mapping[str, bytes]) -> None:
    """Write some objects, each whole or not at all: one after the other to a local disk, which is quicker, or all at once.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: as for `write`, of the first that could not be written.
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
    """Write an object only if there is none: whether this call wrote it. A store that `honours_create` denies overwrites.

    A power failure may leave a local one empty: nothing waits for the disk, as for what only counts while its writer lives.

    The client repeats a request whose answer was lost, and is then refused because of its own object: a caller to whom False
    matters reads the object back.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: as for `write`.
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
        except OSError as error:  # servers name the refusal differently: whether the object is there does not
            if _code(error) not in _CONDITION_CODES:
                raise
            if fs.exists(path):
                return False
            told = f"{redact(uri)}: the store failed for the moment (it refused an object because of one that is gone)"
            raise StorageUnavailable(told) from error
        return True


def delete(uri: str) -> None:
    """Remove an object; one that is not there is no error.

    Raises:
        StorageError: it is forbidden. StorageUnavailable: the store may answer later.
    """
    with _translated(uri):  # not writing: some may write and not delete
        fs, path = _open(uri)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def sweep(uri: str, seconds: float) -> None:
    """Remove what writes that were killed left directly below a local folder, if it is older than so many seconds."""
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
        except OSError as error:
            if _code(error) in ("400", "403"):  # the answer to HEAD has no body that says why; the answer to GET has
                fs.cat_file(path, start=0, end=1)
            raise


def listing(uri: str, prefix: str = "") -> dict[str, Entry]:
    """Names and entries of the objects directly below a folder, sorted by name; none where there is no such folder.

    prefix: what the names begin with. S3 looks for those only; elsewhere it costs as much as to list the whole folder.
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
    delete(probe)


def each(function: Callable[[T], R], items: Iterable[T], readers: int, near: bool = False) -> list[R | NstError]:
    """`function` of each item on up to `readers` threads, in order; an `NstError` it raises takes its result's place.

    near: the items are files on this machine. They are then taken one after the other, in this thread, for as long as they take
    less than `QUICK_SECONDS` each: a file that the system has in its memory is read sooner than threads take turns in Python.
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
    # several at a time: handing one over takes as long as to read a small local file
    some = max(1, min(64, len(left) // (4 * readers)))
    parts = [left[first : first + some] for first in range(0, len(left), some)]
    with ThreadPoolExecutor(max_workers=readers) as pool:
        return here + [result for part in pool.map(lambda part: [*map(attempt, part)], parts) for result in part]


def patiently(function: Callable[[], T], settings: Settings, stop: threading.Event, tell: Callable[[str], None]) -> T:
    """What `function` returns, called again after each of the settings' delays while the store fails for the moment.

    Raises:
        Interrupted: the run was asked to stop while waiting. Whatever `function` raises for good, or at the last attempt.
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


_S3_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 10}
"""Seconds without a byte after which S3's client gives a request up."""

_S3_ATTEMPTS = 3
"""Of S3's client, which cannot be interrupted: what lasts is left to those who wait and can."""


def _open(uri: str) -> tuple[Any, str]:
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, **_client_options(uri))
    except TypeError as error:  # a file system that wants more than a URI says
        raise ValueError("a URI is not enough for this protocol") from error
    if uri.startswith(_S3_PROTOCOLS):
        fs.retries = 2  # around those of the client: 5 x 5 would spend minutes on each request while a server is away
    return fs, path


_S3_PROTOCOLS = ("s3://", "s3a://")


def _client_options(uri: str) -> dict[str, Any]:
    """How the web is to be reached; and S3, save for what the user's own fsspec configuration or environment says."""
    if uri.startswith(("http://", "https://")):
        from nst_tasks import web  # here, because it takes a moment to import

        return {"get_client": web.client}
    if not uri.startswith(_S3_PROTOCOLS):
        return {}
    asked = {**fsspec.config.conf.get("s3", {}), **fsspec.config.conf.get("s3a", {})}
    client: dict[str, Any] = dict(_S3_TIMEOUTS)
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        client["retries"] = {"total_max_attempts": _S3_ATTEMPTS}
    # one stream an object: several would ask for its size first by HEAD, whose answer does not say why it is a refusal
    return {"max_concurrency": 1, **asked, "config_kwargs": {**client, **asked.get("config_kwargs", {})}}


def _is_local(fs: Any) -> bool:
    return isinstance(fs, fsspec.implementations.local.LocalFileSystem)


_TEMPORARY = ".nst.tmp"
"""How the name of a file ends that is not yet what it is to be; it begins with a dot, which listings leave out."""


def _write_local(path: str, data: Content, place: Callable[[str, str], None] = os.replace, lasting: bool = True) -> None:
    parent, _, name = path.rpartition("/")
    os.makedirs(parent or "/", exist_ok=True)
    temporary = f"{parent}/.{name[:50]}.{secrets.token_hex(4)}{_TEMPORARY}"  # in the same folder: a rename stays on its disk
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
        with contextlib.suppress(OSError):  # after a rename there is none
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
"""What an operating system's error number says; any other is taken for a passing failure."""

_NUMBER_OF_TYPE = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    FileExistsError: errno.EEXIST,
}
"""For file systems that raise these without a number."""

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
    # bytes that were damaged on the way, or an upload in parts that was completed by a request whose answer was lost
    **dict.fromkeys(("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "InvalidPart", "NoSuchUpload"), _LATER),
}
"""What an S3 server's error code says where the number that s3fs makes of it says too little."""

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
"""What a client says before it asks a server, by its exception's class; botocore need not be imported for it."""

_HTTP_LATER = (408, 425, 429)
"""HTTP statuses below 500 that ask to come back later."""

_CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "s3fs", "requests", "httpx")
"""Whatever else these raise is a connection's failure, and passing."""


@contextlib.contextmanager
def _translated(uri: str, writing: bool = False) -> Iterator[None]:
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
    """The class and the sentence that a foreign error is told by, or None for a defect of ours."""
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
        # who may not read one object may read the next; an output that may not be written is no use to any pair
        return (StorageUnusable if writing and sentence == _NO_ACCESS else kind), sentence
    if type(error).__name__ in _BY_CLASS:
        return _BY_CLASS[type(error).__name__]
    if isinstance(error, ValueError):  # an unknown protocol, an address or a name that cannot be taken apart
        return StorageError, "not a place that can be read or written; check protocol and name"
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int) and 400 <= status < 500 and status not in _HTTP_LATER:
        return StorageError, f"the server answers HTTP {status}; check address and permissions"
    if type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES:
        return _LATER
    return None


def _code(error: Exception) -> str:
    """The S3 error code that s3fs found in a server's answer, if this is one: a name, or a status where there was no body."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _brief(error: BaseException) -> str:
    """The error's class and number only: its text may repeat a signed URL or a credential."""
    number = getattr(error, "errno", None)
    return f"{type(error).__name__}, {errno.errorcode.get(number, number)}" if number else type(error).__name__
