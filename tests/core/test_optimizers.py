"""Adam and gradient descent against the algorithms written out in NumPy and against Keras; schedules and ranges by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import optimizers
from nst_tasks.core.method import LBFGS, SGD, Adam, Optimizer
from nst_tasks.core.optimizers import AdamState, learning_rate, learning_rates, resize_moments

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


def one_update(
    optimizer: Optimizer, state: optimizers.State, image: tf.Tensor, gradient: tf.Tensor, rate: float, clip: bool = False
) -> tuple[optimizers.State, tf.Tensor]:
    loss, step = tf.zeros(image.shape[0], image.dtype), tf.constant(0)  # neither Adam nor gradient descent looks at them
    return optimizers.update(optimizer, state, image, loss, gradient, tf.constant(rate, image.dtype), clip, step)


def our_path(optimizer: Adam | SGD, x: np.ndarray, minimum: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    image, path = tf.constant(x), []
    state = optimizers.init(optimizer, image)
    for k in range(UPDATES):
        rate = float(learning_rate(optimizer, tf.constant(k), tf.constant(UPDATES)))
        state, image = one_update(optimizer, state, image, curvature * (image - minimum), rate)
        path.append(image.numpy())
    assert int(state.count[0]) == UPDATES
    return np.stack(path)


@pytest.mark.parametrize("adam", ADAMS)
def test_fifty_updates_are_those_of_plain_adam(adam: Adam) -> None:
    np.testing.assert_allclose(our_path(adam, *quadratic()), plain_adam(adam, *quadratic()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adam", ADAMS)
def test_fifty_updates_are_those_of_keras(adam: Adam) -> None:
    start, minimum, curvature = (array.astype(np.float32) for array in quadratic())
    variable = keras.Variable(start)
    keras_adam = keras.optimizers.Adam(adam.learning_rate, adam.beta_1, adam.beta_2, adam.epsilon)
    path = []
    for _ in range(UPDATES):
        keras_adam.apply([curvature * (variable.value - minimum)], [variable])
        path.append(variable.value.numpy())
    np.testing.assert_allclose(our_path(adam, start, minimum, curvature), np.stack(path), atol=2e-5)


def test_the_first_step_by_hand() -> None:
    # t = 1: m = 0.1 g, v = 0.01 g^2, rate = lr sqrt(0.01) / 0.1 = lr; at g = 1 the step is -lr 0.1 / (0.1 + 0.1)
    adam = Adam(learning_rate=0.5, beta_1=0.9, beta_2=0.99, epsilon=0.1)
    image = tf.zeros((1, 1, 1, 3), tf.float64)
    gradient = tf.constant([1.0, -1.0, 0.0], tf.float64, (1, 1, 1, 3))
    _, following = one_update(adam, optimizers.init(adam, image), image, gradient, 0.5)
    np.testing.assert_allclose(following[0, 0, 0], [-0.25, 0.25, 0.0], rtol=1e-12)


def test_fifty_updates_are_those_of_plain_gradient_descent() -> None:
    sgd = SGD(0.15, decay=0.5, decay_steps=20)
    x, minimum, curvature = quadratic()
    found = our_path(sgd, x, minimum, curvature)
    path = []
    for t in range(UPDATES):
        x = x - 0.15 * 0.5 ** (t / 20) * curvature * (x - minimum)
        path.append(x)
    np.testing.assert_allclose(found, np.stack(path), rtol=1e-6)


def test_fifty_sgd_updates_equal_keras() -> None:
    sgd = SGD(0.15, decay=0.5, decay_steps=20)
    start, minimum, curvature = (array.astype(np.float32) for array in quadratic())
    variable = keras.Variable(start)
    keras_sgd = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.15, decay_steps=20, decay_rate=0.5))
    path = []
    for _ in range(UPDATES):
        keras_sgd.apply([curvature * (variable.value - minimum)], [variable])
        path.append(variable.value.numpy())
    np.testing.assert_allclose(our_path(sgd, start, minimum, curvature), np.stack(path), atol=1e-5)


@pytest.mark.parametrize("optimizer", [Adam(0.5), SGD(0.5)], ids=["adam", "sgd"])
def test_only_with_clip_the_image_stays_in_range(optimizer: Adam | SGD) -> None:
    image = tf.constant([0.9, 0.5, 0.1], tf.float64, (1, 1, 1, 3))
    gradient = tf.constant([-1.0, 0.01, 1.0], tf.float64, (1, 1, 1, 3))
    state = optimizers.init(optimizer, image)
    _, free = one_update(optimizer, state, image, gradient, 0.5, clip=False)
    _, held = one_update(optimizer, state, image, gradient, 0.5, clip=True)
    assert float(tf.reduce_max(free)) > 1.3
    assert float(tf.reduce_min(free)) < -0.3
    np.testing.assert_array_equal(held, np.clip(free, 0.0, 1.0))


@pytest.mark.parametrize("optimizer", [Adam(0.1), SGD(0.1)], ids=["adam", "sgd"])
def test_a_state_is_left_as_it_was(optimizer: Adam | SGD) -> None:
    state = optimizers.init(optimizer, tf.zeros(SHAPE))
    moved, _ = one_update(optimizer, state, tf.zeros(SHAPE), tf.ones(SHAPE), 0.1)
    for count, expected in ((state.count, 0), (moved.count, 1)):
        np.testing.assert_array_equal(count, np.full(SHAPE[0], expected))
    if isinstance(state, AdamState):
        np.testing.assert_array_equal(state.mean, np.zeros(SHAPE))
        np.testing.assert_array_equal(state.square, np.zeros(SHAPE))
        assert not np.any(moved.mean == 0.0)


@pytest.mark.parametrize("optimizer", [Adam(0.1), SGD(0.1), LBFGS(history=3)], ids=["adam", "sgd", "lbfgs"])
def test_the_spec_of_a_state_fits_the_state(optimizer: Optimizer) -> None:
    state = optimizers.init(optimizer, tf.zeros(SHAPE))
    spec = optimizers.spec(optimizer, tf.TensorSpec((None, None, None, 3)))
    assert type(spec) is type(state)
    for name, expected in spec._asdict().items():
        assert expected.is_compatible_with(getattr(state, name)), name


def test_moments_at_another_size_are_those_of_the_same_picture() -> None:
    random = np.random.default_rng(1)
    smooth = tf.image.resize(random.standard_normal((2, 3, 4, 3)), (12, 16), "bicubic")
    state = AdamState(smooth, tf.square(smooth), tf.constant([7, 3], tf.int64))
    above = resize_moments(state, 17, 23)
    assert above.mean.shape == above.square.shape == (2, 17, 23, 3)
    np.testing.assert_array_equal(above.count, [7, 3])
    np.testing.assert_allclose(above.mean, tf.image.resize(smooth, (17, 23), "bicubic"))
    np.testing.assert_allclose(above.square, tf.image.resize(tf.square(smooth), (17, 23), "bilinear"))
    # a lone spike: the cubic filter dips below 0 beside it, which no mean of squares may
    spike = tf.constant(np.eye(9)[4][:, None] * np.eye(9)[4], tf.float32)[None, ..., None] * tf.ones((1, 1, 1, 3))
    sharp = resize_moments(AdamState(spike, spike, tf.constant([1], tf.int64)), 23, 23)
    assert float(tf.reduce_min(sharp.mean)) < 0.0
    assert float(tf.reduce_min(sharp.square)) == 0.0


def test_the_learning_rate_falls_along_a_cosine() -> None:
    # from 1 to 0.2 over 4 steps: 0.2 + 0.8 (1 + cos(k pi / 4)) / 2
    half = np.sqrt(0.5)
    expected = [1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2]
    np.testing.assert_allclose(learning_rates(Adam(1.0, decay_to=0.2), 4), expected, rtol=1e-6)


def test_the_learning_rate_stays_without_decay() -> None:
    np.testing.assert_array_equal(learning_rates(Adam(0.02), 7), np.full(8, 0.02, np.float32))


def test_the_learning_rate_of_gradient_descent_falls_by_a_power() -> None:
    expected = [1.0, 0.25**0.25, 0.5, 0.25**0.75, 0.25]
    np.testing.assert_allclose(learning_rates(SGD(1.0, decay=0.25, decay_steps=4), 4), expected, rtol=1e-6)
    np.testing.assert_array_equal(learning_rates(SGD(0.5), 3), np.full(4, 0.5, np.float32))


def test_l_bfgs_tells_its_own_rate() -> None:
    np.testing.assert_array_equal(learning_rates(LBFGS(learning_rate=0.5), 3), np.full(4, 0.5, np.float32))


@pytest.mark.parametrize("optimizer", [Adam(0.03, decay_to=0.3), SGD(0.03, decay=0.9), LBFGS()], ids=["adam", "sgd", "lbfgs"])
def test_learning_rates_lists_the_rate_of_every_step(optimizer: Optimizer) -> None:
    steps = 13
    rates = learning_rates(optimizer, steps)
    assert rates.shape == (steps + 1,)
    assert rates.dtype == np.float32
    each = [float(learning_rate(optimizer, tf.constant(step), tf.constant(steps))) for step in range(steps + 1)]
    np.testing.assert_allclose(rates, each, rtol=1e-6)


def test_a_level_without_steps_has_one_unused_rate() -> None:
    np.testing.assert_allclose(learning_rates(Adam(0.03, decay_to=0.3), 0), [0.03], rtol=1e-6)
