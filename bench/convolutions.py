"""Time of each convolution of the network: TensorFlow's own, with a flipped kernel, and by Winograd F(4, 3).

These numbers justify `core.convolutions.choose_algorithm`.

.venv/bin/python -m bench.convolutions --size 256
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bench.rows.row import time_alternating
from nst_tasks.core import vgg
from nst_tasks.core.convolutions import Algorithm, Convolution, convolve, with_algorithm
from nst_tasks.core.vgg_layers import FlippedDirection
from nst_tasks.engine.runtime import import_tensorflow
from nst_tasks.inputs import weights
from nst_tasks.inputs.weights import Weights

import_tensorflow()

import tensorflow as tf


def main() -> None:
    """Print the median times by layer and direction."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    arrays = weights.load(weights.DEFAULT_BACKBONE, None)
    forms = {
        "as it is": vgg.build(weights.DEFAULT_BACKBONE, arrays),
        "turned, forward": _build_fast_backbone(arrays, "flipped", "forward"),
        "turned, backward": _build_fast_backbone(arrays, "flipped", "backward"),
        "halved": _build_fast_backbone(arrays, "winograd", "backward"),
    }
    print("| layer | channels | way | as it is, ms | turned | halved |\n" + "| --- " * 6 + "|")
    for way in ("forward", "backward"):
        for place, usual in enumerate(forms["as it is"].convolutions):
            side, channels = args.size >> (int(usual.layer[5]) - 1), usual.kernel.shape[2]
            x = tf.random.uniform((1, side, side, channels))
            y = tf.random.uniform((1, side, side, usual.kernel.shape[3]))
            timed, given = (_run_forward, (x,)) if way == "forward" else (_compute_gradient, (x, y))
            calls = {
                name: functools.partial(tf.function(functools.partial(timed, forms[form].convolutions[place])), *given)
                for name, form in (("usual", "as it is"), ("turned", f"turned, {way}"), ("halved", "halved"))
                if name != "halved" or channels >= 16
            }
            time_alternating(2, calls)  # traces the graphs
            milliseconds = {
                name: 1e3 * statistics.median(values) for name, values in time_alternating(args.rounds, calls).items()
            }
            cells = (f"{milliseconds[name]:.1f}" if name in milliseconds else "" for name in ("usual", "turned", "halved"))
            print(f"| {usual.layer} | {channels} | {way} | {' | '.join(cells)} |", flush=True)


def _build_fast_backbone(arrays: Weights, algorithm: Algorithm, direction: FlippedDirection) -> vgg.Backbone:
    plain = vgg.build(weights.DEFAULT_BACKBONE, arrays)
    return replace(plain, convolutions=tuple(with_algorithm(one, algorithm, direction) for one in plain.convolutions))


def _run_forward(convolution: Convolution, x: tf.Tensor) -> tf.Tensor:
    """Return the convolution with its bias and ReLU, which TensorFlow may fuse."""
    return vgg.apply_block([convolution], x)[0]


def _compute_gradient(convolution: Convolution, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Return the gradient of the linear convolution with respect to x, shape of x, given the gradient y of its output.

    The output itself is not used, so that TensorFlow does not compute it.
    """
    with tf.GradientTape() as tape:
        tape.watch(x)
        linear = convolve(convolution, x, "zero")
    return tape.gradient(linear, x, output_gradients=y)


if __name__ == "__main__":
    main()
