"""How far bfloat16 may lead from float32, on real features: in the losses of one picture, and in what steps come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from transfers import Array, loss_terms, picture, targets

from nst_tasks.core import quality, transfer
from nst_tasks.core.backbones import Backbone
from nst_tasks.core.method import Method
from nst_tasks.presets import PRESETS

SIZE = (64, 80)
CONTENT, STYLE = picture(1, *SIZE), picture(2, *SIZE)


def of(name: str, precision: str, steps: int = 0) -> Method:
    return replace(PRESETS[name].method, precision=precision, pyramid=None, steps=steps)


@pytest.mark.parametrize("name", ["painterly", "gatys-2016", "keras-io", "pytorch-tutorial", "wasserstein"])
def test_a_pictures_losses_are_those_of_float32_to_a_hundredth(hed: Backbone, name: str) -> None:
    between = tf.constant((0.5 * CONTENT + 0.5 * STYLE)[None])
    found = []
    for precision in ("float32", "mixed"):
        method = of(name, precision)
        aims = targets(hed, method, [CONTENT], [[STYLE]])
        found.append(transfer.measure(hed, method, aims, between)[0])
        assert transfer.measure(hed, method, aims, tf.constant(CONTENT[None]))[0, 0] == 0.0  # the content is itself
    np.testing.assert_allclose(found[1], found[0], rtol=0.01)


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
    against, style = quality.content(hed, CONTENT, layers), quality.moments(hed, STYLE, layers)

    def result(precision: str) -> tuple[quality.Quality, Array]:
        method = of(name, precision, steps=10)
        aims = targets(hed, method, [CONTENT], [[STYLE]])
        state, _ = transfer.advance(hed, method, aims, transfer.start(method, CONTENT[None], [0]), 10, 10)
        image = np.clip(transfer.result(hed, method, aims, state)[0].numpy(), 0.0, 1.0)
        exact = of(name, "float32")
        losses = transfer.measure(hed, exact, targets(hed, exact, [CONTENT], [[STYLE]]), tf.constant(image))[0]
        return quality.measure(hed, layers, image[0], against, [style], [1.0]), losses

    (plain, least), (mixed, reached) = result("float32"), result("mixed")
    assert plain.held_out is not None and mixed.held_out is not None
    assert plain.content_cosine is not None and mixed.content_cosine is not None
    assert mixed.held_out > plain.held_out - 0.02
    assert mixed.content_cosine > plain.content_cosine - 0.02
    assert reached.sum() < 1.03 * least.sum()  # in float32's eyes
