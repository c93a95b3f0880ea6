"""Time of each convolution of the network: TensorFlow's own, with a flipped kernel, and by Winograd F(4, 3).

    .venv/bin/python -m bench convolutions --size 256

These numbers justify `core.convolutions.choose_algorithm`.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from nst_tasks.engine.runtime import import_tensorflow

import_tensorflow()  # as nst does it, and so before the modules that import it

import tensorflow as tf

from bench.processes import create_parser
from bench.row import time_alternating
from nst_tasks.core import vgg
from nst_tasks.core.convolutions import Algorithm, Convolution, convolve, with_algorithm
from nst_tasks.core.vgg_layers import FlippedDirection
from nst_tasks.inputs import weights
from nst_tasks.inputs.weights import Weights

MIN_WINOGRAD_CHANNELS = 16
"""Input channels below which Winograd F(4, 3) is not timed."""

ALGORITHMS = ("plain", "flipped", "Winograd")


def main(arguments: Sequence[str]) -> None:
    """Print the median times by layer and direction."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("--size", type=int, default=256, help="side of the image, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(arguments)
    arrays = weights.load(weights.DEFAULT_BACKBONE, None)
    plain = vgg.build(weights.DEFAULT_BACKBONE, arrays)
    winograd = _build_fast_backbone(arrays, "winograd", "backward")
    print(f"| layer | channels | pass | {', ms | '.join(ALGORITHMS)}, ms |\n" + "| --- " * 6 + "|")
    for direction, build_call in (("forward", _build_forward_call), ("backward", _build_backward_call)):
        flipped = _build_fast_backbone(arrays, "flipped", direction)
        layers = zip(*(backbone.convolutions for backbone in (plain, flipped, winograd)), strict=True)
        for convolutions in layers:
            by_algorithm = dict(zip(ALGORITHMS, convolutions, strict=True))
            if by_algorithm["plain"].kernel.shape[2] < MIN_WINOGRAD_CHANNELS:
                del by_algorithm["Winograd"]
            usual = by_algorithm["plain"]
            side = args.size >> (int(usual.layer[5]) - 1)
            calls = {algorithm: build_call(convolution, side) for algorithm, convolution in by_algorithm.items()}
            time_alternating(2, calls)  # traces the graphs
            seconds = {name: statistics.median(values) for name, values in time_alternating(args.rounds, calls).items()}
            cells = (f"{1e3 * seconds[name]:.1f}" if name in seconds else "" for name in ALGORITHMS)
            print(f"| {usual.layer} | {usual.kernel.shape[2]} | {direction} | {' | '.join(cells)} |", flush=True)


def _build_fast_backbone(arrays: Weights, algorithm: Algorithm, direction: FlippedDirection) -> vgg.Backbone:
    plain = vgg.build(weights.DEFAULT_BACKBONE, arrays)
    return replace(plain, convolutions=tuple(with_algorithm(one, algorithm, direction) for one in plain.convolutions))


def _build_forward_call(convolution: Convolution, side: int) -> Callable[[], tf.Tensor]:
    """Return a call of the convolution of an image of this side, with its bias and ReLU, which TensorFlow may fuse."""

    @tf.function
    def compute(x: tf.Tensor) -> tf.Tensor:
        return vgg.apply_block([convolution], x)[0]

    return functools.partial(compute, tf.random.uniform((1, side, side, convolution.kernel.shape[2])))


def _build_backward_call(convolution: Convolution, side: int) -> Callable[[], tf.Tensor]:
    """Return a call of the gradient of the linear convolution with respect to an image of this side."""
    x, y = (tf.random.uniform((1, side, side, channels)) for channels in convolution.kernel.shape[2:])

    @tf.function
    def compute_gradient(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            linear = convolve(convolution, x, "zero")  # not used, so that TensorFlow does not compute it
        return tape.gradient(linear, x, output_gradients=y)

    return functools.partial(compute_gradient, x, y)
