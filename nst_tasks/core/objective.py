"""Loss of an image against its targets, from features that are computed and summed block by block.

Large blocks are computed in bands of rows (`bands`): losses are functions of sums over positions, and the sums of an image are
those of its bands, added up. The backward pass computes each band again, so that at most one is in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from nst_tasks.core import losses
from nst_tasks.core.features import BandTables, FeatureRequest, extract_features
from nst_tasks.core.method import ContentLoss, Method, StyleLoss
from nst_tasks.core.vgg import Backbone

TERMS = ("content", "style", "tv")
"""Weighted terms of the loss, in the order of the last axis of `advance` and `result`; their sum is the total loss."""


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


def weighted_terms(
    backbone: Backbone, method: Method, image: tf.Tensor, targets: Targets, hyperparameters: Hyperparameters, tables: BandTables
) -> tf.Tensor:
    """Return the weighted terms (B, 3) of the loss of images (B, H, W, 3), in the order of `TERMS`."""
    image = apply_mask(targets.mask, image)
    weights = targets.mask.by_layer if isinstance(targets.mask, Mask) else {}
    varied = method.total_variation.weight > 0.0
    variation = _variation(method, image) if varied else tf.zeros_like(image[:, 0, 0, 0])  # (B,)
    with tf.control_dependencies([variation] if tables else []):  # so that their memory peaks do not add up
        input_image = tf.identity(image)
    features = extract_features(
        backbone, input_image, FeatureRequest(method, _layer_names(method.style), weights, targets.content), tables
    )
    content = tf.add_n(
        [weight * features.content_distances[layer]
         for weight, (layer, _) in zip(tf.unstack(hyperparameters.content), method.content.layers, strict=True)]
    )  # fmt: skip
    style = tf.add_n(
        [weight * tf.reduce_sum(targets.style_weights * losses.style_distance(
            method.style, features.style_sums[layer], targets.style[layer], _pixel_count(image), _moment_dtype(method)), axis=1)
         for weight, (layer, _) in zip(tf.unstack(hyperparameters.style), method.style.layers, strict=True)]
    )  # fmt: skip
    return hyperparameters.terms * tf.stack([content, style, variation], axis=1)


def _variation(method: Method, image: tf.Tensor) -> tf.Tensor:
    """Return the total variation (B,), with its gradient computed at once: a tenth of the memory of the intermediate values."""

    @tf.custom_gradient
    def with_gradient(image: tf.Tensor) -> tuple[tf.Tensor, object]:
        with tf.GradientTape() as tape:
            tape.watch(image)
            variation = losses.total_variation(method.total_variation, image)
        slope = tape.gradient(variation, image)
        with tf.control_dependencies([slope]):
            variation = tf.identity(variation)
        return variation, lambda upstream: upstream[:, None, None, None] * slope

    variation: tf.Tensor = with_gradient(image)
    return variation


def build_hyperparameters(method: Method, dtype: tf.DType) -> Hyperparameters:
    """Return the weights and the learning rate of a method as tensors."""
    parts = (method.content, method.style, method.total_variation)
    return Hyperparameters(
        tf.constant([part.weight for part in parts], dtype),
        tf.constant([weight for _, weight in method.content.layers], dtype),
        tf.constant([weight for _, weight in method.style.layers], dtype),
        tf.constant(method.optimizer.learning_rate, dtype),
    )


def style_statistics(
    backbone: Backbone, method: Method, picture: tf.Tensor, tables: BandTables
) -> dict[str, losses.Statistics]:
    """Return the statistics of a style image (1, h, w, 3) at each style layer."""
    found = extract_features(backbone, picture, FeatureRequest(method, _layer_names(method.style)), tables)
    options = _pixel_count(picture), _moment_dtype(method)
    return {layer: losses.style_statistics(method.style, x, *options) for layer, x in found.style_sums.items()}


def content_statistics(
    backbone: Backbone, method: Method, picture: tf.Tensor, tables: BandTables
) -> dict[str, losses.Statistics]:
    """Return the statistics of contents (B, H, W, 3) at each content layer."""
    found = extract_features(backbone, picture, FeatureRequest(method, map_layers=_layer_names(method.content)), tables)
    return {layer: losses.content_statistics(method.content, x) for layer, x in found.maps.items()}


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
