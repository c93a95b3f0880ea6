"""The terms of a style transfer's loss, each per pair: the batch axis B is never summed over.

Statistics of a style picture are computed once and compared many times, so each style loss comes as two functions, one that
measures features and one that compares. Sources are named at each.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from nst_tasks.core.method import ContentLoss, StyleLoss, TotalVariation

RIDGE = 1e-4
"""Added to a covariance's diagonal so that its root has a gradient; small beside the mean square 1 of relative losses."""

FLAT_SALIENCE = 0.05
"""What a perfectly flat place of a content still counts, in units of the squared contrast over the energy."""

Statistics = dict[str, tf.Tensor]
"""What is kept of a target picture at one layer; every tensor's leading axis is the batch."""


def gram(x: tf.Tensor, weight: tf.Tensor | None = None) -> tf.Tensor:
    """Gram matrix `F^T F / (h w)` of features: (B, h, w, C) -> (B, C, C) (Gatys et al. 2015, arXiv 1508.06576).

    With a weight (B, h, w) it is the weighted mean over positions `F^T W F / tr W`, the guided Gram matrix of Gatys et al. 2017
    (arXiv 1611.07865).
    """
    return _second_moment(_flatten(x), weight)


def style_statistics(loss: StyleLoss, x: tf.Tensor, pixels: tf.Tensor) -> Statistics:
    """What `style_distance` needs to know of a style picture's features (B, h, w, C) at one layer; `pixels` are its H W."""
    mean_square = tf.reduce_mean(tf.square(x), axis=(1, 2, 3))  # (B,)
    if loss.statistic == "gram":
        return {"gram": gram(x) * _gram_factor(loss, x, pixels), "mean_square": mean_square}
    mean, covariance = _moments(_scaled(x, mean_square) if loss.relative else x)
    covariance += RIDGE * tf.eye(tf.shape(covariance)[-1], dtype=x.dtype)
    values, vectors = tf.linalg.eigh(covariance)
    root = tf.matmul(vectors * tf.sqrt(tf.maximum(values, 0.0))[..., None, :], vectors, transpose_b=True)
    return {"mean": mean, "trace": tf.linalg.trace(covariance), "root": root, "mean_square": mean_square}


def style_distance(
    loss: StyleLoss, x: tf.Tensor, style: Statistics, pixels: tf.Tensor, weight: tf.Tensor | None = None
) -> tf.Tensor:
    """Distance of features (B, h, w, C) from the statistics of S styles (B, S, ...) at one layer -> (B, S).

    Gram: mean or sum of `(G - G*)^2`, relative: divided by mean(style^2)^2. Wasserstein: `(|m - m*|^2 + tr(K + K* - 2 (K*^1/2
    K K*^1/2)^1/2)) / C` over means m and covariances K (Olkin and Pukelsheim 1982), of features divided by rms(style) if
    relative. `pixels` are the image's H W; a weight (B, h, w) says how much each position counts.
    """
    mean_square = style["mean_square"]  # (B, S)
    if loss.statistic == "gram":
        difference = (gram(x, weight) * _gram_factor(loss, x, pixels))[:, None] - style["gram"]  # (B, S, C, C)
        reduce = tf.reduce_mean if loss.error == "mse" else tf.reduce_sum
        distance = reduce(tf.square(difference), axis=(2, 3))  # (B, S)
        return distance / (tf.square(mean_square) + 1e-12) if loss.relative else distance
    channels = tf.cast(tf.shape(x)[-1], x.dtype)
    scale = tf.math.rsqrt(mean_square + 1e-12) if loss.relative else tf.ones_like(mean_square)  # (B, S)
    mean, covariance = _moments(x, weight)
    mean = mean[:, None] * scale[..., None]  # (B, S, C)
    covariance = covariance[:, None] * tf.square(scale)[..., None, None]  # (B, S, C, C)
    covariance += RIDGE * tf.eye(tf.shape(x)[-1], dtype=x.dtype)
    root = style["root"]
    cross = trace_of_root(tf.matmul(root, tf.matmul(covariance, root)))  # (B, S)
    bures = tf.linalg.trace(covariance) + style["trace"] - 2.0 * cross
    return (tf.reduce_sum(tf.square(mean - style["mean"]), axis=-1) + bures) / channels


@tf.custom_gradient
def trace_of_root(matrix: tf.Tensor) -> tuple[tf.Tensor, object]:
    """`tr(M^1/2)` of symmetric positive matrices (..., C, C) -> (...), with the gradient `1/2 M^-1/2`.

    The gradient through the eigenvectors, as automatic differentiation has it, divides by differences of eigenvalues and
    so is not finite for repeated ones; this one needs none.
    """
    # on a CPU, eigh refuses the whole batch for one pair that has left the finite numbers: that pair alone gets NaN
    symmetric = (matrix + tf.linalg.matrix_transpose(matrix)) / 2.0
    finite = tf.reduce_all(tf.math.is_finite(symmetric), axis=(-2, -1))
    values, vectors = tf.linalg.eigh(tf.where(finite[..., None, None], symmetric, 0.0))
    roots = tf.sqrt(tf.maximum(values, RIDGE**2))  # both factors are at least RIDGE
    roots = tf.where(finite[..., None], roots, np.nan)
    # an eigenvalue below the rounding error of the largest is noise, even in sign: the gradient must not divide by it
    noise = np.finfo(values.dtype.as_numpy_dtype).eps * values[..., -1:]

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        safe = tf.maximum(roots, tf.sqrt(tf.maximum(noise, 0.0)))
        inverse = tf.matmul(vectors / safe[..., None, :], vectors, transpose_b=True)
        return 0.5 * upstream[..., None, None] * inverse

    return tf.reduce_sum(roots, axis=-1), gradient


def content_statistics(loss: ContentLoss, x: tf.Tensor) -> Statistics:
    """What `content_distance` needs to know of a content's features (B, h, w, C): themselves and a weight (B, h, w)."""
    if not loss.relative:
        return {"features": x, "weight": tf.ones(tf.shape(x)[:3], x.dtype)}
    energy = tf.reduce_mean(tf.square(x), axis=3) + 1e-12  # (B, h, w)
    edged = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")
    neighbours = (edged[:, 2:, 1:-1], edged[:, :-2, 1:-1], edged[:, 1:-1, 2:], edged[:, 1:-1, :-2])
    contrast = tf.add_n([tf.reduce_mean(tf.square(x - other), axis=3) for other in neighbours]) / 4.0
    salience = contrast / energy + FLAT_SALIENCE
    salience /= tf.reduce_mean(salience, axis=(1, 2), keepdims=True)
    return {"features": x, "weight": salience / (energy + 0.1 * tf.reduce_mean(energy, axis=(1, 2), keepdims=True))}


def content_distance(loss: ContentLoss, x: tf.Tensor, content: Statistics) -> tf.Tensor:
    """Mean or sum of the squared differences from the content's features (B, h, w, C) -> (B,), weighted by position.

    Plain: every weight is 1. Relative: a position's error is measured against the features' energy e there (plus a tenth of
    its mean), and counts by their salience, the mean squared difference from the four neighbours over e, scaled to mean 1.
    Flat places, a sky, may then be painted over, while edges stay: with the plain mean, the large activations that some
    networks give to flat places would hold those fastest of all.
    """
    squares = tf.square(x - content["features"])
    if loss.error == "sse":
        return tf.reduce_sum(squares, axis=(1, 2, 3))
    return tf.reduce_mean(content["weight"] * tf.reduce_mean(squares, axis=3), axis=(1, 2))


def total_variation(loss: TotalVariation, image: tf.Tensor) -> tf.Tensor:
    """Differences of neighbouring pixels of an image (B, H, W, 3) in [0, 1] -> (B,), of one of `method.TV_KINDS`."""
    if loss.kind == "nine_point":
        edged = tf.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")
        down = edged[:, 2:, 1:-1] - edged[:, 1:-1, 1:-1]
        right = edged[:, 1:-1, 2:] - edged[:, 1:-1, 1:-1]
        falling = edged[:, 1:, 1:] - edged[:, :-1, :-1]  # (B, H + 1, W + 1, 3), as the published stencil has its diagonals
        rising = edged[:, 1:, :-1] - edged[:, :-1, 1:]
        return 2.0 * (
            _mean_square(down) / 3.0 + _mean_square(right) / 3.0 + (_mean_square(falling) + _mean_square(rising)) / 12.0
        )
    down = image[:, 1:] - image[:, :-1]
    right = image[:, :, 1:] - image[:, :, :-1]
    if loss.kind == "l1_sum":
        return tf.reduce_sum(tf.abs(down), axis=(1, 2, 3)) + tf.reduce_sum(tf.abs(right), axis=(1, 2, 3))
    if loss.kind == "l2_mean":
        return _mean_square(down) + _mean_square(right)
    # where both neighbours exist, as published: all but the last row and column
    squares = tf.square(down[:, :, :-1]) + tf.square(right[:, :-1])
    if loss.kind == "squared_sum":
        return 0.5 * tf.reduce_sum(squares, axis=(1, 2, 3))
    return tf.reduce_sum(squares**1.25, axis=(1, 2, 3))


def _mean_square(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(x), axis=(1, 2, 3))


def _gram_factor(loss: StyleLoss, x: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """What turns the mean over positions, which `gram` is, into the published sum over N."""
    _, h, w, channels = tf.unstack(tf.cast(tf.shape(x), x.dtype))
    return {
        "none": h * w,
        "hw": tf.ones((), x.dtype),
        "chw": 1.0 / channels,
        "sqrt_chw": tf.sqrt(h * w / channels),
        "image_hw": h * w / tf.cast(pixels, x.dtype),
    }[loss.normalization]


def _flatten(x: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(x)
    return tf.reshape(x, (shape[0], shape[1] * shape[2], x.shape[-1] or shape[3]))  # (B, h*w, C)


def _second_moment(flat: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
    """Mean over positions of `f f^T`, (B, h*w, C) -> (B, C, C), each position counting by its weight (B, h, w)."""
    if weight is None:
        return tf.matmul(flat, flat, transpose_a=True) / tf.cast(tf.shape(flat)[1], flat.dtype)
    return tf.matmul(flat, flat * _share(weight), transpose_a=True)


def _share(weight: tf.Tensor) -> tf.Tensor:
    """Each position's part of the whole weight, (B, h, w) -> (B, h*w, 1)."""
    by_position = tf.reshape(weight, (tf.shape(weight)[0], -1, 1))
    return by_position / (tf.reduce_sum(by_position, axis=1, keepdims=True) + 1e-12)


def _moments(x: tf.Tensor, weight: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean (B, C) and covariance (B, C, C) of features (B, h, w, C), each position counting by its weight (B, h, w)."""
    flat = _flatten(x)
    mean = tf.reduce_mean(flat, axis=1) if weight is None else tf.reduce_sum(flat * _share(weight), axis=1)
    return mean, _second_moment(flat - mean[:, None], weight)


def _scaled(x: tf.Tensor, mean_square: tf.Tensor) -> tf.Tensor:
    return x * tf.math.rsqrt(mean_square + 1e-12)[:, None, None, None]
