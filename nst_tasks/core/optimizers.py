"""First-order optimizers as pure functions: `init(image)` gives a state, `update(state, gradient)` a new state and a step."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nst_tasks.core.method import Adam


class AdamState(NamedTuple):
    """Running moments of the gradient, shaped like the image (B, H, W, 3) float32, and the number of updates, () int64."""

    mean: tf.Tensor
    square: tf.Tensor
    count: tf.Tensor


def init(image: tf.Tensor) -> AdamState:
    """Adam's state before the first update of an image (B, H, W, 3)."""
    return AdamState(tf.zeros_like(image), tf.zeros_like(image), tf.constant(0, tf.int64))


def update(adam: Adam, state: AdamState, gradient: tf.Tensor, learning_rate: tf.Tensor) -> tuple[AdamState, tf.Tensor]:
    """One Adam update: the new state and the step to add to the image, both (B, H, W, 3).

    `m' = b1 m + (1-b1) g`, `v' = b2 v + (1-b2) g^2`, step `-lr sqrt(1-b2^t)/(1-b1^t) m' / (sqrt(v') + eps)`
    (Kingma and Ba, arXiv 1412.6980, algorithm 1 in the order of its section 2).
    """
    count = state.count + 1
    t = tf.cast(count, gradient.dtype)
    mean = adam.beta_1 * state.mean + (1.0 - adam.beta_1) * gradient
    square = adam.beta_2 * state.square + (1.0 - adam.beta_2) * tf.square(gradient)
    rate = learning_rate * tf.sqrt(1.0 - adam.beta_2**t) / (1.0 - adam.beta_1**t)
    return AdamState(mean, square, count), -rate * mean / (tf.sqrt(square) + adam.epsilon)


def learning_rate(adam: Adam, step: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """The rate for the update after `step` of a level's `steps`: a cosine from `learning_rate` to its `decay_to`th part."""
    progress = tf.cast(step, tf.float32) / tf.cast(tf.maximum(steps, 1), tf.float32)
    fall = 0.5 * (1.0 + tf.cos(math.pi * progress))  # 1 at the first step, 0 after the last
    return adam.learning_rate * (adam.decay_to + (1.0 - adam.decay_to) * fall)


def learning_rates(adam: Adam, steps: int) -> np.ndarray:
    """The rates of a level's updates, (steps + 1,) float32: entry k is that of the update after step k, the last is unused."""
    return np.asarray(learning_rate(adam, tf.range(steps + 1), tf.constant(steps)))
