"""Optimization targets of a batch and quality of its results, with style and content statistics cached on the device."""

from __future__ import annotations

import numpy as np

from nst_tasks import images, loading
from nst_tasks.core import backbones, losses, objective, quality, transfer
from nst_tasks.core.method import Method, structure
from nst_tasks.core.pyramid import Level
from nst_tasks.core.quality import Quality
from nst_tasks.devices import Device
from nst_tasks.history import LevelHistory
from nst_tasks.images import Picture
from nst_tasks.loading import Loaded

StyleStatistics = dict[str, losses.Statistics]
"""Statistics of one style image at each style layer."""


def styles(ready: Loaded, level: tuple[int, int], backbone: backbones.Backbone, device: Device) -> list[StyleStatistics]:
    """Return the statistics of each of a pair's styles at a level of this (height, width)."""
    job, found = ready.job, []
    for source, picture in zip(job.styles, ready.styles, strict=True):

        def measure(picture: Picture = picture) -> StyleStatistics:
            return transfer.style_statistics(backbone, job.recipe.method, loading.network_style(ready, picture, level))

        size = loading.style_size(job, picture.rgb.shape[0], picture.rgb.shape[1], level)
        key = (source.sha256, size, structure(job.recipe.method), job.weights_sha256, _recolored(ready))
        found.append(device.statistics.get(key, measure))
    return found


def _recolored(ready: Loaded) -> str:
    """Return the part of a style's cache key that identifies the content whose colors it is matched to; empty without."""
    job = ready.job
    return f"{job.keep_color} {job.content.sha256} {ready.content.rgb.shape}" if job.keep_color else ""


def _content(ready: Loaded) -> tuple[str | int, ...]:
    """Return the part of a cache key that identifies a content's pixels."""
    return ready.job.content.sha256, ready.job.height, ready.job.width, ready.job.keep_color


def targets(
    loaded: list[Loaded], method: Method, level: Level, backbone: backbones.Backbone, device: Device
) -> objective.Targets:
    """Return the optimization targets of a batch at a level."""
    size = (level.height, level.width)

    def measure() -> tuple[np.ndarray, dict[str, losses.Statistics]]:
        contents = np.stack([loading.network_content(ready, *size) for ready in loaded])  # (B, h, w, 3)
        return contents, transfer.content_statistics(backbone, method, contents)

    seen = tuple((*_content(ready), ready.job.weights_sha256) for ready in loaded)
    contents, statistics = device.contents.get(("targets", seen, size, structure(method)), measure)
    masks = [images.resize_mask(ready.mask, *size) for ready in loaded if ready.mask is not None]
    return transfer.targets(
        backbone,
        method,
        contents,
        [styles(ready, size, backbone, device) for ready in loaded],
        [ready.job.style_weights for ready in loaded],
        np.stack(masks) if masks else None,  # a batch is masked as a whole or not at all
        content=statistics,
    )


def quality_of(
    ready: Loaded, image: np.ndarray, of_pair: list[LevelHistory], backbone: backbones.Backbone, device: Device
) -> Quality:
    """Measure the quality of a pair's result, at the size at which `core.quality` compares images.

    Args:
        image: The network's image (H, W, 3), before original colors and masked-out content are restored.
        of_pair: The pair's loss history, one for each level.
    """
    job = ready.job
    height, width = images.fit(job.height, job.width, quality.SIZE, upscale=False)
    layers = tuple(layer for layer, _ in job.recipe.method.style.layers)

    def of_content() -> quality.Content:
        mask = None if ready.mask is None else images.resize_mask(ready.mask, height, width)
        return quality.content(backbone, loading.network_content(ready, height, width), layers, mask)

    found = []
    for source, picture in zip(job.styles, ready.styles, strict=True):

        def measure(picture: Picture = picture) -> quality.Moments:
            sized = images.resize(picture, *images.fit(picture.rgb.shape[0], picture.rgb.shape[1], quality.SIZE, upscale=False))
            return quality.moments(backbone, images.on_white(sized.rgb, sized.alpha), layers)

        key = ("quality", source.sha256, layers, job.weights_sha256, _recolored(ready))
        found.append(device.statistics.get(key, measure))
    return quality.measure(
        backbone,
        layers,
        images.resize(Picture(image, None), height, width).rgb,
        device.contents.get((*_content(ready), job.mask and job.mask.sha256, layers, job.weights_sha256), of_content),
        found,
        job.style_weights,
        [level.terms.sum(axis=1) for level in of_pair],
    )
