"""Write the files of a finished pair (image, thumbnail, loss history), then its outcome marker, and markers of failed pairs."""

from __future__ import annotations

import functools
import hashlib
import platform

import numpy as np
import PIL
import tensorflow as tf

from nst_tasks import __version__
from nst_tasks.core import objective
from nst_tasks.engine.optimization import TransferResult
from nst_tasks.engine.preprocessing import LoadedJob, postprocess
from nst_tasks.errors import (
    DivergedError,
    NstError,
    PairError,
    QuarantinedError,
    StorageError,
    is_pair_failure,
    sanitize_for_log,
)
from nst_tasks.images import codec
from nst_tasks.images.picture import Picture
from nst_tasks.images.thumbnail import encode_strip
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.run import Run
from nst_tasks.outputs import loss_history, outcome
from nst_tasks.outputs.layout import history_path, image_path, marker_path, thumbnail_path
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.progress import current_progress
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri

MAX_THUMBNAIL_HEIGHT = 320
"""Maximum height, in pixels, of the strip of images in the report; never more than the result's own height."""


MAX_THUMBNAIL_STYLES = 8
"""Maximum number of style images in that strip: more would be too small to see."""


def make_failed_outcome(id: str, row: int, error: BaseException, run_id: str) -> Outcome:
    """Return the outcome of a pair that failed, with an error text that is safe to publish."""
    return Outcome(id=id, row=row, status=Status.FAILED, run_id=run_id, error=str(sanitize_for_log(error)))


def publish(loaded: LoadedJob, result: TransferResult | PairError, run: Run) -> Outcome:
    """Write image, thumbnail and history of a pair, then the marker, without which they do not count.

    If `result` is the pair's error, write the marker of a failed pair alone.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all writes of the run.
    """
    job = loaded.job
    if isinstance(result, PairError):
        return publish_failure(job, result, run)
    rgb = postprocess(loaded, result.image)
    metadata = {"nst:key": job.key, "nst:recipe": job.recipe.name, "nst:pair": job.id}
    picture = codec.encode(rgb, loaded.content.alpha, job.pair.format, metadata)
    losses = loss_history.to_parquet(loss_history.build_table(job.id, run.id, result.histories, run.history_every))
    thumbnail_pictures = [loaded.content, *loaded.styles[:MAX_THUMBNAIL_STYLES], Picture(rgb, loaded.content.alpha)]
    strip = encode_strip(thumbnail_pictures, min(MAX_THUMBNAIL_HEIGHT, job.height), 4)
    last_terms = result.histories[-1].terms[-1].astype(float)
    succeeded = _make_outcome(
        job,
        run,
        Status.SUCCEEDED,
        seconds=round(result.seconds, 3),
        steps_done=sum(len(level.terms) - 1 for level in result.histories),
        quality=result.quality.as_plain(),
        flags=(*result.quality.flags, *(["stepped_back"] if result.restarted else [])),
        losses={"total": float(last_terms.sum()), **dict(zip(objective.TERMS, map(float, last_terms), strict=True))},
        image=image_path(job.id, job.pair.format),
        image_bytes=len(picture),
        image_sha256=hashlib.sha256(picture).hexdigest(),
        history=history_path(job.id),
        history_bytes=len(losses),
        thumbnail=thumbnail_path(job.id),
    )
    contents = {join_uri(run.out, path): data for path, data in
             ((succeeded.image, picture), (succeeded.thumbnail, strip), (succeeded.history, losses))}  # fmt: skip
    try:
        files.write_all(contents)
        files.write(join_uri(run.out, marker_path(job.id)), outcome.to_json(succeeded))
    except StorageError as error:
        if not is_pair_failure(error):
            raise
        return make_failed_outcome(job.id, job.row, error, run.id)
    for path in (succeeded.thumbnail, succeeded.history):
        uri = join_uri(run.out, path)
        current_progress().written_files.add(uri, contents[uri])
    return succeeded


_FLAGS_BY_ERROR: dict[type[NstError], tuple[str, ...]] = {
    DivergedError: ("not_finite",),
    QuarantinedError: (outcome.QUARANTINED_FLAG,),
}


def publish_failure(job: Job, error: NstError, run: Run) -> Outcome:
    """Write the marker of a failed pair, with all that is known of its job.

    Raises:
        StorageUnavailable: The store fails temporarily. StorageUnusable: The store rejects all writes.
    """
    flags = _FLAGS_BY_ERROR.get(type(error), ())
    return record_failure(_make_outcome(job, run, Status.FAILED, error=str(error), flags=flags), run)


def record_failure(failed: Outcome, run: Run) -> Outcome:
    """Write the marker of a failed pair and return its outcome.

    If the store rejects this marker alone, continue: the run's summary reports the failure too.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all writes of the run.
    """
    try:
        files.write(join_uri(run.out, marker_path(failed.id)), outcome.to_json(failed))
    except StorageError as error:
        if not is_pair_failure(error):
            raise
    return failed


def _make_outcome(job: Job, run: Run, status: Status, **more) -> Outcome:  # type: ignore[no-untyped-def]
    return Outcome(
        id=job.id,
        row=job.row,
        status=status,
        run_id=run.id,
        key=job.key,
        content=job.content.redact_uri(),
        styles=tuple(style.redact_uri() for style in job.styles),
        style_weights=job.pair.style_weights,
        recipe=job.recipe.as_plain(),
        seed=job.pair.seed,
        init=job.init.redact_uri() if job.init else None,
        keep_color=job.pair.keep_color,
        mask=job.mask.redact_uri() if job.mask else None,
        backbone=run.backbone,
        weights_sha256=run.weights_sha256,
        versions=collect_versions(),
        height=job.height,
        width=job.width,
        steps=job.steps,
        **more,
    )


@functools.cache
def collect_versions() -> dict[str, str]:
    """Return the versions of all software that decides an image's bytes."""
    return {
        "nst": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
