"""Feature maps of an image and their sums, block by block; large blocks are computed in bands of rows.

Losses are computed from sums over positions, and a sum over the image is the sum over its bands. The gradient recomputes
each band, so that no more than one band is in memory at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from nst_tasks.core import losses, vgg
from nst_tasks.core.convolutions import Convolution
from nst_tasks.core.losses import Sums
from nst_tasks.core.method import Method
from nst_tasks.core.vgg import Backbone

BandTables = Sequence[tf.Tensor]
"""Bands (K, 4) of each block that is computed in bands, as `core.bands.band_tables` returns them."""


class FeatureRequest(NamedTuple):
    """Request for the features of an image.

    style_layers: layers to sum over positions. weights: layer -> (B, h, w), weights of those positions. contents: layer ->
    statistics to compute the distance from. map_layers: layers whose features to return.
    """

    method: Method
    style_layers: tuple[str, ...] = ()
    weights: Mapping[str, tf.Tensor] = MappingProxyType({})
    contents: Mapping[str, losses.Statistics] = MappingProxyType({})
    map_layers: tuple[str, ...] = ()


class Features(NamedTuple):
    """Features of an image or of a band, by layer.

    maps: feature maps (B, r, w, C). style_sums: sums over positions. content_distances: distances (B,). Sums and distances add
    up over bands.
    """

    maps: dict[str, tf.Tensor]
    style_sums: dict[str, Sums]
    content_distances: dict[str, tf.Tensor]


def extract_features(backbone: Backbone, image: tf.Tensor, request: FeatureRequest, tables: BandTables) -> Features:
    """Compute the requested features of an image (B, H, W, 3)."""
    method = request.method
    prepared = _prepare_backbone(backbone, method.layers[-1], method.feature_scale, method.precision)
    found, on_gpu = Features({}, {}, {}), prepared.is_on_gpu
    x = vgg.subtract_mean(prepared, image)
    blocks = vgg.group_by_block(prepared, (*request.style_layers, *request.contents, *request.map_layers))
    for k, block in enumerate(blocks):
        last = k + 1 == len(blocks)
        extract_block = functools.partial(_extract_block, block, k == 0, last, request, tf.shape(x)[1])
        more = (
            _extract_in_bands(extract_block, _zero_features(block, last, request, x), tables[k], x, on_gpu)
            if k < len(tables)
            else extract_block(None, x)
        )
        x = more.maps.pop(_NEXT_INPUT, x)
        for ours, theirs in zip(found, more, strict=True):
            ours |= theirs
    return found


_NEXT_INPUT = "pooled"
"""Key, among the rows of a block, of the next block's input."""


def _extract_block(
    block: Sequence[Convolution],
    first: bool,
    last: bool,
    request: FeatureRequest,
    height: tf.Tensor,
    band: tf.Tensor | None,
    x: tf.Tensor,
) -> Features:
    """Compute a block's features of one band (4,), or of the whole image if it is None.

    Args:
        height: Rows of the whole input.
        x: (B, r, w, C), the rows of the input that the band reads.
    """
    method, found = request.method, Features({}, {}, {})
    y, activations = vgg.apply_block(block, x, method.padding if first else "zero", method.activation)
    if not last:
        found.maps[_NEXT_INPUT] = vgg.pool(_crop_to_band(y, band), method.pooling)
    for layer, activation in activations.items():
        own = _crop_to_band(activation, band)
        if layer in request.map_layers:
            found.maps[layer] = own
        if layer in request.style_layers:
            found.style_sums[layer] = losses.sums(own, _select_rows(request.weights.get(layer), band))
        if layer in request.contents:
            there = {name: _select_rows(value, band) for name, value in request.contents[layer].items()}
            distance = losses.content_distance(method.content, own, there)
            if band is not None and method.content.error == "mse":  # a mean over the band counts by its share of rows
                distance *= tf.cast((band[1] - band[0]) / height, distance.dtype)
            found.content_distances[layer] = distance
    return found


def _zero_features(block: Sequence[Convolution], last: bool, request: FeatureRequest, x: tf.Tensor) -> Features:
    """Return a block's features before its first band: zeros."""
    shape, channels = tf.shape(x), block[0].kernel.shape[-1]
    batch, height, width = shape[0], shape[1], shape[2]
    exact = losses.accumulation_dtype(x)
    found = Features({}, {}, {})
    if not last:
        found.maps[_NEXT_INPUT] = tf.zeros((batch, height // 2, width // 2, channels), x.dtype)
    for layer in (one.layer for one in block):
        if layer in request.map_layers:
            found.maps[layer] = tf.zeros((batch, height, width, channels), x.dtype)
        if layer in request.style_layers:
            square, row = tf.zeros((batch, channels, channels), exact), tf.zeros((batch, channels), exact)
            found.style_sums[layer] = Sums(square, row, tf.zeros((batch,), exact), tf.zeros((), exact))
        if layer in request.contents:
            found.content_distances[layer] = tf.zeros((batch,), exact)
    return found


def _extract_in_bands(
    extract_band: Callable[[tf.Tensor, tf.Tensor], Features], blank: Features, bands: tf.Tensor, x: tf.Tensor, on_gpu: bool
) -> Features:
    """Compute a block's features band by band, with a gradient that computes each band again.

    Args:
        extract_band: Returns the features of one band (4,) from the rows that it reads.
        blank: Features before the first band.
        bands: (K, 4).
        x: (B, h, w, C), the block's input.
    """
    count = tf.shape(bands)[0]

    def first_row(band: tf.Tensor, layer: str) -> tf.Tensor:
        return band[0] // 2 if layer == _NEXT_INPUT else band[0]

    @tf.custom_gradient
    def extract_all(x: tf.Tensor) -> tuple[Any, object]:
        def forth(k: tf.Tensor, so_far: Features) -> tuple[tf.Tensor, Features]:
            band = bands[k]
            more = extract_band(band, _slice_rows(x, band[2], band[3]))
            rows = {
                layer: _add_rows(so_far.maps[layer], first_row(band, layer), more.maps[layer], on_gpu) for layer in more.maps
            }
            sums = tf.nest.map_structure(tf.add, so_far[1:], tuple(more[1:]))
            return k + 1, Features(rows, *sums)

        def gradient(*upstream: tf.Tensor) -> tf.Tensor:
            above: Features = tf.nest.pack_sequence_as(blank, upstream)

            def back(k: tf.Tensor, so_far: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                band = bands[k]
                with tf.GradientTape() as tape:
                    part = _slice_rows(x, band[2], band[3])
                    tape.watch(part)
                    more = extract_band(band, part)
                rows = {}
                for layer, own in more.maps.items():
                    top = first_row(band, layer)
                    rows[layer] = _slice_rows(above.maps[layer], top, top + tf.shape(own)[1])
                of_band = tape.gradient(
                    tf.nest.flatten(more), part, output_gradients=tf.nest.flatten(above._replace(maps=rows))
                )
                return k + 1, _add_rows(so_far, band[2], of_band, on_gpu)

            return _for_each_band(count, back, tf.zeros_like(x))

        return tuple(tf.nest.flatten(_for_each_band(count, forth, blank))), gradient

    found: Features = tf.nest.pack_sequence_as(blank, extract_all(x))
    return found


def _for_each_band(count: tf.Tensor, body: Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]], start: Any) -> Any:
    """Loop over bands one after another, so that only one is in memory."""
    return tf.while_loop(lambda k, _: k < count, body, (tf.constant(0), start), parallel_iterations=1)[1]


def _add_rows(buffer: tf.Tensor, top: tf.Tensor, rows: tf.Tensor, on_gpu: bool) -> tf.Tensor:
    """Add rows (B, r, w, C) to the buffer (B, h, w, C) from row `top` on, in place.

    A CPU adds all values of one index at once, so it gets few indices. A GPU assigns a thread to each index, so it gets one per
    position, in int64: TensorFlow would compute int32 indices on its host.
    """
    batch, height, width = (tf.shape(rows)[axis] for axis in range(3))
    axes = [tf.range(batch), top + tf.range(height)]
    if on_gpu:
        axes = [tf.cast(axis, tf.int64) for axis in (*axes, tf.range(width))]
    at = tf.stack(tf.meshgrid(*axes, indexing="ij"), axis=-1)  # (B, r, 2) or (B, r, w, 3)
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=buffer, indices=at, updates=rows)


def _slice_rows(x: tf.Tensor, top: tf.Tensor, bottom: tf.Tensor) -> tf.Tensor:
    """Return rows of x (B, h, w, C). The gradient of `tf.slice` is a padding; that of `x[...]` is slow."""
    return tf.slice(x, tf.stack([0, top, 0, 0]), tf.stack([-1, bottom - top, -1, -1]))


def _crop_to_band(x: tf.Tensor, band: tf.Tensor | None) -> tf.Tensor:
    """Return a band's own rows among the rows x that it reads."""
    return x if band is None else _slice_rows(x, band[0] - band[2], band[1] - band[2])


def _select_rows(x: tf.Tensor | None, band: tf.Tensor | None) -> tf.Tensor | None:
    """Return a band's own rows of the whole image's (B, h, ...)."""
    return x if x is None or band is None else x[:, band[0] : band[1]]


@functools.lru_cache(maxsize=8)
def _prepare_backbone(backbone: Backbone, deepest: str, scale: float, precision: str) -> Backbone:
    """Return the backbone up to the layer `deepest`, with scaled features and prepared for this precision."""
    with tf.init_scope():  # compute the weights once, not at each step of the graph that is being traced
        seen = vgg.truncate(backbone, deepest)
        seen = vgg.with_scaled_features(seen, scale) if scale != 1.0 else seen
        return vgg.with_dtype(seen, tf.bfloat16) if precision == "mixed" else vgg.with_fast_convolutions(seen)
