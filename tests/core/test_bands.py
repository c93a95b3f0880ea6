"""Bands: their rows by their properties, and every loss and gradient the same in bands as at once.

Most comparisons are eager, as tracing takes longer; those with Winograd's convolutions, and with masks, also run graphs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_tasks.core import transfer, vgg
from nst_tasks.core.bands import CPU_FLOAT32, CPU_MIXED, GPU, BandLimits, band_tables, default_limits
from nst_tasks.core.convolutions import Convolution
from nst_tasks.core.features import _add_rows
from nst_tasks.core.method import Adam, ContentLoss, Method, Precision, StyleLoss, TotalVariation
from nst_tasks.core.objective import Targets
from nst_tasks.core.vgg import Backbone
from nst_tasks.errors import SettingsError
from nst_tasks.inputs import weights
from nst_tasks.inputs.presets import PAINTERLY, TF_TUTORIAL
from tests.support.pictures import Array, picture
from tests.support.transfers import loss_terms, run_eagerly, targets, targets64

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
FEW = BandLimits(2500)
"""Of the tiny network a picture of some forty rows has then a few bands in each of the first blocks."""

LAYERS = (("block1_conv1", 1.0), ("block2_conv2", 0.5), ("block3_conv1", 2.0))
PLAIN = Method(
    content=ContentLoss((("block2_conv1", 1.0), ("block3_conv2", 0.5)), 10.0),
    style=StyleLoss(LAYERS, 1000.0),
    total_variation=TotalVariation(1.0, "l2_mean"),
    optimizer=Adam(0.05, epsilon=1e-3),
    steps=3,
)
RELATIVE = replace(PLAIN, content=replace(PLAIN.content, relative=True), style=StyleLoss(LAYERS, 1000.0, relative=True))
GRAMS = [
    replace(PLAIN, style=StyleLoss(LAYERS, 1000.0, normalization=normalization, error=error))
    for normalization, error in (("none", "mse"), ("hw", "mse"), ("chw", "sse"), ("sqrt_chw", "mse"), ("image_hw", "sse"))
]
METHODS = {
    **{f"{method.style.normalization}-{method.style.error}": method for method in GRAMS},
    "relative": RELATIVE,
    "wasserstein": replace(PLAIN, style=StyleLoss(LAYERS, 1000.0, "wasserstein")),
    "wasserstein-relative": replace(RELATIVE, style=StyleLoss(LAYERS, 1000.0, "wasserstein", relative=True)),
    "content-sse": replace(PLAIN, content=replace(PLAIN.content, error="sse")),
    "average": replace(PLAIN, pooling="average"),
    "replicate": replace(PLAIN, padding="replicate"),
    "linear": replace(PLAIN, activation="linear"),
    "scaled": replace(PLAIN, feature_scale=255.0),
}


# --- their rows ---


def build_stub(device: str) -> Backbone:
    """Stand in for a network: its kernels know their device and nothing else."""
    return Backbone("somewhere", (Convolution("block1_conv1", SimpleNamespace(device=device), None),))


def test_a_gpu_is_given_larger_bands_whatever_the_precision() -> None:
    assert build_stub("/job:localhost/replica:0/task:0/device:GPU:1").is_on_gpu
    assert not build_stub("/job:localhost/replica:0/task:0/device:CPU:0").is_on_gpu
    assert not vgg.build("tiny", weights.load("tiny", None)).is_on_gpu
    assert [default_limits(precision, on_gpu=False) for precision in ("float32", "mixed")] == [CPU_FLOAT32, CPU_MIXED]
    assert [default_limits(precision, on_gpu=True) for precision in ("float32", "mixed")] == [GPU, GPU]
    assert band_tables(1024, 1024, VGG16, GPU) == ()
    assert [len(of_block) for of_block in band_tables(4096, 3072, VGG16, GPU)] == [12, 6, 3, 2]


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_band_rows_are_added_equally_on_cpu_and_gpu(dtype: tf.DType) -> None:
    random = np.random.default_rng(4)
    buffer, rows = (tf.cast(random.normal(size=(2, height, 5, 3)), dtype) for height in (9, 4))
    expected_sum = tf.concat([buffer[:, :3], buffer[:, 3:7] + rows, buffer[:, 7:]], axis=1)
    for on_gpu in (False, True):
        added = tf.function(_add_rows)(tf.identity(buffer), tf.constant(3), rows, on_gpu)
        assert tf.reduce_all(added == expected_sum)


@given(
    height=st.integers(1, 700),
    width=st.integers(1, 90),
    blocks=st.lists(st.tuples(st.integers(1, 16), st.integers(1, 4)), min_size=1, max_size=5),
    most=st.integers(1, 20_000),
)
def test_bands_own_each_row_once_and_read_enough_beyond(
    height: int, width: int, blocks: list[tuple[int, int]], most: int
) -> None:
    found = band_tables(height, width, blocks, BandLimits(most))
    assert all((height >> k) * (width >> k) * channels > most for k, (channels, _) in enumerate(blocks[: len(found)]))
    for k, table in enumerate(found):
        rows, convolutions = height >> k, blocks[k][1]
        top, bottom, first, last = table.T
        assert (top[0], bottom[-1]) == (0, rows)
        np.testing.assert_array_equal(top[1:], bottom[:-1])
        assert (top % 2 == 0).all() and (bottom > top).all()
        assert (first <= np.maximum(top - convolutions, 0)).all() and (first >= 0).all()
        assert (last >= np.minimum(bottom + convolutions, rows)).all() and (last <= rows).all()
        assert len(set(last - first)) == 1


def test_image_size_decides_the_banded_blocks() -> None:
    bounds = BandLimits(2**20)
    assert band_tables(128, 128, VGG16, bounds) == ()  # 2^20 values in the first block: not more
    assert [len(table) for table in band_tables(130, 128, VGG16, bounds)] == [2]
    assert [len(table) for table in band_tables(512, 512, VGG16, bounds)] == [16, 8, 4, 2]
    first = band_tables(130, 128, VGG16, bounds)[0]
    np.testing.assert_array_equal(first, [[0, 64, 0, 70], [64, 130, 60, 130]])


@pytest.mark.parametrize(
    ("precision", "side", "bands_of_each"),
    [
        ("float32", 362, []), ("float32", 363, [5]), ("float32", 1024, [32, 16, 8]), ("float32", 2048, [64, 32, 16, 8]),
        ("mixed", 256, []), ("mixed", 257, [2]), ("mixed", 1024, [16, 8, 4, 2]),
    ],
)  # fmt: skip
def test_the_precision_decides_how_large_bands_are(
    hed: Backbone, precision: Precision, side: int, bands_of_each: list[int]
) -> None:
    method = replace(PAINTERLY.method, precision=precision)
    blank = np.broadcast_to(np.float32(0.0), (1, side, side, 3))  # no more than its shape is looked at
    assert [len(table) for table in transfer._band_tables(hed, method, method.layers, blank, None)] == bands_of_each


def test_small_bands_apply_to_banded_blocks_only() -> None:
    bounds = BandLimits(2**20, band_values=2**18)
    assert band_tables(128, 128, VGG16, bounds) == ()
    assert [len(table) for table in band_tables(128, 256, VGG16, bounds)] == [4]  # of 32 rows; 8 would be of 16
    assert [len(table) for table in band_tables(256, 128, VGG16, bounds)] == [8]
    assert [len(table) for table in band_tables(512, 512, VGG16, bounds)] == [16, 8, 4, 2]  # as many as `most` asks for


@pytest.mark.parametrize("sizes", [{"max_values": 0}, {"max_values": 1, "band_values": 0}])
def test_bands_of_nothing_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="bands: 0 values are fewer than 1"):
        BandLimits(**sizes)


# --- in bands as at once ---


def build_tables(backbone: Backbone, method: Method, image: tf.Tensor, how: BandLimits = FEW) -> tuple[Array, ...]:
    blocks = [(block[0].kernel.shape[-1], len(block)) for block in vgg.group_by_block(backbone, method.layers)]
    return band_tables(image.shape[1], image.shape[2], blocks, how)


def compute_terms(
    backbone: Backbone, method: Method, image: tf.Tensor, aims: Targets, tables: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Return the terms (B, 3) and the gradient of the sum of their logarithms, in which no term outweighs the others."""
    with tf.GradientTape() as tape:
        tape.watch(image)
        terms = loss_terms(backbone, method, image, aims, tables)
    return terms.numpy(), tape.gradient(terms, image, output_gradients=1.0 / terms).numpy()


def assert_alike(ours: tuple[Array, Array], theirs: tuple[Array, Array], rtol: float) -> None:
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=rtol * np.abs(theirs[1]).max())


@pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in METHODS.items()])
def test_losses_and_gradient_in_bands_equal_those_at_once(tiny64: Backbone, method: Method) -> None:
    content, image = picture(1, 45, 37), tf.constant(picture(3, 45, 37)[None], tf.float64)
    aims = targets64(tiny64, method, content, picture(2, 36, 33))
    tables = build_tables(tiny64, method, image)
    assert [len(table) for table in tables] == [4, 2]
    assert_alike(compute_terms(tiny64, method, image, aims, tables), compute_terms(tiny64, method, image, aims, ()), 1e-10)


def test_winograd_in_bands_is_winograd_at_once(hed: Backbone) -> None:
    """At once eagerly; in bands also in a graph, whose loops hide how many channels the next block is given."""
    winograd = replace(hed, flipped_direction="backward")
    layers = tuple((f"block{block}_conv1", 1.0) for block in (1, 2, 3))
    method = replace(PLAIN, content=ContentLoss((("block3_conv2", 1.0),), 10.0), style=StyleLoss(layers, 1000.0))
    image, few = tf.constant(picture(3, 64, 66)[None]), BandLimits(2**16)
    with run_eagerly():
        aims = targets(winograd, method, [picture(1, 64, 66)], [[picture(2, 48, 50)]])
    tables = build_tables(winograd, method, image, few)
    assert [len(table) for table in tables] == [5, 3]
    terms, gradient = compute_terms(winograd, method, image, aims, ())
    assert_alike(compute_terms(winograd, method, image, aims, tables), (terms, gradient), 1e-5)
    _, rows = transfer.advance(winograd, method, aims, transfer.start(method, image, [0]), 1, 1, few)
    np.testing.assert_allclose(rows[0], terms, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 40), (33, 32), (47, 34), (63, 48), (64, 33)])
def test_every_height_of_picture_and_band(tiny64: Backbone, size: tuple[int, int]) -> None:
    method, image = METHODS["replicate"], tf.constant(picture(3, *size)[None], tf.float64)
    aims = targets64(tiny64, method, picture(1, *size), picture(2, 36, 33))
    at_once = compute_terms(tiny64, method, image, aims, ())
    for max_values in (800, 4000):
        tables = build_tables(tiny64, method, image, BandLimits(max_values))
        assert tables
        assert_alike(compute_terms(tiny64, method, image, aims, tables), at_once, 1e-10)


TRACED = "wasserstein-relative"


def build_masked_batch(backbone: Backbone, method: Method, how: BandLimits | None = None) -> tuple[Targets, tf.Tensor]:
    """Return the targets of two pairs with two styles each, stylized in part, and an image for each."""
    contents = [picture(1, 45, 37), picture(4, 45, 37)]
    styles = [[picture(2, 36, 33), picture(5, 40, 32)], [picture(6), picture(7, 36, 33)]]
    statistics = [[transfer.style_statistics(backbone, method, style, how) for style in pair] for pair in styles]
    mask = np.stack([np.linspace(0, 1, 45)[:, None] * np.ones((45, 37)), np.ones((45, 37))]).astype(np.float32)
    weights = [[0.3, 0.7], [0.5, 0.5]]
    aims = transfer.build_targets(backbone, method, np.stack(contents), statistics, weights, mask, how)
    return aims, tf.constant(np.stack([picture(8, 45, 37), picture(9, 45, 37)]))


@pytest.mark.parametrize("name", ["relative", "wasserstein-relative", "image_hw-sse"])
def test_masks_styles_and_batches_in_bands(tiny: Backbone, name: str) -> None:
    """At once eagerly; for one method, the next test's too, in bands in a graph."""
    method, is_traced = METHODS[name], name == TRACED
    with run_eagerly():
        whole, image = build_masked_batch(tiny, method)
        whole_terms = transfer.compute_terms(tiny, method, whole, image)
    with nullcontext() if is_traced else run_eagerly():
        banded, _ = build_masked_batch(tiny, method, FEW)
        banded_terms = transfer.compute_terms(tiny, method, banded, image, FEW)
    for ours, theirs in zip(tf.nest.flatten(banded), tf.nest.flatten(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_allclose(banded_terms, whole_terms, rtol=1e-5)
    tables = build_tables(tiny, method, image)
    assert_alike(compute_terms(tiny, method, image, whole, tables), compute_terms(tiny, method, image, whole, ()), 1e-5)


def test_steps_in_bands_are_the_steps_at_once(tiny: Backbone) -> None:
    """In bands in a graph, at once eagerly."""
    method = METHODS[TRACED]
    with run_eagerly():
        aims, image = build_masked_batch(tiny, method)
        first = transfer.start(method, image.numpy(), [0, 1])
        whole, whole_rows = transfer.advance(tiny, method, aims, first, 3, 3)
    banded, banded_rows = transfer.advance(tiny, method, aims, first, 3, 3, FEW)
    np.testing.assert_allclose(banded_rows, whole_rows, rtol=1e-5)
    np.testing.assert_allclose(banded.image, whole.image, atol=1e-4)


def test_no_seam_where_bands_meet(tiny64: Backbone) -> None:
    """Beside the bands' borders the gradient is exact; without the rows that a band reads beyond its own it is not."""
    method, image = RELATIVE, tf.constant(picture(3, 64, 33)[None], tf.float64)
    aims = targets64(tiny64, method, picture(1, 64, 33), picture(2, 36, 33))
    tables = build_tables(tiny64, method, image)
    borders = {row + near for row in tables[0][1:, 0] for near in range(-2, 2)}
    (_, ours), (_, theirs) = compute_terms(tiny64, method, image, aims, tables), compute_terms(tiny64, method, image, aims, ())
    apart = np.abs(ours - theirs).max(axis=(0, 2, 3)) / np.abs(theirs).max()  # by row
    assert apart[sorted(borders)].max() < 1e-12
    blind = tuple(np.stack([top, bottom, top, bottom], axis=1) for top, bottom, _, _ in (table.T for table in tables))
    (_, wrong) = compute_terms(tiny64, method, image, aims, blind)
    assert np.abs(wrong - theirs).max() > 1e-3 * np.abs(theirs).max()


@settings(max_examples=15, deadline=None)
@given(k=st.integers(0, 2), row=st.integers(0, 40), most=st.integers(300, 3000))
def test_band_depends_on_its_own_rows_only(tiny64: Backbone, k: int, row: int, most: int) -> None:
    """A band's rows equal those of the whole picture, computed from the rows that it reads alone."""
    block = vgg.group_by_block(tiny64, ["block3_conv3"])[k]
    x = tf.constant(np.random.default_rng(row).standard_normal((1, 41, 12, block[0].kernel.shape[2])))
    y, _ = vgg.apply_block(block, x)
    (table,) = band_tables(41, 12, [(block[0].kernel.shape[-1], len(block))], BandLimits(most)) or (
        np.array([[0, 41, 0, 41]], np.int32),
    )
    for top, bottom, first, last in table:
        ours, _ = vgg.apply_block(block, x[:, first:last])
        np.testing.assert_allclose(ours[:, top - first : bottom - first], y[:, top:bottom], atol=1e-12)


def test_mixed_precision_in_bands(tiny: Backbone) -> None:
    """Bands add up in float32: no farther from the picture at once than its own rounding to bfloat16."""
    method = replace(TF_TUTORIAL.method, precision="mixed")
    image = tf.constant(picture(3, 45, 37)[None])
    with run_eagerly():
        aims = targets(tiny, method, [picture(1, 45, 37)], [[picture(2, 36, 33)]])
    tables = build_tables(tiny, method, image)
    assert_alike(compute_terms(tiny, method, image, aims, tables), compute_terms(tiny, method, image, aims, ()), 2e-2)


def compute_in_bands_and_at_once(hed: Backbone, dtype: tf.DType) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    method, image = PAINTERLY.method, tf.constant(picture(3, 66, 48)[None], dtype)
    content, style = picture(1, 66, 48), picture(2, 64, 64)
    with run_eagerly():
        aims = targets64(hed, method, content, style) if dtype == tf.float64 else targets(hed, method, [content], [[style]])
    tables = build_tables(hed, method, image, BandLimits(2**16))
    assert [len(table) for table in tables] == [4, 2]
    return compute_terms(hed, method, image, aims, tables), compute_terms(hed, method, image, aims, ())


def test_the_real_network_in_bands() -> None:
    """In float32, moments and roots of near singular covariances amplify the order of summation, if they are float32 too.

    Measured apart: 1e-11 in float64; in float32 3e-7, and 4e-5 with roots in float32. The loss from float64: 9e-6 and 3e-3.
    """
    found = weights.load("vgg16-hed", None)
    exact = compute_in_bands_and_at_once(vgg.build("hed64", found, tf.float64), tf.float64)
    assert_alike(*exact, 1e-8)
    rounded = compute_in_bands_and_at_once(vgg.build("hed", found), tf.float32)
    assert_alike(*rounded, 1e-5)
    np.testing.assert_allclose(rounded[1][0], exact[1][0], rtol=1e-4)
