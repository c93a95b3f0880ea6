"""How good a result is, measured apart from the loss that made it: style taken on, content kept.

The yardstick is the same whatever the recipe: features with max pooling and zero padding, of pictures at `SIZE`, at the
recipe's own layers and at some that recipes leave alone. Where a pair has a mask, each position counts by its weight there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Gaussian(NamedTuple):
    """A layer's features over its positions: mean (C,) and covariance K (C, C), float64."""

    mean: tf.Tensor
    covariance: tf.Tensor


class Target(NamedTuple):
    """A Gaussian to compare many others with: mean (C,) and a root F (r, C) of its covariance `F^T F` of rank r, float64."""

    mean: tf.Tensor
    root: tf.Tensor

    @property
    def energy(self) -> float:
        """The mean squared norm of its vectors, `|m|^2 + tr K`."""
        return float(np.square(self.mean).sum() + np.square(self.root).sum())


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of a style picture: the moments of its features at each layer, and its share of clipped values."""

    layers: Mapping[str, Target]
    clipped: float


class Luminance(NamedTuple):
    """A picture's luminance (H, W), and its mean and variance under the window about each pixel."""

    value: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True, eq=False)
class Content:
    """What is kept of a content picture (H, W, 3): the moments of its features, and those at `CONTENT`, (h, w, C) or None.

    mask: (h, w) in [0, 1] at any size, how much each position counts, of a result too; None for 1.
    """

    picture: np.ndarray
    luminance: Luminance
    layers: Mapping[str, Gaussian]
    features: np.ndarray | None
    mask: np.ndarray | None


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
    """The moments of a style (H, W, 3) in [0, 1] at these layers and at `HELD_OUT`, to be kept for many comparisons.

    mask: (h, w) in [0, 1] at any size, or None.

    Raises:
        ValueError: the mask is 0 everywhere.
    """
    clipped = flags.clipped(picture, _fitted(mask, picture.shape[:2]))
    found, _ = _statistics(backbone, picture, layers, mask)
    return Moments({layer: target(of_layer) for layer, of_layer in found.items()}, clipped)


def content(backbone: Backbone, picture: np.ndarray, layers: Iterable[str], mask: np.ndarray | None = None) -> Content:
    """The same of a content, for as many results; its mask counts for them too.

    Raises:
        ValueError: the mask is 0 everywhere.
    """
    return Content(picture, luminance(picture), *_statistics(backbone, picture, layers, mask), mask)


def measure(
    backbone: Backbone,
    layers: Iterable[str],
    out: np.ndarray,
    content: Content,
    styles: Sequence[Moments],
    style_weights: Sequence[float],
    losses: Sequence[np.ndarray] = (),
) -> Quality:
    """Measure one result against its content and its styles.

    layers: the recipe's style layers, at which `content` and `moments` were taken. out: (H, W, 3) finite in [0, 1] at the
    content's size, the longest side `SIZE` or less. style_weights: one each, of any sum above 0. losses: the total loss
    (steps + 1,) of each level, for the flag `no_progress`.

    Raises:
        ValueError: out and content differ in size.
    """
    if out.shape != content.picture.shape:
        raise ValueError(f"out: its shape is {out.shape}, the content's is {content.picture.shape}")
    used = tuple(layers)
    found, features = _statistics(backbone, out, used, content.mask)
    compared = tuple(layer for layer in found if all(layer in style.layers for style in styles))
    of_both = [{layer: x[layer] for layer in compared} for x in (found, content.layers)]
    distances = [
        _distances(compared)(*of_both, {layer: style.layers[layer] for layer in compared}).numpy()
        for style in styles
        if compared
    ]  # S times (L, 2)
    gaps: dict[str, float] = {}
    for k, layer in enumerate(compared):
        gap = gap_closed([each[k] for each in distances], [style.layers[layer] for style in styles], style_weights)
        if gap is not None:
            gaps[layer] = gap
    weight = _fitted(content.mask, out.shape[:2])
    kept = None
    if features is not None and content.features is not None:
        kept = cosine(features, content.features, _fitted(content.mask, features.shape[:2]))
    return Quality(
        style_gap=gaps,
        used=_mean(gaps, used),
        held_out=_mean(gaps, HELD_OUT),
        content_cosine=kept,
        luminance_ssim=luminance_ssim(luminance(out), content.luminance, weight),
        flags=flags.find(out, content.picture, [style.clipped for style in styles], losses, weight),
    )


def gaussian(x: tf.Tensor, weight: tf.Tensor | None = None) -> Gaussian:
    """Mean and covariance of features (h, w, C), each position counting by its weight (h, w), or alike for None."""
    flat = tf.reshape(tf.cast(x, tf.float64), (-1, x.shape[-1]))  # (h*w, C)
    if weight is None:  # without the weights, of which each would be a pass over all features
        # nor subtract the mean: features are 0 or more, and so their means not far above their deviations
        mean = tf.reduce_mean(flat, axis=0)
        square = tf.matmul(flat, flat, transpose_a=True) / tf.cast(tf.shape(flat)[0], tf.float64)
        return Gaussian(mean, square - mean[:, None] * mean)
    part = tf.reshape(tf.cast(weight, tf.float64), (-1, 1))  # (h*w, 1)
    part = part / tf.reduce_sum(part)
    mean = tf.reduce_sum(part * flat, axis=0)
    rows = tf.sqrt(part) * (flat - mean)
    return Gaussian(mean, tf.matmul(rows, rows, transpose_a=True))


def target(features: Gaussian) -> Target:
    """The Gaussian with its covariance factored, of as many rows as its rank."""
    with tf.device(LINEAR_ALGEBRA):
        values, vectors = (x.numpy() for x in tf.linalg.eigh(features.covariance))
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]  # below the rounding of the largest lies noise
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    return Target(tf.convert_to_tensor(features.mean), tf.convert_to_tensor(root))


def squared_frechet_distance(x: Gaussian, target: Target) -> tf.Tensor:
    """Squared 2-Wasserstein distance `|m - m*|^2 + tr(K + K* - 2 (K*^1/2 K K*^1/2)^1/2)` of two Gaussians, float64.

    Its last trace is the sum of the square roots of the eigenvalues of `F K F^T` for any root F of `K* = F^T F`: of as many as
    the target has ranks, so that covariances of few positions need no ridge. Leading axes of `x` are kept.
    Source: Dowson and Landau 1982; Olkin and Pukelsheim 1982.
    """
    product = tf.matmul(tf.matmul(target.root, x.covariance), target.root, transpose_b=True)  # (..., r, r)
    cross = tf.reduce_sum(tf.sqrt(tf.maximum(tf.linalg.eigvalsh(product), 0.0)), axis=-1)
    shift = tf.reduce_sum(tf.square(x.mean - target.mean), axis=-1)
    return tf.maximum(shift + tf.linalg.trace(x.covariance) + tf.reduce_sum(tf.square(target.root)) - 2.0 * cross, 0.0)


def gap_closed(distances: Sequence[np.ndarray], styles: Sequence[Target], style_weights: Sequence[float]) -> float | None:
    """`1 - d(out) / d(content)`, d the mean of the Fréchet distances to the styles by their weights.

    distances: for each style, squared, of out and of content. The share is one of distances: of their squares, nine tenths
    would be called closed where two thirds of the way are gone.
    None where the content lies at the styles already, to rounding (`SMALLEST_GAP` of the styles' mean `|m*|^2 + tr K*`).
    """
    left, gap = np.average(np.sqrt(distances), axis=0, weights=style_weights)
    if gap**2 <= SMALLEST_GAP * np.average([style.energy for style in styles], weights=style_weights):
        return None
    return float(1.0 - left / gap)


def cosine(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    """Cosine `<a, b> / (|a| |b|)` of features (h, w, C), each position counting by its weight (h, w); None if one is all 0."""

    def product(x: np.ndarray, y: np.ndarray) -> float:
        by_position = np.vecdot(x, y)  # (h, w)
        return float(np.sum(by_position if weight is None else weight * by_position, dtype=np.float64))

    norms = np.sqrt(product(a, a) * product(b, b))
    return float(product(a, b) / norms) if norms > 0 else None


def luminance(picture: np.ndarray) -> Luminance:
    """What `luminance_ssim` compares of a picture (H, W, 3) in [0, 1]."""
    x = picture.astype(np.float64) @ LUMA
    mean = _blurred(x)
    return Luminance(x, mean, _blurred(x * x) - mean**2)


def luminance_ssim(x: Luminance, y: Luminance, weight: np.ndarray | None = None) -> float:
    """Mean structural similarity of the luminances of two pictures of one size (Wang et al. 2004).

    `(2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2))` over a Gaussian window of 11 x 11 pixels,
    sigma 1.5, with `C1 = 0.01^2` and `C2 = 0.03^2`. Unlike the paper's, the mean runs over every pixel, mirrored at the border,
    so that pictures smaller than the window and masks have one too; weight (H, W), or None for 1.
    """
    c1, c2 = 0.01**2, 0.03**2
    product = x.mean * y.mean
    covariance = _blurred(x.value * y.value) - product
    same = (2 * product + c1) * (2 * covariance + c2) / ((x.mean**2 + y.mean**2 + c1) * (x.variance + y.variance + c2))
    return float(np.average(same, weights=weight))


def _blurred(x: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W) under the window, mirrored at the border."""
    half = WINDOW // 2
    taps = np.exp(-0.5 * np.square(np.arange(-half, half + 1) / SIGMA))
    taps /= taps.sum()
    for _ in range(2):  # along one axis, then along the other
        padded = np.pad(x, ((0, 0), (half, half)), "symmetric")
        # all rows as one: where the window reaches into the next lies what is cut off
        x = np.convolve(padded.ravel(), taps, "same").reshape(padded.shape)[:, half:-half].T
    return x


def _statistics(
    backbone: Backbone, picture: np.ndarray, layers: Iterable[str], mask: np.ndarray | None
) -> tuple[dict[str, Gaussian], np.ndarray | None]:
    """Gaussians at these layers and at `HELD_OUT`, features at `CONTENT`: where a picture has two positions or more a side."""

    def seen(layers: Iterable[str]) -> tuple[str, ...]:
        return tuple(layer for layer in dict.fromkeys(layers) if min(picture.shape[:2]) >= smallest_side([layer]))

    weight = np.ones((1, 1)) if mask is None else _some(mask)
    measured, kept = seen((*layers, *HELD_OUT)), seen([CONTENT])
    if not measured:
        return {}, None
    graph = _compiled(backbone, measured, kept, mask is not None)
    found, features = graph(tf.constant(picture[None], tf.float32), tf.constant(weight, tf.float32))
    return {layer: found[layer] for layer in measured}, features[CONTENT].numpy() if kept else None


@functools.lru_cache(maxsize=32)
def _compiled(
    backbone: Backbone, measured: tuple[str, ...], kept: tuple[str, ...], masked: bool
) -> tf.types.experimental.PolymorphicFunction:
    """The graph of the Gaussians at the layers that are measured and of the features at those that are kept, for any size."""

    # nothing in it loops or branches on a tensor: to look for that would take longer than the tracing
    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3)), tf.TensorSpec((None, None))], autograph=False)
    def statistics(picture, mask):
        features = backbones.features(backbone, picture, (*measured, *kept), pooling="max", padding="zero")
        found = {}
        with tf.device(LINEAR_ALGEBRA):
            for layer in measured:
                x = features[layer][0]  # (h, w, C)
                weight = tf.image.resize(mask[None, ..., None], tf.shape(x)[:2], "area")[0, ..., 0] if masked else None
                found[layer] = gaussian(x, weight)
        return found, {layer: features[layer][0] for layer in kept}

    return statistics


_GAUSSIAN = Gaussian(tf.TensorSpec((None,), tf.float64), tf.TensorSpec((None, None), tf.float64))
_TARGET = Target(tf.TensorSpec((None,), tf.float64), tf.TensorSpec((None, None), tf.float64))


@functools.lru_cache(maxsize=32)
def _distances(layers: tuple[str, ...]) -> tf.types.experimental.ConcreteFunction:
    """The graph of squared distances (L, 2) of an out's and a content's Gaussians to a style's, at each of these layers."""

    @tf.function(input_signature=[dict.fromkeys(layers, _GAUSSIAN)] * 2 + [dict.fromkeys(layers, _TARGET)], autograph=False)
    def distances(out, content, style):
        with tf.device(LINEAR_ALGEBRA):
            return tf.stack(
                [
                    squared_frechet_distance(
                        Gaussian(*map(tf.stack, zip(out[layer], content[layer], strict=True))), style[layer]
                    )
                    for layer in layers
                ]
            )

    return distances.get_concrete_function()  # to bind some 40 tensors takes it half as long


def _some(mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        raise ValueError("mask: it is 0 everywhere, so there is nothing to measure; leave it out or let some of it be above 0")
    return mask


def _fitted(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask (h, w) at another size by averages over areas, so that no part of it is lost on the way down; None stays None."""
    if mask is None:
        return None
    resized: np.ndarray = tf.image.resize(_some(mask)[None, ..., None], shape, "area").numpy()[0, ..., 0]
    return resized.astype(np.float64)


def _mean(gaps: Mapping[str, float], layers: Iterable[str]) -> float | None:
    found = [gaps[layer] for layer in layers if layer in gaps]
    return float(np.mean(found)) if found else None
