"""Do one batch: read and decode, lease a device, optimize in chunks, write image and history, then the marker.

Plain functions, no Prefect. A pair's own failure becomes its outcome; what a retry may mend is raised.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import time
from dataclasses import dataclass

import numpy as np
import PIL
import tensorflow as tf

from nst_tasks import __version__, devices, history, images, intake, outcome, storage, weights
from nst_tasks.batching import Batch, Job
from nst_tasks.core import backbones, losses, optimizers, transfer
from nst_tasks.core.pyramid import levels
from nst_tasks.devices import Device
from nst_tasks.errors import DivergedError, Interrupted, NstError, PictureError, StorageError, is_transient, redact
from nst_tasks.history import LevelHistory
from nst_tasks.images import Picture
from nst_tasks.outcome import Outcome, Status
from nst_tasks.progress import Watch, watch
from nst_tasks.settings import Run
from nst_tasks.source import Source

StyleStatistics = dict[str, losses.Statistics]
"""A style picture's statistics at each style layer."""

CHUNK_SECONDS = 1.0
"""Compute between two looks at progress, deadline and interruption."""

THUMBNAIL_HEIGHT = 160
"""Of the strip that the report shows, in pixels."""


@dataclass(frozen=True)
class Loaded:
    """A job with its pictures decoded: the content at the result's size, the styles as they are."""

    job: Job
    content: Picture
    styles: tuple[Picture, ...]


@dataclass(frozen=True)
class Result:
    """What the optimization gave for one pair: image (H, W, 3) float32, history, its share of the seconds of compute."""

    image: np.ndarray
    levels: list[LevelHistory]
    seconds: float


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
            loaded.append(_load(job, run))
        except NstError as error:
            if is_transient(error):
                raise
            outcomes[job.id] = _publish_failure(job, error, run)
    if loaded:
        with devices.lease(observer) as device:
            results = _optimize(loaded, run, device, observer)
        for ready, result in zip(loaded, results, strict=True):
            outcomes[ready.job.id] = _publish(ready, result, run)
    observer.add(pairs_done=len(batch.jobs))
    return [outcomes[job.id] for job in batch.jobs]


def failure(id: str, row: int, error: BaseException, run_id: str) -> Outcome:
    """The outcome of a pair that could not be done, in words fit for a report."""
    if isinstance(error, NstError):
        text = str(error)
    else:  # a defect: its class and first line, which may hold anything; the log has the rest
        text = f"unexpected {type(error).__name__}: {redact(str(error).partition(chr(10))[0][:200])}"
    return Outcome(id=id, row=row, status=Status.FAILED, run_id=run_id, error=text)


def _load(job: Job, run: Run) -> Loaded:
    content = images.resize(_decode(job.content, run), job.height, job.width)
    styles = [_decode(style, run) for style in job.styles]
    if job.keep_color:
        # Gatys et al. 2016, arXiv 1606.05897, section 5: transfer between luminances, the style's matched to the content's
        luma = images.luminance(content.rgb)
        matched = [np.clip(images.match_luminance(images.luminance(style.rgb), luma), 0.0, 1.0) for style in styles]
        styles = [Picture(_gray(of_style), style.alpha) for of_style, style in zip(matched, styles, strict=True)]
    return Loaded(job, content, tuple(styles))


def _decode(source: Source, run: Run) -> Picture:
    data = storage.read(source.uri)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise PictureError(f"{source.redacted().uri}: changed while the run was going on; run the same command again")
    try:
        return images.decode(data, run.settings.max_pixels)
    except PictureError as error:
        raise PictureError(f"{source.redacted().uri}: {error}") from error


def _gray(luma: np.ndarray) -> np.ndarray:
    return np.repeat(luma[..., None], 3, axis=2)  # (H, W, 3)


def _optimize(loaded: list[Loaded], run: Run, device: Device, observer: Watch) -> list[Result | DivergedError]:
    """Carry out the method on a batch: results in order, an error in place of a pair whose loss is not finite any more."""
    began = time.monotonic()
    backbone = device.backbone(run.weights_sha256, lambda: _build_backbone(run))
    first = loaded[0].job
    method = first.recipe.method
    schedule = levels(method, first.height, first.width)
    histories: list[list[LevelHistory]] = [[] for _ in loaded]
    state = None
    for number, level in enumerate(schedule):
        contents = np.stack([_network_content(ready, level.height, level.width) for ready in loaded])  # (B, h, w, 3)
        targets = transfer.targets(
            backbone,
            method,
            contents,
            [styles(ready, max(level.height, level.width), backbone, device) for ready in loaded],
            [ready.job.style_weights for ready in loaded],
        )
        if state is None:
            state = transfer.start(method, contents, [ready.job.seed for ready in loaded])
        else:
            state = transfer.ascend(state, level)
        terms, seconds = [], [time.monotonic() - began]
        chunk = 1
        while state.step < level.steps:
            if observer.stop.is_set():
                raise Interrupted("interrupted between two chunks of steps")
            chunk = min(chunk, level.steps - state.step)
            before = time.monotonic()
            state, more = transfer.advance(backbone, method, targets, state, chunk, level.steps)  # (n, B, 3)
            took = time.monotonic() - before
            terms.append(more)
            seconds += list(before - began + took * np.arange(1, chunk + 1) / chunk)
            observer.add(steps_done=chunk * len(loaded), work_done=chunk * len(loaded) * level.height * level.width)
            chunk = int(np.clip(chunk * CHUNK_SECONDS / max(took, 1e-3), 1, 4 * chunk))
        terms.append(transfer.measure(backbone, method, targets, state.image)[None])
        every = np.concatenate(terms)  # (steps + 1, B, 3)
        rates = optimizers.learning_rates(method.optimizer, level.steps)
        for k, levels_of_pair in enumerate(histories):
            levels_of_pair.append(LevelHistory(number, level.height, level.width, every[:, k], rates, np.asarray(seconds)))
    assert state is not None  # a schedule has at least one level
    image = state.image.numpy()
    took = time.monotonic() - began
    return [_not_finite(of_pair) or Result(image[k], of_pair, took / len(loaded)) for k, of_pair in enumerate(histories)]


def _network_content(ready: Loaded, height: int, width: int) -> np.ndarray:
    rgb = images.resize(Picture(ready.content.rgb, None), height, width).rgb
    return _gray(images.luminance(rgb)) if ready.job.keep_color else rgb


def styles(ready: Loaded, size: int, backbone: backbones.Backbone, device: Device) -> list[StyleStatistics]:
    """Statistics of a pair's styles at a level of this longest side."""
    job, found = ready.job, []
    for source, picture in zip(job.styles, ready.styles, strict=True):
        height, width = images.fit(picture.rgb.shape[0], picture.rgb.shape[1], size, job.upscale)

        def measure(picture: Picture = picture, height: int = height, width: int = width) -> StyleStatistics:
            sized = images.resize(picture, height, width)
            return transfer.style_statistics(backbone, job.recipe.method, images.on_white(sized.rgb, sized.alpha))

        matched = job.content.sha256 + str(ready.content.rgb.shape) if job.keep_color else ""
        found.append(device.style((source.sha256, height, width, job.recipe.method, job.weights_sha256, matched), measure))
    return found


def _not_finite(of_pair: list[LevelHistory]) -> DivergedError | None:
    for level in of_pair:
        bad = ~np.isfinite(level.terms)
        if bad.any():
            step, term = np.argwhere(bad)[0]
            return DivergedError(
                f"the {transfer.TERMS[term]} loss is not a finite number at step {step} of level {level.level} "
                f"({level.width} x {level.height}); lower the weights or take another recipe"
            )
    return None


def _build_backbone(run: Run) -> backbones.Backbone:
    data = intake.read_weights(run.weights)
    if weights.sha256(run.backbone, data) != run.weights_sha256:
        raise StorageError("--weights: the file changed while the run was going on; run the same command again")
    return backbones.build(run.backbone, weights.load(run.backbone, data))


def _publish(ready: Loaded, result: Result | DivergedError, run: Run) -> Outcome:
    """Write image, thumbnail and history, then the marker that makes them count."""
    job = ready.job
    if isinstance(result, DivergedError):
        return _publish_failure(job, result, run)
    rgb = result.image
    if job.keep_color:
        rgb = images.with_luminance(ready.content.rgb, images.luminance(rgb))
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
    return record_failure(_described(job, run, Status.FAILED, error=str(error)), run)


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
        keep_color=job.keep_color,
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
