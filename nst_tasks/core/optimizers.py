"""Optimizers as pure functions: `init` returns a state, `update` the next state and the next image to evaluate.

Adam and gradient descent are implemented here, L-BFGS in `lbfgs`. All tensors of a state lead with the batch axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from nst_tasks.core import lbfgs
from nst_tasks.core.lbfgs import LBFGSState
from nst_tasks.core.method import LBFGS, SGD, Adam, Optimizer


class AdamState(NamedTuple):
    """Running moments of the gradient, shaped like the image (B, H, W, 3) float32, and the number of updates (B,) int64."""

    mean: tf.Tensor
    square: tf.Tensor
    count: tf.Tensor


class SGDState(NamedTuple):
    """State of gradient descent: only the number of updates (B,) int64."""

    count: tf.Tensor


State: TypeAlias = AdamState | SGDState | LBFGSState


def init(optimizer: Optimizer, image: tf.Tensor) -> State:
    """Return the state before the first update of an image (B, H, W, 3)."""
    if isinstance(optimizer, LBFGS):
        return lbfgs.init(optimizer, image)
    count = tf.zeros(tf.shape(image)[:1], tf.int64)
    if isinstance(optimizer, SGD):
        return SGDState(count)
    return AdamState(tf.zeros_like(image), tf.zeros_like(image), count)


def spec(optimizer: Optimizer, image: tf.TensorSpec) -> State:
    """Return the shapes and dtypes of the state for images of this spec, for the signature of a compiled function."""
    if isinstance(optimizer, LBFGS):
        return lbfgs.spec(optimizer, image)
    count = tf.TensorSpec(image.shape[:1], tf.int64)
    return SGDState(count) if isinstance(optimizer, SGD) else AdamState(image, image, count)


def update(
    optimizer: Optimizer,
    state: State,
    image: tf.Tensor,
    loss: tf.Tensor,
    gradient: tf.Tensor,
    rate: tf.Tensor,
    clip: bool,
    step: tf.Tensor,
) -> tuple[State, tf.Tensor]:
    """Return the next state and the next image (B, H, W, 3), given the loss (B,) and gradient of the current image.

    Args:
        rate: Learning rate, as `learning_rate` returns it; unused by L-BFGS, which computes its own steps.
        clip: Clip the image to [0, 1].
        step: () int32, the number of updates so far.
    """
    if isinstance(state, LBFGSState):
        assert isinstance(optimizer, LBFGS)
        return lbfgs.update(optimizer, state, image, loss, gradient, clip, step)
    count = state.count + 1
    next_state: State
    if isinstance(state, AdamState):
        assert isinstance(optimizer, Adam)
        next_state, change = _adam(optimizer, state, gradient, rate)
    else:
        next_state, change = SGDState(count), -rate * gradient
    next_image = image + change
    return next_state, tf.clip_by_value(next_image, 0.0, 1.0) if clip else next_image


def _adam(adam: Adam, state: AdamState, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[AdamState, tf.Tensor]:
    """Return the next state and the change of the image.

    `m' = b1 m + (1-b1) g`, `v' = b2 v + (1-b2) g^2`, change `-lr sqrt(1-b2^t)/(1-b1^t) m' / (sqrt(v') + eps)`: Kingma and Ba,
    arXiv 1412.6980, algorithm 1 in the order of its section 2.
    """
    count = state.count + 1
    t = tf.cast(count, gradient.dtype)
    mean = adam.beta_1 * state.mean + (1.0 - adam.beta_1) * gradient
    square = adam.beta_2 * state.square + (1.0 - adam.beta_2) * tf.square(gradient)
    corrected = (rate * tf.sqrt(1.0 - adam.beta_2**t) / (1.0 - adam.beta_1**t))[:, None, None, None]  # (B, 1, 1, 1)
    return AdamState(mean, square, count), -corrected * mean / (tf.sqrt(square) + adam.epsilon)


def resize_moments(state: AdamState, height: int, width: int) -> AdamState:
    """Resize Adam's moments to another image size: the mean bicubic, the square bilinear so that it stays non-negative."""
    return AdamState(
        tf.image.resize(state.mean, (height, width), "bicubic"),
        tf.image.resize(state.square, (height, width), "bilinear"),
        state.count,
    )


def learning_rate_factor(optimizer: Optimizer, step: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """Return the factor of the learning rate for the update after `step` of a level's `steps`, by the optimizer's schedule."""
    if isinstance(optimizer, Adam):
        progress = tf.cast(step, tf.float32) / tf.cast(tf.maximum(steps, 1), tf.float32)
        cosine = 0.5 * (1.0 + tf.cos(math.pi * progress))  # 1 at the first step, 0 after the last
        return optimizer.decay_to + (1.0 - optimizer.decay_to) * cosine
    if isinstance(optimizer, SGD):
        return optimizer.decay ** (tf.cast(step, tf.float32) / optimizer.decay_steps)
    return tf.ones_like(step, tf.float32)


def learning_rate(optimizer: Optimizer, step: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """Return the learning rate for the update after `step` of a level's `steps`, by the optimizer's schedule."""
    return optimizer.learning_rate * learning_rate_factor(optimizer, step, steps)


def learning_rates(optimizer: Optimizer, steps: int) -> np.ndarray:
    """Return a level's learning rates (steps + 1,) float32: entry k is for the update after step k, the last is unused."""
    return np.asarray(learning_rate(optimizer, tf.range(steps + 1), tf.constant(steps)), np.float32)
