"""Deviation of bfloat16 from float32 on real features: in the losses of one picture, and in the results of steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import metrics, transfer
from nst_tasks.core.method import Method
from nst_tasks.core.vgg import Backbone
from nst_tasks.engine.hardware import detect_precision
from nst_tasks.inputs.presets import PRESETS
from tests.support.pictures import Array, picture
from tests.support.transfers import loss_terms, run_eagerly, targets

SIZE = (64, 80)
CONTENT, STYLE = picture(1, *SIZE), picture(2, *SIZE)
HALF = np.broadcast_to(np.linspace(0.0, 1.0, SIZE[1], dtype=np.float32), (2, *SIZE))
"""Masks of two pictures that rise from left to right, to a half on average."""


STEPS = 8

LOSS_TOLERANCE = 0.01 if detect_precision() == "mixed" else 0.02
"""Relative. Where there is no hardware for bfloat16, TensorFlow's own code for it rounds sums on the way too."""


def build_method(name: str, precision: str, blocks: int = 5) -> Method:
    """Return a preset's method at one size, in this precision, up to this block of the network."""
    method = replace(PRESETS[name].method, precision=precision, pyramid=None, steps=STEPS)
    if blocks == 5:
        return method
    content = replace(method.content, layers=((f"block{blocks}_conv2", 1.0),))
    return replace(method, content=content, style=replace(method.style, layers=method.style.layers[:blocks]))


WHOLE = ["painterly", "keras-io", "pytorch-tutorial"]
MASKED = ["gatys-2016", "wasserstein"]  # Gram matrices, and moments


@pytest.mark.parametrize(
    ("name", "blocks", "mask"),
    [
        *(pytest.param(name, 5, None, id=name) for name in WHOLE),
        *(pytest.param(name, 3, HALF, id=f"{name}-masked") for name in MASKED),
    ],
)
def test_mixed_losses_are_within_a_hundredth_of_float32(hed: Backbone, name: str, blocks: int, mask: Array | None) -> None:
    """Their gradient's cosine with that of float32 is 0.989 or more, and its length within 2 % of it, as measured.

    The mixed losses come from a graph, which rounds less: it fuses a convolution with its bias. The gradients come from eager
    code in both precisions; the steps below take theirs from a mixed graph, and test_host.py traces one with a mask.
    """
    images = tf.constant(np.stack([0.5 * CONTENT + 0.5 * STYLE, CONTENT]))
    terms, gradients = [], []
    for precision in ("float32", "mixed"):
        method = build_method(name, precision, blocks)
        with run_eagerly() if precision == "float32" else nullcontext():
            aims = targets(hed, method, [CONTENT] * 2, [[STYLE]] * 2, mask=mask)
            terms.append(transfer.compute_terms(hed, method, aims, images))
        assert terms[-1][1, 0] == 0.0  # the content is itself
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(loss_terms(hed, method, images, aims)[0])
        gradients.append(tape.gradient(total, images)[0].numpy().ravel().astype(np.float64))
    np.testing.assert_allclose(terms[1][0], terms[0][0], rtol=LOSS_TOLERANCE)
    exact, rounded = gradients
    lengths = np.linalg.norm(exact), np.linalg.norm(rounded)
    assert exact @ rounded > 0.98 * lengths[0] * lengths[1]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.03)


@pytest.mark.parametrize(("precision", "root_dtype"), [("float32", tf.float64), ("mixed", tf.float32)])
def test_roots_take_float64_only_beside_float32(tiny: Backbone, precision: str, root_dtype: tf.DType) -> None:
    """In bfloat16 the features' own rounding is larger by far, and a step's time would be spent on roots."""
    method = build_method("painterly", precision, blocks=1)
    with run_eagerly():
        aims = targets(tiny, method, [CONTENT], [[STYLE]])
    image = tf.constant(CONTENT[None])
    graph = tf.function(lambda: loss_terms(tiny, method, image, aims), autograph=False).get_concrete_function().graph
    assert {op.get_attr("T") for op in graph.get_operations() if op.type == "SelfAdjointEigV2"} == {root_dtype}


@pytest.mark.parametrize("name", ["painterly", "tf-tutorial"])
def test_mixed_steps_reach_the_quality_of_float32(hed: Backbone, name: str) -> None:
    """In mixed precision in a graph, and for comparison eagerly in float32."""
    exact = build_method(name, "float32", blocks=3)
    layers = [layer for layer, _ in exact.style.layers]
    content, style = metrics.content_moments(hed, CONTENT, layers), metrics.style_moments(hed, STYLE, layers)
    with run_eagerly():
        exact_targets = targets(hed, exact, [CONTENT], [[STYLE]])

    def compute(precision: str) -> tuple[metrics.Quality, Array]:
        method = replace(exact, precision=precision)
        with nullcontext() if precision == "mixed" else run_eagerly():
            aims = targets(hed, method, [CONTENT], [[STYLE]])
            state, _ = transfer.advance(hed, method, aims, transfer.start(method, CONTENT[None], [0]), STEPS, STEPS)
        with run_eagerly():
            image = np.clip(transfer.compute_result(hed, method, aims, state)[0].numpy(), 0.0, 1.0)
            terms = transfer.compute_terms(hed, exact, exact_targets, tf.constant(image))[0]
        return metrics.measure(hed, layers, image[0], content, [style], [1.0]), terms

    (plain, plain_terms), (mixed, mixed_terms) = compute("float32"), compute("mixed")
    assert plain.held_out is not None and mixed.held_out is not None
    assert plain.content_cosine is not None and mixed.content_cosine is not None
    assert mixed.held_out > plain.held_out - 0.02
    assert mixed.content_cosine > plain.content_cosine - 0.02
    assert mixed_terms.sum() < 1.03 * plain_terms.sum()  # both by the losses of float32
