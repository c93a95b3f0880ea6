"""Optimization targets of a batch and quality of its results, with style and content statistics cached on the device."""

from __future__ import annotations

import numpy as np

from nst_tasks.core import losses, objective, transfer, vgg
from nst_tasks.core.method import Method, strip_numbers
from nst_tasks.core.pyramid import Level
from nst_tasks.engine.devices import Device
from nst_tasks.engine.preprocessing import LoadedJob, compute_style_size, prepare_content, prepare_style
from nst_tasks.images.picture import Picture
from nst_tasks.images.resize import resize_mask

StyleStatistics = dict[str, losses.Statistics]
"""Statistics of one style image at each style layer."""


def measure_styles(loaded: LoadedJob, level: tuple[int, int], backbone: vgg.Backbone, device: Device) -> list[StyleStatistics]:
    """Return the statistics of each of a pair's styles at a level of this (height, width)."""
    job, statistics = loaded.job, []
    for source, picture in zip(job.styles, loaded.styles, strict=True):

        def measure(picture: Picture = picture) -> StyleStatistics:
            return transfer.style_statistics(backbone, job.recipe.method, prepare_style(loaded, picture, level))

        size = compute_style_size(job, picture.rgb.shape[0], picture.rgb.shape[1], level)
        key = (source.sha256, size, strip_numbers(job.recipe.method), job.weights_sha256, make_color_match_key(loaded))
        statistics.append(device.style_cache.get_or_compute(key, measure))
    return statistics


def make_color_match_key(loaded: LoadedJob) -> str:
    """Return the part of a style's cache key that identifies the content whose colors it is matched to; empty without."""
    job = loaded.job
    return f"{job.pair.keep_color} {job.content.sha256} {loaded.content.rgb.shape}" if job.pair.keep_color else ""


def make_content_key(loaded: LoadedJob) -> tuple[str | int, ...]:
    """Return the part of a cache key that identifies a content's pixels."""
    return loaded.job.content.sha256, loaded.job.height, loaded.job.width, loaded.job.pair.keep_color


def build_targets(
    loaded_jobs: list[LoadedJob], method: Method, level: Level, backbone: vgg.Backbone, device: Device
) -> objective.Targets:
    """Return the optimization targets of a batch at a level."""
    size = (level.height, level.width)

    def measure() -> tuple[np.ndarray, dict[str, losses.Statistics]]:
        contents = np.stack([prepare_content(ready, *size) for ready in loaded_jobs])  # (B, h, w, 3)
        return contents, transfer.content_statistics(backbone, method, contents)

    content_keys = tuple((*make_content_key(ready), ready.job.weights_sha256) for ready in loaded_jobs)
    contents, statistics = device.content_cache.get_or_compute(("targets", content_keys, size, strip_numbers(method)), measure)
    masks = [resize_mask(ready.mask, *size) for ready in loaded_jobs if ready.mask is not None]
    return transfer.build_targets(
        backbone,
        method,
        contents,
        [measure_styles(ready, size, backbone, device) for ready in loaded_jobs],
        [ready.job.pair.style_weights for ready in loaded_jobs],
        np.stack(masks) if masks else None,  # a batch is masked as a whole or not at all
        content=statistics,
    )
