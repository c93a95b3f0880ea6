"""Feature maps of an image and their sums, block by block; large blocks are computed in bands of rows.

Losses are computed from sums over positions, and a sum over the image is the sum over its bands (`core.bands`). The gradient
recomputes each band, so that no more than one band is in memory at a time.
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

    maps: feature maps (B, h, w, C). style_sums: sums over positions. content_distances: distances (B,). Sums and distances add
    up over bands.
    """

    maps: dict[str, tf.Tensor]
    style_sums: dict[str, Sums]
    content_distances: dict[str, tf.Tensor]


def extract_features(
    backbone: Backbone, image: tf.Tensor, request: FeatureRequest, tables: BandTables, after: Sequence[tf.Tensor] = ()
) -> Features:
    """Compute the requested features of an image (B, H, W, 3), one block of the network after another.

    Args:
        tables: Bands of the first `len(tables)` blocks; the others are computed as a whole.
        after: Tensors to compute first if any block is in bands, so that their peak of memory does not add to that of a band.
    """
    method = request.method
    network = _prepare_backbone(backbone, method.layers[-1], method.feature_scale, method.precision)
    with tf.control_dependencies(after if tables else ()):
        image = tf.identity(image)
    x = vgg.subtract_mean(network, image)  # (B, H, W, 3)
    groups = vgg.group_by_block(network, (*request.style_layers, *request.contents, *request.map_layers))
    features = Features({}, {}, {})
    for k, convolutions in enumerate(groups):
        block = _Block(convolutions, request, is_first=k == 0, is_last=k + 1 == len(groups))
        of_block = _extract_in_bands(block, x, tables[k]) if k < len(tables) else _extract_block(block, x)
        x = of_block.maps.pop(_NEXT_INPUT, None)  # (B, h/2, w/2, C)
        features = Features(*(shallower | own for shallower, own in zip(features, of_block, strict=True)))
    return features


@functools.lru_cache(maxsize=8)
def _prepare_backbone(backbone: Backbone, deepest: str, scale: float, precision: str) -> Backbone:
    """Return the backbone up to the layer `deepest`, with scaled features and prepared for this precision."""
    with tf.init_scope():  # compute the weights once, not at each step of the graph that is being traced
        network = vgg.truncate(backbone, deepest)
        network = vgg.with_scaled_features(network, scale) if scale != 1.0 else network
        return vgg.with_dtype(network, tf.bfloat16) if precision == "mixed" else vgg.with_fast_convolutions(network)


_NEXT_INPUT = "pooled"
"""Key, among a block's feature maps, of the next block's input."""


class _Block(NamedTuple):
    """Block of the network, and the features requested of its layers."""

    convolutions: tuple[Convolution, ...]
    request: FeatureRequest
    is_first: bool
    is_last: bool

    @property
    def channels(self) -> int:
        count: int = self.convolutions[0].kernel.shape[-1]
        return count

    @property
    def is_on_gpu(self) -> bool:
        return self.convolutions[0].is_on_gpu


class _Band(NamedTuple):
    """Band of a block: its own rows `top:bottom`, the rows `first:last` that it reads, and all `height` rows of the block."""

    top: tf.Tensor
    bottom: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor
    height: tf.Tensor


def _extract_block(block: _Block, x: tf.Tensor, band: _Band | None = None) -> Features:
    """Compute a block's features of one band, or of the whole image if it is None.

    Args:
        x: (B, r, w, C), the rows of the block's input that the band reads.
    """
    request, method = block.request, block.request.method
    features = Features({}, {}, {})
    y, activations = vgg.apply_block(block.convolutions, x, method.padding if block.is_first else "zero", method.activation)
    if not block.is_last:
        features.maps[_NEXT_INPUT] = vgg.pool(_crop_to_band(y, band), method.pooling)
    for layer, activation in activations.items():
        own = _crop_to_band(activation, band)  # (B, bottom - top, w, C)
        if layer in request.map_layers:
            features.maps[layer] = own
        if layer in request.style_layers:
            features.style_sums[layer] = losses.sums(own, _select_rows(request.weights.get(layer), band))
        if layer in request.contents:
            content = {name: _select_rows(value, band) for name, value in request.contents[layer].items()}
            distance = losses.content_distance(method.content, own, content)  # (B,)
            if band is not None and method.content.error == "mse":  # a mean over the band counts by its share of rows
                distance *= tf.cast((band.bottom - band.top) / band.height, distance.dtype)
            features.content_distances[layer] = distance
    return features


def _extract_in_bands(block: _Block, x: tf.Tensor, table: tf.Tensor) -> Features:
    """Compute a block's features in bands, with a gradient that computes each band again.

    Args:
        x: (B, h, w, C), the block's input.
        table: (K, 4), its bands.
    """
    zeros = _zero_features(block, x)

    @tf.custom_gradient
    def extract(x: tf.Tensor) -> tuple[Any, object]:
        def gradient(*upstream: tf.Tensor) -> tf.Tensor:
            return _compute_gradient_in_bands(block, x, table, tf.nest.pack_sequence_as(zeros, upstream))

        return tuple(tf.nest.flatten(_add_up_bands(block, x, table, zeros))), gradient

    features: Features = tf.nest.pack_sequence_as(zeros, extract(x))
    return features


def _zero_features(block: _Block, x: tf.Tensor) -> Features:
    """Return a block's features before those of its first band are added: zeros."""
    request, channels = block.request, block.channels
    batch, height, width = (tf.shape(x)[axis] for axis in range(3))
    sum_dtype = losses.accumulation_dtype(x)
    features = Features({}, {}, {})
    if not block.is_last:
        features.maps[_NEXT_INPUT] = tf.zeros((batch, height // 2, width // 2, channels), x.dtype)
    for layer in (one.layer for one in block.convolutions):
        if layer in request.map_layers:
            features.maps[layer] = tf.zeros((batch, height, width, channels), x.dtype)
        if layer in request.style_layers:
            features.style_sums[layer] = Sums(
                second=tf.zeros((batch, channels, channels), sum_dtype),
                first=tf.zeros((batch, channels), sum_dtype),
                weight=tf.zeros((batch,), sum_dtype),
                positions=tf.zeros((), sum_dtype),
            )
        if layer in request.contents:
            features.content_distances[layer] = tf.zeros((batch,), sum_dtype)
    return features


def _add_up_bands(block: _Block, x: tf.Tensor, table: tf.Tensor, zeros: Features) -> Features:
    """Return a block's features: the maps of its bands one below the other, and their sums and distances added up."""

    def add_band(band: _Band, features: Features) -> Features:
        of_band = _extract_block(block, _slice_rows(x, band.first, band.last), band)
        maps = {
            name: _add_rows(features.maps[name], _find_top(band, name), rows, block.is_on_gpu)
            for name, rows in of_band.maps.items()
        }
        return Features(maps, *tf.nest.map_structure(tf.add, features[1:], tuple(of_band[1:])))

    features: Features = _loop_over_bands(x, table, add_band, zeros)
    return features


def _compute_gradient_in_bands(block: _Block, x: tf.Tensor, table: tf.Tensor, upstream: Features) -> tf.Tensor:
    """Return the gradient (B, h, w, C) with respect to a block's input x, given that of its features."""

    def add_band(band: _Band, gradient: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            rows = _slice_rows(x, band.first, band.last)  # (B, r, w, C)
            tape.watch(rows)
            of_band = _extract_block(block, rows, band)
        maps = {}
        for name, own in of_band.maps.items():
            top = _find_top(band, name)
            maps[name] = _slice_rows(upstream.maps[name], top, top + tf.shape(own)[1])
        upstream_of_band = upstream._replace(maps=maps)
        gradient_of_rows = tape.gradient(
            tf.nest.flatten(of_band), rows, output_gradients=tf.nest.flatten(upstream_of_band)
        )  # (B, r, w, C)
        return _add_rows(gradient, band.first, gradient_of_rows, block.is_on_gpu)

    return _loop_over_bands(x, table, add_band, tf.zeros_like(x))


def _loop_over_bands(x: tf.Tensor, table: tf.Tensor, add_band: Callable[[_Band, Any], Any], zeros: Any) -> Any:
    """Add the bands (K, 4) of a block's input x (B, h, w, C) to `zeros`, one after another, so that only one is in memory."""
    count, height = tf.shape(table)[0], tf.shape(x)[1]

    def add_next_band(k: tf.Tensor, so_far: Any) -> tuple[tf.Tensor, Any]:
        top, bottom, first, last = tf.unstack(table[k])  # of (4,)
        return k + 1, add_band(_Band(top, bottom, first, last, height), so_far)

    return tf.while_loop(lambda k, _: k < count, add_next_band, (tf.constant(0), zeros), parallel_iterations=1)[1]


def _find_top(band: _Band, name: str) -> tf.Tensor:
    """Return the first row of a band's own rows in the feature map of this name."""
    return band.top // 2 if name == _NEXT_INPUT else band.top


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


def _crop_to_band(x: tf.Tensor, band: _Band | None) -> tf.Tensor:
    """Return a band's own rows among the rows x that it reads."""
    return x if band is None else _slice_rows(x, band.top - band.first, band.bottom - band.first)


def _select_rows(x: tf.Tensor | None, band: _Band | None) -> tf.Tensor | None:
    """Return a band's own rows of the whole image's (B, h, ...)."""
    return x if x is None or band is None else x[:, band.top : band.bottom]
