"""Each convolution of the network as TensorFlow does it and by its turned kernel, in float32: why `backbones.turned` is.

.venv/bin/python -m bench.convolutions --size 256
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from nst_tasks import quiet

quiet.import_tensorflow()

import tensorflow as tf

from bench.rows.row import alternating
from nst_tasks import weights
from nst_tasks.core import backbones


def main() -> None:
    """Print the medians and their ratios, layer by layer and way by way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    arrays = weights.load(weights.DEFAULT, None)
    plain = backbones.build(weights.DEFAULT, arrays)
    print("| layer | channels | way | as it is, ms | turned, ms | ratio |\n" + "| --- " * 6 + "|")
    for way in ("forward", "backward"):
        turned = backbones.turned(backbones.build(weights.DEFAULT, arrays, turns=way), least=1)
        for usual, other in zip(plain.convolutions, turned.convolutions, strict=True):
            side, channels = asked.size >> (int(usual.layer[5]) - 1), usual.kernel.shape[2]
            x = tf.random.uniform((1, side, side, channels))
            y = tf.random.uniform((1, side, side, usual.kernel.shape[3]))
            timed, given = (_output, (x,)) if way == "forward" else (_slope, (x, y))
            calls = {
                name: functools.partial(tf.function(functools.partial(timed, one)), *given)
                for name, one in (("usual", usual), ("turned", other))
            }
            alternating(2, calls)  # traces them
            taken = alternating(asked.rounds, calls)
            ratio = statistics.median(a / b for a, b in zip(taken["usual"], taken["turned"], strict=True))
            before, after = (1e3 * statistics.median(taken[name]) for name in ("usual", "turned"))
            print(f"| {usual.layer} | {channels} | {way} | {before:.1f} | {after:.1f} | {ratio:.2f} |", flush=True)


def _output(convolution: backbones.Convolution, x: tf.Tensor) -> tf.Tensor:
    """With its bias and ReLU, which TensorFlow may compute with it."""
    return backbones.through([convolution], x)[0]


def _slope(convolution: backbones.Convolution, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Of a convolution alone; what it gives is not asked for, and so not computed."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        linear = backbones.convolved(convolution, x, "zero")
    return tape.gradient(linear, x, output_gradients=y)


if __name__ == "__main__":
    main()
