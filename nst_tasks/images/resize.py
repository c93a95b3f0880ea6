"""Resize images and masks with antialiasing, and blend a stylized image with its content by a mask."""

from __future__ import annotations

import numpy as np
from PIL import Image

from nst_tasks.images.picture import MIN_VISIBLE_ALPHA, Picture


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask (H, W) to (height, width), float32 in [0, 1]; return the same array if it has that size.

    The antialiasing kernel is a triangle: the ripples of Lanczos would stylize black areas beside an edge.
    """
    if mask.shape == (height, width):
        return mask
    resampled = _resample(mask[..., None], height, width, Image.Resampling.BILINEAR)[..., 0]
    clipped: np.ndarray = np.clip(resampled, 0, 1)  # removes rounding errors
    return clipped


def composite(stylized: np.ndarray, content: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blend two images (H, W, 3) by a mask (H, W) in [0, 1]: (H, W, 3) float32.

    `mask * stylized + (1 - mask) * content`; where the mask is 1 or 0, pixels are bit-identical to `stylized` or `content`.
    """
    weight = mask.astype(np.float32)[..., None]  # (H, W, 1)
    mixed: np.ndarray = weight * stylized + (1 - weight) * content
    return mixed.astype(np.float32)


def fit_size(height: int, width: int, size: int, upscale: bool) -> tuple[int, int]:
    """Return the (height, width) in pixels with longest side `size` and the same aspect; enlarge only if `upscale`."""
    longest = max(height, width)
    if size >= longest and not upscale:
        return height, width
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def has_same_aspect(height: int, width: int, other_height: int, other_width: int) -> bool:
    """Return whether two sizes in pixels have the same aspect, within 1 % or within a pixel of rounding of either image."""
    cross_product, other_cross_product = width * other_height, height * other_width
    return abs(cross_product - other_cross_product) <= max(
        0.01 * max(cross_product, other_cross_product), height, width, other_height, other_width
    )


def resize(picture: Picture, height: int, width: int) -> Picture:
    """Resize a picture to (height, width) by antialiased Lanczos in float32; return the same one if it has that size.

    Colors are weighted by alpha, so that invisible pixels do not bleed into visible ones.
    """
    if picture.rgb.shape[:2] == (height, width):
        return picture
    rgb, alpha = _resample_lanczos(picture.rgb, height, width), None
    if picture.alpha is not None:
        resized_alpha = _resample_lanczos(picture.alpha[..., None], height, width)  # (height, width, 1)
        weighted = _resample_lanczos(picture.rgb * picture.alpha[..., None], height, width)
        rgb = np.where(resized_alpha > MIN_VISIBLE_ALPHA, weighted / np.maximum(resized_alpha, MIN_VISIBLE_ALPHA), rgb)
        alpha = np.clip(resized_alpha[..., 0], 0, 1)
    return Picture(np.clip(rgb, 0, 1), alpha)


def _resample_lanczos(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    return _resample(planes, height, width, Image.Resampling.LANCZOS)


def _resample(planes: np.ndarray, height: int, width: int, kernel: Image.Resampling) -> np.ndarray:
    """Resample each channel of (H, W, C) float32 to (height, width, C), not clipped."""
    channels = (Image.fromarray(np.ascontiguousarray(planes[..., c], np.float32)) for c in range(planes.shape[-1]))
    return np.stack([np.asarray(c.resize((width, height), kernel)) for c in channels], axis=-1)
