"""Arithmetic rate of the convolutions in a step, as a share of this machine's best matrix product.

    .venv/bin/python -m bench rows.arithmetic share --size 512

Operations are counted from the architecture: 2 x 9 x C_in x C_out for each position of each convolution, and the same number
for its gradient with respect to its input (kernels are constants). The rest of a step counts as time only.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bench import ours
from bench.row import Row, list_precisions, run_commands, time_alternating
from nst_tasks.inputs import weights
from nst_tasks.inputs.weights import Weights

PRODUCT_SHAPES = (
    (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (65536, 576, 64), (16384, 1152, 128), (4096, 2304, 256),
    (4096, 4608, 512),
)  # fmt: skip
"""(m, k, n) of products (m, k) x (k, n): square ones, and the shapes of convolutions."""

GPU_PRODUCT_SHAPES = ((8192, 8192, 8192), (16384, 16384, 16384))
"""Shapes for GPUs, which those above do not saturate."""

DTYPES = {"float32": tf.float32, "mixed": tf.bfloat16}


def count_operations(kernels: Mapping[str, tuple[int, ...]], layers: Iterable[str], height: int, width: int) -> float:
    """Return the number of operations of the convolutions in a step, for an image (height, width).

    Args:
        kernels: Shape (3, 3, C_in, C_out) of each kernel by layer, in the network's order.
        layers: Layers whose features are used; the deepest ends the network.
    """
    deepest = max(list(kernels).index(layer) for layer in layers)
    operations, block = 0.0, "block1"
    for layer, shape in list(kernels.items())[: deepest + 1]:
        if not layer.startswith(block):
            height, width, block = height // 2, width // 2, layer.partition("_")[0]
        operations += 2 * 2.0 * np.prod(shape) * height * width  # multiplication and addition, forward and backward
    return operations


def share(size: int = 512, rounds: int = 7) -> list[Row]:
    """Measure a step of `tf-tutorial` against the best matrix product, in each precision."""
    content, style = ours.load_pair(size)
    arrays: Weights = weights.load(weights.DEFAULT_BACKBONE, None)
    rows = []
    kernels = {layer: kernel.shape for layer, (kernel, _) in arrays.items()}
    steps = ours.choose_steps_per_round(size)
    for precision in list_precisions():
        method = ours.build_method("tf-tutorial", precision)
        transfer = ours.start(ours.build_backbone(), method, content, style)
        operations = count_operations(kernels, method.layers, *content.shape[:2])
        product = _find_best_product(DTYPES[precision])
        sides = {"steps": functools.partial(transfer.advance, steps), "product": product.multiply}
        seconds = time_alternating(rounds, sides)
        rates = [steps * operations / value for value in seconds["steps"]]
        bounds = [product.operations / value for value in seconds["product"]]
        shares = [100 * rate / bound for rate, bound in zip(rates, bounds, strict=True)]
        detail = f"{np.median(rates) / 1e9:.0f} of {np.median(bounds) / 1e9:.0f} GFLOP/s, {' x '.join(map(str, product.shape))}"
        rows.append(
            Row(
                f"convolutions in a step, {size} px, {precision}", "best matrix product", 70.0, float(np.median(shares)),
                min(shares), max(shares), "%", detail,
            )
        )  # fmt: skip
    return rows


class Product(NamedTuple):
    """Matrix product of shape (m, k, n).

    Attributes:
        multiply: Computes it several times, waits for the end, and takes about as long as a step.
        operations: Operations of a call of `multiply`.
    """

    shape: tuple[int, int, int]
    multiply: Callable[[], None]
    operations: float


def _find_best_product(dtype: tf.DType) -> Product:
    """Return the matrix product with the most operations per second."""
    shapes = PRODUCT_SHAPES + (GPU_PRODUCT_SHAPES if tf.config.list_physical_devices("GPU") else ())
    products = [_build_product(shape, dtype) for shape in shapes]
    return max(products, key=lambda product: product.operations / min(_time_call(product.multiply) for _ in range(3)))


def _build_product(shape: tuple[int, int, int], dtype: tf.DType) -> Product:
    m, k, n = shape
    times = 1 + int(5e10 // (2 * m * k * n))  # as long as a step, so that the overhead of a call does not count
    left, right = (tf.cast(tf.random.uniform(sides), dtype) for sides in ((m, k), (k, n)))
    compute = tf.function(lambda x: tf.matmul(x, right))

    def multiply() -> None:
        for _ in range(times):
            last = compute(left)
        last[0, 0].numpy()  # waits for the device

    multiply()  # traces the graph
    return Product(shape, multiply, times * 2.0 * m * k * n)


def _time_call(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(arguments: Sequence[str]) -> None:
    """Measure the rows of one command."""
    run_commands(__name__, arguments, share)
