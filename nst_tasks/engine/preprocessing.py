"""Decode and preprocess a job's images, and turn the network's image into the final one.

With `keep_color` the network sees gray or color-matched images instead of the files' pixels.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nst_tasks.cache import ByteLRU
from nst_tasks.core.method import Method
from nst_tasks.core.vgg import MEAN_RGB
from nst_tasks.core.vgg_layers import min_side
from nst_tasks.errors import PictureError
from nst_tasks.images import codec
from nst_tasks.images.color import luminance, match_color, match_luminance, replace_luminance
from nst_tasks.images.picture import Picture, Source, flatten_on_white
from nst_tasks.images.resize import composite, fit_size, resize, resize_mask
from nst_tasks.inputs.jobs import Job
from nst_tasks.inputs.run import Run
from nst_tasks.storage import files

T = TypeVar("T")

PICTURE_CACHE_BYTES = 2**28
"""Size of the cache of decoded images, which the pairs of a grid share: 20 images of 1024 x 1024 pixels."""


@dataclass(frozen=True)
class LoadedJob:
    """A job with its decoded images.

    Attributes:
        content: At the result's size.
        styles: Each at its own size; gray or color-matched if the job keeps the content's colors.
        mask: (H, W) in [0, 1] at the result's size, 1 where to stylize; None stylizes everything.
        initial: Image to start from, at its own size; None leaves the start to the method.
    """

    job: Job
    content: Picture
    styles: tuple[Picture, ...]
    mask: np.ndarray | None = None
    initial: Picture | None = None


def load_job(job: Job, run: Run) -> LoadedJob:
    """Read and decode a job's images.

    Raises:
        PictureError: An image is invalid, too large, or has changed since it was inspected.
        StorageError: An image cannot be read.
    """
    content = _load_picture(job.content, run, (job.height, job.width))
    styles = tuple(_match_colors(job, _load_picture(style, run), content) for style in job.styles)
    mask = None
    if job.mask is not None:
        mask = resize_mask(_read_verified(job.mask, run, codec.decode_mask), job.height, job.width)
    return LoadedJob(job, content, styles, mask, None if job.init is None else _load_picture(job.init, run))


def evict_pictures(sources: Iterable[Source]) -> None:
    """Remove these images from the cache of decoded images."""
    evicted = {(source.uri, source.sha256) for source in sources}
    _get_picture_cache().remove_if(lambda key: isinstance(key, tuple) and key[:2] in evicted)


def prepare_content(loaded: LoadedJob, height: int, width: int) -> np.ndarray:
    """Return the content as the network sees it at a level's size, (height, width, 3)."""
    rgb = resize(Picture(loaded.content.rgb, None), height, width).rgb
    return to_gray(rgb) if loaded.job.pair.keep_color == "luminance" else rgb


def prepare_style(loaded: LoadedJob, style: Picture, level: tuple[int, int]) -> np.ndarray:
    """Return a style as the network sees it at a level of this (height, width), transparency on white.

    It keeps its own proportions unless `style_shape` is `content`, which stretches it to the level's size.
    """
    height, width = compute_style_size(loaded.job, style.rgb.shape[0], style.rgb.shape[1], level)
    sized = resize(style, height, width)
    return flatten_on_white(sized.rgb, sized.alpha)


def compute_style_size(job: Job, height: int, width: int, level: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) to which a style is resized at a level, large enough for the deepest layer.

    Args:
        height: The style's own height.
        width: The style's own width.
        level: (height, width) of the level.
    """
    method = job.recipe.method
    if method.style_shape == "content":
        return level
    min_longest_side = math.ceil(min_side(method.layers) * max(height, width) / min(height, width))
    return fit_size(height, width, max(*level, min_longest_side), job.upscale)


def prepare_initial_image(loaded: LoadedJob, method: Method, height: int, width: int) -> np.ndarray:
    """Return the image from which optimization starts at a level's size, (height, width, 3), before noise is added."""
    if loaded.initial is not None:
        opaque = flatten_on_white(loaded.initial.rgb, loaded.initial.alpha)
        rgb = resize(Picture(opaque, None), height, width).rgb
        return to_gray(rgb) if loaded.job.pair.keep_color == "luminance" else rgb
    if method.init == "content":
        return prepare_content(loaded, height, width)
    if method.init == "noise":
        return np.broadcast_to(np.array(MEAN_RGB, np.float32) / np.float32(255.0), (height, width, 3))
    style = loaded.styles[0]
    opaque = flatten_on_white(style.rgb, style.alpha)
    scale = max(height / opaque.shape[0], width / opaque.shape[1])  # the smallest that covers the frame
    covering_size = (max(height, math.ceil(opaque.shape[0] * scale)), max(width, math.ceil(opaque.shape[1] * scale)))
    rgb = resize(Picture(opaque, None), *covering_size).rgb
    top, left = (covering_size[0] - height) // 2, (covering_size[1] - width) // 2
    return rgb[top : top + height, left : left + width]


def postprocess(loaded: LoadedJob, image: np.ndarray) -> np.ndarray:
    """Return the final image for the network's image (h, w, 3): colors and masked-out content restored, in [0, 1]."""
    height, width = image.shape[:2]
    content = resize(Picture(loaded.content.rgb, None), height, width).rgb
    rgb: np.ndarray = np.clip(image, 0.0, 1.0)
    if loaded.job.pair.keep_color == "luminance":
        rgb = replace_luminance(content, luminance(rgb))
    if loaded.mask is not None:
        rgb = composite(rgb, content, resize_mask(loaded.mask, height, width))
    return rgb


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """Return the luminance in all three channels, (H, W, 3) -> (H, W, 3)."""
    return np.repeat(luminance(rgb)[..., None], 3, axis=2)


def _match_colors(job: Job, style: Picture, content: Picture) -> Picture:
    """Return a style with the content's colors if the job keeps them, as in Gatys et al. 2016 (arXiv 1606.05897)."""
    if not job.pair.keep_color:
        return style
    opaque = flatten_on_white(style.rgb, style.alpha)  # invisible pixels must not count in the statistics
    if job.pair.keep_color == "luminance":
        luma = match_luminance(luminance(opaque), luminance(content.rgb))
        matched = np.repeat(luma[..., None], 3, axis=2)
    else:
        matched = match_color(opaque, content.rgb)
    return Picture(np.clip(matched, 0.0, 1.0), None)


@functools.cache
def _get_picture_cache() -> ByteLRU:
    return ByteLRU(PICTURE_CACHE_BYTES)


def _load_picture(source: Source, run: Run, size: tuple[int, int] | None = None) -> Picture:
    """Return a decoded image, resized to `size` (height, width) if given, from the cache if it was decoded recently."""

    def make() -> Picture:
        found = _read_verified(source, run, codec.decode)
        picture = resize(found, *size) if size else found
        for plane in (picture.rgb, picture.alpha):
            if plane is not None:
                plane.flags.writeable = False  # shared between threads
        return picture

    cached: Picture = _get_picture_cache().get_or_compute((source.uri, source.sha256, size), make)
    return cached


def _read_verified(source: Source, run: Run, decode: Callable[[bytes, int], T]) -> T:
    data = files.read(source.uri)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise PictureError(f"{source.redact_uri().uri}: changed while the run was going on; run the same command again")
    try:
        return decode(data, run.settings.max_pixels)
    except PictureError as error:
        raise PictureError(f"{source.redact_uri().uri}: {error}") from error
    except MemoryError as error:
        raise PictureError(
            f"{source.redact_uri().uri}: {source.width} x {source.height} pixels do not fit into this machine's memory; "
            "scale it down"
        ) from error
