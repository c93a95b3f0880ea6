"""Each convolution of the network as TensorFlow does it and by its turned kernel, forward, float32: why `backbones.turned` is.

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
    """Print the medians and their ratio, layer by layer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    plain = backbones.build(weights.DEFAULT, weights.load(weights.DEFAULT, None))
    print("| layer | channels | as it is, ms | turned, ms | ratio |\n| --- | --- | --- | --- | --- |")
    for usual, other in zip(plain.convolutions, backbones.turned(plain, least=1).convolutions, strict=True):
        side, channels = asked.size >> (int(usual.layer[5]) - 1), usual.kernel.shape[2]
        x = tf.random.uniform((1, side, side, channels))
        sides = {"usual": usual, "turned": other}
        calls = {name: functools.partial(tf.function(functools.partial(_output, one)), x) for name, one in sides.items()}
        alternating(2, calls)  # traces them
        taken = alternating(asked.rounds, calls)
        ratio = statistics.median(a / b for a, b in zip(taken["usual"], taken["turned"], strict=True))
        before, after = (1e3 * statistics.median(taken[name]) for name in ("usual", "turned"))
        print(f"| {usual.layer} | {channels} | {before:.1f} | {after:.1f} | {ratio:.2f} |", flush=True)


def _output(convolution: backbones.Convolution, x: tf.Tensor) -> tf.Tensor:
    return backbones.through([convolution], x)[0]


if __name__ == "__main__":
    main()
