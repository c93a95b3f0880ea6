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

from nst_tasks import images, storage
from nst_tasks.batching import Job
from nst_tasks.core.architecture import smallest_side
from nst_tasks.core.backbones import MEAN_RGB
from nst_tasks.core.method import Method
from nst_tasks.errors import PictureError
from nst_tasks.images import Picture
from nst_tasks.kept import Kept
from nst_tasks.settings import Run
from nst_tasks.source import Source

T = TypeVar("T")

PICTURES_BYTES = 2**28
"""Size of the cache of decoded images, which the pairs of a grid share: 20 images of 1024 x 1024 pixels."""


@dataclass(frozen=True)
class Loaded:
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


def load(job: Job, run: Run) -> Loaded:
    """Read and decode a job's images.

    Raises:
        PictureError: An image is invalid, too large, or has changed since it was inspected.
        StorageError: An image cannot be read.
    """
    content = _picture(job.content, run, (job.height, job.width))
    styles = tuple(_matched(job, _picture(style, run), content) for style in job.styles)
    mask = None
    if job.mask is not None:
        mask = images.resize_mask(_read(job.mask, run, images.mask), job.height, job.width)
    return Loaded(job, content, styles, mask, None if job.init is None else _picture(job.init, run))


def forget(sources: Iterable[Source]) -> None:
    """Remove these images from the cache of decoded images."""
    given_up = {(source.uri, source.sha256) for source in sources}
    _pictures().forget(lambda key: isinstance(key, tuple) and key[:2] in given_up)


def network_content(ready: Loaded, height: int, width: int) -> np.ndarray:
    """Return the content as the network sees it at a level's size, (height, width, 3)."""
    rgb = images.resize(Picture(ready.content.rgb, None), height, width).rgb
    return gray(rgb) if ready.job.keep_color == "luminance" else rgb


def network_style(ready: Loaded, style: Picture, level: tuple[int, int]) -> np.ndarray:
    """Return a style as the network sees it at a level of this (height, width), transparency on white.

    It keeps its own proportions unless `style_shape` is `content`, which stretches it to the level's size.
    """
    height, width = style_size(ready.job, style.rgb.shape[0], style.rgb.shape[1], level)
    sized = images.resize(style, height, width)
    return images.on_white(sized.rgb, sized.alpha)


def style_size(job: Job, height: int, width: int, level: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) to which a style is resized at a level, large enough for the deepest layer.

    Args:
        height: The style's own height.
        width: The style's own width.
        level: (height, width) of the level.
    """
    method = job.recipe.method
    if method.style_shape == "content":
        return level
    least = math.ceil(smallest_side(method.layers) * max(height, width) / min(height, width))
    return images.fit(height, width, max(*level, least), job.upscale)


def initial(ready: Loaded, method: Method, height: int, width: int) -> np.ndarray:
    """Return the image from which optimization starts at a level's size, (height, width, 3), before noise is added."""
    if ready.initial is not None:
        opaque = images.on_white(ready.initial.rgb, ready.initial.alpha)
        rgb = images.resize(Picture(opaque, None), height, width).rgb
        return gray(rgb) if ready.job.keep_color == "luminance" else rgb
    if method.init == "content":
        return network_content(ready, height, width)
    if method.init == "noise":
        return np.broadcast_to(np.array(MEAN_RGB, np.float32) / np.float32(255.0), (height, width, 3))
    style = ready.styles[0]
    opaque = images.on_white(style.rgb, style.alpha)
    scale = max(height / opaque.shape[0], width / opaque.shape[1])  # the smallest that covers the frame
    covering = (max(height, math.ceil(opaque.shape[0] * scale)), max(width, math.ceil(opaque.shape[1] * scale)))
    rgb = images.resize(Picture(opaque, None), *covering).rgb
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return rgb[top : top + height, left : left + width]


def finished(ready: Loaded, image: np.ndarray) -> np.ndarray:
    """Return the final image for the network's image (h, w, 3): colors and masked-out content restored, in [0, 1]."""
    height, width = image.shape[:2]
    content = images.resize(Picture(ready.content.rgb, None), height, width).rgb
    rgb: np.ndarray = np.clip(image, 0.0, 1.0)
    if ready.job.keep_color == "luminance":
        rgb = images.with_luminance(content, images.luminance(rgb))
    if ready.mask is not None:
        rgb = images.composite(rgb, content, images.resize_mask(ready.mask, height, width))
    return rgb


def gray(rgb: np.ndarray) -> np.ndarray:
    """Return the luminance in all three channels, (H, W, 3) -> (H, W, 3)."""
    return np.repeat(images.luminance(rgb)[..., None], 3, axis=2)


def _matched(job: Job, style: Picture, content: Picture) -> Picture:
    """Return a style with the content's colors if the job keeps them, as in Gatys et al. 2016 (arXiv 1606.05897)."""
    if not job.keep_color:
        return style
    seen = images.on_white(style.rgb, style.alpha)  # invisible pixels must not count in the statistics
    if job.keep_color == "luminance":
        luma = images.match_luminance(images.luminance(seen), images.luminance(content.rgb))
        matched = np.repeat(luma[..., None], 3, axis=2)
    else:
        matched = images.match_color(seen, content.rgb)
    return Picture(np.clip(matched, 0.0, 1.0), None)


@functools.cache
def _pictures() -> Kept:
    return Kept(PICTURES_BYTES)


def _picture(source: Source, run: Run, size: tuple[int, int] | None = None) -> Picture:
    """Return a decoded image, resized to `size` (height, width) if given, from the cache if it was decoded recently."""

    def make() -> Picture:
        found = _read(source, run, images.decode)
        picture = images.resize(found, *size) if size else found
        for plane in (picture.rgb, picture.alpha):
            if plane is not None:
                plane.flags.writeable = False  # shared between threads
        return picture

    kept: Picture = _pictures().get((source.uri, source.sha256, size), make)
    return kept


def _read(source: Source, run: Run, decode: Callable[[bytes, int], T]) -> T:
    data = storage.read(source.uri)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise PictureError(f"{source.redacted().uri}: changed while the run was going on; run the same command again")
    try:
        return decode(data, run.settings.max_pixels)
    except PictureError as error:
        raise PictureError(f"{source.redacted().uri}: {error}") from error
    except MemoryError as error:
        raise PictureError(
            f"{source.redacted().uri}: {source.width} x {source.height} pixels do not fit into this machine's memory; "
            "scale it down"
        ) from error
