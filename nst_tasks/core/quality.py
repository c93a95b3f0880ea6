"""How good a result is, measured apart from the loss that made it: style taken on, content kept.

The yardstick is the same whatever the recipe: features with max pooling and zero padding, of pictures at `SIZE`, at the
recipe's own layers and at some that recipes leave alone. Where a pair has a mask, each position counts by its weight there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nst_tasks.core import backbones, flags
from nst_tasks.core.architecture import smallest_side
from nst_tasks.core.backbones import Backbone

HELD_OUT = ("block2_conv2", "block3_conv2", "block4_conv3")
"""Layers from which recipes draw no style, so that none has learned them by heart; the same for all, so that numbers compare.

The one exception among the presets, `pytorch-tutorial`, uses the first of them.
"""

CONTENT = "block4_conv2"
"""The layer at which what is kept of the content is measured."""

SIZE = 256
"""Longest side, in pixels, at which pictures are compared (smaller ones as they are): features depend on the size."""

SMALLEST_GAP = 1e-5
"""Share of the style's energy up to which a squared distance is rounding: a content so near has no gap that could be closed."""

LINEAR_ALGEBRA = "/CPU:0"
"""Where moments and their distances are computed, in float64: by TensorFlow, whose decompositions take one core each. NumPy's
spread over all cores and wait in a spin, which takes seconds on a busy machine; a GPU gains nothing on matrices this small."""

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601 weights of R, G, B."""

WINDOW, SIGMA = 11, 1.5
"""Pixels across, and standard deviation, of the Gaussian window of the structural similarity."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A layer's features over its positions: mean (C,) and covariance K (C, C), float64."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True, eq=False)
class Target:
    """A Gaussian to compare many others with: mean (C,) and a root F (r, C) of its covariance `F^T F` of rank r, float64."""

    mean: np.ndarray
    root: np.ndarray

    @property
    def energy(self) -> float:
        """The mean squared norm of its vectors, `|m|^2 + tr K`."""
        return float(np.square(self.mean).sum() + np.square(self.root).sum())


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of a style picture: the moments of its features at each layer, and its share of clipped values."""

    layers: Mapping[str, Target]
    clipped: float


@dataclass(frozen=True)
class Quality:
    """The numbers of one result. What a picture is too narrow for, or has nothing to measure of, is left out, or None.

    style_gap: layer -> share of the style gap closed, 1 at the style's statistics, 0 at the content's, below 0 beyond them.
    used, held_out: its means over the recipe's style layers and over `HELD_OUT`. content_cosine: of the features at `CONTENT`.
    luminance_ssim: in [-1, 1]. flags: names among `flags.FLAGS`.
    """

    style_gap: dict[str, float]
    used: float | None
    held_out: float | None
    content_cosine: float | None
    luminance_ssim: float
    flags: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """The numbers, without the flags, for JSON: finite, rounded to 6 digits; what is None is left out."""
        numbers = {
            "style_gap_used": self.used,
            "style_gap_held_out": self.held_out,
            "content_cosine": self.content_cosine,
            "luminance_ssim": self.luminance_ssim,
        }
        gaps = {layer: round(gap, 6) for layer, gap in self.style_gap.items()}
        return {"style_gap": gaps, **{name: round(number, 6) for name, number in numbers.items() if number is not None}}


def moments(backbone: Backbone, picture: np.ndarray, layers: Iterable[str], mask: np.ndarray | None = None) -> Moments:
    """The moments of a picture (H, W, 3) in [0, 1] at these layers and at `HELD_OUT`, to be kept for many comparisons.

    mask: (h, w) in [0, 1] at any size, or None.

    Raises:
        ValueError: the mask is 0 everywhere.
    """
    found = _features(backbone, picture[None], (*layers, *HELD_OUT))
    targets = {layer: target(gaussian(x[0], _fitted(mask, x.shape[1:3]))) for layer, x in found.items()}
    return Moments(targets, flags.clipped(picture, _fitted(mask, picture.shape[:2])))


def measure(
    backbone: Backbone,
    layers: Iterable[str],
    out: np.ndarray,
    content: np.ndarray,
    styles: Sequence[Moments],
    style_weights: Sequence[float],
    mask: np.ndarray | None = None,
    losses: Sequence[np.ndarray] = (),
) -> Quality:
    """Measure one result against its content and its styles.

    layers: the recipe's style layers. out, content: (H, W, 3) finite in [0, 1] at one size, the longest side `SIZE` or less.
    styles: their `moments` at the same layers; style_weights: one each, of any sum above 0. mask: (h, w) in [0, 1] at any size,
    or None; it counts for `out` and `content`. losses: the total loss (steps + 1,) of each level, for the flag `no_progress`.

    Raises:
        ValueError: out and content differ in size, or the mask is 0 everywhere.
    """
    used = tuple(layers)
    found = _features(backbone, np.stack([out, content]), (*used, *HELD_OUT, CONTENT))
    gaps: dict[str, float] = {}
    for layer in dict.fromkeys((*used, *HELD_OUT)):
        targets = [style.layers[layer] for style in styles if layer in style.layers]
        if layer in found and len(targets) == len(styles):
            of_out, of_content = (gaussian(x, _fitted(mask, x.shape[:2])) for x in found[layer])
            gap = style_gap_closed(of_out, of_content, targets, style_weights)
            if gap is not None:
                gaps[layer] = gap
    weight = _fitted(mask, out.shape[:2])
    kept = None
    if CONTENT in found:
        of_out, of_content = found[CONTENT]
        kept = cosine(of_out, of_content, _fitted(mask, of_out.shape[:2]))
    return Quality(
        style_gap=gaps,
        used=_mean(gaps, used),
        held_out=_mean(gaps, HELD_OUT),
        content_cosine=kept,
        luminance_ssim=luminance_ssim(out, content, weight),
        flags=flags.find(out, content, [style.clipped for style in styles], losses, weight),
    )


def gaussian(x: np.ndarray, weight: np.ndarray | None = None) -> Gaussian:
    """Mean and covariance of features (h, w, C), each position counting by its weight (h, w), or alike for None."""
    share = np.ones(x.shape[:2]) if weight is None else weight
    with tf.device(LINEAR_ALGEBRA):
        flat = tf.reshape(tf.cast(x, tf.float64), (-1, x.shape[-1]))  # (h*w, C)
        part = tf.reshape(tf.constant(share / share.sum(), tf.float64), (-1, 1))  # (h*w, 1)
        mean = tf.reduce_sum(part * flat, axis=0)
        rows = tf.sqrt(part) * (flat - mean)
        return Gaussian(mean.numpy(), tf.matmul(rows, rows, transpose_a=True).numpy())


def target(features: Gaussian) -> Target:
    """The Gaussian with its covariance factored, of as many rows as its rank."""
    with tf.device(LINEAR_ALGEBRA):
        values, vectors = (x.numpy() for x in tf.linalg.eigh(features.covariance))
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]  # below the rounding of the largest lies noise
    return Target(features.mean, np.sqrt(values[kept])[:, None] * vectors[:, kept].T)


def squared_frechet_distance(x: Gaussian, target: Target) -> float:
    """Squared 2-Wasserstein distance `|m - m*|^2 + tr(K + K* - 2 (K*^1/2 K K*^1/2)^1/2)` of two Gaussians.

    Its last trace is the sum of the square roots of the eigenvalues of `F K F^T` for any root F of `K* = F^T F`: of as many as
    the target has ranks, so that covariances of few positions need no ridge.
    Source: Dowson and Landau 1982; Olkin and Pukelsheim 1982.
    """
    with tf.device(LINEAR_ALGEBRA):
        product = tf.matmul(tf.matmul(target.root, x.covariance), target.root, transpose_b=True)  # (r, r)
        cross = np.sqrt(np.maximum(tf.linalg.eigvalsh(product).numpy(), 0.0)).sum()
    shift = np.square(x.mean - target.mean).sum()
    return max(float(shift + np.trace(x.covariance) + np.square(target.root).sum() - 2.0 * cross), 0.0)


def style_gap_closed(
    out: Gaussian, content: Gaussian, styles: Sequence[Target], style_weights: Sequence[float]
) -> float | None:
    """`1 - d(out) / d(content)`, d the mean of the Fréchet distances to the styles by their weights.

    The distances themselves, not their squares: those would call nine tenths closed what has come two thirds of the way.
    None where the content lies at the styles already, to rounding (`SMALLEST_GAP` of the styles' mean `|m*|^2 + tr K*`).
    """

    def over_styles(values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=style_weights))

    gap = over_styles(math.sqrt(squared_frechet_distance(content, style)) for style in styles)
    if gap**2 <= SMALLEST_GAP * over_styles(style.energy for style in styles):
        return None
    return 1.0 - over_styles(math.sqrt(squared_frechet_distance(out, style)) for style in styles) / gap


def cosine(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    """Cosine `<a, b> / (|a| |b|)` of features (h, w, C), each position counting by its weight (h, w); None if one is all 0."""
    share = 1.0 if weight is None else weight[..., None]
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.sqrt(np.sum(share * x * x) * np.sum(share * y * y))
    return float(np.sum(share * x * y) / norms) if norms > 0 else None


def luminance_ssim(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean structural similarity of the luminances of two pictures (H, W, 3) in [0, 1] (Wang et al. 2004).

    `(2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2))` over a Gaussian window of 11 x 11 pixels,
    sigma 1.5, with `C1 = 0.01^2` and `C2 = 0.03^2`. Unlike the paper's, the mean runs over every pixel, mirrored at the border,
    so that pictures smaller than the window and masks have one too; weight (H, W), or None for 1.
    """
    x, y = a.astype(np.float64) @ LUMA, b.astype(np.float64) @ LUMA  # (H, W)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y, covariance = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2, _blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    same = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(np.average(same, weights=weight))


def _blurred(x: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W) under the window, mirrored at the border."""
    taps = np.exp(-0.5 * np.square((np.arange(WINDOW) - WINDOW // 2) / SIGMA))
    taps /= taps.sum()
    for _ in range(2):  # along one axis, then along the other
        padded = np.pad(x, ((WINDOW // 2, WINDOW // 2), (0, 0)), "symmetric")
        x = sum(tap * padded[k : k + len(x)] for k, tap in enumerate(taps)).T
    return x


def _features(backbone: Backbone, pictures: np.ndarray, layers: Iterable[str]) -> dict[str, np.ndarray]:
    """Features (B, h, w, C) at those layers that leave pictures (B, H, W, 3) two positions or more on each side."""
    seen = [layer for layer in layers if min(pictures.shape[1:3]) >= smallest_side([layer])]
    if not seen:
        return {}
    found = backbones.features(backbone, tf.constant(pictures, tf.float32), seen, pooling="max", padding="zero")
    return {layer: x.numpy() for layer, x in found.items()}


def _fitted(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask (h, w) at another size by averages over areas, so that no part of it is lost on the way down; None stays None."""
    if mask is None:
        return None
    if not mask.any():
        raise ValueError("mask: it is 0 everywhere, so there is nothing to measure; leave it out or let some of it be above 0")
    resized: np.ndarray = tf.image.resize(mask[None, ..., None], shape, "area").numpy()[0, ..., 0]
    return resized.astype(np.float64)


def _mean(gaps: Mapping[str, float], layers: Iterable[str]) -> float | None:
    found = [gaps[layer] for layer in layers if layer in gaps]
    return float(np.mean(found)) if found else None
