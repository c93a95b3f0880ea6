"""Quality metrics of a result, independent of the loss that produced it: style transferred, content preserved.

All recipes are measured in the same way: features with max pooling and zero padding, of images at
`COMPARISON_SIDE_PIXELS`, at the recipe's own style layers and at held-out ones. If a pair has a mask, it weights each position.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nst_tasks.core import vgg
from nst_tasks.core.flags import clipped_share, find_flags
from nst_tasks.core.vgg import Backbone
from nst_tasks.core.vgg_layers import min_side

HELD_OUT_LAYERS = ("block2_conv2", "block3_conv2", "block4_conv3")
"""Layers that recipes take no style from, so that none is fitted to them; the same for all recipes, so that numbers compare.

One preset is an exception: `pytorch-tutorial` uses the first of them.
"""

CONTENT_LAYER = "block4_conv2"
"""Layer at which the preservation of content is measured."""

COMPARISON_SIDE_PIXELS = 256
"""Longest side, in pixels, at which images are compared, because features depend on it; smaller images keep their size."""

MIN_GAP_SHARE = 1e-5
"""Squared distance, as a share of the style's energy, up to which it is rounding error: there is no gap to close."""

LINALG_DEVICE = "/CPU:0"
"""Device on which TensorFlow computes moments and their distances, in float64.

TensorFlow's decompositions take one core each. NumPy's use all cores and busy-wait, which takes seconds on a loaded machine. A
GPU gains nothing on matrices this small.
"""

LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Rec. 601 luma weights of R, G, B."""

SSIM_WINDOW_PIXELS, SSIM_SIGMA_PIXELS = 11, 1.5
"""Width and standard deviation, in pixels, of the Gaussian window of the structural similarity."""


class Gaussian(NamedTuple):
    """Mean (C,) and covariance K (C, C) of a layer's features over its positions, float64."""

    mean: tf.Tensor
    covariance: tf.Tensor


class FactoredGaussian(NamedTuple):
    """Gaussian prepared for many comparisons: mean (C,) and root F (r, C) of its covariance `F^T F` of rank r, float64."""

    mean: tf.Tensor
    root: tf.Tensor

    @property
    def energy(self) -> float:
        """Mean squared norm `|m|^2 + tr K` of the features."""
        return float(np.square(self.mean).sum() + np.square(self.root).sum())


@dataclass(frozen=True, eq=False)
class StyleMoments:
    """Cached statistics of a style image: the moments of its features at each layer, and its share of clipped values."""

    layers: Mapping[str, FactoredGaussian]
    clipped_share: float


class Luminance(NamedTuple):
    """Luminance (H, W) of an image, and its mean and variance under the window around each pixel."""

    value: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True, eq=False)
class ContentMoments:
    """Cached statistics of a content image (H, W, 3): moments of its features, and those at `CONTENT_LAYER`, (h, w, C) or None.

    mask: weight (h, w) in [0, 1] of each position, at any size, used for results too; None weights all by 1.
    """

    image: np.ndarray
    luminance: Luminance
    layers: Mapping[str, Gaussian]
    features: np.ndarray | None
    mask: np.ndarray | None


@dataclass(frozen=True)
class Quality:
    """Metrics of one result; a metric without enough to measure, such as on too small an image, is left out or None.

    style_gap: layer -> share of the style gap closed, 1 at the style's statistics, 0 at the content's, below 0 beyond these.
    used, held_out: means of `style_gap` over the recipe's style layers and over `HELD_OUT_LAYERS`. content_cosine: cosine of
    the features at `CONTENT_LAYER`. luminance_ssim: in [-1, 1]. flags: names from `flags.FLAGS`.
    """

    style_gap: dict[str, float]
    used: float | None
    held_out: float | None
    content_cosine: float | None
    luminance_ssim: float
    flags: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """Return the metrics without the flags, for JSON: finite and rounded to 6 digits, without the ones that are None."""
        numbers = {
            "style_gap_used": self.used,
            "style_gap_held_out": self.held_out,
            "content_cosine": self.content_cosine,
            "luminance_ssim": self.luminance_ssim,
        }
        gaps = {layer: round(gap, 6) for layer, gap in self.style_gap.items()}
        return {"style_gap": gaps, **{name: round(number, 6) for name, number in numbers.items() if number is not None}}


def style_moments(backbone: Backbone, image: np.ndarray, layers: Iterable[str], mask: np.ndarray | None = None) -> StyleMoments:
    """Return the statistics of a style (H, W, 3) in [0, 1] at these layers and at `HELD_OUT_LAYERS`, to be cached.

    Args:
        layers: The recipe's style layers.
        mask: Weight (h, w) in [0, 1] of each position, at any size; None weights all by 1.

    Raises:
        ValueError: The mask is 0 everywhere.
    """
    share = clipped_share(image, _resize_mask(mask, image.shape[:2]))
    gaussians, _ = _measure_features(backbone, image, layers, mask)
    return StyleMoments({layer: factor_gaussian(of_layer) for layer, of_layer in gaussians.items()}, share)


def content_moments(
    backbone: Backbone, image: np.ndarray, layers: Iterable[str], mask: np.ndarray | None = None
) -> ContentMoments:
    """Return the statistics of a content (H, W, 3) in [0, 1] for any number of results; arguments as for `style_moments`.

    Raises:
        ValueError: The mask is 0 everywhere.
    """
    return ContentMoments(image, luminance(image), *_measure_features(backbone, image, layers, mask), mask)


def measure(
    backbone: Backbone,
    layers: Iterable[str],
    out: np.ndarray,
    content: ContentMoments,
    styles: Sequence[StyleMoments],
    style_weights: Sequence[float],
    losses: Sequence[np.ndarray] = (),
) -> Quality:
    """Measure one result against its content and its styles.

    Args:
        layers: The recipe's style layers, at which `content_moments` and `style_moments` were computed.
        out: The result, (H, W, 3) finite in [0, 1], at the content's size, at most `COMPARISON_SIDE_PIXELS` long.
        style_weights: One for each style, with any sum above 0.
        losses: The total loss (steps + 1,) of each level, for the flag `no_progress`.

    Raises:
        ValueError: The sizes of `out` and `content_moments` differ.
    """
    if out.shape != content.image.shape:
        raise ValueError(f"out: its shape is {out.shape}, the content's is {content.image.shape}")
    style_layers = tuple(layers)
    gaussians, features = _measure_features(backbone, out, style_layers, content.mask)
    compared_layers = tuple(layer for layer in gaussians if all(layer in style.layers for style in styles))
    result_and_content = [{layer: x[layer] for layer in compared_layers} for x in (gaussians, content.layers)]
    distances = [
        _build_distance_graph(compared_layers)(
            *result_and_content, {layer: style.layers[layer] for layer in compared_layers}
        ).numpy()
        for style in styles
        if compared_layers
    ]  # S times (L, 2)
    gaps: dict[str, float] = {}
    for k, layer in enumerate(compared_layers):
        gap = gap_closed([each[k] for each in distances], [style.layers[layer] for style in styles], style_weights)
        if gap is not None:
            gaps[layer] = gap
    weight = _resize_mask(content.mask, out.shape[:2])
    content_cosine = None
    if features is not None and content.features is not None:
        content_cosine = cosine(features, content.features, _resize_mask(content.mask, features.shape[:2]))
    return Quality(
        style_gap=gaps,
        used=_mean_gap(gaps, style_layers),
        held_out=_mean_gap(gaps, HELD_OUT_LAYERS),
        content_cosine=content_cosine,
        luminance_ssim=luminance_ssim(luminance(out), content.luminance, weight),
        flags=find_flags(out, content.image, [style.clipped_share for style in styles], losses, weight),
    )


def gaussian(x: tf.Tensor, weight: tf.Tensor | None = None) -> Gaussian:
    """Return mean and covariance of features (h, w, C), each position weighted by `weight` (h, w), or all equally for None."""
    flat = tf.reshape(tf.cast(x, tf.float64), (-1, x.shape[-1]))  # (h*w, C)
    if weight is None:  # faster: each use of weights would be another pass over all features
        # E[f f^T] - m m^T loses few digits here: features are 0 or more, so their means are not far above their deviations
        mean = tf.reduce_mean(flat, axis=0)
        square = tf.matmul(flat, flat, transpose_a=True) / tf.cast(tf.shape(flat)[0], tf.float64)
        return Gaussian(mean, square - mean[:, None] * mean)
    share = tf.reshape(tf.cast(weight, tf.float64), (-1, 1))  # (h*w, 1)
    share = share / tf.reduce_sum(share)
    mean = tf.reduce_sum(share * flat, axis=0)
    rows = tf.sqrt(share) * (flat - mean)
    return Gaussian(mean, tf.matmul(rows, rows, transpose_a=True))


def factor_gaussian(features: Gaussian) -> FactoredGaussian:
    """Return the Gaussian with its covariance factored; the root has as many rows as the covariance has rank."""
    with tf.device(LINALG_DEVICE):
        values, vectors = (x.numpy() for x in tf.linalg.eigh(features.covariance))
    is_significant = (
        values > len(values) * np.finfo(np.float64).eps * values[-1]
    )  # smaller ones are the largest's rounding error
    root = np.sqrt(values[is_significant])[:, None] * vectors[:, is_significant].T
    return FactoredGaussian(tf.convert_to_tensor(features.mean), tf.convert_to_tensor(root))


def squared_frechet_distance(x: Gaussian, style: FactoredGaussian) -> tf.Tensor:
    """Return the squared 2-Wasserstein distance `|m - m*|^2 + tr(K + K* - 2 (K*^1/2 K K*^1/2)^1/2)` of two Gaussians, float64.

    The trace of the last root is the sum of the square roots of the eigenvalues of `F K F^T`, for any root F of `K* = F^T F`.
    There are as many as the rank of `K*`, so that covariances from few positions need no ridge. Leading axes of `x` are
    preserved.
    Source: Dowson and Landau 1982; Olkin and Pukelsheim 1982.
    """
    product = tf.matmul(tf.matmul(style.root, x.covariance), style.root, transpose_b=True)  # (..., r, r)
    cross = tf.reduce_sum(tf.sqrt(tf.maximum(tf.linalg.eigvalsh(product), 0.0)), axis=-1)
    shift = tf.reduce_sum(tf.square(x.mean - style.mean), axis=-1)
    return tf.maximum(shift + tf.linalg.trace(x.covariance) + tf.reduce_sum(tf.square(style.root)) - 2.0 * cross, 0.0)


def gap_closed(
    distances: Sequence[np.ndarray], styles: Sequence[FactoredGaussian], style_weights: Sequence[float]
) -> float | None:
    """Return the share of the style gap closed, `1 - d(out) / d(content)`, with d the mean Fréchet distance to the styles.

    The share is None if the content is already at the styles, to rounding: `d(content)^2` is at most `MIN_GAP_SHARE` of the
    styles' mean `|m*|^2 + tr K*`. d is weighted by `style_weights` and not squared: squares would count two thirds of the way
    as nearly nine tenths.

    Args:
        distances: For each style, the squared distances of out and of content, (2,).
    """
    remaining, gap = np.average(np.sqrt(distances), axis=0, weights=style_weights)
    if gap**2 <= MIN_GAP_SHARE * np.average([style.energy for style in styles], weights=style_weights):
        return None
    return float(1.0 - remaining / gap)


def cosine(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    """Return the cosine `<a, b> / (|a| |b|)` of features (h, w, C), weighted by position (h, w); None if either is all 0."""

    def product(x: np.ndarray, y: np.ndarray) -> float:
        by_position = np.vecdot(x, y)  # (h, w)
        return float(np.sum(by_position if weight is None else weight * by_position, dtype=np.float64))

    norms = np.sqrt(product(a, a) * product(b, b))
    return float(product(a, b) / norms) if norms > 0 else None


def luminance(image: np.ndarray) -> Luminance:
    """Return the luminance of an image (H, W, 3) in [0, 1], with the statistics that `luminance_ssim` takes."""
    x = image.astype(np.float64) @ LUMA_WEIGHTS
    mean = _blur(x)
    return Luminance(x, mean, _blur(x * x) - mean**2)


def luminance_ssim(x: Luminance, y: Luminance, weight: np.ndarray | None = None) -> float:
    """Return the mean structural similarity of the luminances of two images of one size (Wang et al. 2004).

    `(2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2))` over a Gaussian window of 11 x 11 pixels,
    sigma 1.5, with `C1 = 0.01^2` and `C2 = 0.03^2`. Unlike in the paper, the mean is over every pixel, with the images mirrored
    at the border, so that it exists for masks and for images smaller than the window. weight: (H, W), or None for 1.
    """
    c1, c2 = 0.01**2, 0.03**2
    product = x.mean * y.mean
    covariance = _blur(x.value * y.value) - product
    same = (2 * product + c1) * (2 * covariance + c2) / ((x.mean**2 + y.mean**2 + c1) * (x.variance + y.variance + c2))
    return float(np.average(same, weights=weight))


def _blur(x: np.ndarray) -> np.ndarray:
    """Return an image (H, W) averaged under the Gaussian window, mirrored at the border, (H, W)."""
    half = SSIM_WINDOW_PIXELS // 2
    taps = np.exp(-0.5 * np.square(np.arange(-half, half + 1) / SSIM_SIGMA_PIXELS))
    taps /= taps.sum()
    for _ in range(2):  # along one axis, then along the other
        padded = np.pad(x, ((0, 0), (half, half)), "symmetric")
        # convolve all rows in one call: the values whose window crosses into another row are in the padding, which is cut off
        x = np.convolve(padded.ravel(), taps, "same").reshape(padded.shape)[:, half:-half].T
    return x


def _measure_features(
    backbone: Backbone, image: np.ndarray, layers: Iterable[str], mask: np.ndarray | None
) -> tuple[dict[str, Gaussian], np.ndarray | None]:
    """Return the Gaussians at these layers and at `HELD_OUT_LAYERS`, and the features at `CONTENT_LAYER`.

    Layers at which the image has fewer than two positions a side are left out.
    """

    def measurable_layers(layers: Iterable[str]) -> tuple[str, ...]:
        return tuple(layer for layer in dict.fromkeys(layers) if min(image.shape[:2]) >= min_side([layer]))

    weight = np.ones((1, 1)) if mask is None else _require_nonzero(mask)
    gaussian_layers, feature_layers = measurable_layers((*layers, *HELD_OUT_LAYERS)), measurable_layers([CONTENT_LAYER])
    if not gaussian_layers:
        return {}, None
    graph = _build_feature_graph(backbone, gaussian_layers, feature_layers, mask is not None)
    gaussians, features = graph(tf.constant(image[None], tf.float32), tf.constant(weight, tf.float32))
    return {layer: gaussians[layer] for layer in gaussian_layers}, features[CONTENT_LAYER].numpy() if feature_layers else None


@functools.lru_cache(maxsize=32)
def _build_feature_graph(
    backbone: Backbone, gaussian_layers: tuple[str, ...], feature_layers: tuple[str, ...], has_mask: bool
) -> tf.types.experimental.PolymorphicFunction:
    """Return the graph, for any image size, of Gaussians at `gaussian_layers` and features at `feature_layers`."""

    # no AutoGraph: nothing loops or branches on a tensor, and the search for that would take longer than the tracing
    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3)), tf.TensorSpec((None, None))], autograph=False)
    def statistics(image, mask):
        features = vgg.extract_activations(backbone, image, (*gaussian_layers, *feature_layers), pooling="max", padding="zero")
        gaussians = {}
        with tf.device(LINALG_DEVICE):
            for layer in gaussian_layers:
                x = features[layer][0]  # (h, w, C)
                weight = tf.image.resize(mask[None, ..., None], tf.shape(x)[:2], "area")[0, ..., 0] if has_mask else None
                gaussians[layer] = gaussian(x, weight)
        return gaussians, {layer: features[layer][0] for layer in feature_layers}

    return statistics


_GAUSSIAN_SPEC = Gaussian(tf.TensorSpec((None,), tf.float64), tf.TensorSpec((None, None), tf.float64))
_FACTORED_GAUSSIAN_SPEC = FactoredGaussian(tf.TensorSpec((None,), tf.float64), tf.TensorSpec((None, None), tf.float64))


@functools.lru_cache(maxsize=32)
def _build_distance_graph(layers: tuple[str, ...]) -> tf.types.experimental.ConcreteFunction:
    """Return the graph of the squared distances (L, 2) of a result's and a content's Gaussians from a style's, at L layers."""

    @tf.function(
        input_signature=[dict.fromkeys(layers, _GAUSSIAN_SPEC)] * 2 + [dict.fromkeys(layers, _FACTORED_GAUSSIAN_SPEC)],
        autograph=False,
    )
    def distances(out, content, style):
        with tf.device(LINALG_DEVICE):
            return tf.stack(
                [
                    squared_frechet_distance(
                        Gaussian(*map(tf.stack, zip(out[layer], content[layer], strict=True))), style[layer]
                    )
                    for layer in layers
                ]
            )

    return distances.get_concrete_function()  # binds its some 40 tensors in half the time


def _require_nonzero(mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        raise ValueError("mask: it is 0 everywhere, so there is nothing to measure; leave it out or let some of it be above 0")
    return mask


def _resize_mask(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a mask (h, w) resized by area averages, so that no part of it vanishes when it shrinks; None stays None.

    Raises:
        ValueError: The mask is 0 everywhere.
    """
    if mask is None:
        return None
    resized: np.ndarray = tf.image.resize(_require_nonzero(mask)[None, ..., None], shape, "area").numpy()[0, ..., 0]
    return resized.astype(np.float64)


def _mean_gap(gaps: Mapping[str, float], layers: Iterable[str]) -> float | None:
    values = [gaps[layer] for layer in layers if layer in gaps]
    return float(np.mean(values)) if values else None
