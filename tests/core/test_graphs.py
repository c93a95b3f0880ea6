"""Number of graphs traced: one for each kind of arithmetic, for any number of sizes, batches and weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from nst_tasks.core import transfer, vgg
from nst_tasks.core.bands import BandLimits, band_tables
from nst_tasks.core.method import (
    LBFGS,
    SGD,
    Adam,
    ContentLoss,
    Method,
    Optimizer,
    Pyramid,
    StyleLoss,
    TotalVariation,
    strip_numbers,
)
from nst_tasks.core.objective import Targets
from nst_tasks.core.vgg import Backbone
from nst_tasks.inputs import weights
from tests.support.pictures import SIZE, picture
from tests.support.transfers import run_eagerly, targets

LAYERS = ("block1_conv1", "block2_conv1")
PLAIN = Method(
    content=ContentLoss((("block2_conv1", 1.0),), 1.0),
    style=StyleLoss(tuple((layer, 1.0) for layer in LAYERS), 1.0),
    total_variation=TotalVariation(1.0, "l2_mean"),
    optimizer=SGD(0.1),
    steps=1,
)


@pytest.fixture
def own() -> Backbone:
    """Make a network that no other test has traced a graph for."""
    return vgg.build("tiny", weights.load("tiny", None))


def compute_targets(backbone: Backbone, method: Method, contents: Sequence[np.ndarray], styles: int = 1) -> Targets:
    """Build the targets of contents, each with this number of styles, from the method's own graphs."""
    statistics = [transfer.style_statistics(backbone, method, picture(9, 36, 33))] * styles
    weights = [[1.0 / styles] * styles] * len(contents)
    return transfer.build_targets(backbone, method, np.stack(contents), [statistics] * len(contents), weights)


def run_step(backbone: Backbone, method: Method, pairs: int = 1, styles: int = 1, size: tuple[int, int] = (32, 40)) -> None:
    """Run a batch through one step of a level, and compute its result."""
    contents = [picture(k, *size) for k in range(pairs)]
    aims = compute_targets(backbone, method, contents, styles)
    first = transfer.start(method, np.stack(contents), [0] * pairs)
    state, _ = transfer.advance(backbone, method, aims, first, 1, method.steps)
    transfer.compute_result(backbone, method, aims, state)


def count_traces(backbone: Backbone, *methods: Method) -> list[int]:
    """Return how often each graph of these methods was traced."""
    kinds = {strip_numbers(method): None for method in methods}
    return [
        graph.experimental_get_tracing_count() for kind in kinds for graph in transfer._compile_graphs(backbone, kind, False, 0)
    ]


def test_one_graph_serves_all_sizes_and_batches(own: Backbone) -> None:
    for size in ((32, 40), (40, 32), (33, 47), (64, 64)):
        run_step(own, PLAIN, size=size)
    for pairs, styles in ((2, 1), (3, 2), (1, 3)):
        run_step(own, PLAIN, pairs, styles)
    assert count_traces(own, PLAIN) == [1, 1, 1, 1]


def test_graphs_depend_on_banded_blocks_not_on_bands(own: Backbone) -> None:
    content = picture(1)
    with run_eagerly():
        aims = targets(own, PLAIN, [content], [[picture(2)]])
    blocks = [(block[0][1].shape[-1], len(block)) for block in vgg.group_by_block(own, PLAIN.layers)]
    for most, counts in ((4000, [2]), (3000, [3]), (2000, [4, 2]), (1000, [8, 3])):
        assert [len(table) for table in band_tables(*SIZE, blocks, BandLimits(most))] == counts
        transfer.compute_terms(own, PLAIN, aims, tf.constant(content[None]), BandLimits(most))
    for in_bands in (1, 2):
        graphs = transfer._compile_graphs(own, strip_numbers(PLAIN), False, in_bands)
        assert graphs.measure.experimental_get_tracing_count() == 1


def test_the_result_is_measured_in_the_bands_of_its_limits(own: Backbone) -> None:
    with run_eagerly():
        aims = targets(own, PLAIN, [picture(1)], [[picture(2)]])
    transfer.compute_result(own, PLAIN, aims, transfer.start(PLAIN, picture(1)[None], [0]), BandLimits(4000))
    counts = [
        transfer._compile_graphs(own, strip_numbers(PLAIN), False, blocks).measure.experimental_get_tracing_count()
        for blocks in (0, 1)
    ]
    assert counts == [0, 1]


def number_method(k: int, precision: str) -> Method:
    """Return the k-th of many methods, each of other numbers."""
    return replace(
        PLAIN,
        content=replace(PLAIN.content, layers=(("block2_conv1", 1.0 + k),), weight=2.0 + k),
        style=replace(PLAIN.style, layers=tuple((layer, 1.0 + k) for layer in LAYERS), weight=3.0 + k),
        total_variation=replace(PLAIN.total_variation, weight=4.0 + k),
        optimizer=SGD(0.1 / (1 + k)),
        steps=1 + k,
        pyramid=Pyramid(32 + k, 2.0, 1 + k),
        init=("content", "style", "noise")[k % 3],
        init_noise=0.01 * k,
        precision=precision,
    )


def test_methods_that_differ_in_numbers_share_their_graphs(own: Backbone) -> None:
    methods = [number_method(k, precision) for k in range(3) for precision in ("float32", "mixed")]
    for method in methods:
        run_step(own, method)
    assert count_traces(own, *methods) == [1] * 8  # four graphs in each precision


@pytest.mark.parametrize("optimizer", [SGD(0.5), Adam(0.5)])
def test_shared_graphs_use_each_methods_own_numbers(own: Backbone, optimizer: Optimizer) -> None:
    """Doubled weights double the terms, and half the rate halves a step: exactly, as twos are."""
    method = replace(PLAIN, optimizer=optimizer, clip=False)
    content = picture(1)[None]
    first = transfer.start(method, content, [0])
    aims = compute_targets(own, method, content)

    def step(method: Method) -> tuple[np.ndarray, np.ndarray]:
        state, terms = transfer.advance(own, method, aims, first, 1, 1)
        return state.image - content, terms

    change, terms = step(method)
    heavier = replace(
        method,
        content=replace(method.content, weight=2.0),
        style=replace(method.style, layers=tuple((layer, 2.0) for layer in LAYERS), weight=2.0),
        total_variation=replace(method.total_variation, weight=8.0),
    )
    np.testing.assert_array_equal(step(heavier)[1], terms * (2.0, 4.0, 8.0))
    np.testing.assert_array_equal(transfer.compute_terms(own, heavier, aims, first.image), terms[0] * (2.0, 4.0, 8.0))
    slower = step(replace(method, optimizer=replace(optimizer, learning_rate=0.25)))[0]
    np.testing.assert_allclose(slower, change / 2, rtol=1e-4, atol=1e-7)  # what is left of a sum with the image
    assert count_traces(own, method) == [1, 1, 1, 1]


def test_what_changes_the_arithmetic_changes_the_structure() -> None:
    others = (
        replace(PLAIN, optimizer=Adam(0.1)),
        replace(PLAIN, optimizer=LBFGS()),
        replace(PLAIN, optimizer=SGD(0.1, decay=0.9)),
        replace(PLAIN, pooling="average"),
        replace(PLAIN, clip=False),
        replace(PLAIN, output="best"),
        replace(PLAIN, precision="mixed"),
        replace(PLAIN, content=replace(PLAIN.content, relative=True)),
        replace(PLAIN, style=replace(PLAIN.style, layers=PLAIN.style.layers[:1])),
        replace(PLAIN, total_variation=replace(PLAIN.total_variation, weight=0.0)),
    )
    assert len({strip_numbers(method) for method in (PLAIN, *others)}) == 1 + len(others)


def test_autograph_is_off(own: Backbone) -> None:
    """AutoGraph would leave a module for each function that it converts, which takes longer than the tracing."""
    before = set(sys.modules)
    for optimizer in (Adam(0.02), LBFGS()):
        for graph in transfer._compile_graphs(own, strip_numbers(replace(PLAIN, optimizer=optimizer)), False, 0):
            graph.get_concrete_function()
    assert not [name for name in set(sys.modules) - before if name.startswith("__autograph")]
