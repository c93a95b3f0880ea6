"""Loss of images x against their targets, one value per pair.

    L(x) = a sum_l a_l content(F_l(x), P_l)  +  b sum_l b_l sum_s w_s style(F_l(x), S_ls)  +  c TV(x)

F_l are the features at layer l, P_l and S_ls the statistics of the content and of style s there, computed once. The weights
are those of terms (a, b, c), layers (a_l, b_l) and styles (w_s). `core.losses` has the functions `content`, `style` and TV.
With a mask, x is the image blended with the content, and the mask weights the positions that style statistics are taken from.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nst_tasks.core import losses
from nst_tasks.core.features import BandTables, FeatureRequest, Features, extract_features
from nst_tasks.core.method import ContentLoss, Method, StyleLoss
from nst_tasks.core.vgg import Backbone

TERMS = ("content", "style", "tv")
"""Weighted terms of the loss, in the order of the last axis of what `transfer.advance` returns; their sum is the total loss."""


class Nothing(NamedTuple):
    """Placeholder for an absent part of a structure: TensorFlow's signatures do not accept None."""


class Mask(NamedTuple):
    """Region of a batch's images to stylize.

    weight: (B, H, W, 1) in [0, 1], 1 where the image is stylized. contents: (B, H, W, 3), shown where it is not.
    by_layer: style layer -> weight (B, h, w) of each position in the image's style statistics.
    """

    weight: tf.Tensor
    contents: tf.Tensor
    by_layer: dict[str, tf.Tensor]


class Targets(NamedTuple):
    """Optimization targets of a batch at one level.

    content: layer -> statistic -> (B, ...). style: layer -> statistic -> (B, S, ...), for S styles per pair.
    style_weights: (B, S). mask: `Nothing` if the whole image is stylized.
    """

    content: dict[str, losses.Statistics]
    style: dict[str, losses.Statistics]
    style_weights: tf.Tensor
    mask: Mask | Nothing = Nothing()


class Hyperparameters(NamedTuple):
    """Weights and learning rate of a method, as inputs of its graphs: methods that differ only in them share graphs.

    terms: weights of the `TERMS` (3,). content, style: weights of the layers (L,) in their term, in the method's order.
    learning_rate: (), before any schedule.
    """

    terms: tf.Tensor
    content: tf.Tensor
    style: tf.Tensor
    learning_rate: tf.Tensor


def build_hyperparameters(method: Method, dtype: tf.DType) -> Hyperparameters:
    """Return the weights and the learning rate of a method as tensors."""
    parts = (method.content, method.style, method.total_variation)
    return Hyperparameters(
        tf.constant([part.weight for part in parts], dtype),
        tf.constant([weight for _, weight in method.content.layers], dtype),
        tf.constant([weight for _, weight in method.style.layers], dtype),
        tf.constant(method.optimizer.learning_rate, dtype),
    )


def weighted_terms(
    backbone: Backbone, method: Method, image: tf.Tensor, targets: Targets, hyperparameters: Hyperparameters, tables: BandTables
) -> tf.Tensor:
    """Return the weighted terms (B, 3) of the loss of images (B, H, W, 3), in the order of `TERMS`."""
    image = apply_mask(targets.mask, image)
    variation = _total_variation(method, image)
    position_weights = targets.mask.by_layer if isinstance(targets.mask, Mask) else {}
    request = FeatureRequest(method, _layer_names(method.style), position_weights, targets.content)
    features = extract_features(backbone, image, request, tables, after=[variation])
    content = _content_loss(method, features, hyperparameters.content)
    style = _style_loss(method, features, targets, hyperparameters.style, _pixel_count(image))
    return hyperparameters.terms * tf.stack([content, style, variation], axis=1)  # (B, 3)


def _content_loss(method: Method, features: Features, weights: tf.Tensor) -> tf.Tensor:
    """Return `sum_l a_l content(F_l(x), P_l)`, (B,), with the layers' weights (L,)."""
    layers = zip(tf.unstack(weights), _layer_names(method.content), strict=True)
    return tf.add_n([weight * features.content_distances[layer] for weight, layer in layers])


def _style_loss(method: Method, features: Features, targets: Targets, weights: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Return `sum_l b_l sum_s w_s style(F_l(x), S_ls)`, (B,), with the layers' weights (L,) and the image's H W pixels ()."""
    dtype = _moment_dtype(method)
    of_layers = []
    for weight, layer in zip(tf.unstack(weights), _layer_names(method.style), strict=True):
        distances = losses.style_distance(
            method.style, features.style_sums[layer], targets.style[layer], pixels, dtype
        )  # (B, S)
        of_layers.append(weight * tf.reduce_sum(targets.style_weights * distances, axis=1))  # (B,)
    return tf.add_n(of_layers)


def _total_variation(method: Method, image: tf.Tensor) -> tf.Tensor:
    """Return `TV(x)`, (B,), or zeros if its weight is 0."""
    if method.total_variation.weight == 0.0:
        return tf.zeros_like(image[:, 0, 0, 0])
    return losses.total_variation(method.total_variation, image)


def style_statistics(backbone: Backbone, method: Method, image: tf.Tensor, tables: BandTables) -> dict[str, losses.Statistics]:
    """Return the statistics of a style image (1, h, w, 3) at each style layer."""
    sums = extract_features(backbone, image, FeatureRequest(method, _layer_names(method.style)), tables).style_sums
    pixels, dtype = _pixel_count(image), _moment_dtype(method)
    return {layer: losses.style_statistics(method.style, x, pixels, dtype) for layer, x in sums.items()}


def content_statistics(
    backbone: Backbone, method: Method, image: tf.Tensor, tables: BandTables
) -> dict[str, losses.Statistics]:
    """Return the statistics of contents (B, H, W, 3) at each content layer."""
    maps = extract_features(backbone, image, FeatureRequest(method, map_layers=_layer_names(method.content)), tables).maps
    return {layer: losses.content_statistics(method.content, x) for layer, x in maps.items()}


def apply_mask(mask: Mask | Nothing, image: tf.Tensor) -> tf.Tensor:
    """Return the image (B, H, W, 3), blended with the content outside the mask."""
    return mask.contents + mask.weight * (image - mask.contents) if isinstance(mask, Mask) else image


def _layer_names(loss: ContentLoss | StyleLoss) -> tuple[str, ...]:
    return tuple(layer for layer, _ in loss.layers)


def _moment_dtype(method: Method) -> tf.DType:
    """Return the dtype in which moments and roots of covariances are computed."""
    # with features rounded to bfloat16, float64 adds no accuracy, and a whole step takes two thirds longer
    return tf.float32 if method.precision == "mixed" else tf.float64


def _pixel_count(image: tf.Tensor) -> tf.Tensor:
    return tf.shape(image)[1] * tf.shape(image)[2]
