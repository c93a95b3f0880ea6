"""Loss of an image against its targets, from features that are computed and summed block by block.

Large blocks are computed in bands of rows (`bands`): losses are functions of sums over positions, and the sums of an image are
those of its bands, added up. The backward pass computes each band again, so that at most one is in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from nst_tasks.core import backbones, losses
from nst_tasks.core.backbones import Backbone, Convolution
from nst_tasks.core.losses import Sums
from nst_tasks.core.method import ContentLoss, Method, StyleLoss

Tables = Sequence[tf.Tensor]
"""Bands (K, 4) of each block that is computed in bands, as `bands.tables` returns them."""


TERMS = ("content", "style", "tv")
"""Weighted terms of the loss, in the order of the last axis of `advance` and `result`; their sum is the total loss."""


class Nothing(NamedTuple):
    """Placeholder for an absent part of a structure: TensorFlow's signatures do not accept None."""


class Mask(NamedTuple):
    """Region of a batch's images to stylize.

    weight: (B, H, W, 1) in [0, 1], 1 where the image is stylized. contents: (B, H, W, 3), shown where it is not.
    by_layer: style layer -> weight (B, h, w) of each position in the image's style statistics.
    """

    weight: tf.Tensor
    contents: tf.Tensor
    by_layer: dict[str, tf.Tensor]


class Targets(NamedTuple):
    """Optimization targets of a batch at one level.

    content: layer -> statistic -> (B, ...). style: layer -> statistic -> (B, S, ...), for S styles per pair.
    style_weights: (B, S). mask: `Nothing` if the whole image is stylized.
    """

    content: dict[str, losses.Statistics]
    style: dict[str, losses.Statistics]
    style_weights: tf.Tensor
    mask: Mask | Nothing = Nothing()


class Numbers(NamedTuple):
    """Weights and learning rate of a method, as inputs of its graphs: methods that differ only in them share graphs.

    terms: weights of the `TERMS` (3,). content, style: weights of the layers (L,) in their term, in the method's order.
    learning_rate: (), before any schedule.
    """

    terms: tf.Tensor
    content: tf.Tensor
    style: tf.Tensor
    learning_rate: tf.Tensor


def weighted_terms(
    backbone: Backbone, method: Method, image: tf.Tensor, targets: Targets, numbers: Numbers, tables: Tables
) -> tf.Tensor:
    """Return the weighted terms (B, 3) of the loss of images (B, H, W, 3), in the order of `TERMS`."""
    image = shown(targets.mask, image)
    weights = targets.mask.by_layer if isinstance(targets.mask, Mask) else {}
    varied = method.total_variation.weight > 0.0
    variation = _variation(method, image) if varied else tf.zeros_like(image[:, 0, 0, 0])  # (B,)
    with tf.control_dependencies([variation] if tables else []):  # so that their memory peaks do not add up
        seen = tf.identity(image)
    found = _found(backbone, seen, _Wanted(method, _layers(method.style), weights, targets.content), tables)
    content = tf.add_n(
        [weight * found.content[layer]
         for weight, (layer, _) in zip(tf.unstack(numbers.content), method.content.layers, strict=True)]
    )  # fmt: skip
    style = tf.add_n(
        [weight * tf.reduce_sum(targets.style_weights * losses.style_distance(
            method.style, found.style[layer], targets.style[layer], _pixels(image), _roots_in(method)), axis=1)
         for weight, (layer, _) in zip(tf.unstack(numbers.style), method.style.layers, strict=True)]
    )  # fmt: skip
    return numbers.terms * tf.stack([content, style, variation], axis=1)


def _variation(method: Method, image: tf.Tensor) -> tf.Tensor:
    """Return the total variation (B,), with its gradient computed at once: a tenth of the memory of the intermediate values."""

    @tf.custom_gradient
    def known(image: tf.Tensor) -> tuple[tf.Tensor, object]:
        with tf.GradientTape() as tape:
            tape.watch(image)
            variation = losses.total_variation(method.total_variation, image)
        slope = tape.gradient(variation, image)
        with tf.control_dependencies([slope]):
            variation = tf.identity(variation)
        return variation, lambda upstream: upstream[:, None, None, None] * slope

    variation: tf.Tensor = known(image)
    return variation


def numbers(method: Method, dtype: tf.DType) -> Numbers:
    """Return the weights and the learning rate of a method as tensors."""
    parts = (method.content, method.style, method.total_variation)
    return Numbers(
        tf.constant([part.weight for part in parts], dtype),
        tf.constant([weight for _, weight in method.content.layers], dtype),
        tf.constant([weight for _, weight in method.style.layers], dtype),
        tf.constant(method.optimizer.learning_rate, dtype),
    )


def style_statistics(backbone: Backbone, method: Method, picture: tf.Tensor, tables: Tables) -> dict[str, losses.Statistics]:
    """Return the statistics of a style image (1, h, w, 3) at each style layer."""
    found = _found(backbone, picture, _Wanted(method, _layers(method.style)), tables)
    look = _pixels(picture), _roots_in(method)
    return {layer: losses.style_statistics(method.style, x, *look) for layer, x in found.style.items()}


def content_statistics(backbone: Backbone, method: Method, picture: tf.Tensor, tables: Tables) -> dict[str, losses.Statistics]:
    """Return the statistics of contents (B, H, W, 3) at each content layer."""
    found = _found(backbone, picture, _Wanted(method, kept=_layers(method.content)), tables)
    return {layer: losses.content_statistics(method.content, x) for layer, x in found.rows.items()}


def shown(mask: Mask | Nothing, image: tf.Tensor) -> tf.Tensor:
    """Return the image (B, H, W, 3), blended with the content outside the mask."""
    return mask.contents + mask.weight * (image - mask.contents) if isinstance(mask, Mask) else image


class _Wanted(NamedTuple):
    """Request for the features of an image.

    styles: layers to sum over positions. weights: layer -> (B, h, w), weights of those positions. contents: layer -> statistics
    to compute the distance from. kept: layers whose features to return.
    """

    method: Method
    styles: tuple[str, ...] = ()
    weights: Mapping[str, tf.Tensor] = MappingProxyType({})
    contents: Mapping[str, losses.Statistics] = MappingProxyType({})
    kept: tuple[str, ...] = ()


class _Found(NamedTuple):
    """Features of an image or of a band, by layer.

    rows: feature maps (B, r, w, C). style: sums over positions. content: distances (B,). Sums and distances add up over bands.
    """

    rows: dict[str, tf.Tensor]
    style: dict[str, Sums]
    content: dict[str, tf.Tensor]


def _found(backbone: Backbone, image: tf.Tensor, wanted: _Wanted, tables: Tables) -> _Found:
    """Compute the requested features of an image (B, H, W, 3)."""
    method = wanted.method
    seen = _as_seen(backbone, method.layers[-1], method.feature_scale, method.precision)
    found, on_gpu = _Found({}, {}, {}), backbones.on_gpu(seen)
    x = backbones.centred(seen, image)
    blocks = backbones.blocks(seen, (*wanted.styles, *wanted.contents, *wanted.kept))
    for k, block in enumerate(blocks):
        last = k + 1 == len(blocks)
        look = functools.partial(_at, block, k == 0, last, wanted, tf.shape(x)[1])
        more = _in_bands(look, _blank(block, last, wanted, x), tables[k], x, on_gpu) if k < len(tables) else look(None, x)
        x = more.rows.pop(_POOLED, x)
        for ours, theirs in zip(found, more, strict=True):
            ours |= theirs
    return found


_POOLED = "pooled"
"""Key, among the rows of a block, of the next block's input."""


def _at(
    block: Sequence[Convolution],
    first: bool,
    last: bool,
    wanted: _Wanted,
    height: tf.Tensor,
    band: tf.Tensor | None,
    x: tf.Tensor,
) -> _Found:
    """Compute a block's features of one band (4,), or of the whole image if it is None.

    Args:
        height: Rows of the whole input.
        x: (B, r, w, C), the rows of the input that the band reads.
    """
    method, found = wanted.method, _Found({}, {}, {})
    y, activations = backbones.through(block, x, method.padding if first else "zero", method.activation)
    if not last:
        found.rows[_POOLED] = backbones.pooled(_own(y, band), method.pooling)
    for layer, activation in activations.items():
        own = _own(activation, band)
        if layer in wanted.kept:
            found.rows[layer] = own
        if layer in wanted.styles:
            found.style[layer] = losses.sums(own, _rows(wanted.weights.get(layer), band))
        if layer in wanted.contents:
            there = {name: _rows(value, band) for name, value in wanted.contents[layer].items()}
            distance = losses.content_distance(method.content, own, there)
            if band is not None and method.content.error == "mse":  # a mean over the band counts by its share of rows
                distance *= tf.cast((band[1] - band[0]) / height, distance.dtype)
            found.content[layer] = distance
    return found


def _blank(block: Sequence[Convolution], last: bool, wanted: _Wanted, x: tf.Tensor) -> _Found:
    """Return a block's features before its first band: zeros."""
    shape, channels = tf.shape(x), block[0].kernel.shape[-1]
    batch, height, width = shape[0], shape[1], shape[2]
    exact = losses.exact(x)
    found = _Found({}, {}, {})
    if not last:
        found.rows[_POOLED] = tf.zeros((batch, height // 2, width // 2, channels), x.dtype)
    for layer in (one.layer for one in block):
        if layer in wanted.kept:
            found.rows[layer] = tf.zeros((batch, height, width, channels), x.dtype)
        if layer in wanted.styles:
            square, row = tf.zeros((batch, channels, channels), exact), tf.zeros((batch, channels), exact)
            found.style[layer] = Sums(square, row, tf.zeros((batch,), exact), tf.zeros((), exact))
        if layer in wanted.contents:
            found.content[layer] = tf.zeros((batch,), exact)
    return found


def _in_bands(
    look: Callable[[tf.Tensor, tf.Tensor], _Found], blank: _Found, bands: tf.Tensor, x: tf.Tensor, on_gpu: bool
) -> _Found:
    """Compute a block's features band by band, with a gradient that computes each band again.

    Args:
        look: Returns the features of one band (4,) from the rows that it reads.
        blank: Features before the first band.
        bands: (K, 4).
        x: (B, h, w, C), the block's input.
    """
    count = tf.shape(bands)[0]

    def below(band: tf.Tensor, layer: str) -> tf.Tensor:
        return band[0] // 2 if layer == _POOLED else band[0]

    @tf.custom_gradient
    def whole(x: tf.Tensor) -> tuple[Any, object]:
        def forth(k: tf.Tensor, so_far: _Found) -> tuple[tf.Tensor, _Found]:
            band = bands[k]
            more = look(band, _slice(x, band[2], band[3]))
            rows = {layer: _added(so_far.rows[layer], below(band, layer), more.rows[layer], on_gpu) for layer in more.rows}
            sums = tf.nest.map_structure(tf.add, so_far[1:], tuple(more[1:]))
            return k + 1, _Found(rows, *sums)

        def gradient(*upstream: tf.Tensor) -> tf.Tensor:
            above: _Found = tf.nest.pack_sequence_as(blank, upstream)

            def back(k: tf.Tensor, so_far: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                band = bands[k]
                with tf.GradientTape() as tape:
                    part = _slice(x, band[2], band[3])
                    tape.watch(part)
                    more = look(band, part)
                rows = {}
                for layer, own in more.rows.items():
                    top = below(band, layer)
                    rows[layer] = _slice(above.rows[layer], top, top + tf.shape(own)[1])
                of_band = tape.gradient(
                    tf.nest.flatten(more), part, output_gradients=tf.nest.flatten(above._replace(rows=rows))
                )
                return k + 1, _added(so_far, band[2], of_band, on_gpu)

            return _loop(count, back, tf.zeros_like(x))

        return tuple(tf.nest.flatten(_loop(count, forth, blank))), gradient

    found: _Found = tf.nest.pack_sequence_as(blank, whole(x))
    return found


def _loop(count: tf.Tensor, body: Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]], start: Any) -> Any:
    """Loop over bands one after another, so that only one is in memory."""
    return tf.while_loop(lambda k, _: k < count, body, (tf.constant(0), start), parallel_iterations=1)[1]


def _added(buffer: tf.Tensor, top: tf.Tensor, rows: tf.Tensor, on_gpu: bool) -> tf.Tensor:
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


def _slice(x: tf.Tensor, top: tf.Tensor, bottom: tf.Tensor) -> tf.Tensor:
    """Return rows of x (B, h, w, C). The gradient of `tf.slice` is a padding; that of `x[...]` is slow."""
    return tf.slice(x, tf.stack([0, top, 0, 0]), tf.stack([-1, bottom - top, -1, -1]))


def _own(x: tf.Tensor, band: tf.Tensor | None) -> tf.Tensor:
    """Return a band's own rows among the rows x that it reads."""
    return x if band is None else _slice(x, band[0] - band[2], band[1] - band[2])


def _rows(x: tf.Tensor | None, band: tf.Tensor | None) -> tf.Tensor | None:
    """Return a band's own rows of the whole image's (B, h, ...)."""
    return x if x is None or band is None else x[:, band[0] : band[1]]


def _layers(loss: ContentLoss | StyleLoss) -> tuple[str, ...]:
    return tuple(layer for layer, _ in loss.layers)


def _roots_in(method: Method) -> tf.DType:
    """Return the dtype in which moments and roots of covariances are computed."""
    # with features rounded to bfloat16, float64 adds no accuracy, and a whole step takes two thirds longer
    return tf.float32 if method.precision == "mixed" else tf.float64


def _pixels(image: tf.Tensor) -> tf.Tensor:
    return tf.shape(image)[1] * tf.shape(image)[2]


@functools.lru_cache(maxsize=8)
def _as_seen(backbone: Backbone, deepest: str, scale: float, precision: str) -> Backbone:
    """Return the backbone up to the layer `deepest`, with scaled features and prepared for this precision."""
    with tf.init_scope():  # compute the weights once, not at each step of the graph that is being traced
        seen = backbones.cut(backbone, deepest)
        seen = backbones.scaled(seen, scale) if scale != 1.0 else seen
        return backbones.rounded(seen, tf.bfloat16) if precision == "mixed" else backbones.quickened(seen)
