"""Time of each convolution of the network: TensorFlow's own, with a flipped kernel, and by Winograd F(4, 3).

These numbers justify `backbones.quickened`.

.venv/bin/python -m bench.convolutions --size 256
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from nst_tasks import quiet

quiet.import_tensorflow()

import tensorflow as tf

from bench.rows.row import alternating
from nst_tasks import weights
from nst_tasks.core import backbones
from nst_tasks.core.architecture import Turns
from nst_tasks.weights import Weights


def main() -> None:
    """Print the median times by layer and direction."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    arrays = weights.load(weights.DEFAULT, None)
    never = sys.maxsize
    forms = {
        "as it is": backbones.build(weights.DEFAULT, arrays),
        "turned, forward": _quickened(arrays, "forward", 1, never),
        "turned, backward": _quickened(arrays, "backward", 1, never),
        "halved": _quickened(arrays, "backward", never, 16),
    }
    print("| layer | channels | way | as it is, ms | turned | halved |\n" + "| --- " * 6 + "|")
    for way in ("forward", "backward"):
        for place, usual in enumerate(forms["as it is"].convolutions):
            side, channels = asked.size >> (int(usual.layer[5]) - 1), usual.kernel.shape[2]
            x = tf.random.uniform((1, side, side, channels))
            y = tf.random.uniform((1, side, side, usual.kernel.shape[3]))
            timed, given = (_output, (x,)) if way == "forward" else (_slope, (x, y))
            calls = {
                name: functools.partial(tf.function(functools.partial(timed, forms[form].convolutions[place])), *given)
                for name, form in (("usual", "as it is"), ("turned", f"turned, {way}"), ("halved", "halved"))
                if name != "halved" or forms[form].convolutions[place].ways is not None
            }
            alternating(2, calls)  # traces the graphs
            taken = {name: 1e3 * statistics.median(values) for name, values in alternating(asked.rounds, calls).items()}
            cells = (f"{taken[name]:.1f}" if name in taken else "" for name in ("usual", "turned", "halved"))
            print(f"| {usual.layer} | {channels} | {way} | {' | '.join(cells)} |", flush=True)


def _quickened(arrays: Weights, turns: Turns, turned_from: int, halved_from: int) -> backbones.Backbone:
    plain = backbones.build(weights.DEFAULT, arrays, turns=turns)
    return backbones.quickened(plain, turned_from, (halved_from, halved_from))


def _output(convolution: backbones.Convolution, x: tf.Tensor) -> tf.Tensor:
    """Return the convolution with its bias and ReLU, which TensorFlow may fuse."""
    return backbones.through([convolution], x)[0]


def _slope(convolution: backbones.Convolution, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Return the gradient of the linear convolution with respect to x, shape of x, given the gradient y of its output.

    The output itself is not used, so that TensorFlow does not compute it.
    """
    with tf.GradientTape() as tape:
        tape.watch(x)
        linear = backbones.convolved(convolution, x, "zero")
    return tape.gradient(linear, x, output_gradients=y)


if __name__ == "__main__":
    main()
