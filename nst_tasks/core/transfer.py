"""The optimization itself: image in, image out, n steps at a time inside one compiled graph.

The caller owns the loop over chunks and levels, so checkpoints, deadlines, progress and history live outside. Losses are
summed over the pairs of a batch, never averaged: a pair's gradient does not depend on who shares its batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nst_tasks.core import backbones, losses, optimizers
from nst_tasks.core.backbones import Backbone
from nst_tasks.core.method import Method, StyleLoss
from nst_tasks.core.optimizers import AdamState
from nst_tasks.core.pyramid import Level

TERMS = ("content", "style", "tv")
"""The weighted terms of the loss, in the order of `advance`'s and `measure`'s last axis; they add up to the total."""


class Targets(NamedTuple):
    """What a batch's images are drawn to at one level.

    content: layer -> statistic -> (B, ...). style: layer -> statistic -> (B, S, ...), S styles a pair. style_weights: (B, S).
    """

    content: dict[str, losses.Statistics]
    style: dict[str, losses.Statistics]
    style_weights: tf.Tensor


class TransferState(NamedTuple):
    """All that a resume needs: image (B, H, W, 3) float32 in [0, 1], the optimizer's state, and the place in the schedule."""

    image: tf.Tensor
    optimizer: AdamState
    level: int
    step: int


def style_statistics(backbone: Backbone, method: Method, style: np.ndarray) -> dict[str, losses.Statistics]:
    """Statistics of one style picture (h, w, 3) float32 in [0, 1] at each style layer, leading axis 1."""
    found: dict[str, losses.Statistics] = _compiled(backbone, method).style(tf.constant(style[None], tf.float32))
    return found


def targets(
    backbone: Backbone,
    method: Method,
    contents: np.ndarray,
    styles: Sequence[Sequence[dict[str, losses.Statistics]]],
    style_weights: Sequence[Sequence[float]],
) -> Targets:
    """Targets of a batch: contents (B, H, W, 3) float32 in [0, 1], and for each pair its styles' statistics and weights."""
    content = _compiled(backbone, method).content(tf.constant(contents, tf.float32))
    style = {
        layer: {
            name: tf.stack([tf.concat([one[layer][name] for one in pair], axis=0) for pair in styles])  # (B, S, ...)
            for name in styles[0][0][layer]
        }
        for layer, _ in method.style.layers
    }
    return Targets(content, style, tf.constant(style_weights, tf.float32))


def start(method: Method, contents: np.ndarray, seeds: Sequence[int]) -> TransferState:
    """The state before the first step: contents (B, H, W, 3) in [0, 1], with the method's noise from each pair's own seed."""
    image = np.asarray(contents, np.float32)
    if method.init_noise:
        noise = np.stack([np.random.default_rng(seed).standard_normal(image.shape[1:], np.float32) for seed in seeds])
        image = np.clip(image + method.init_noise * noise, 0.0, 1.0)
    first = tf.constant(image)
    return TransferState(first, optimizers.init(first), level=0, step=0)


def ascend(state: TransferState, level: Level) -> TransferState:
    """The state at the start of the next level: its image resized there (bicubic), the optimizer's moments begun anew."""
    image = tf.clip_by_value(tf.image.resize(state.image, (level.height, level.width), "bicubic"), 0.0, 1.0)
    return TransferState(image, optimizers.init(image), level=state.level + 1, step=0)


def advance(
    backbone: Backbone, method: Method, targets: Targets, state: TransferState, n: int, steps: int
) -> tuple[TransferState, np.ndarray]:
    """`n` (1 or more) of a level's `steps` steps: the new state, and the terms (n, B, 3) of the image before each update."""
    image, optimizer, terms = _compiled(backbone, method).advance(
        state.image, state.optimizer, targets, tf.constant(state.step), tf.constant(n), tf.constant(steps)
    )
    return state._replace(image=image, optimizer=optimizer, step=state.step + n), terms.numpy()


def measure(backbone: Backbone, method: Method, targets: Targets, image: tf.Tensor) -> np.ndarray:
    """The weighted terms (B, 3) of an image (B, H, W, 3), in the order of `TERMS`."""
    terms: np.ndarray = _compiled(backbone, method).measure(image, targets).numpy()
    return terms


def loss_terms(backbone: Backbone, method: Method, image: tf.Tensor, targets: Targets) -> tf.Tensor:
    """The weighted terms of the loss, (B, 3): content, style, total variation."""
    found = backbones.features(backbone, image, method.layers, method.pooling, method.padding)
    content = method.content.weight * tf.add_n(
        [weight * losses.content_distance(method.content, found[layer], targets.content[layer])
         for layer, weight in method.content.layers]
    )  # fmt: skip
    style = method.style.weight * tf.add_n(
        [weight * tf.reduce_sum(
            targets.style_weights * losses.style_distance(method.style, found[layer], targets.style[layer]), axis=1)
         for layer, weight in method.style.layers]
    )  # fmt: skip
    variation = method.total_variation.weight * losses.total_variation(method.total_variation, image)
    return tf.stack([content, style, variation], axis=1)


class _Compiled(NamedTuple):
    style: tf.types.experimental.PolymorphicFunction
    content: tf.types.experimental.PolymorphicFunction
    measure: tf.types.experimental.PolymorphicFunction
    advance: tf.types.experimental.PolymorphicFunction


@functools.lru_cache(maxsize=16)
def _compiled(backbone: Backbone, method: Method) -> _Compiled:
    """The graphs of one method, each traced once for pictures of every size: all shapes but the channels are left open."""
    image = tf.TensorSpec((None, None, None, 3))
    moments = AdamState(image, image, tf.TensorSpec((), tf.int64))
    wanted = Targets(
        {
            layer: {"features": tf.TensorSpec((None,) * 4), "weight": tf.TensorSpec((None,) * 3)}
            for layer, _ in method.content.layers
        },
        {layer: _statistics_spec(method.style) for layer, _ in method.style.layers},
        tf.TensorSpec((None, None)),
    )
    whole = tf.TensorSpec((), tf.int32)
    extract = functools.partial(backbones.features, backbone, pooling=method.pooling, padding=method.padding)

    @tf.function(input_signature=[image])
    def style(picture):
        found = extract(picture, [layer for layer, _ in method.style.layers])
        return {layer: losses.style_statistics(method.style, x) for layer, x in found.items()}

    @tf.function(input_signature=[image])
    def content(picture):
        found = extract(picture, [layer for layer, _ in method.content.layers])
        return {layer: losses.content_statistics(method.content, x) for layer, x in found.items()}

    @tf.function(input_signature=[image, wanted])
    def measure(picture, targets):
        return loss_terms(backbone, method, picture, targets)

    @tf.function(input_signature=[image, moments, wanted, whole, whole, whole])
    def advance(picture, optimizer, targets, step, n, steps):
        rows = tf.TensorArray(tf.float32, size=n, element_shape=(None, len(TERMS)))
        for k in tf.range(n):
            tf.autograph.experimental.set_loop_options(shape_invariants=[(picture, image.shape)])
            with tf.GradientTape() as tape:
                tape.watch(picture)
                terms = loss_terms(backbone, method, picture, targets)
                total = tf.reduce_sum(terms)
            rows = rows.write(k, terms)
            rate = optimizers.learning_rate(method.optimizer, step + k, steps)
            optimizer, change = optimizers.update(method.optimizer, optimizer, tape.gradient(total, picture), rate)
            picture = tf.clip_by_value(picture + change, 0.0, 1.0)
        return picture, optimizer, rows.stack()

    return _Compiled(style, content, measure, advance)


def _statistics_spec(loss: StyleLoss) -> dict[str, tf.TensorSpec]:
    ranks = {"gram": {"gram": 4, "mean_square": 2}, "wasserstein": {"mean": 3, "trace": 2, "root": 4, "mean_square": 2}}
    return {name: tf.TensorSpec((None,) * rank) for name, rank in ranks[loss.statistic].items()}
