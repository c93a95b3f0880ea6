"""Luminance and color matching of RGB arrays, after Gatys et al. 2016 (arXiv 1606.05897)."""

from __future__ import annotations

import numpy as np

_REC601_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


_MIN_COLOR_VARIANCE = 1 / 255**2
"""Square of an 8-bit step: a smaller variance is indistinguishable from rounding."""


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Return the Rec. 601 luma Y = 0.299 R + 0.587 G + 0.114 B: (H, W, 3) in [0, 1] -> (H, W) float32."""
    return rgb.astype(np.float32) @ _REC601_WEIGHTS


def replace_luminance(rgb: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """Replace an image's luma and keep its YIQ chroma: (H, W, 3) and (H, W) -> (H, W, 3) float32 in [0, 1].

    This is the luminance-only transfer of Gatys et al. 2016 (arXiv 1606.05897). In YIQ each of R, G, B is Y plus a linear
    function of I and Q, so a new Y shifts all three channels by the same amount. Where the shifted color would leave [0, 1],
    I and Q are scaled down together by the least that suffices: this preserves hue and luma, clipping each channel would not.
    """
    luma = np.clip(luma, 0, 1).astype(np.float32)
    chroma = rgb - luminance(rgb)[..., None]  # (H, W, 3)
    above, below = (np.maximum(extreme, 1e-12) for extreme in (chroma.max(axis=-1), -chroma.min(axis=-1)))
    scale = np.minimum(1, np.minimum((1 - luma) / above, luma / below))
    shifted: np.ndarray = np.clip(luma[..., None] + scale[..., None] * chroma, 0, 1)  # removes rounding errors
    return shifted.astype(np.float32)


def match_color(style: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Map the style's colors so that their mean m and covariance K equal the content's.

    `K_content^1/2 K_style^-1/2 (x - m_style) + m_content`, for rgb (H, W, 3) in [0, 1] of any two sizes -> the style's shape,
    float32. This is the color matching of Gatys et al. 2016 (arXiv 1606.05897) with symmetric roots, which, unlike Cholesky
    factors, treat R, G and B alike. Along axes whose standard deviation is below an 8-bit step, we divide by a step instead,
    so that rounding is not amplified: a gray style becomes shades of one color, a flat one the content's mean. The result is
    not clipped to [0, 1]; clipping it for display makes the statistics inexact.
    """
    mean, covariance, centered = _color_statistics(style)
    content_mean, content_covariance, _ = _color_statistics(content)
    variances, axes = np.linalg.eigh(covariance)
    whitening = axes / np.sqrt(np.maximum(variances, _MIN_COLOR_VARIANCE)) @ axes.T
    variances, axes = np.linalg.eigh(content_covariance)
    coloring = axes * np.sqrt(np.maximum(variances, 0)) @ axes.T
    matched: np.ndarray = centered @ (coloring @ whitening).T.astype(np.float32) + content_mean.astype(np.float32)
    return matched.reshape(style.shape)


def _color_statistics(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean (3,) and covariance (3, 3) of the colors of (H, W, 3), float64, and the centered colors (H W, 3), float32."""
    colors = rgb.reshape(-1, 3).astype(np.float32)
    mean = colors.mean(axis=0, dtype=np.float64)
    centered = colors - mean.astype(np.float32)
    return mean, (centered.T @ centered).astype(np.float64) / len(centered), centered


def match_luminance(luma: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Match the mean and standard deviation of a luma (H, W) to those of another of any size: (H, W) float32, not clipped.

    `sd(like) / sd(luma) * (luma - mean(luma)) + mean(like)`, after arXiv 1606.05897; a flat luma is only shifted.
    """
    deviation = luma.std(dtype=np.float64)
    scale = reference.std(dtype=np.float64) / deviation if deviation > 0 else 1.0
    matched: np.ndarray = scale * (luma - luma.mean(dtype=np.float64)) + reference.mean(dtype=np.float64)
    return matched.astype(np.float32)
