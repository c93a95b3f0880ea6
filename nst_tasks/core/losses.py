"""Loss terms of a style transfer, one value per pair: nothing is summed over the batch axis B.

The statistics of a style image are computed once and compared many times. Hence the style loss is two functions of the
features' `Sums`: `style_statistics` of a style, and `style_distance` of an image from them. Each function names its source.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nst_tasks.core.method import ContentLoss, StyleLoss, TotalVariation

RIDGE = 1e-4
"""Value added to a covariance's diagonal so that its root has a gradient; small against relative losses' mean square of 1."""

FLAT_SALIENCE = 0.05
"""Salience of a perfectly flat position of a content, in units of squared contrast over energy."""

Statistics = dict[str, tf.Tensor]
"""Statistics of a target image at one layer, by name, computed once; every tensor's leading axis is the batch."""


class Sums(NamedTuple):
    """Weighted sums over the positions of features f at one layer; the sums of an image's parts add up to those of the whole.

    second: `sum w f f^T`, (B, C, C). first: `sum w f`, (B, C). weight: `sum w`, (B,). positions: their number, (). All are
    float32, or float64 for float64 features.
    """

    second: tf.Tensor
    first: tf.Tensor
    weight: tf.Tensor
    positions: tf.Tensor


def sums(x: tf.Tensor, weight: tf.Tensor | None = None) -> Sums:
    """Return the sums over the positions of features (B, h, w, C), each weighted by `weight` (B, h, w), or by 1 for None."""
    shape = tf.shape(x)
    positions = shape[1] * shape[2]
    flat = tf.reshape(x, (shape[0], positions, x.shape[-1] or shape[3]))  # (B, h*w, C)
    count = tf.cast(positions, accumulation_dtype(x))
    if weight is None:
        first = tf.reduce_sum(tf.cast(flat, accumulation_dtype(x)), axis=1)
        return Sums(_second_sum(flat, None), first, tf.fill(shape[:1], count), count)
    by_position = tf.reshape(weight, (shape[0], positions, 1))
    first = tf.reduce_sum(tf.cast(flat, accumulation_dtype(x)) * by_position, axis=1)
    return Sums(_second_sum(flat, by_position), first, tf.reduce_sum(by_position, axis=(1, 2)), count)


def accumulation_dtype(x: tf.Tensor) -> tf.DType:
    """Return the dtype in which features are summed: float32 for bfloat16, otherwise their own."""
    return tf.float32 if x.dtype == tf.bfloat16 else x.dtype


def gram_matrix(x: Sums) -> tf.Tensor:
    """Return the Gram matrix `F^T F / (h w)`, (B, C, C), the mean of `f f^T` over positions.

    Source: Gatys et al. 2015, arXiv 1508.06576. With weighted sums it is the guided Gram matrix `F^T W F / tr W` of Gatys et
    al. 2017 (arXiv 1611.07865).
    """
    return x.second / tf.maximum(x.weight, 1e-12)[:, None, None]


def style_statistics(loss: StyleLoss, style: Sums, pixels: tf.Tensor, dtype: tf.DType = tf.float64) -> Statistics:
    """Return the statistics of a style image at one layer that `style_distance` takes, in the dtype of its sums.

    Args:
        style: Sums of the style's features at the layer.
        pixels: H W of the style image.
        dtype: Type in which the Wasserstein statistics are computed.
    """
    sums_dtype = style.second.dtype
    if loss.statistic == "wasserstein":
        style = _cast(style, dtype)
    second = gram_matrix(style)
    mean_square = tf.linalg.trace(second) / _channel_count(second)  # (B,)
    if loss.statistic == "gram":
        return {"gram": second * _gram_factor(loss, style, pixels), "mean_square": mean_square}
    mean, covariance = _moments(style, _feature_scale(loss, mean_square)[:, None])
    values, vectors = tf.linalg.eigh(covariance[:, 0])
    root = tf.matmul(vectors * tf.sqrt(tf.maximum(values, 0.0))[..., None, :], vectors, transpose_b=True)
    statistics = {"mean": mean[:, 0], "trace": tf.linalg.trace(covariance[:, 0]), "root": root, "mean_square": mean_square}
    return {name: tf.cast(value, sums_dtype) for name, value in statistics.items()}


def style_distance(
    loss: StyleLoss, image: Sums, style: Statistics, pixels: tf.Tensor, dtype: tf.DType = tf.float64
) -> tf.Tensor:
    """Return the distances (B, S) of an image from the statistics of S styles (B, S, ...) at one layer.

    `gram_matrix`: mean or sum of `(G - G*)^2`; with `relative`, divided by mean(style^2)^2.
    `wasserstein`: `(|m - m*|^2 + tr(K + K* - 2 (K*^1/2 K K*^1/2)^1/2)) / C` with means m and covariances K (Olkin and
    Pukelsheim 1982); with `relative`, of features divided by rms(style).

    Args:
        image: Sums of the image's features at the layer.
        style: Result of `style_statistics` for each style.
        pixels: H W of the image.
        dtype: Type in which Wasserstein is computed: in float32, roots of small eigenvalues keep only half of its digits.
    """
    if loss.statistic == "gram":
        difference = (gram_matrix(image) * _gram_factor(loss, image, pixels))[:, None] - style["gram"]  # (B, S, C, C)
        reduce = tf.reduce_mean if loss.error == "mse" else tf.reduce_sum
        distance = reduce(tf.square(difference), axis=(2, 3))  # (B, S)
        return distance / (tf.square(style["mean_square"]) + 1e-12) if loss.relative else distance
    of_style = {name: tf.cast(style[name], dtype) for name in ("mean", "trace", "mean_square")}
    mean, covariance = _moments(_cast(image, dtype), _feature_scale(loss, of_style["mean_square"]))
    bures = tf.linalg.trace(covariance) + of_style["trace"] - 2.0 * trace_of_root(covariance, style["root"])  # (B, S)
    distance = (tf.reduce_sum(tf.square(mean - of_style["mean"]), axis=-1) + bures) / _channel_count(covariance)
    return tf.cast(distance, image.second.dtype)


def trace_of_root(matrix: tf.Tensor, root: tf.Tensor) -> tf.Tensor:
    """Return `tr((R M R)^1/2)`, (...), of symmetric positive M and R (`root`), (..., C, C).

    Its gradient is `1/2 R (R M R)^-1/2 R`. Automatic differentiation through the eigenvectors would divide by differences of
    eigenvalues and not be finite for repeated ones. The gradient's products use the dtype of `root`, the eigenvalues that of
    `matrix`.
    """

    @tf.custom_gradient
    def trace(matrix: tf.Tensor) -> tuple[tf.Tensor, object]:
        sides = tf.cast(root, matrix.dtype)
        product = tf.matmul(sides, tf.matmul(matrix, sides))
        # on a CPU, eigh fails for the whole batch if one pair is not finite: only that pair gets NaN
        symmetric = (product + tf.linalg.matrix_transpose(product)) / 2.0
        finite = tf.reduce_all(tf.math.is_finite(symmetric), axis=(-2, -1))
        values, vectors = tf.linalg.eigh(tf.where(finite[..., None, None], symmetric, 0.0))
        roots = tf.sqrt(tf.maximum(values, RIDGE**2))  # M and R^2 both have eigenvalues of at least RIDGE
        roots = tf.where(finite[..., None], roots, np.nan)
        # eigenvalues below the largest's rounding error, in the type of `root`, are noise: the gradient must not divide by them
        noise = np.finfo(root.dtype.as_numpy_dtype).eps * values[..., -1:]

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            safe = tf.maximum(roots, tf.sqrt(tf.maximum(noise, 0.0)))
            half = tf.matmul(root, tf.cast(vectors, root.dtype)) * tf.cast(tf.math.rsqrt(safe), root.dtype)[..., None, :]
            return 0.5 * upstream[..., None, None] * tf.cast(tf.matmul(half, half, transpose_b=True), matrix.dtype)

        return tf.reduce_sum(roots, axis=-1), gradient

    result: tf.Tensor = trace(matrix)
    return result


def content_statistics(loss: ContentLoss, x: tf.Tensor) -> Statistics:
    """Return the statistics of a content that `content_distance` takes: features (B, h, w, C) and their weight (B, h, w)."""
    features, x = x, tf.cast(x, accumulation_dtype(x))
    if not loss.relative:
        return {"features": features, "weight": tf.ones(tf.shape(x)[:3], x.dtype)}
    energy = tf.reduce_mean(tf.square(x), axis=3) + 1e-12  # (B, h, w)
    edged = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")
    neighbours = (edged[:, 2:, 1:-1], edged[:, :-2, 1:-1], edged[:, 1:-1, 2:], edged[:, 1:-1, :-2])
    contrast = tf.add_n([tf.reduce_mean(tf.square(x - other), axis=3) for other in neighbours]) / 4.0
    salience = contrast / energy + FLAT_SALIENCE
    salience /= tf.reduce_mean(salience, axis=(1, 2), keepdims=True)
    return {"features": features, "weight": salience / (energy + 0.1 * tf.reduce_mean(energy, axis=(1, 2), keepdims=True))}


def content_distance(loss: ContentLoss, x: tf.Tensor, content: Statistics) -> tf.Tensor:
    """Return the mean or sum (B,) of squared differences from the content's features (B, h, w, C), weighted by position.

    Without `relative`, every weight is 1. With it, the error at a position is divided by the features' energy e there (plus a
    tenth of its mean) and weighted by their salience: the mean squared difference from the four neighbours over e, plus
    `FLAT_SALIENCE`, scaled to mean 1. Flat regions, such as a sky, may then be painted over, while edges stay. The plain mean
    would hold flat regions most strongly, because some networks give them large activations.
    """
    squares = tf.square(tf.cast(x, accumulation_dtype(x)) - tf.cast(content["features"], accumulation_dtype(x)))
    if loss.error == "sse":
        return tf.reduce_sum(squares, axis=(1, 2, 3))
    return tf.reduce_mean(content["weight"] * tf.reduce_mean(squares, axis=3), axis=(1, 2))


def total_variation(loss: TotalVariation, image: tf.Tensor) -> tf.Tensor:
    """Return the unweighted total variation (B,), of the kind `loss.kind`, of an image (B, H, W, 3) in [0, 1].

    Its gradient is computed at once, and takes a tenth of the memory of the intermediate values.
    """

    @tf.custom_gradient
    def with_gradient(image: tf.Tensor) -> tuple[tf.Tensor, object]:
        with tf.GradientTape() as tape:
            tape.watch(image)
            variation = _variation(loss, image)
        slope = tape.gradient(variation, image)  # (B, H, W, 3)
        with tf.control_dependencies([slope]):
            variation = tf.identity(variation)
        return variation, lambda upstream: upstream[:, None, None, None] * slope

    variation: tf.Tensor = with_gradient(image)
    return variation


def _variation(loss: TotalVariation, image: tf.Tensor) -> tf.Tensor:
    """Return the total variation (B,) from intermediate values as large as the image."""
    if loss.kind == "nine_point":
        edged = tf.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")
        down = _crop(edged, 2, 0, 1, 1) - image
        right = _crop(edged, 1, 1, 2, 0) - image
        # diagonals are (B, H + 1, W + 1, 3), as published
        falling = _crop(edged, 1, 0, 1, 0) - _crop(edged, 0, 1, 0, 1)
        rising = _crop(edged, 1, 0, 0, 1) - _crop(edged, 0, 1, 1, 0)
        return 2.0 * (
            _mean_square(down) / 3.0 + _mean_square(right) / 3.0 + (_mean_square(falling) + _mean_square(rising)) / 12.0
        )
    down = _crop(image, 1, 0, 0, 0) - _crop(image, 0, 1, 0, 0)
    right = _crop(image, 0, 0, 1, 0) - _crop(image, 0, 0, 0, 1)
    if loss.kind == "l1_sum":
        return tf.reduce_sum(tf.abs(down), axis=(1, 2, 3)) + tf.reduce_sum(tf.abs(right), axis=(1, 2, 3))
    if loss.kind == "l2_mean":
        return _mean_square(down) + _mean_square(right)
    # only where both neighbours exist, as published: not in the last row and column
    squares = tf.square(_crop(down, 0, 0, 0, 1)) + tf.square(_crop(right, 0, 1, 0, 0))
    if loss.kind == "squared_sum":
        return 0.5 * tf.reduce_sum(squares, axis=(1, 2, 3))
    return tf.reduce_sum(squares**1.25, axis=(1, 2, 3))


def _crop(x: tf.Tensor, top: int, bottom: int, left: int, right: int) -> tf.Tensor:
    """Return an image (B, H, W, 3) without so many rows and columns at its sides.

    Not `x[...]`, whose gradient takes four times as long (CPU).
    """
    batch, height, width, channels = tf.unstack(tf.shape(x))
    return tf.slice(x, (0, top, left, 0), tf.stack([batch, height - top - bottom, width - left - right, channels]))


def _mean_square(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(x), axis=(1, 2, 3))


def _gram_factor(loss: StyleLoss, x: Sums, pixels: tf.Tensor) -> tf.Tensor:
    """Return the factor that turns `gram_matrix`, a mean over positions, into the published sum over N."""
    positions, channels = x.positions, _channel_count(x.second)
    return {
        "none": positions,
        "hw": tf.ones_like(positions),
        "chw": 1.0 / channels,
        "sqrt_chw": tf.sqrt(positions / channels),
        "image_hw": positions / tf.cast(pixels, positions.dtype),
    }[loss.normalization]


def _second_sum(flat: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
    """Return `F^T W F`, (B, C, C), of features (B, N, C) and weights (B, N, 1), in float32 or more.

    Its gradient is `W F (U + U^T)`. Automatic differentiation would take two matrix products, of the features cast to the wider
    type.
    """

    @tf.custom_gradient
    def product(flat: tf.Tensor) -> tuple[tf.Tensor, object]:
        summed = tf.cast(flat, accumulation_dtype(flat))

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            both = tf.matmul(flat, tf.cast(upstream + tf.linalg.matrix_transpose(upstream), flat.dtype))
            return both if weight is None else both * tf.cast(weight, flat.dtype)

        return tf.matmul(summed, summed if weight is None else summed * weight, transpose_a=True), gradient

    return product(flat)


def _moments(x: Sums, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return mean (B, S, C) and covariance (B, S, C, C), plus `RIDGE` on its diagonal, of features times each scale (B, S)."""
    mean = x.first / tf.maximum(x.weight, 1e-12)[:, None]  # (B, C)
    covariance = gram_matrix(x) - mean[:, :, None] * mean[:, None, :]
    scaled = covariance[:, None] * tf.square(scale)[..., None, None]
    return mean[:, None] * scale[..., None], scaled + RIDGE * tf.eye(tf.shape(scaled)[-1], dtype=scaled.dtype)


def _feature_scale(loss: StyleLoss, mean_square: tf.Tensor) -> tf.Tensor:
    """Return the factor on features before their moments are compared."""
    return tf.math.rsqrt(mean_square + 1e-12) if loss.relative else tf.ones_like(mean_square)


def _cast(x: Sums, dtype: tf.DType) -> Sums:
    return Sums(*(tf.cast(part, dtype) for part in x))


def _channel_count(matrix: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.shape(matrix)[-1], matrix.dtype)
