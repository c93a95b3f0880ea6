"""Loop of the Keras example, rewritten on our features.

    .venv/bin/python -m bench peers.keras_example CONTENT STYLE OUT [--size PX] [--steps N]

As published (https://keras.io/examples/generative/neural_style_transfer): content, style and image pass through the network
together at every step; every layer's output is returned; losses are sums of squares over Gram matrices that are not normalized;
and Keras's gradient descent updates a variable of 0-255 in a Python loop. The recipe `keras-io` has the same objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from bench.peers import vgg
from bench.peers.loop import Loop, run_script
from bench.processes import create_parser
from nst_tasks.inputs.weights import Weights

CONTENT_LAYER = "block5_conv2"
STYLE_LAYERS = ("block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1")
CONTENT_WEIGHT, STYLE_WEIGHT, TV_WEIGHT = 2.5e-8, 1e-6, 1e-6
MEAN_BGR = np.float32((103.939, 116.779, 123.68))


def start(weights: Weights, content: np.ndarray, style: np.ndarray) -> Loop:
    """Return the loop, started from the content image; both images have the same shape (H, W, 3), in [0, 1]."""
    network = vgg.build_network(weights)
    extractor = keras.Model(network.inputs, {layer.name: layer.output for layer in network.layers})
    base, reference = tf.constant(_preprocess(content)), tf.constant(_preprocess(style))
    combination = tf.Variable(_preprocess(content))
    schedule = keras.optimizers.schedules.ExponentialDecay(initial_learning_rate=100.0, decay_steps=100, decay_rate=0.96)
    optimizer = keras.optimizers.SGD(schedule)

    def objective(image, base, reference):
        features = extractor(tf.concat([base, reference, image], axis=0))
        at = features[CONTENT_LAYER]
        loss = CONTENT_WEIGHT * tf.reduce_sum(tf.square(at[2] - at[0]))
        for layer in STYLE_LAYERS:
            at = features[layer]
            difference = tf.reduce_sum(tf.square(_gram_matrix(at[1]) - _gram_matrix(at[2])))
            pixels = content.shape[0] * content.shape[1]
            loss += STYLE_WEIGHT / len(STYLE_LAYERS) * difference / (4.0 * 3**2 * pixels**2)
        return loss + TV_WEIGHT * _total_variation(image)

    @tf.function
    def loss_and_gradient(image, base, reference):
        with tf.GradientTape() as tape:
            loss = objective(image, base, reference)
        return loss, tape.gradient(loss, image)

    def step():
        loss, gradient = loss_and_gradient(combination, base, reference)
        optimizer.apply_gradients([(gradient, combination)])
        return loss

    return Loop(
        step,
        lambda image: float(objective(tf.constant(_preprocess(image)), base, reference)),
        lambda: (combination.numpy()[0] + MEAN_BGR)[..., ::-1] / np.float32(255),
    )


def _preprocess(picture: np.ndarray) -> np.ndarray:
    return (picture[None] * np.float32(255))[..., ::-1] - MEAN_BGR  # (1, H, W, 3), BGR


def _gram_matrix(x):
    x = tf.transpose(x, (2, 0, 1))  # (C, h, w)
    rows = tf.reshape(x, (tf.shape(x)[0], -1))  # (C, h*w)
    return tf.matmul(rows, tf.transpose(rows))


def _total_variation(image):
    down = tf.square(image[:, :-1, :-1] - image[:, 1:, :-1])
    right = tf.square(image[:, :-1, :-1] - image[:, :-1, 1:])
    return tf.reduce_sum(tf.pow(down + right, 1.25))


def main(arguments: Sequence[str]) -> None:
    """Stylize one pair."""
    run_script(start, create_parser(__name__, __doc__), arguments, stretch=True)
