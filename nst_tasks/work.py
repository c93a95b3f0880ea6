"""Do one batch: load its pictures, lease a device, optimize, write image, thumbnail and history, then the marker.

Plain functions, no Prefect. A pair's own failure becomes its outcome; what a retry may mend is raised.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform

import numpy as np
import PIL
import tensorflow as tf

from nst_tasks import __version__, devices, history, images, loading, outcome, storage
from nst_tasks.batching import Batch, Job
from nst_tasks.core import transfer
from nst_tasks.errors import DivergedError, NstError, StorageError, fit_to_log, is_transient
from nst_tasks.images import Picture
from nst_tasks.loading import Loaded
from nst_tasks.optimization import Result, optimize
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import watch
from nst_tasks.settings import Run

THUMBNAIL_HEIGHT = 160
"""Of the strip that the report shows, in pixels."""


def stylize(batch: Batch, run: Run) -> list[Outcome]:
    """Stylize the pairs of a batch and write what comes of each; one outcome per job, in order.

    Raises:
        StorageUnavailable: the store failed for the moment; nothing is lost by trying the whole batch again.
        Interrupted: the run was asked to stop; the batch has written nothing.
    """
    observer = watch()
    outcomes: dict[str, Outcome] = {}
    loaded = []
    for job in batch.jobs:
        try:
            loaded.append(loading.load(job, run))
        except NstError as error:
            if is_transient(error):
                raise
            outcomes[job.id] = _publish_failure(job, error, run)
    if loaded:
        with devices.lease(observer) as device:
            results = optimize(loaded, run, device, observer)
        for ready, result in zip(loaded, results, strict=True):
            outcomes[ready.job.id] = _publish(ready, result, run)
    observer.add(pairs_done=len(batch.jobs))
    return [outcomes[job.id] for job in batch.jobs]


def failure(id: str, row: int, error: BaseException, run_id: str) -> Outcome:
    """The outcome of a pair that could not be done, in words fit for a report."""
    return Outcome(id=id, row=row, status=Status.FAILED, run_id=run_id, error=str(fit_to_log(error)))


def _publish(ready: Loaded, result: Result | DivergedError, run: Run) -> Outcome:
    """Write image, thumbnail and history, then the marker that makes them count."""
    job = ready.job
    if isinstance(result, DivergedError):
        return _publish_failure(job, result, run)
    rgb = loading.finished(ready, result.image)
    text = {"nst:key": job.key, "nst:recipe": job.recipe.name, "nst:pair": job.id}
    picture = images.encode(rgb, ready.content.alpha, job.format, text)
    losses = history.to_parquet(history.table(job.id, run.id, result.levels, run.history_every))
    strip = images.strip([ready.content, *ready.styles, Picture(rgb, ready.content.alpha)], THUMBNAIL_HEIGHT, 4)
    last = result.levels[-1].terms[-1].astype(float)
    done = _described(
        job,
        run,
        Status.SUCCEEDED,
        seconds=round(result.seconds, 3),
        quality=result.quality.as_plain(),
        flags=result.quality.flags,
        losses={"total": float(last.sum()), **dict(zip(transfer.TERMS, map(float, last), strict=True))},
        image=outcome.image_path(job.id, job.format),
        image_bytes=len(picture),
        image_sha256=hashlib.sha256(picture).hexdigest(),
        history=outcome.history_path(job.id),
        history_bytes=len(losses),
        thumbnail=outcome.thumbnail_path(job.id),
    )
    try:
        storage.write(storage.join(run.out, done.image), picture)
        storage.write(storage.join(run.out, done.thumbnail), strip)
        storage.write(storage.join(run.out, done.history), losses)
        storage.write(storage.join(run.out, outcome.marker_path(job.id)), outcome.to_json(done))
    except StorageError as error:
        if is_transient(error):
            raise
        return failure(job.id, job.row, error, run.id)
    return done


def _publish_failure(job: Job, error: NstError, run: Run) -> Outcome:
    flags = ("not_finite",) if isinstance(error, DivergedError) else ()
    return record_failure(_described(job, run, Status.FAILED, error=str(error), flags=flags), run)


def fail(batch: Batch, error: BaseException, run: Run) -> list[Outcome]:
    """The outcomes of a batch that could not be done as a whole, recorded."""
    return [record_failure(failure(job.id, job.row, error, run.id), run) for job in batch.jobs]


def record_failure(failed: Outcome, run: Run) -> Outcome:
    """Write the marker of a failed pair as far as the store lets: the run's summary tells it as well."""
    with contextlib.suppress(StorageError):
        storage.write(storage.join(run.out, outcome.marker_path(failed.id)), outcome.to_json(failed))
    return failed


def _described(job: Job, run: Run, status: Status, **more) -> Outcome:  # type: ignore[no-untyped-def]
    return Outcome(
        id=job.id,
        row=job.row,
        status=status,
        run_id=run.id,
        key=job.key,
        content=job.content.redacted(),
        styles=tuple(style.redacted() for style in job.styles),
        style_weights=job.style_weights,
        recipe=job.recipe.as_plain(),
        seed=job.seed,
        init=job.init.redacted() if job.init else None,
        keep_color=job.keep_color,
        mask=job.mask.redacted() if job.mask else None,
        backbone=run.backbone,
        weights_sha256=run.weights_sha256,
        versions=versions(),
        height=job.height,
        width=job.width,
        steps=job.steps,
        **more,
    )


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what decides a picture's bytes."""
    return {
        "nst": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
