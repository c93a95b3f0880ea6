"""Transfers of small pictures, by the core's own functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from nst_tasks.core import losses, objective, transfer, vgg
from nst_tasks.core.features import BandTables
from nst_tasks.core.method import Adam, Method
from nst_tasks.core.objective import Targets
from nst_tasks.core.transfer import TransferState
from nst_tasks.core.vgg import Backbone
from tests.support.pictures import Array, picture


def targets(
    backbone: Backbone,
    method: Method,
    contents: Sequence[Array],
    styles: Sequence[Sequence[Array]],
    style_weights: Sequence[Sequence[float]] | None = None,
    mask: Array | None = None,
) -> Targets:
    """Build the targets of contents and, for each, its styles, all of the same weight by default.

    Targets do not depend on how a method steps: those that differ in that alone share the graphs for their targets here.
    """
    method = replace(method, optimizer=Adam(1.0), clip=True, output="last", average_decay=0.5)
    statistics = [[transfer.style_statistics(backbone, method, style) for style in pair] for pair in styles]
    shares = style_weights or [[1.0 / len(pair)] * len(pair) for pair in styles]
    return transfer.build_targets(backbone, method, np.stack(contents), statistics, shares, mask)


def targets64(backbone: Backbone, method: Method, content: Array, style: Array) -> Targets:
    """Build the targets of one pair in float64, from a backbone in float64: for differences too small for float32."""

    def features(picture: Array, layers: Sequence[str]) -> dict[str, tf.Tensor]:
        look = method.pooling, method.padding, method.activation
        found = vgg.extract_activations(backbone, tf.constant(picture[None], tf.float64), layers, *look)
        return {layer: method.feature_scale * x for layer, x in found.items()}

    of_content = features(content, [layer for layer, _ in method.content.layers])
    of_style = features(style, [layer for layer, _ in method.style.layers])
    pixels = tf.constant(style.shape[0] * style.shape[1])
    statistics = {layer: losses.style_statistics(method.style, losses.sums(x), pixels) for layer, x in of_style.items()}
    return Targets(
        {layer: losses.content_statistics(method.content, x) for layer, x in of_content.items()},
        {layer: {name: value[:, None] for name, value in one.items()} for layer, one in statistics.items()},
        tf.ones((1, 1), tf.float64),
    )


def loss_terms(backbone: Backbone, method: Method, image: tf.Tensor, aims: Targets, tables: BandTables = ()) -> tf.Tensor:
    """Compute the weighted terms of the loss, (B, 3), as a step does, but uncompiled and in the image's dtype."""
    return objective.weighted_terms(backbone, method, image, aims, objective.build_hyperparameters(method, image.dtype), tables)


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run the core's functions operation by operation, where tracing takes longer than a few evaluations do.

    Only for comparisons of values whose code other tests run in a graph, as users do.
    """
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def one_pair(backbone: Backbone, method: Method) -> tuple[Targets, TransferState]:
    """Build the targets and first state of a content with one style of another shape."""
    content = picture(1)
    aims = targets(backbone, method, [content], [[picture(2, 36, 33)]])
    return aims, transfer.start(method, content[None], [0])


def leaves(nested: Any) -> Iterator[Any]:
    """Yield the tensors, arrays and numbers of nested tuples, in order."""
    for item in nested:
        if isinstance(item, tuple):
            yield from leaves(item)
        else:
            yield item


def assert_same(state: TransferState, other: TransferState) -> None:
    """Check that two states are equal bit for bit."""
    ours, theirs = list(leaves(state)), list(leaves(other))
    assert len(ours) == len(theirs)
    for one, another in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, another)
