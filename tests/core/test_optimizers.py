"""Adam against the algorithm written out in NumPy and against Keras; the learning rate's schedule by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import optimizers
from nst_tasks.core.method import Adam
from nst_tasks.core.optimizers import learning_rate, learning_rates

ADAMS = [
    pytest.param(Adam(0.02, 0.99, 0.999, 1e-1), id="large-epsilon"),
    pytest.param(Adam(0.03, 0.9, 0.99, 1e-8), id="small-epsilon"),
]
SHAPE = (2, 3, 4, 3)
UPDATES = 50


def quadratic() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, minimum and curvatures of `sum(a (x - b)^2) / 2`, with gradients both above and below epsilon."""
    random = np.random.default_rng(0)
    return random.random(SHAPE), random.random(SHAPE), 10.0 ** random.uniform(-3, 1, SHAPE)


def plain_adam(adam: Adam, x: np.ndarray, minimum: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Algorithm 1 of arXiv 1412.6980 as its section 2 and Keras order it: epsilon joins the uncorrected root."""
    mean, square, path = np.zeros_like(x), np.zeros_like(x), []
    for t in range(1, UPDATES + 1):
        gradient = curvature * (x - minimum)
        mean = adam.beta_1 * mean + (1 - adam.beta_1) * gradient
        square = adam.beta_2 * square + (1 - adam.beta_2) * gradient * gradient
        rate = adam.learning_rate * np.sqrt(1 - adam.beta_2**t) / (1 - adam.beta_1**t)
        x = x - rate * mean / (np.sqrt(square) + adam.epsilon)
        path.append(x)
    return np.stack(path)


def our_adam(adam: Adam, x: np.ndarray, minimum: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    image, path = tf.constant(x), []
    state = optimizers.init(image)
    for _ in range(UPDATES):
        gradient = curvature * (image - minimum)
        state, change = optimizers.update(adam, state, gradient, tf.constant(adam.learning_rate, image.dtype))
        image += change
        path.append(image.numpy())
    assert int(state.count) == UPDATES
    return np.stack(path)


@pytest.mark.parametrize("adam", ADAMS)
def test_fifty_updates_are_those_of_plain_adam(adam: Adam) -> None:
    np.testing.assert_allclose(our_adam(adam, *quadratic()), plain_adam(adam, *quadratic()), rtol=1e-10)


@pytest.mark.parametrize("adam", ADAMS)
def test_fifty_updates_are_those_of_keras(adam: Adam) -> None:
    start, minimum, curvature = (array.astype(np.float32) for array in quadratic())
    variable = keras.Variable(start)
    keras_adam = keras.optimizers.Adam(adam.learning_rate, adam.beta_1, adam.beta_2, adam.epsilon)
    path = []
    for _ in range(UPDATES):
        keras_adam.apply([curvature * (variable.value - minimum)], [variable])
        path.append(variable.value.numpy())
    np.testing.assert_allclose(our_adam(adam, start, minimum, curvature), np.stack(path), atol=2e-5)


def test_the_first_step_by_hand() -> None:
    # t = 1: m = 0.1 g, v = 0.01 g^2, rate = lr sqrt(0.01) / 0.1 = lr; at g = 1 the step is -lr 0.1 / (0.1 + 0.1)
    adam = Adam(learning_rate=0.5, beta_1=0.9, beta_2=0.99, epsilon=0.1)
    image = tf.zeros((1, 1, 1, 3), tf.float64)
    gradient = tf.constant([1.0, -1.0, 0.0], tf.float64, (1, 1, 1, 3))
    _, change = optimizers.update(adam, optimizers.init(image), gradient, tf.constant(0.5, tf.float64))
    np.testing.assert_allclose(change[0, 0, 0], [-0.25, 0.25, 0.0], rtol=1e-12)


def test_a_state_is_left_as_it_was() -> None:
    state = optimizers.init(tf.zeros(SHAPE))
    optimizers.update(Adam(0.1), state, tf.ones(SHAPE), tf.constant(0.1))
    assert int(state.count) == 0
    np.testing.assert_array_equal(state.mean, np.zeros(SHAPE))
    np.testing.assert_array_equal(state.square, np.zeros(SHAPE))


def test_the_learning_rate_falls_along_a_cosine() -> None:
    # from 1 to 0.2 over 4 steps: 0.2 + 0.8 (1 + cos(k pi / 4)) / 2
    half = np.sqrt(0.5)
    expected = [1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2]
    np.testing.assert_allclose(learning_rates(Adam(1.0, decay_to=0.2), 4), expected, rtol=1e-6)


def test_the_learning_rate_stays_without_decay() -> None:
    np.testing.assert_array_equal(learning_rates(Adam(0.02), 7), np.full(8, 0.02, np.float32))


def test_learning_rates_lists_the_rate_of_every_step() -> None:
    adam, steps = Adam(0.03, decay_to=0.3), 13
    rates = learning_rates(adam, steps)
    assert rates.shape == (steps + 1,)
    assert rates.dtype == np.float32
    each = [float(learning_rate(adam, tf.constant(step), tf.constant(steps))) for step in range(steps + 1)]
    np.testing.assert_allclose(rates, each, rtol=1e-6)


def test_a_level_without_steps_has_one_unused_rate() -> None:
    np.testing.assert_allclose(learning_rates(Adam(0.03, decay_to=0.3), 0), [0.03], rtol=1e-6)
