"""One batch through the core: level by level, in chunks of steps, with progress, snapshots and a look at what came of it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import numpy as np

from nst_tasks import images, intake, loading, outcome, storage, weights
from nst_tasks.core import backbones, losses, optimizers, quality, transfer
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import Level, levels
from nst_tasks.core.quality import Quality
from nst_tasks.devices import Device
from nst_tasks.errors import DivergedError, Interrupted, StorageError
from nst_tasks.history import LevelHistory
from nst_tasks.images import Picture
from nst_tasks.loading import Loaded
from nst_tasks.progress import Watch
from nst_tasks.settings import Run

StyleStatistics = dict[str, losses.Statistics]
"""A style picture's statistics at each style layer."""

CHUNK_SECONDS = 1.0
"""Compute between two looks at progress, deadline and interruption."""


@dataclass(frozen=True)
class Result:
    """What the optimization gave for one pair: the network's image (H, W, 3), history, quality, its share of seconds."""

    image: np.ndarray
    levels: list[LevelHistory]
    quality: Quality
    seconds: float


def optimize(loaded: list[Loaded], run: Run, device: Device, observer: Watch) -> list[Result | DivergedError]:
    """Carry out the method on a batch: results in order, an error in place of a pair whose loss is not finite any more.

    Raises:
        Interrupted: the run was asked to stop.
    """
    began = time.monotonic()
    backbone = device.backbone(run.weights_sha256, lambda: _build_backbone(run))
    first = loaded[0].job
    method = first.recipe.method
    schedule = levels(method, first.height, first.width)
    histories: list[list[LevelHistory]] = [[] for _ in loaded]
    state, image, taken = None, None, 0
    for number, level in enumerate(schedule):
        targets = _targets(loaded, method, level, backbone, device)
        if state is None or image is None:
            state = _start(loaded, method, level)
        else:
            state = transfer.ascend(method, state, image, level)
        terms, seconds = [], [time.monotonic() - began]
        chunk = 1
        while state.step < level.steps:
            if observer.stop.is_set():
                raise Interrupted("interrupted between two chunks of steps")
            chunk = min(chunk, level.steps - state.step)
            if run.snapshots:
                chunk = min(chunk, run.snapshots - (taken + state.step) % run.snapshots)
            before = time.monotonic()
            state, more = transfer.advance(backbone, method, targets, state, chunk, level.steps)  # (n, B, 3)
            took = time.monotonic() - before
            terms.append(more)
            seconds += list(before - began + took * np.arange(1, chunk + 1) / chunk)
            observer.add(steps_done=chunk * len(loaded), work_done=chunk * len(loaded) * level.height * level.width)
            if run.snapshots and (taken + state.step) % run.snapshots == 0:
                _snapshot(loaded, transfer.result(backbone, method, targets, state)[0].numpy(), taken + state.step, run)
            chunk = int(np.clip(chunk * CHUNK_SECONDS / max(took, 1e-3), 1, 4 * chunk))
        taken += level.steps
        image, last = transfer.result(backbone, method, targets, state)
        terms.append(last[None])
        every = np.concatenate(terms)  # (steps + 1, B, 3)
        rates = optimizers.learning_rates(method.optimizer, level.steps)
        for k, levels_of_pair in enumerate(histories):
            levels_of_pair.append(LevelHistory(number, level.height, level.width, every[:, k], rates, np.asarray(seconds)))
    assert image is not None  # a schedule has at least one level
    share = (time.monotonic() - began) / len(loaded)
    found: list[Result | DivergedError] = []
    for ready, of_pair, of_image in zip(loaded, histories, np.clip(image.numpy(), 0.0, 1.0), strict=True):
        diverged = _not_finite(of_pair)
        found.append(diverged or Result(of_image, of_pair, _quality(ready, of_image, of_pair, backbone, device), share))
    return found


def styles(ready: Loaded, level: tuple[int, int], backbone: backbones.Backbone, device: Device) -> list[StyleStatistics]:
    """Statistics of a pair's styles at a level of this (height, width)."""
    job, found = ready.job, []
    for source, picture in zip(job.styles, ready.styles, strict=True):

        def measure(picture: Picture = picture) -> StyleStatistics:
            return transfer.style_statistics(backbone, job.recipe.method, loading.network_style(ready, picture, level))

        size = loading.style_size(job, picture.rgb.shape[0], picture.rgb.shape[1], level)
        key = (source.sha256, size, job.recipe.method, job.weights_sha256, _recolored(ready))
        found.append(device.style(key, measure))
    return found


def _recolored(ready: Loaded) -> str:
    """What else a style's pixels depend on, where they are matched to the content's colours."""
    job = ready.job
    return f"{job.keep_color} {job.content.sha256} {ready.content.rgb.shape}" if job.keep_color else ""


def _targets(
    loaded: list[Loaded], method: Method, level: Level, backbone: backbones.Backbone, device: Device
) -> transfer.Targets:
    size = (level.height, level.width)
    masks = [images.resize_mask(ready.mask, *size) for ready in loaded if ready.mask is not None]
    return transfer.targets(
        backbone,
        method,
        np.stack([loading.network_content(ready, *size) for ready in loaded]),  # (B, h, w, 3)
        [styles(ready, size, backbone, device) for ready in loaded],
        [ready.job.style_weights for ready in loaded],
        np.stack(masks) if masks else None,  # a batch is masked as a whole or not at all
    )


def _start(loaded: list[Loaded], method: Method, level: Level) -> transfer.TransferState:
    firsts = np.stack([loading.initial(ready, method, level.height, level.width) for ready in loaded])
    # a picture that somebody chose to start from is taken as it is, without the recipe's noise
    return transfer.start(method, firsts, [ready.job.seed if ready.initial is None else None for ready in loaded])


def _snapshot(loaded: list[Loaded], batch: np.ndarray, step: int, run: Run) -> None:
    for ready, image in zip(loaded, batch, strict=True):
        picture = images.encode(loading.finished(ready, image), None, "png", {"nst:pair": ready.job.id, "nst:step": str(step)})
        with contextlib.suppress(StorageError):  # something to look at: not worth the pair, should the store fail just now
            storage.write(storage.join(run.out, outcome.snapshot_path(ready.job.id, step)), picture)


def _quality(
    ready: Loaded, image: np.ndarray, of_pair: list[LevelHistory], backbone: backbones.Backbone, device: Device
) -> Quality:
    """The pair's numbers, of what the network was shown, at the size at which pictures are compared."""
    job = ready.job
    height, width = images.fit(job.height, job.width, quality.SIZE, upscale=False)
    layers = [layer for layer, _ in job.recipe.method.style.layers]
    found = []
    for source, picture in zip(job.styles, ready.styles, strict=True):

        def measure(picture: Picture = picture) -> quality.Moments:
            sized = images.resize(picture, *images.fit(picture.rgb.shape[0], picture.rgb.shape[1], quality.SIZE, upscale=False))
            return quality.moments(backbone, images.on_white(sized.rgb, sized.alpha), layers)

        key = ("quality", source.sha256, tuple(layers), job.weights_sha256, _recolored(ready))
        found.append(device.style(key, measure))
    return quality.measure(
        backbone,
        layers,
        images.resize(Picture(image, None), height, width).rgb,
        loading.network_content(ready, height, width),
        found,
        job.style_weights,
        None if ready.mask is None else images.resize_mask(ready.mask, height, width),
        [level.terms.sum(axis=1) for level in of_pair],
    )


def _not_finite(of_pair: list[LevelHistory]) -> DivergedError | None:
    for level in of_pair:
        bad = ~np.isfinite(level.terms)
        if bad[-1].any():  # L-BFGS steps back from the values that are not: only what it ends with counts
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
