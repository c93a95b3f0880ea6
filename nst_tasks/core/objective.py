"""The loss of an image and what it is measured against: features, block by block, and what is summed up of them.

What is large in a block is computed in bands (`bands`): the losses are made for sums, and those of the whole picture are the
sums over its bands. On the way back each band is computed once more, so that no more than one is ever in memory.
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
"""The bands (K, 4) of each block that is computed in bands, as `bands.tables` has them."""


TERMS = ("content", "style", "tv")
"""The weighted terms of the loss, in the order of `advance`'s and `result`'s last axis; they add up to the total."""


class Nothing(NamedTuple):
    """What stands where there is nothing: TensorFlow's signatures take no None."""


class Mask(NamedTuple):
    """Where a batch's pictures are stylized: weight (B, H, W, 1) in [0, 1], over contents (B, H, W, 3) that show elsewhere.

    by_layer: style layer -> weight (B, h, w), how much each position counts in the image's style statistics.
    """

    weight: tf.Tensor
    contents: tf.Tensor
    by_layer: dict[str, tf.Tensor]


class Targets(NamedTuple):
    """What a batch's images are drawn to at one level.

    content: layer -> statistic -> (B, ...). style: layer -> statistic -> (B, S, ...), S styles a pair. style_weights: (B, S).
    mask: nothing where the whole picture is stylized.
    """

    content: dict[str, losses.Statistics]
    style: dict[str, losses.Statistics]
    style_weights: tf.Tensor
    mask: Mask | Nothing = Nothing()


class Numbers(NamedTuple):
    """What a method's graphs are given as they run, so that methods which differ in it alone share them: floats.

    terms: what each of the `TERMS` counts, (3,). content, style: what each layer counts in its term, in the method's order.
    learning_rate: (), before any schedule.
    """

    terms: tf.Tensor
    content: tf.Tensor
    style: tf.Tensor
    learning_rate: tf.Tensor


def weighted_terms(
    backbone: Backbone, method: Method, image: tf.Tensor, targets: Targets, numbers: Numbers, tables: Tables
) -> tf.Tensor:
    """The weighted terms of the loss of images (B, H, W, 3), (B, 3) in the order of `TERMS`; the numbers are the method's."""
    image = shown(targets.mask, image)
    weights = targets.mask.by_layer if isinstance(targets.mask, Mask) else {}
    varied = method.total_variation.weight > 0.0
    variation = _variation(method, image) if varied else tf.zeros_like(image[:, 0, 0, 0])  # (B,)
    with tf.control_dependencies([variation] if tables else []):  # so that their memory is not needed at the same time
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
    """The total variation (B,) with its gradient made at once: a tenth of the memory of all that it is made of."""

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
    """The method's numbers."""
    parts = (method.content, method.style, method.total_variation)
    return Numbers(
        tf.constant([part.weight for part in parts], dtype),
        tf.constant([weight for _, weight in method.content.layers], dtype),
        tf.constant([weight for _, weight in method.style.layers], dtype),
        tf.constant(method.optimizer.learning_rate, dtype),
    )


def style_statistics(backbone: Backbone, method: Method, picture: tf.Tensor, tables: Tables) -> dict[str, losses.Statistics]:
    """Statistics of a style picture (1, h, w, 3) at each style layer."""
    found = _found(backbone, picture, _Wanted(method, _layers(method.style)), tables)
    look = _pixels(picture), _roots_in(method)
    return {layer: losses.style_statistics(method.style, x, *look) for layer, x in found.style.items()}


def content_statistics(backbone: Backbone, method: Method, picture: tf.Tensor, tables: Tables) -> dict[str, losses.Statistics]:
    """What contents (B, H, W, 3) are to be compared with at each content layer."""
    found = _found(backbone, picture, _Wanted(method, kept=_layers(method.content)), tables)
    return {layer: losses.content_statistics(method.content, x) for layer, x in found.rows.items()}


def shown(mask: Mask | Nothing, image: tf.Tensor) -> tf.Tensor:
    """The image (B, H, W, 3) with the content where the mask keeps it."""
    return mask.contents + mask.weight * (image - mask.contents) if isinstance(mask, Mask) else image


class _Wanted(NamedTuple):
    """What is looked for: sums of style layers, by weights (B, h, w) if any, distances from contents, features to keep."""

    method: Method
    styles: tuple[str, ...] = ()
    weights: Mapping[str, tf.Tensor] = MappingProxyType({})
    contents: Mapping[str, losses.Statistics] = MappingProxyType({})
    kept: tuple[str, ...] = ()


class _Found(NamedTuple):
    """What was found, by layer: rows (B, r, w, C) of features, and what adds up over bands, sums and distances (B,)."""

    rows: dict[str, tf.Tensor]
    style: dict[str, Sums]
    content: dict[str, tf.Tensor]


def _found(backbone: Backbone, image: tf.Tensor, wanted: _Wanted, tables: Tables) -> _Found:
    """What the network finds in an image (B, H, W, 3)."""
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
"""Among the rows of a block, the input of the next one."""


def _at(
    block: Sequence[Convolution],
    first: bool,
    last: bool,
    wanted: _Wanted,
    height: tf.Tensor,
    band: tf.Tensor | None,
    x: tf.Tensor,
) -> _Found:
    """What a block finds in a band (4,) of its input, which has so many rows in all; or in the whole of it."""
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
            if band is not None and method.content.error == "mse":  # the mean over the band's rows, of all
                distance *= tf.cast((band[1] - band[0]) / height, distance.dtype)
            found.content[layer] = distance
    return found


def _blank(block: Sequence[Convolution], last: bool, wanted: _Wanted, x: tf.Tensor) -> _Found:
    """What a block has found before its first band."""
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
    """What `look` finds in all bands (K, 4) of a block's input x (B, h, w, C), with a gradient that looks once more."""
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
    """One band after another, so that only one is in memory."""
    return tf.while_loop(lambda k, _: k < count, body, (tf.constant(0), start), parallel_iterations=1)[1]


def _added(buffer: tf.Tensor, top: tf.Tensor, rows: tf.Tensor, on_gpu: bool) -> tf.Tensor:
    """The buffer (B, h, w, C) with these rows (B, r, w, C) added from row `top` on, in place.

    A CPU adds what one index names at once, so that it is given few. A GPU gives each index to a thread, and makes them itself:
    those of int32 would be made by its host.
    """
    batch, height, width = (tf.shape(rows)[axis] for axis in range(3))
    axes = [tf.range(batch), top + tf.range(height)]
    if on_gpu:
        axes = [tf.cast(axis, tf.int64) for axis in (*axes, tf.range(width))]
    at = tf.stack(tf.meshgrid(*axes, indexing="ij"), axis=-1)  # (B, r, 2) or (B, r, w, 3)
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=buffer, indices=at, updates=rows)


def _slice(x: tf.Tensor, top: tf.Tensor, bottom: tf.Tensor) -> tf.Tensor:
    """Rows of (B, h, w, C); its gradient is a padding, where that of `x[...]` is slow."""
    return tf.slice(x, tf.stack([0, top, 0, 0]), tf.stack([-1, bottom - top, -1, -1]))


def _own(x: tf.Tensor, band: tf.Tensor | None) -> tf.Tensor:
    """Of the rows that a band looks at, its own."""
    return x if band is None else _slice(x, band[0] - band[2], band[1] - band[2])


def _rows(x: tf.Tensor | None, band: tf.Tensor | None) -> tf.Tensor | None:
    """Of a whole picture's (B, h, ...), those of a band."""
    return x if x is None or band is None else x[:, band[0] : band[1]]


def _layers(loss: ContentLoss | StyleLoss) -> tuple[str, ...]:
    return tuple(layer for layer, _ in loss.layers)


def _roots_in(method: Method) -> tf.DType:
    """The type in which moments and roots of covariances are computed."""
    # beside features rounded to bfloat16, float64 would tell no more, and make a whole step take two thirds longer
    return tf.float32 if method.precision == "mixed" else tf.float64


def _pixels(image: tf.Tensor) -> tf.Tensor:
    return tf.shape(image)[1] * tf.shape(image)[2]


@functools.lru_cache(maxsize=8)
def _as_seen(backbone: Backbone, deepest: str, scale: float, precision: str) -> Backbone:
    with tf.init_scope():  # once, and not at each step of the graph that is being traced
        seen = backbones.cut(backbone, deepest)
        seen = backbones.scaled(seen, scale) if scale != 1.0 else seen
        return backbones.rounded(seen, tf.bfloat16) if precision == "mixed" else backbones.quickened(seen)
