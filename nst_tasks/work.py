"""Process one batch: load its images, acquire a device, optimize, write image, thumbnail and history, then the marker.

Plain functions, no Prefect. A pair's own failure becomes its outcome; an error that a retry may cure is raised.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from dataclasses import replace

import numpy as np
import PIL
import tensorflow as tf

from nst_tasks import __version__, claims, devices, fitting, history, images, intake, loading, outcome, resume, storage
from nst_tasks.batching import Batch, Job
from nst_tasks.core import objective
from nst_tasks.errors import (
    DeadlineError,
    DivergedError,
    NstError,
    PairError,
    QuarantinedError,
    StorageError,
    fit_to_log,
    is_pairs_own,
)
from nst_tasks.images import Picture
from nst_tasks.loading import Loaded
from nst_tasks.optimization import Result
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import watch
from nst_tasks.settings import Run

THUMBNAIL_HEIGHT = 320
"""Maximum height, in pixels, of the strip of images in the report; never more than the result's own height."""

STYLES_SHOWN = 8
"""Maximum number of style images in that strip: more would be too small to see."""


def stylize(batch: Batch, run: Run) -> list[Outcome]:
    """Stylize a batch and write its results; return, in order, the outcome of each pair that no other run has claimed.

    Raises:
        StorageUnavailable: The store failed temporarily; the whole batch can be retried without loss.
        StorageUnusable: The store refuses every access of the run.
        Interrupted: The run was stopped; checkpoints are written.
    """
    observer = watch()
    outcomes: dict[str, Outcome] = {}
    loaded = []
    with claims.taken((job.key for job in batch.jobs), run) as mine:
        ours = [job for job in batch.jobs if job.key in mine]
        for job in ours:
            if done := _done_by_now(job, run):
                outcomes[job.id] = done
            elif mine[job.key].strikes >= claims.STRIKES:
                outcomes[job.id] = _publish_failure(job, _quarantined(job), run)
            else:
                try:
                    loaded.append(loading.load(job, run))
                except NstError as error:
                    if not is_pairs_own(error):
                        raise
                    outcomes[job.id] = _publish_failure(job, error, run)
        if loaded:
            with devices.lease(observer) as device:
                results = fitting.optimized(loaded, run, device, observer)
            for ready, result in zip(loaded, results, strict=True):
                outcomes[ready.job.id] = publish(ready, result, run)
            resume.remove(run.out, {ready.job.key for ready, result in zip(loaded, results, strict=True) if _is_left(result)})
    observer.finish(outcomes)
    return [outcomes[job.id] for job in ours]


def _done_by_now(job: Job, run: Run) -> Outcome | None:
    """Return the outcome of a job that an earlier attempt of this run, or another run, has finished; else None.

    Another run's outcome gets the status SKIPPED and this run's row.
    """
    done = intake.done_meanwhile(job, run.out, run.id)
    return done if done is None or done.run_id == run.id else replace(done, status=Status.SKIPPED, row=job.row)


def failure(id: str, row: int, error: BaseException, run_id: str) -> Outcome:
    """Return the outcome of a pair that failed, with an error text that is safe to publish."""
    return Outcome(id=id, row=row, status=Status.FAILED, run_id=run_id, error=str(fit_to_log(error)))


def publish(ready: Loaded, result: Result | PairError, run: Run) -> Outcome:
    """Write image, thumbnail and history of a pair, then the marker, without which they do not count.

    If `result` is the pair's error, write the marker of a failed pair alone.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all writes of the run.
    """
    job = ready.job
    if isinstance(result, PairError):
        return _publish_failure(job, result, run)
    rgb = loading.finished(ready, result.image)
    text = {"nst:key": job.key, "nst:recipe": job.recipe.name, "nst:pair": job.id}
    picture = images.encode(rgb, ready.content.alpha, job.format, text)
    losses = history.to_parquet(history.table(job.id, run.id, result.levels, run.history_every))
    shown = [ready.content, *ready.styles[:STYLES_SHOWN], Picture(rgb, ready.content.alpha)]
    strip = images.strip(shown, min(THUMBNAIL_HEIGHT, job.height), 4)
    last = result.levels[-1].terms[-1].astype(float)
    done = _described(
        job,
        run,
        Status.SUCCEEDED,
        seconds=round(result.seconds, 3),
        steps_done=sum(len(level.terms) - 1 for level in result.levels),
        quality=result.quality.as_plain(),
        flags=(*result.quality.flags, *(["stepped_back"] if result.stepped_back else [])),
        losses={"total": float(last.sum()), **dict(zip(objective.TERMS, map(float, last), strict=True))},
        image=outcome.image_path(job.id, job.format),
        image_bytes=len(picture),
        image_sha256=hashlib.sha256(picture).hexdigest(),
        history=outcome.history_path(job.id),
        history_bytes=len(losses),
        thumbnail=outcome.thumbnail_path(job.id),
    )
    files = {storage.join(run.out, path): data for path, data in
             ((done.image, picture), (done.thumbnail, strip), (done.history, losses))}  # fmt: skip
    try:
        storage.write_all(files)
        storage.write(storage.join(run.out, outcome.marker_path(job.id)), outcome.to_json(done))
    except StorageError as error:
        if not is_pairs_own(error):
            raise
        return failure(job.id, job.row, error, run.id)
    for path in (done.thumbnail, done.history):
        uri = storage.join(run.out, path)
        watch().written.keep(uri, files[uri])
    return done


def _is_left(result: Result | PairError) -> bool:
    """Return whether the output may hold checkpoints of the pair that no run will resume from."""
    return result.has_checkpoints if isinstance(result, Result) else not isinstance(result, DeadlineError)


def _quarantined(job: Job) -> QuarantinedError:
    return QuarantinedError(
        f"its process crashed in native code {claims.STRIKES} times while it was made, so it is not tried again; take another "
        f"size or recipe, or delete {outcome.marker_path(job.id)} from the output to try once more"
    )


_FLAGS: dict[type[NstError], tuple[str, ...]] = {DivergedError: ("not_finite",), QuarantinedError: (outcome.QUARANTINED,)}


def _publish_failure(job: Job, error: NstError, run: Run) -> Outcome:
    flags = _FLAGS.get(type(error), ())
    return record_failure(_described(job, run, Status.FAILED, error=str(error), flags=flags), run)


def fail(batch: Batch, error: BaseException, run: Run) -> list[Outcome]:
    """Record and return a failed outcome for each pair of a batch that failed as a whole; keep finished outcomes.

    Raises:
        StorageUnavailable: The store failed temporarily; no marker is overwritten that could not be read.
        StorageUnusable: The store rejects all writes.
    """
    return [_done_by_now(job, run) or record_failure(failure(job.id, job.row, error, run.id), run) for job in batch.jobs]


def record_failure(failed: Outcome, run: Run) -> Outcome:
    """Write the marker of a failed pair and return its outcome.

    If the store rejects this marker alone, continue: the run's summary reports the failure too.

    Raises:
        StorageUnavailable: The store failed temporarily.
        StorageUnusable: The store rejects all writes of the run.
    """
    try:
        storage.write(storage.join(run.out, outcome.marker_path(failed.id)), outcome.to_json(failed))
    except StorageError as error:
        if not is_pairs_own(error):
            raise
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
    """Return the versions of all software that decides an image's bytes."""
    return {
        "nst": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
