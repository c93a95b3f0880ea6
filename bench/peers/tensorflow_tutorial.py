"""Loop of the TensorFlow tutorial, rewritten on our features.

    .venv/bin/python -m bench peers.tensorflow_tutorial CONTENT STYLE OUT [--size PX] [--steps N]

As published (https://www.tensorflow.org/tutorials/generative/style_transfer): one compiled train step, Gram matrices by einsum,
and Keras's Adam on a variable in [0, 1] that is clipped and assigned after each update, called in a Python loop. The recipe
`tf-tutorial` has the same objective.
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

CONTENT_LAYERS = ("block5_conv2",)
STYLE_LAYERS = ("block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1")
CONTENT_WEIGHT, STYLE_WEIGHT, TV_WEIGHT = 1e4, 1e-2, 30.0


class Extractor(keras.Model):
    """Gram matrices at the style layers and features at the content layers, of images in [0, 1]."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        network = vgg.build_network(weights)
        self.vgg = keras.Model(network.inputs, [network.get_layer(name).output for name in (*STYLE_LAYERS, *CONTENT_LAYERS)])

    def call(self, inputs):
        """Return two dicts by layer, `style` and `content`, for images (1, H, W, 3)."""
        features = self.vgg(keras.applications.vgg16.preprocess_input(inputs * 255.0))
        grams = [_gram_matrix(x) for x in features[: len(STYLE_LAYERS)]]
        return {
            "style": dict(zip(STYLE_LAYERS, grams, strict=True)),
            "content": dict(zip(CONTENT_LAYERS, features[len(STYLE_LAYERS) :], strict=True)),
        }


def start(weights: Weights, content: np.ndarray, style: np.ndarray) -> Loop:
    """Return the loop, started from the content image; content (H, W, 3) and style (h, w, 3) in [0, 1]."""
    extractor = Extractor(weights)
    style_targets = extractor(tf.constant(style[None]))["style"]
    content_targets = extractor(tf.constant(content[None]))["content"]
    image = tf.Variable(content[None])
    optimizer = keras.optimizers.Adam(learning_rate=0.02, beta_1=0.99, epsilon=1e-1)

    def objective(x):
        features = extractor(x)
        style_loss = tf.add_n([tf.reduce_mean((features["style"][name] - style_targets[name]) ** 2) for name in STYLE_LAYERS])
        content_loss = tf.add_n(
            [tf.reduce_mean((features["content"][name] - content_targets[name]) ** 2) for name in CONTENT_LAYERS]
        )
        loss = style_loss * STYLE_WEIGHT / len(STYLE_LAYERS) + content_loss * CONTENT_WEIGHT / len(CONTENT_LAYERS)
        return loss + TV_WEIGHT * tf.reduce_sum(tf.image.total_variation(x))

    @tf.function
    def train_step():
        with tf.GradientTape() as tape:
            loss = objective(image)
        gradient = tape.gradient(loss, image)
        optimizer.apply_gradients([(gradient, image)])
        image.assign(tf.clip_by_value(image, 0.0, 1.0))
        return loss  # the original does not return it

    evaluate = tf.function(objective)
    return Loop(train_step, lambda shown: float(evaluate(tf.constant(shown[None]))), lambda: image.numpy()[0])


def _gram_matrix(x):
    positions = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], tf.float32)
    return tf.linalg.einsum("bijc,bijd->bcd", x, x) / positions


def main(arguments: Sequence[str]) -> None:
    """Stylize one pair."""
    run_script(start, create_parser(__name__, __doc__), arguments)
