"""Read outcome markers from the output and decide which jobs are already done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nst_tasks.errors import NstError, is_pair_failure
from nst_tasks.inputs.jobs import Job
from nst_tasks.outputs import outcome
from nst_tasks.outputs.layout import HISTORY_FOLDER, IMAGES_FOLDER, OUTCOMES_FOLDER, marker_path, parse_marker_name
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.storage import access, files
from nst_tasks.storage.parallel import map_parallel
from nst_tasks.storage.uri import join_uri


def load_earlier_outcomes(out: str, ids: Iterable[str], readers: int) -> tuple[dict[str, Outcome], list[str]]:
    """Load the outcomes of earlier runs for these ids, and return a warning for each marker that cannot be trusted.

    A marker counts only while the image and the loss history that it names exist and have the sizes that it records.
    """
    wanted = set(ids)
    found_ids = [id for id in list_outcome_ids(out) if id in wanted]
    folders = (IMAGES_FOLDER, HISTORY_FOLDER) if found_ids else ()
    files_by_folder = {folder: files.list_files(join_uri(out, folder)) for folder in folders}
    outcomes, warnings = read_outcomes(out, found_ids, readers)
    found = {}
    for earlier in outcomes:
        if earlier.status == Status.SUCCEEDED and not _has_files(earlier, files_by_folder):
            warnings.append(f"{marker_path(earlier.id)}: ignored, its picture or history is missing or of another size")
        else:
            found[earlier.id] = earlier
    return found, warnings


def list_outcome_ids(out: str) -> list[str]:
    """Return the ids of the pairs that have an outcome marker.

    Raises:
        StorageError: The store cannot be listed.
    """
    names = files.list_files(join_uri(out, OUTCOMES_FOLDER))
    return [id for id in map(parse_marker_name, names) if id is not None]


def read_outcomes(out: str, ids: Iterable[str], readers: int) -> tuple[list[Outcome], list[str]]:
    """Load the markers of these pairs, and return a warning for each that is damaged or misnamed.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all requests.
    """
    ids = list(ids)
    found = map_parallel(files.read, [join_uri(out, marker_path(id)) for id in ids], readers, access.is_local(out))
    outcomes, warnings = [], []
    for id, data in zip(ids, found, strict=True):  # parsed on one thread: parsing JSON holds the interpreter lock
        try:
            if isinstance(data, NstError):
                raise data
            done = outcome.from_json(data)
            if done.id != id:
                raise ValueError(f"it is the marker of {done.id}")
        except ValueError as error:
            warnings.append(f"{marker_path(id)}: ignored, {error}")
        except NstError as error:
            if not is_pair_failure(error):
                raise
            warnings.append(str(error))
        else:
            outcomes.append(done)
    return outcomes, warnings


def _has_files(done: Outcome, files_by_folder: Mapping[str, Mapping[str, files.Entry]]) -> bool:
    for path, size in ((done.image, done.image_bytes), (done.history, done.history_bytes)):
        folder, _, name = path.partition("/")
        entry = files_by_folder.get(folder, {}).get(name)
        if entry is None or entry.size != size:
            return False
    return True


def find_current_outcome(job: Job, out: str, run_id: str) -> Outcome | None:
    """Return the outcome of this job if it was written in the meantime, or None.

    A result counts if it is of any run, also of an attempt of this one that a failure of the store cut short. A failure counts
    only if it is of the run `run_id`, in which another attempt would fail in the same way.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all requests.
    """
    for done in read_outcomes(out, [job.id], 1)[0]:
        if done.status == Status.FAILED and (done.run_id, done.key) == (run_id, job.key):
            return done
        files = ((done.image, done.image_bytes), (done.history, done.history_bytes))
        if is_done(job, {job.id: done}) and all(_has_size(join_uri(out, path), size) for path, size in files):
            return done
    return None


def _has_size(uri: str, size: int) -> bool:
    entry = files.stat(uri)
    return entry is not None and entry.size == size


def is_done(job: Job, outcomes: Mapping[str, Outcome]) -> bool:
    """Return whether an earlier outcome already holds this job's result."""
    before = outcomes.get(job.id)
    return before is not None and before.status == Status.SUCCEEDED and before.key == job.key


def is_quarantined(job: Job, outcomes: Mapping[str, Outcome]) -> bool:
    """Return whether an earlier outcome excludes this job from another attempt."""
    before = outcomes.get(job.id)
    return before is not None and outcome.QUARANTINED_FLAG in before.flags and before.key == job.key
