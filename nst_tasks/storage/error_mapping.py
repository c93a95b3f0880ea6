"""Translate errors of operating systems, S3 and HTTP clients into nst's own storage errors, once and in one place."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from nst_tasks.errors import StorageError, StorageUnavailable, StorageUnusable, redact

_ACCESS_DENIED = "access is denied; check the permissions or credentials"


_TRANSLATION_BY_ERRNO: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (StorageError, "does not exist; check the name"),
    errno.EACCES: (StorageError, _ACCESS_DENIED),
    errno.EPERM: (StorageError, _ACCESS_DENIED),
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


_ERRNO_BY_CLASS = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    FileExistsError: errno.EEXIST,
}
"""Error numbers for file systems that raise these exceptions without one."""


_CREDENTIALS_EXPIRED = (
    StorageUnusable,
    "access is denied, the credentials have expired; renew them and run the same command again",
)


_CREDENTIALS_INVALID = (
    StorageUnusable,
    "access is denied, the credentials are not valid; correct them and run the same command again",
)


_STORE_FULL = (StorageUnusable, "the store is full; make room and run the same command again")


_TRANSIENT = (StorageUnavailable, "")


_TRANSLATION_BY_S3_CODE: dict[str, tuple[type[StorageError], str]] = {
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), _CREDENTIALS_EXPIRED),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "SignatureDoesNotMatch"), _CREDENTIALS_INVALID
    ),
    **dict.fromkeys(("QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "507"), _STORE_FULL),
    "AccountProblem": (StorageUnusable, "access is denied, the account is not in order; ask the store's provider"),
    "RequestTimeTooSkewed": (StorageUnusable, "access is denied, this machine's clock is wrong; set it and run again"),
    # bytes damaged in transit, or a multipart upload completed by a request whose answer was lost
    **dict.fromkeys(("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "InvalidPart", "NoSuchUpload"), _TRANSIENT),
}
"""Translation of S3 error codes for which s3fs's error number is too coarse."""


PRECONDITION_CODES = ("PreconditionFailed", "ConditionalRequestConflict", "409", "412")


_TRANSLATION_BY_CLASS_NAME: dict[str, tuple[type[StorageError], str]] = {
    "NoCredentialsError": (
        StorageUnusable, "no credentials are found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile",
    ),
    "PartialCredentialsError": (
        StorageUnusable, "the credentials are incomplete; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "ProfileNotFound": (StorageUnusable, "the AWS profile is not known; check AWS_PROFILE"),
    "InvalidRegionError": (StorageUnusable, "the AWS region is not valid; check AWS_DEFAULT_REGION"),
    **dict.fromkeys(("SSOTokenLoadError", "TokenRetrievalError", "UnauthorizedSSOTokenError"), _CREDENTIALS_EXPIRED),
    "ParamValidationError": (StorageError, "the store refuses the name; check bucket and key"),
}  # fmt: skip
"""Translation of errors that a client raises before any request, by class name so that botocore need not be imported."""


_TRANSIENT_HTTP_STATUSES = (408, 425, 429)
"""HTTP statuses below 500 that are transient: timeout, too early, too many requests."""


_CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "s3fs", "requests", "httpx")
"""Packages whose other errors are transient connection failures."""


@contextlib.contextmanager
def translate_errors(uri: str, writing: bool = False) -> Iterator[None]:
    """Translate the errors of fsspec and its clients into `StorageError` and its subclasses.

    Raises:
        StorageError, StorageUnavailable, StorageUnusable: As `_translate` decides; a defect of ours passes unchanged.
    """
    try:
        yield
    except Exception as error:
        translation = _translate(error, uri, writing)
        if translation is None:
            raise
        kind, sentence = translation
        if kind is StorageUnavailable:
            sentence = f"the store failed for the moment ({_summarize(error)})"
        raise kind(f"{redact(uri)}: {sentence}") from error


def _translate(error: Exception, uri: str, writing: bool) -> tuple[type[StorageError], str] | None:
    """Return the class and sentence that translate a foreign error, or None if it is a defect of ours."""
    if (code := get_s3_error_code(error)) in _TRANSLATION_BY_S3_CODE:
        return _TRANSLATION_BY_S3_CODE[code]
    if isinstance(error, ImportError):
        return StorageError, f"the file system for {uri.partition('://')[0]}:// is not installed ({error})"
    if isinstance(error, NotImplementedError):
        return StorageError, "this kind of store cannot do that; choose another place"
    if isinstance(error, OSError):
        number = next((of for kind, of in _ERRNO_BY_CLASS.items() if isinstance(error, kind)), error.errno)
        kind, sentence = _TRANSLATION_BY_ERRNO.get(number or 0, _TRANSIENT)
        if number == errno.EINVAL and code:
            sentence += f" ({code})"
        # an unreadable object fails only its pairs; an unwritable output fails all
        return (StorageUnusable if writing and sentence == _ACCESS_DENIED else kind), sentence
    if type(error).__name__ in _TRANSLATION_BY_CLASS_NAME:
        return _TRANSLATION_BY_CLASS_NAME[type(error).__name__]
    if isinstance(error, ValueError):  # an unknown protocol, or an address or name that cannot be parsed
        return StorageError, "not a place that can be read or written; check protocol and name"
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_HTTP_STATUSES:
        return StorageError, f"the server answers HTTP {status}; check address and permissions"
    if type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES:
        return _TRANSIENT
    return None


def get_s3_error_code(error: Exception) -> str:
    """Return the S3 error code behind an error of s3fs, or "": a name, or an HTTP status if the answer had no body."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _summarize(error: BaseException) -> str:
    """Return only the error's class and number: its text may contain a signed URL or a credential."""
    number = getattr(error, "errno", None)
    return f"{type(error).__name__}, {errno.errorcode.get(number, number)}" if number else type(error).__name__
