"""How far bfloat16 may lead from float32, on real features: in the losses of one picture, and in what steps come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import metrics, transfer
from nst_tasks.core.method import SGD, Method
from nst_tasks.core.vgg import Backbone
from nst_tasks.engine.hardware import detect_precision
from nst_tasks.inputs.presets import PRESETS
from tests.support.pictures import Array, picture
from tests.support.transfers import loss_terms, targets

SIZE = (64, 80)
CONTENT, STYLE = picture(1, *SIZE), picture(2, *SIZE)
HALF = np.broadcast_to(np.linspace(0.0, 1.0, SIZE[1], dtype=np.float32), (2, *SIZE))
"""Masks of two pictures that rise from left to right, to a half on average."""


NEAR = 0.01 if detect_precision() == "mixed" else 0.02
"""Of a loss. Where there is no hardware for bfloat16, TensorFlow's own code for it rounds sums on the way too."""


def of(name: str, precision: str, steps: int = 0) -> Method:
    return replace(PRESETS[name].method, precision=precision, pyramid=None, steps=steps)


WHOLE = ["painterly", "keras-io", "pytorch-tutorial"]
MASKED = ["gatys-2016", "wasserstein"]  # Gram matrices, and moments


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        *(pytest.param(name, None, id=name) for name in WHOLE),
        *(pytest.param(name, HALF, id=f"{name}-masked") for name in MASKED),
    ],
)
def test_a_pictures_losses_are_those_of_float32_to_a_hundredth(hed: Backbone, name: str, mask: Array | None) -> None:
    """Their gradient's cosine with that of float32 is 0.989 or more, and its length within 2 % of it, as measured."""
    images = np.stack([0.5 * CONTENT + 0.5 * STYLE, CONTENT])
    found, gradients = [], []
    for precision in ("float32", "mixed"):
        # a step of gradient descent so long that the image it started from is nothing beside it
        method = replace(of(name, precision), optimizer=SGD(1e6), clip=False, init_noise=0.0)
        aims = targets(hed, method, [CONTENT] * 2, [[STYLE]] * 2, mask=mask)
        moved, terms = transfer.advance(hed, method, aims, transfer.start(method, images, [None] * 2), 1, 1)
        assert terms[0, 1, 0] == 0.0  # the content is itself
        found.append(terms[0, 0])
        gradients.append((images[0] - moved.image[0].numpy()).ravel().astype(np.float64))
    np.testing.assert_allclose(found[1], found[0], rtol=NEAR)
    exact, rounded = gradients
    lengths = np.linalg.norm(exact), np.linalg.norm(rounded)
    assert exact @ rounded > 0.98 * lengths[0] * lengths[1]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.03)


@pytest.mark.parametrize(("precision", "of_roots"), [("float32", tf.float64), ("mixed", tf.float32)])
def test_roots_take_float64_only_beside_float32(tiny: Backbone, precision: str, of_roots: tf.DType) -> None:
    """In bfloat16 the features' own rounding is larger by far, and a step's time would be spent on roots."""
    method = of("painterly", precision)
    image, aims = tf.constant(CONTENT[None]), targets(tiny, method, [CONTENT], [[STYLE]])
    graph = tf.function(lambda: loss_terms(tiny, method, image, aims), autograph=False).get_concrete_function().graph
    assert {one.get_attr("T") for one in graph.get_operations() if one.type == "SelfAdjointEigV2"} == {of_roots}


@pytest.mark.parametrize("name", ["painterly", "tf-tutorial"])
def test_steps_come_to_the_quality_of_float32(hed: Backbone, name: str) -> None:
    layers = [layer for layer, _ in PRESETS[name].method.style.layers]
    against, style = metrics.content_moments(hed, CONTENT, layers), metrics.style_moments(hed, STYLE, layers)

    def result(precision: str) -> tuple[metrics.Quality, Array]:
        method = of(name, precision, steps=10)
        aims = targets(hed, method, [CONTENT], [[STYLE]])
        state, _ = transfer.advance(hed, method, aims, transfer.start(method, CONTENT[None], [0]), 10, 10)
        image = np.clip(transfer.compute_result(hed, method, aims, state)[0].numpy(), 0.0, 1.0)
        exact = of(name, "float32")
        losses = transfer.compute_terms(hed, exact, targets(hed, exact, [CONTENT], [[STYLE]]), tf.constant(image))[0]
        return metrics.measure(hed, layers, image[0], against, [style], [1.0]), losses

    (plain, least), (mixed, reached) = result("float32"), result("mixed")
    assert plain.held_out is not None and mixed.held_out is not None
    assert plain.content_cosine is not None and mixed.content_cosine is not None
    assert mixed.held_out > plain.held_out - 0.02
    assert mixed.content_cosine > plain.content_cosine - 0.02
    assert reached.sum() < 1.03 * least.sum()  # in float32's eyes
