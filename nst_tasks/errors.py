"""Exception classes of nst, their classification, and helpers for the texts of messages, logs and reports.

NstError
├── InputError                the input is invalid as a whole, so nothing ran (exit code 2)
│   ├── ManifestError         the manifest is not valid
│   └── SettingsError         an option, an environment variable or a recipe's value is out of range
├── PairError                 one pair cannot be processed, now or later; the others go on
│   ├── PictureError          not an image, damaged, too large or too small
│   ├── DivergedError         the optimization produced NaN or infinity, or its loss exploded
│   ├── DeadlineError         it exceeds the time limit of a pair
│   ├── MemoryTooSmall        it does not fit into device memory
│   └── QuarantinedError      it crashed its process twice
├── StorageError              the object cannot be read or written: missing, forbidden, not a file
│   ├── StorageUnavailable    the store did not answer, or asked to retry later
│   └── StorageUnusable       the store rejects the whole run: full, read-only, or credentials refused
├── ClusterError              the remote workers can no longer be reached
└── Interrupted               the run was asked to stop

A row's failure is data (see `outcome`): `tasks`, `engine.run_batch` and `planning.triage` turn these errors into data, once.
"""

import difflib
import re
from collections.abc import Iterable, Sequence


class NstError(Exception):
    """Base class of all errors that nst raises on purpose; the text is one sentence with place, value and remedy."""


class InputError(NstError):
    """The input is invalid as a whole, so nothing ran."""


class ManifestError(InputError):
    """The manifest is not valid; the text has one line for each problem."""


class SettingsError(InputError):
    """An option, an environment variable or a recipe's value is out of range."""


class PairError(NstError):
    """One pair cannot be processed, now or later; the others go on."""


class PictureError(PairError):
    """The bytes are not a usable image: damaged, of an unknown format, too large or too small."""


class DivergedError(PairError):
    """The optimization of one pair produced NaN or infinity, or its loss exploded."""


class DeadlineError(PairError):
    """One pair exceeds its time limit."""


class MemoryTooSmall(PairError):
    """One pair, alone, does not fit into device memory."""


class QuarantinedError(PairError):
    """One pair crashed its process twice and is not retried."""


class StorageError(NstError):
    """The object cannot be read or written: it is missing, forbidden or not a file."""


class StorageUnavailable(StorageError):
    """The store did not answer or asked to retry later; the only error that is retried."""


class StorageUnusable(StorageError):
    """The store rejects the whole run: it is full, read-only, or refuses the credentials."""


class ClusterError(NstError):
    """The remote workers can no longer be reached; finished results are safe."""


class Interrupted(NstError):
    """The run was asked to stop, by a person or the system; finished results are safe."""


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed; nothing else decides this."""
    return isinstance(error, StorageUnavailable)


def is_fatal_to_run(error: BaseException) -> bool:
    """Return whether an error ends the whole run: a stop, an unusable store, or unreachable workers."""
    return isinstance(error, (Interrupted, StorageUnusable, ClusterError))


def is_pair_failure(error: BaseException) -> bool:
    """Return whether an error is recorded as its pair's outcome, instead of causing a retry or the end of the run."""
    return not is_transient(error) and not is_fatal_to_run(error)


def summarize(error: BaseException) -> str:
    """Return the class and redacted first line of a foreign error, at most 200 characters of it."""
    # truncate after redacting: half a secret would not be recognized
    return f"{type(error).__name__}: {redact(str(error).partition(chr(10))[0])[:200]}"


def sanitize_for_log(error: BaseException) -> NstError:
    """Return an error that is safe to log: with its traceback, without its causes, whose text may contain a signed URL."""
    safe = error if isinstance(error, NstError) else NstError(f"unexpected {summarize(error)}")
    safe.__cause__, safe.__suppress_context__ = None, True
    return safe.with_traceback(error.__traceback__)


_PROBLEM_SEPARATOR = re.compile(r"; (?=row \d+, column [\w-]+: )")
"""Separator between the problems of one rejected row."""


def limit_lines(limit: int, lines: Sequence[str], elsewhere: str = "") -> list[str]:
    """Return the first `limit` sentences, and if there are more, a line with the number of the rest.

    Args:
        limit: The largest number of sentences to return.
        lines: The sentences.
        elsewhere: A clause for the last line, about where all sentences are listed.
    """
    omitted = len(lines) - limit
    return [*lines[:limit], *([f"and {omitted} more{elsewhere and f': {elsewhere}'}"] if omitted > 0 else [])]


def split_reason_and_remedy(message: str) -> tuple[str, str]:
    """Split an outcome's `problem; remedy` into problem and remedy; the remedy may be empty.

    If a rejected row has several problems, each remedy is prefixed with its column.
    """
    problems = _PROBLEM_SEPARATOR.split(message)
    reasons, remedies = [], []
    for problem in problems:
        reason, separator, remedy = problem.rpartition("; ")  # the last separator: a cell or name in the reason may contain one
        reasons.append(reason if separator else problem)
        if separator:
            column = problem.partition(", column ")[2].partition(": ")[0] if len(problems) > 1 else ""
            remedies.append(f"{column}: {remedy}" if column else remedy)
    return "; ".join(reasons), "; ".join(remedies)


_CHAIN_SEPARATOR = re.compile(r"::(?=[A-Za-z0-9+.-]+://)")
_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CREDENTIALS = re.compile(
    r"""(?<=://) (?:
        [^/@:?#[]* : (?!\d+[/?#]) [^@]* @      # user and password, which may hold a slash, but is no port
        | (?<!abfs://) (?<!abfss://) [^/@?#]* @   # user alone, but Azure has the container there
    ) (?:[^/@?#]* @)*                           # more of a password that holds an @
    """,
    re.VERBOSE,
)


def redact(text: str) -> str:
    """Return a URI, or any text, for logs, markers and reports: on one line, without user, password, query and fragment.

    Control characters, bidirectional characters and bytes that are not UTF-8 are escaped, so that no terminal or viewer
    interprets them.
    """
    return _CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), strip_secrets(text))


def strip_secrets(uri: str) -> str:
    """Return a URI without user, password, query and fragment, otherwise unchanged."""
    return "::".join(map(_strip_secrets_from_part, _CHAIN_SEPARATOR.split(uri))) if "://" in uri else uri


def _strip_secrets_from_part(uri: str) -> str:
    # only up to the last @: after it, the pattern would scan the whole rest from each ://, in quadratic time
    before, at, after = uri.rpartition("@")
    return re.split("[?#]", _CREDENTIALS.sub("", before + at) + after, maxsplit=1)[0]


def suggest_name(word: object, names: Iterable[str]) -> str:
    """Return a remedy for a misspelt word: the most similar name, or else all names."""
    names = list(names)
    similar = difflib.get_close_matches(word.lower()[:80], names, n=1) if isinstance(word, str) else []
    return f"did you mean {similar[0]}?" if similar else f"give one of {', '.join(names)}"
