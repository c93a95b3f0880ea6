"""Style transfer optimization: state in, state out, n steps at a time inside one compiled graph.

The caller owns the loop over chunks and levels, so checkpoints, deadlines, progress and history live outside. Losses are
summed over the pairs of a batch, never averaged: a pair's gradient does not depend on the other pairs of its batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nst_tasks.core import lbfgs, losses, objective, optimizers, vgg
from nst_tasks.core.bands import BandLimits, band_tables, default_limits
from nst_tasks.core.lbfgs import LBFGSState
from nst_tasks.core.method import LBFGS, Method, StyleLoss, limit_history, strip_numbers
from nst_tasks.core.objective import TERMS, Hyperparameters, Mask, Nothing, Targets
from nst_tasks.core.optimizers import AdamState
from nst_tasks.core.pyramid import Level
from nst_tasks.core.vgg import Backbone
from nst_tasks.core.vgg_layers import block_number


class Average(NamedTuple):
    """Exponential moving average of images: their weighted sum (B, H, W, 3) and the sum of the weights (B,)."""

    image: tf.Tensor
    weight: tf.Tensor


class Best(NamedTuple):
    """Image of least loss so far (B, H, W, 3), and its loss (B,)."""

    image: tf.Tensor
    loss: tf.Tensor


class TransferState(NamedTuple):
    """Complete state of an optimization for a resume.

    image: (B, H, W, 3) float32. optimizer: `Nothing` for a level without steps. output_state: the average or best image so far,
    for the method's `output`. level: index of the level. step: number of steps done in it.
    """

    image: tf.Tensor
    optimizer: optimizers.State | Nothing
    output_state: Average | Best | Nothing
    level: int
    step: int


def style_statistics(
    backbone: Backbone, method: Method, style: np.ndarray, limits: BandLimits | None = None
) -> dict[str, losses.Statistics]:
    """Return the statistics of one style image (h, w, 3) float32 in [0, 1] at each style layer, with a leading axis of 1."""
    tables = _band_tables(backbone, method, [layer for layer, _ in method.style.layers], style[None], limits)
    graphs = _compile_graphs(backbone, strip_numbers(method), False, len(tables))
    statistics: dict[str, losses.Statistics] = graphs.style(tf.constant(style[None], tf.float32), tables)
    return statistics


def content_statistics(
    backbone: Backbone, method: Method, contents: np.ndarray, limits: BandLimits | None = None
) -> dict[str, losses.Statistics]:
    """Return the statistics of a batch's contents (B, H, W, 3) float32 in [0, 1] at each content layer."""
    tables = _band_tables(backbone, method, [layer for layer, _ in method.content.layers], contents, limits)
    graphs = _compile_graphs(backbone, strip_numbers(method), False, len(tables))
    statistics: dict[str, losses.Statistics] = graphs.content(tf.constant(contents, tf.float32), tables)
    return statistics


def build_targets(
    backbone: Backbone,
    method: Method,
    contents: np.ndarray,
    styles: Sequence[Sequence[dict[str, losses.Statistics]]],
    style_weights: Sequence[Sequence[float]],
    mask: np.ndarray | None = None,
    limits: BandLimits | None = None,
    content: dict[str, losses.Statistics] | None = None,
) -> Targets:
    """Build the targets of a batch from its contents (B, H, W, 3) float32 in [0, 1] and its styles' statistics.

    Args:
        styles: For each pair, the `style_statistics` of its S styles.
        style_weights: (B, S), the weights of those styles.
        mask: (B, H, W) in [0, 1]; only where it is 1 is the image stylized and compared with the style.
        limits: Sizes of the bands, by default those of the precision and device.
        content: The `content_statistics` of the contents, if they are known already.
    """
    content = content_statistics(backbone, method, contents, limits) if content is None else content
    style = {
        layer: {
            name: _stack([[one[layer][name] for one in pair] for pair in styles])  # (B, S, ...)
            for name in styles[0][0][layer]
        }
        for layer, _ in method.style.layers
    }
    weights = tf.constant(style_weights, tf.float32)
    if mask is None:
        return Targets(content, style, weights)
    region = _build_mask(method, tf.constant(mask[..., None], tf.float32), tf.constant(contents, tf.float32))
    return Targets(content, style, weights, region)


def _stack(pairs: Sequence[Sequence[tf.Tensor]]) -> tf.Tensor:
    """Stack S parts (1, ...) of each of B pairs to (B, S, ...); a single part is not copied."""
    if len(pairs) == len(pairs[0]) == 1:
        return tf.expand_dims(pairs[0][0], 0)
    return tf.stack([tf.concat(parts, axis=0) for parts in pairs])


def _build_mask(method: Method, weight: tf.Tensor, contents: tf.Tensor) -> Mask:
    """Build the mask of contents (B, H, W, 3) from its weight (B, H, W, 1), pooled to the resolution of each style layer."""
    blocks = {layer: block_number(layer) for layer, _ in method.style.layers}
    of_blocks = [weight]  # (B, h, w, 1), shallowest first
    for _ in range(1, max(blocks.values())):
        of_blocks.append(tf.nn.avg_pool2d(of_blocks[-1], 2, 2, "VALID"))
    return Mask(weight, contents, {layer: of_blocks[block - 1][..., 0] for layer, block in blocks.items()})


def start(method: Method, images: np.ndarray, seeds: Sequence[int | None], steps: int = 1) -> TransferState:
    """Return the state before the first step: images (B, H, W, 3) in [0, 1], plus the method's noise drawn from each seed.

    Args:
        seeds: A seed for each pair; None adds no noise.
        steps: Steps of the level; with 0 the state has no optimizer.
    """
    first = np.asarray(images, np.float32)
    if method.init_noise:
        draws = [
            np.zeros(first.shape[1:], np.float32)
            if seed is None
            else np.random.default_rng(seed).standard_normal(first.shape[1:], np.float32)
            for seed in seeds
        ]
        first = np.clip(first + np.float32(method.init_noise) * np.stack(draws), 0.0, 1.0)
    image = tf.constant(first)
    return TransferState(image, _init_optimizer(method, image, steps), _init_output_state(method, image), level=0, step=0)


def start_next_level(method: Method, state: TransferState, image: tf.Tensor, level: Level) -> TransferState:
    """Return the state at the start of the next level, from the result of the previous one resized (bicubic).

    The optimizer starts from a new state, unless the pyramid carries Adam's moments up.
    """
    size = (level.height, level.width)
    image = tf.clip_by_value(tf.image.resize(image, size, "bicubic"), 0.0, 1.0)
    if method.pyramid is not None and method.pyramid.carry and isinstance(state.optimizer, AdamState):
        optimizer: optimizers.State | Nothing = optimizers.resize_moments(state.optimizer, *size)
    else:
        optimizer = _init_optimizer(method, image, level.steps)
    return TransferState(image, optimizer, _init_output_state(method, image), level=state.level + 1, step=0)


def restart_level(method: Method, state: TransferState, image: tf.Tensor) -> TransferState:
    """Return the state before the first step of the current level, with this image (B, H, W, 3) and a new optimizer state."""
    return TransferState(image, _init_optimizer(method, image, 1), _init_output_state(method, image), state.level, step=0)


def is_compatible(method: Method, state: TransferState, level: Level) -> bool:
    """Return whether the state of one pair has the structure, shapes and dtypes of this method at this level."""
    image = tf.TensorSpec((1, level.height, level.width, 3))
    optimizer = limit_history(method, level.height, level.width).optimizer
    specs = (image, optimizers.spec(optimizer, image), _output_state_spec(method, image))
    parts = (state.image, state.optimizer, state.output_state)
    try:
        tf.nest.assert_same_structure(specs, parts)
    except (TypeError, ValueError):
        return False
    return all(spec.is_compatible_with(leaf) for spec, leaf in zip(tf.nest.flatten(specs), tf.nest.flatten(parts), strict=True))


def advance(
    backbone: Backbone,
    method: Method,
    targets: Targets,
    state: TransferState,
    n: int,
    steps: int,
    limits: BandLimits | None = None,
) -> tuple[TransferState, np.ndarray]:
    """Run `n` (1 or more) of a level's `steps` steps.

    Return the next state, and the weighted terms (n, B, 3) of the image before each update.
    """
    tables = _band_tables(backbone, method, method.layers, state.image, limits)
    method = limit_history(method, *state.image.shape[1:3])
    graphs = _compile_graphs(backbone, strip_numbers(method), isinstance(targets.mask, Mask), len(tables))
    (image, optimizer, output_state), terms = graphs.advance(
        tuple(state[:3]),
        targets,
        objective.build_hyperparameters(method, tf.float32),
        tables,
        *map(tf.constant, (state.step, n, steps)),
    )
    return TransferState(image, optimizer, output_state, state.level, state.step + n), terms.numpy()


def hold_pairs(previous: TransferState, state: TransferState, moving: Sequence[bool]) -> TransferState:
    """Return the state with the `moving` pairs (B,) as they are, and the others as they were in the previous state."""

    def choose(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(moving, [-1] + [1] * (len(new.shape) - 1)), new, old)

    image, optimizer, output_state = tf.nest.map_structure(choose, tuple(state[:3]), tuple(previous[:3]))
    return state._replace(image=image, optimizer=optimizer, output_state=output_state)


def compute_result(
    backbone: Backbone, method: Method, targets: Targets, state: TransferState, limits: BandLimits | None = None
) -> tuple[tf.Tensor, np.ndarray]:
    """Return a level's result: the images (B, H, W, 3) of the method's `output`, and their weighted terms (B, 3).

    L-BFGS returns its best image for every `output`. With a mask, the content shows outside it.
    """

    def evaluate(image: tf.Tensor) -> tuple[tf.Tensor, np.ndarray]:
        image = objective.apply_mask(targets.mask, image)
        return image, compute_terms(backbone, method, targets, image, limits)

    if isinstance(state.output_state, Average):
        return evaluate(state.output_state.image / _per_pixel(state.output_state.weight))
    last = evaluate(state.image)
    best = Best(*lbfgs.best(state.optimizer)) if isinstance(state.optimizer, LBFGSState) else state.output_state
    if not isinstance(best, Best):
        return last
    worse = ~(last[1].sum(axis=1) < best.loss.numpy())  # (B,); negated, so that it is true for a NaN loss
    return evaluate(tf.where(_per_pixel(tf.constant(worse)), best.image, state.image)) if worse.any() else last


def compute_terms(
    backbone: Backbone, method: Method, targets: Targets, image: tf.Tensor, limits: BandLimits | None = None
) -> np.ndarray:
    """Return the weighted terms (B, 3) of an image (B, H, W, 3), in the order of `TERMS`."""
    tables = _band_tables(backbone, method, method.layers, image, limits)
    method = limit_history(method, *image.shape[1:3])
    graphs = _compile_graphs(backbone, strip_numbers(method), isinstance(targets.mask, Mask), len(tables))
    terms: np.ndarray = graphs.measure(image, targets, objective.build_hyperparameters(method, tf.float32), tables).numpy()
    return terms


def _band_tables(
    backbone: Backbone, method: Method, layers: Sequence[str], images: tf.Tensor | np.ndarray, limits: BandLimits | None
) -> tuple[tf.Tensor, ...]:
    """Return the bands in which the network is computed for images (B, H, W, 3), up to the deepest of these layers."""
    limits = limits or default_limits(method.precision, backbone.is_on_gpu)
    blocks = [(block[0].kernel.shape[-1], len(block)) for block in vgg.group_by_block(backbone, layers)]
    return tuple(map(tf.constant, band_tables(images.shape[1], images.shape[2], blocks, limits)))


def _init_optimizer(method: Method, image: tf.Tensor, steps: int) -> optimizers.State | Nothing:
    if not steps:  # L-BFGS's empty history would take longer than all else of a pair without steps
        return Nothing()
    return optimizers.init(limit_history(method, *image.shape[1:3]).optimizer, image)


def _init_output_state(method: Method, image: tf.Tensor) -> Average | Best | Nothing:
    if isinstance(method.optimizer, LBFGS) or method.output == "last":
        return Nothing()
    if method.output == "best":
        return Best(image, tf.fill(tf.shape(image)[:1], tf.constant(np.inf, image.dtype)))
    first = tf.constant(1.0 - method.average_decay, image.dtype)
    return Average(first * image, tf.fill(tf.shape(image)[:1], first))


def _output_state_spec(method: Method, image: tf.TensorSpec) -> Average | Best | Nothing:
    if isinstance(method.optimizer, LBFGS) or method.output == "last":
        return Nothing()
    if method.output == "best":
        return Best(image, tf.TensorSpec(image.shape[:1]))
    return Average(image, tf.TensorSpec(image.shape[:1]))


def _update_output_state(
    method: Method, state: Average | Best | Nothing, image: tf.Tensor, loss: tf.Tensor, next_image: tf.Tensor
) -> Average | Best | Nothing:
    """Update the average or best image after a step from `image` with this loss (B,) to `next_image`."""
    if isinstance(state, Best):
        better = loss < state.loss
        return Best(tf.where(_per_pixel(better), image, state.image), tf.where(better, loss, state.loss))
    if isinstance(state, Average):
        decay, new = method.average_decay, 1.0 - method.average_decay
        return Average(decay * state.image + new * next_image, decay * state.weight + new)
    return state


def _per_pixel(x: tf.Tensor) -> tf.Tensor:
    return x[:, None, None, None]  # (B,) -> (B, 1, 1, 1)


class _Graphs(NamedTuple):
    style: tf.types.experimental.PolymorphicFunction
    content: tf.types.experimental.PolymorphicFunction
    measure: tf.types.experimental.PolymorphicFunction
    advance: tf.types.experimental.PolymorphicFunction


@functools.lru_cache(maxsize=32)  # an entry takes about 30 MB for VGG16 with L-BFGS, the largest
def _compile_graphs(backbone: Backbone, method: Method, masked: bool, banded_blocks: int) -> _Graphs:
    """Return the graphs of one method structure, traced once for images of every size: only the channels have a fixed shape."""
    image_spec = tf.TensorSpec((None, None, None, 3))
    optimizer_spec = optimizers.spec(method.optimizer, image_spec)
    output_state_spec = _output_state_spec(method, image_spec)
    targets_spec, hyperparameters_spec = _targets_spec(method, image_spec, masked), _hyperparameters_spec(method)
    tables_spec = (tf.TensorSpec((None, 4), tf.int32),) * banded_blocks
    number_spec = tf.TensorSpec((), tf.int32)

    # AutoGraph searches all called code for loops and branches on tensors, which takes longer than the tracing. The code needs
    # no conversion: its loops are explicit tf.while_loop calls
    graph_function = functools.partial(tf.function, autograph=False)

    @graph_function(input_signature=[image_spec, tables_spec])
    def style(image, tables):
        return objective.style_statistics(backbone, method, image, tables)

    @graph_function(input_signature=[image_spec, tables_spec])
    def content(image, tables):
        return objective.content_statistics(backbone, method, image, tables)

    @graph_function(input_signature=[image_spec, targets_spec, hyperparameters_spec, tables_spec])
    def measure(image, targets, hyperparameters, tables):
        return objective.weighted_terms(backbone, method, image, targets, hyperparameters, tables)

    # not inlined into the loop: TensorFlow uses oneDNN for a pooling's gradient only if it visits the pooling first, and in the
    # cycle of a loop it may visit either first. Its other kernel uses one core: 40 of a mixed step's 80 ms at 256 px
    @graph_function(
        input_signature=[image_spec, targets_spec, hyperparameters_spec, tables_spec],
        experimental_attributes={"_noinline": True},
    )
    def terms_and_gradient(image, targets, hyperparameters, tables):
        with tf.GradientTape() as tape:
            tape.watch(image)
            terms = objective.weighted_terms(backbone, method, image, targets, hyperparameters, tables)
            total = tf.reduce_sum(terms)
        return terms, tape.gradient(total, image)

    state_spec = (image_spec, optimizer_spec, output_state_spec)

    @graph_function(
        input_signature=[state_spec, targets_spec, hyperparameters_spec, tables_spec, number_spec, number_spec, number_spec]
    )
    def advance(state, targets, hyperparameters, tables, step, n, steps):
        def update(k, state, rows):
            image, optimizer, output_state = state
            terms, gradient = terms_and_gradient(image, targets, hyperparameters, tables)  # (B, 3), (B, H, W, 3)
            loss = tf.reduce_sum(terms, axis=1)  # (B,)
            rate = hyperparameters.learning_rate * optimizers.learning_rate_factor(method.optimizer, step + k, steps)
            optimizer, next_image = optimizers.update(
                method.optimizer, optimizer, image, loss, gradient, rate, method.clip, step + k
            )
            output_state = _update_output_state(method, output_state, image, loss, next_image)
            next_image = tf.ensure_shape(next_image, image_spec.shape)
            return k + 1, (next_image, optimizer, output_state), rows.write(k, terms)

        rows = tf.TensorArray(tf.float32, size=n, element_shape=(None, len(TERMS)))
        _, state, rows = tf.while_loop(lambda k, *_: k < n, update, (tf.constant(0), state, rows))
        return state, rows.stack()

    return _Graphs(style, content, measure, advance)


def _targets_spec(method: Method, image: tf.TensorSpec, masked: bool) -> Targets:
    feature_dtype = tf.bfloat16 if method.precision == "mixed" else tf.float32
    by_position = tf.TensorSpec((None,) * 3)
    content = {"features": tf.TensorSpec((None,) * 4, feature_dtype), "weight": by_position}
    style_layers = [layer for layer, _ in method.style.layers]
    mask = Mask(tf.TensorSpec((None, None, None, 1)), image, dict.fromkeys(style_layers, by_position))
    return Targets(
        {layer: content for layer, _ in method.content.layers},
        dict.fromkeys(style_layers, _statistics_spec(method.style)),
        tf.TensorSpec((None, None)),
        mask if masked else Nothing(),
    )


def _hyperparameters_spec(method: Method) -> Hyperparameters:
    content, style = (tf.TensorSpec((len(loss.layers),)) for loss in (method.content, method.style))
    return Hyperparameters(tf.TensorSpec((len(TERMS),)), content, style, tf.TensorSpec(()))


def _statistics_spec(loss: StyleLoss) -> dict[str, tf.TensorSpec]:
    ranks = {"gram": {"gram": 4, "mean_square": 2}, "wasserstein": {"mean": 3, "trace": 2, "root": 4, "mean_square": 2}}
    return {name: tf.TensorSpec((None,) * rank) for name, rank in ranks[loss.statistic].items()}
