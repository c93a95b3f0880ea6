"""Everything that can go wrong, in one tree.

NstError
├── InputError                what the caller handed in is wrong as a whole; nothing ran (exit code 2)
│   ├── ManifestError         the manifest cannot be read as one
│   └── SettingsError         an option, an environment variable or a recipe's value is out of range
├── PairError                 one pair cannot be done, now or later; the others go on
│   ├── PictureError          not a picture, truncated, too large, too small
│   ├── DivergedError         the optimization left the finite numbers, or its loss exploded
│   ├── DeadlineError         it takes longer than a pair may
│   ├── MemoryTooSmall        it does not fit into the device's memory
│   └── QuarantinedError      it took its process down twice
├── StorageError              the store said no for good: missing, forbidden, not a file
│   ├── StorageUnavailable    the store did not answer, or asked to come back later: worth a retry
│   └── StorageUnusable       the store refuses everything of this run until somebody mends it: full, read-only, no access
├── ClusterError              the workers elsewhere can no longer be reached
└── Interrupted               a person or the machine asked the run to stop

A row's failure is data (see `outcome`); these are raised where it happens and turned into data once, in `work` and `intake`.
"""

import re
from collections.abc import Sequence


class NstError(Exception):
    """Any error that nst raises on purpose; its text is one sentence with the place, the value and the remedy."""


class InputError(NstError):
    """What the caller handed in is wrong as a whole, so nothing ran."""


class ManifestError(InputError):
    """The manifest cannot be read as one; the text holds one line for each problem."""


class SettingsError(InputError):
    """An option, an environment variable or a recipe's value is out of range."""


class PairError(NstError):
    """One pair cannot be done, now or later; the others go on."""


class PictureError(PairError):
    """Bytes that are not a picture we can take: damaged, of an unknown format, too large or too small."""


class DivergedError(PairError):
    """The optimization of one pair left the finite numbers, or its loss exploded."""


class DeadlineError(PairError):
    """One pair takes longer than it may."""


class MemoryTooSmall(PairError):
    """One pair, alone, does not fit into the memory of the device."""


class QuarantinedError(PairError):
    """One pair took its process down twice, and is not tried again."""


class StorageError(NstError):
    """The store said no for good: missing, forbidden, not a file."""


class StorageUnavailable(StorageError):
    """The store did not answer, or asked to come back later: worth a retry."""


class StorageUnusable(StorageError):
    """The store refuses everything of this run until somebody mends it: it is full, read-only, or does not know us."""


class ClusterError(NstError):
    """The workers elsewhere can no longer be reached; what is finished is safe."""


class Interrupted(NstError):
    """A person or the machine asked the run to stop; what is finished is safe."""


def is_transient(error: BaseException) -> bool:
    """Whether trying the same again later may succeed: the one place where this is decided."""
    return isinstance(error, StorageUnavailable)


def ends_run(error: BaseException) -> bool:
    """Whether no other pair of the run would fare better: asked to stop, nowhere to write to, nobody to do it."""
    return isinstance(error, (Interrupted, StorageUnusable, ClusterError))


def is_pairs_own(error: BaseException) -> bool:
    """Whether the failure is to be recorded as its pair's outcome: neither another attempt nor the end of the run."""
    return not is_transient(error) and not ends_run(error)


def in_brief(error: BaseException) -> str:
    """The class and the first line of a foreign error, whose text may hold anything."""
    # cut last: half a secret would not be known as one
    return f"{type(error).__name__}: {redact(str(error).partition(chr(10))[0])[:200]}"


def fit_to_log(error: BaseException) -> NstError:
    """An error that may be logged, with its traceback, but not with those behind it: their text may hold a signed URL."""
    safe = error if isinstance(error, NstError) else NstError(f"unexpected {in_brief(error)}")
    safe.__cause__, safe.__suppress_context__ = None, True
    return safe.with_traceback(error.__traceback__)


_NEXT_PROBLEM = re.compile(r"; (?=row \d+, column [\w-]+: )")
"""Between the problems of one rejected row."""


def at_most(most: int, sentences: Sequence[str], elsewhere: str = "") -> list[str]:
    """The first of the sentences, and where there are more, one that says how many and that they are all `elsewhere`."""
    rest = len(sentences) - most
    return [*sentences[:most], *([f"and {rest} more{elsewhere and f': {elsewhere}'}"] if rest > 0 else [])]


def reason_and_remedy(sentence: str) -> tuple[str, str]:
    """What is wrong and what to do about it, of an outcome's `problem; remedy`; the remedy is empty where none is told.

    Of a rejected row's several problems, each remedy is preceded by its column.
    """
    problems = _NEXT_PROBLEM.split(sentence)
    reasons, remedies = [], []
    for problem in problems:
        reason, told, remedy = problem.rpartition("; ")  # the last: a cell or a name in the reason may hold one too
        reasons.append(reason if told else problem)
        if told:
            column = problem.partition(", column ")[2].partition(": ")[0] if len(problems) > 1 else ""
            remedies.append(f"{column}: {remedy}" if column else remedy)
    return "; ".join(reasons), "; ".join(remedies)


_CHAINED = re.compile(r"::(?=[A-Za-z0-9+.-]+://)")
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CREDENTIALS = re.compile(
    r"""(?<=://) (?:
        [^/@:?#[]* : (?!\d+[/?#]) [^@]* @      # user and password, which may hold a slash, but is no port
        | (?<!abfs://) (?<!abfss://) [^/@?#]* @   # user alone, but Azure has the container there
    ) (?:[^/@?#]* @)*                           # more of a password that holds an @
    """,
    re.VERBOSE,
)


def redact(uri: str) -> str:
    """A URI fit for logs, markers and reports: without user, password, query and fragment, on one line. It takes any text.

    What a terminal or a reader would obey rather than show is written as an escape: control and bidirectional characters, and
    bytes that are not UTF-8.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), without_secrets(uri))


def without_secrets(uri: str) -> str:
    """A URI without user, password, query and fragment, and otherwise as it is."""
    return "::".join(map(_without_secrets, _CHAINED.split(uri))) if "://" in uri else uri


def _without_secrets(uri: str) -> str:
    # up to the last @ only: where none follows, the search for one would go through the rest from each :// anew
    before, at, after = uri.rpartition("@")
    return re.split("[?#]", _CREDENTIALS.sub("", before + at) + after, maxsplit=1)[0]
