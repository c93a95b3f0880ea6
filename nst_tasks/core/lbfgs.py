"""Limited-memory BFGS as a state machine of tensors: one update per loss evaluation, each pair in its own state.

Liu and Nocedal 1989; Nocedal and Wright, Numerical Optimization, 2nd edition 2006, algorithms 7.4 (two-loop recursion) and 7.5.
A batch is evaluated in lockstep, but each pair searches along its own line: no pair's numbers depend on the other pairs.

The line search `decrease` enforces the weak Wolfe conditions, with the approximate one of Hager and Zhang 2005 where rounding
hides the decrease. A trial that is low enough but still too steep becomes the start of a continued search along the same line,
so that a search stores one point and the nearest failed trial. `fixed` is torch.optim.LBFGS without a line search, except for
three departures: a step is scaled like a first step whenever no differences are stored, the curvature of a difference is
tested relative to its length, and non-finite losses lead to a restart.

With `clip` the direction is that of Bertsekas 1982 (SIAM J. Control Optim. 20(2)): variables on a bound that descent would
push outward are excluded from gradient, differences and direction, and every trial is clipped to [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nst_tasks.core.method import LBFGS

ARMIJO = 1e-4
"""Armijo constant: a trial must lower the loss by at least this fraction of the decrease that the slope predicts."""

WOLFE_CURVATURE = 0.9
"""Constant of the weak curvature condition: a search ends once the slope has risen to this fraction of its initial value."""

MAX_TRIALS = 20
"""Maximum number of trials along one line, and of restarts of a pair."""

FIRST_CHANGE_RMS = 0.01
"""Root mean square change of an image in [0, 1] by the first trial of `decrease` along steepest descent."""

MIN_CURVATURE = 1e-10
"""Minimum curvature: differences s and y are stored only if `s.y > MIN_CURVATURE |s| |y|`.

With `clip` they are used only if the free variables have more than this fraction of `s.y`."""

ROUNDING_UNITS = 8
"""A rise of the loss by up to this many units of rounding (machine epsilon times the loss) counts as none."""


class LBFGSState(NamedTuple):
    """Complete optimizer state for a resume, with B pairs, m = `history` and floats in the image's dtype.

    point, loss, gradient: the accepted image (B, H, W, 3), its loss (B,) and gradient.
    direction, slope, step: the search line `point + step * direction`, and the loss's slope (B,) along it at `point`.
    high, high_loss, high_slope: the shortest step (B,) known to be too long, infinity if none, and the loss and slope there.
    trials, restarts: (B,) int64, the number of trials along this line, and of restarts after a non-finite loss.
    begun, settled: (B,) bool, true once a finite loss was seen since the start or a restart, and once the pair no longer moves.
    s, y: ring buffers (B, m, H, W, 3) of the differences of points and gradients; rho: (B, m), their 1 / (s.y).
    count, place: (B,) int64, the number of stored differences, and the index of the next write.
    best, best_loss: the evaluated image of least loss, and that loss.

    Integers are int64 because TensorFlow keeps int32 in a GPU's host memory, and the host would wait for them.
    """

    point: tf.Tensor
    loss: tf.Tensor
    gradient: tf.Tensor
    direction: tf.Tensor
    slope: tf.Tensor
    step: tf.Tensor
    high: tf.Tensor
    high_loss: tf.Tensor
    high_slope: tf.Tensor
    trials: tf.Tensor
    restarts: tf.Tensor
    begun: tf.Tensor
    settled: tf.Tensor
    s: tf.Tensor
    y: tf.Tensor
    rho: tf.Tensor
    count: tf.Tensor
    place: tf.Tensor
    best: tf.Tensor
    best_loss: tf.Tensor


def spec(lbfgs: LBFGS, image: tf.TensorSpec) -> LBFGSState:
    """Return the shapes and dtypes of the state for images (B, H, W, 3) of this spec, whose dimensions may be None."""
    batch, *size = image.shape
    scalar = tf.TensorSpec((batch,), image.dtype)
    integer, flag = tf.TensorSpec((batch,), tf.int64), tf.TensorSpec((batch,), tf.bool)
    buffer = tf.TensorSpec((batch, lbfgs.history, *size), image.dtype)
    return LBFGSState(
        point=image, loss=scalar, gradient=image,
        direction=image, slope=scalar, step=scalar,
        high=scalar, high_loss=scalar, high_slope=scalar,
        trials=integer, restarts=integer, begun=flag, settled=flag,
        s=buffer, y=buffer, rho=tf.TensorSpec((batch, lbfgs.history), image.dtype), count=integer, place=integer,
        best=image, best_loss=scalar,
    )  # fmt: skip


def init(lbfgs: LBFGS, image: tf.Tensor) -> LBFGSState:
    """Return the state before the first evaluation of an image (B, H, W, 3), which must lie in [0, 1] if updates clip."""
    batch, size = tf.shape(image)[:1], tf.shape(image)[1:]

    def zeros(*shape: tf.Tensor | list[int]) -> tf.Tensor:
        return tf.zeros(tf.concat([batch, *shape], axis=0), image.dtype)

    zero, blank, buffer = tf.zeros(batch, tf.int64), zeros(size), zeros([lbfgs.history], size)
    infinite = tf.fill(batch, tf.constant(float("inf"), image.dtype))
    return LBFGSState(
        point=image, loss=infinite, gradient=blank,
        direction=blank, slope=zeros(), step=zeros(),
        high=infinite, high_loss=infinite, high_slope=infinite,
        trials=zero, restarts=zero, begun=zero > 0, settled=zero > 0,
        s=buffer, y=buffer, rho=zeros([lbfgs.history]), count=zero, place=zero,
        best=image, best_loss=infinite,
    )  # fmt: skip


def best(state: LBFGSState) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the evaluated image (B, H, W, 3) of least finite loss, and that loss (B,).

    If no loss was finite, they are the initial image and infinity.
    """
    return state.best, state.best_loss


def update(
    lbfgs: LBFGS,
    state: LBFGSState,
    image: tf.Tensor,
    loss: tf.Tensor,
    gradient: tf.Tensor,
    clip: bool,
    step: tf.Tensor,
) -> tuple[LBFGSState, tf.Tensor]:
    """Return the next state and the next image (B, H, W, 3) to evaluate, given the loss (B,) and gradient of `image`.

    The next image of a settled pair, or of one without a finite loss yet, is its best image.

    Args:
        clip: Clip trials to [0, 1].
        step: () int32, the number of updates so far, which bounds the number of stored differences.
    """
    finite = tf.math.is_finite(loss) & tf.reduce_all(tf.math.is_finite(gradient), axis=(1, 2, 3))
    better = finite & (loss < state.best_loss)
    state = state._replace(
        best=tf.where(_per_pixel(better), image, state.best), best_loss=tf.where(better, loss, state.best_loss)
    )
    if lbfgs.line_search == "fixed":
        state, needs_direction = _accept_fixed(state, image, loss, gradient, finite)
    else:
        state, needs_direction = _search_line(state, image, loss, gradient, finite, clip)
    state = _set_direction(lbfgs, state, needs_direction, clip, tf.minimum(step, lbfgs.history))
    next_image = _clip(state.point + _per_pixel(state.step) * state.direction, clip)
    return state, tf.where(_per_pixel(state.begun & ~state.settled), next_image, state.best)


def _accept_fixed(
    state: LBFGSState, image: tf.Tensor, loss: tf.Tensor, gradient: tf.Tensor, finite: tf.Tensor
) -> tuple[LBFGSState, tf.Tensor]:
    """Accept every trial with a finite loss; otherwise restart the pair at its best image with a shorter first step.

    Return the next state, and a mask (B,) of the pairs that need a new direction.
    """
    accepted, not_finite = finite & ~state.settled, ~finite & ~state.settled
    state = _move_to_trials(state, image, loss, gradient, accepted, stored=accepted & state.begun)
    restarts = state.restarts + tf.cast(not_finite, tf.int64)
    return state._replace(
        count=_zero_where(not_finite, state.count),
        restarts=restarts,
        begun=(state.begun | accepted) & ~not_finite,
        settled=state.settled | (restarts >= MAX_TRIALS),
    ), accepted


def _search_line(
    state: LBFGSState, image: tf.Tensor, loss: tf.Tensor, gradient: tf.Tensor, finite: tf.Tensor, clip: bool
) -> tuple[LBFGSState, tf.Tensor]:
    """Evaluate one trial of the line search: accept it, continue along the line, shorten the step or abandon the line.

    Return the next state, and a mask (B,) of the pairs that need a new direction.
    """
    first, searching = finite & ~state.begun, state.begun & ~state.settled
    moved = image - state.point  # not step * direction: clipping and rounding count
    predicted_change = _dot(state.gradient, moved)
    continued_direction = state.direction * _free_mask(image, state.direction) if clip else state.direction
    slope = _dot(gradient, continued_direction)

    sufficient_decrease = loss <= state.loss + ARMIJO * predicted_change
    # Hager and Zhang 2005, (4.1); relative to the best loss, so that small rises do not accumulate
    approximate_decrease = loss <= state.best_loss + ROUNDING_UNITS * np.finfo(loss.dtype.as_numpy_dtype).eps * tf.abs(
        state.best_loss
    )
    approximate_decrease &= slope <= (2.0 * ARMIJO - 1.0) * state.slope
    accepted = searching & finite & (predicted_change < 0.0) & (sufficient_decrease | approximate_decrease)
    failed = searching & ~accepted
    curvature_met = slope >= WOLFE_CURVATURE * state.slope
    trials = state.trials + 1
    last = trials >= MAX_TRIALS
    continues = accepted & ~curvature_met & ~last
    abandoned = failed & (last | ~tf.reduce_any(moved != 0.0, axis=(1, 2, 3)))

    reach = tf.where(failed, state.step, tf.where(continues, state.high - state.step, state.high))
    high_loss, high_slope = tf.where(failed, loss, state.high_loss), tf.where(failed, slope, state.high_slope)
    start_loss, start_slope = tf.where(continues, loss, state.loss), tf.where(continues, slope, state.slope)
    interpolated = _cubic_minimum(reach, start_loss, start_slope, high_loss, high_slope)
    interpolated = tf.where(
        tf.math.is_finite(interpolated), tf.clip_by_value(interpolated, 0.1 * reach, 0.5 * reach), 0.1 * reach
    )
    extrapolated = 9.0 * state.step  # 9/10 of the slope is left: if it rises linearly, the minimum is no nearer

    begun = state.begun | first
    settled = state.settled | (abandoned & (state.count == 0))
    needs_direction = first | (accepted & ~continues) | abandoned
    state = _move_to_trials(state, image, loss, gradient, first | accepted, stored=accepted & curvature_met)
    return state._replace(
        direction=tf.where(_per_pixel(continues), continued_direction, state.direction),
        slope=start_slope,
        step=tf.where(tf.math.is_finite(reach), interpolated, extrapolated),
        high=reach,
        high_loss=high_loss,
        high_slope=high_slope,
        trials=trials,
        begun=begun,
        settled=settled,
        count=_zero_where(abandoned, state.count),
    ), needs_direction & ~settled


def _cubic_minimum(
    reach: tf.Tensor, loss: tf.Tensor, slope: tf.Tensor, high_loss: tf.Tensor, high_slope: tf.Tensor
) -> tf.Tensor:
    """Return the minimizer of the cubic with these values and slopes at 0 and `reach` (Nocedal and Wright, 3.59), or NaN."""
    bend = slope + high_slope - 3.0 * (high_loss - loss) / reach
    root = tf.sqrt(tf.square(bend) - slope * high_slope)
    return reach - reach * (high_slope + root - bend) / (high_slope - slope + 2.0 * root)


def _move_to_trials(
    state: LBFGSState, image: tf.Tensor, loss: tf.Tensor, gradient: tf.Tensor, accepted: tf.Tensor, stored: tf.Tensor
) -> LBFGSState:
    """Move the accepted pairs to their trials, and store the differences from the previous points of the `stored` pairs."""
    s, y = image - state.point, gradient - state.gradient
    curvature = _dot(s, y)
    rho = 1.0 / curvature
    stored &= (curvature > MIN_CURVATURE * tf.sqrt(_dot(s, s)) * tf.sqrt(_dot(y, y))) & tf.math.is_finite(rho)
    history, new = state.rho.shape[1], tf.cast(stored, tf.int64)
    return state._replace(
        point=tf.where(_per_pixel(accepted), image, state.point),
        loss=tf.where(accepted, loss, state.loss),
        gradient=tf.where(_per_pixel(accepted), gradient, state.gradient),
        s=_write_ring_buffer(state.s, state.place, s, stored),
        y=_write_ring_buffer(state.y, state.place, y, stored),
        rho=tf.where(stored[:, None] & (tf.range(history, dtype=tf.int64) == state.place[:, None]), rho[:, None], state.rho),
        count=tf.minimum(state.count + new, history),
        place=(state.place + new) % history,
    )


def _write_ring_buffer(buffer: tf.Tensor, place: tf.Tensor, new: tf.Tensor, selected: tf.Tensor) -> tf.Tensor:
    """Write `new` (B, H, W, 3) into the ring buffer (B, m, H, W, 3) at `place` (B,), for the `selected` (B,) pairs.

    Values are replaced by additions, which is exact: -a + a = 0, and 0 + b = b. Each row of pixels has its own index: a GPU
    assigns one thread to an index, and took 18 ms for the 786,432 values of 512 x 512 pixels under a single one.
    """
    shape = tf.shape(new)[:2]
    pair, row = (tf.cast(each, place.dtype) for each in tf.meshgrid(tf.range(shape[0]), tf.range(shape[1]), indexing="ij"))
    at = tf.stack([pair, tf.broadcast_to(place[:, None], shape), row], axis=-1)  # (B, H, 3)
    # tf.tensor_scatter_nd_update copies the whole buffer on a CPU; these additions are done in place inside a loop, where
    # nothing else references the buffer. All pairs are written: selecting the wanted ones would make a GPU's host wait
    add, old = tf.raw_ops.ScatterNdNonAliasingAdd, tf.gather_nd(buffer, at)
    emptied = add(input=buffer, indices=at, updates=-old)
    return add(input=emptied, indices=at, updates=tf.where(_per_pixel(selected), new, old))


def _set_direction(lbfgs: LBFGS, state: LBFGSState, needs_direction: tf.Tensor, clip: bool, max_count: tf.Tensor) -> LBFGSState:
    """Set a new search line for the `needs_direction` pairs; a pair without a descent direction becomes settled."""
    downhill = -state.gradient
    free = _free_mask(state.point, downhill) if clip else None
    if free is not None:
        downhill *= free
    quasi_newton, steepest = (
        _quasi_newton_direction(state, downhill, free, _zero_where(~needs_direction, state.count), max_count),
        downhill,
    )
    if lbfgs.line_search == "fixed":
        quasi_newton *= lbfgs.learning_rate
        first = 1.0 / tf.maximum(_sum(tf.abs(downhill)), 1.0) * lbfgs.learning_rate
        steepest *= _per_pixel(first * 0.1 ** tf.cast(state.restarts, first.dtype))
    else:
        values = tf.cast(tf.reduce_prod(tf.shape(downhill)[1:]), downhill.dtype)
        steepest *= _per_pixel(tf.math.divide_no_nan(FIRST_CHANGE_RMS * tf.sqrt(values), tf.sqrt(_dot(downhill, downhill))))
    if clip:
        quasi_newton *= _free_mask(state.point, quasi_newton)
    slope, slope_steepest = _dot(state.gradient, quasi_newton), _dot(state.gradient, steepest)
    descends = (slope < 0.0) & tf.math.is_finite(slope)
    direction = tf.where(_per_pixel(descends), quasi_newton, steepest)
    slope = tf.where(descends, slope, slope_steepest)
    one, infinite = tf.ones_like(slope), tf.fill(tf.shape(slope), tf.constant(float("inf"), slope.dtype))
    return state._replace(
        direction=tf.where(_per_pixel(needs_direction), direction, state.direction),
        slope=tf.where(needs_direction, slope, state.slope),
        step=tf.where(needs_direction, one, state.step),
        high=tf.where(needs_direction, infinite, state.high),
        trials=_zero_where(needs_direction, state.trials),
        settled=state.settled | (needs_direction & ~(slope < 0.0)),
    )


def _quasi_newton_direction(
    state: LBFGSState, downhill: tf.Tensor, free: tf.Tensor | None, count: tf.Tensor, max_count: tf.Tensor
) -> tf.Tensor:
    """Return `H downhill` (B, H, W, 3) for the inverse Hessian H estimated from the newest `count` differences, 0 if none.

    Nocedal and Wright, algorithm 7.4, with `H0 = (s.y) / (y.y)` of the newest difference used.

    Args:
        free: (B, H, W, 3), 0 where a variable is excluded: s.y is then computed without it, and differences without enough
            curvature left are skipped.
        max_count: () int32, an upper bound of `count` that the host of a GPU knows, so that its loop does not wait for the GPU.
    """
    indices = tf.range(state.rho.shape[1], dtype=tf.int64)

    def first_loop(
        k: tf.Tensor, q: tf.Tensor, alphas: tf.Tensor, rhos: tf.Tensor, newest: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        j = tf.cast(k, count.dtype)
        (s, y, rho), used = _get_difference(state, j), j < count
        if free is not None:
            y *= free
            curvature = _dot(s, y)
            used &= curvature * rho > MIN_CURVATURE
            rho = 1.0 / curvature
        rho = tf.where(used, rho, 0.0)
        alpha = rho * _dot(s, q)
        q -= _per_pixel(alpha) * y
        alphas, rhos = tf.where(indices == j, alpha[:, None], alphas), tf.where(indices == j, rho[:, None], rhos)
        return k + 1, q, alphas, rhos, tf.where(used & (newest < 0), j, newest)

    def second_loop(k: tf.Tensor, q: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        s, y, _ = _get_difference(state, tf.cast(k, count.dtype))
        weight = alphas[:, k] - rhos[:, k] * _dot(y, q)  # 0 - 0 for an unused difference
        return k - 1, q + _per_pixel(weight) * (s if free is None else s * free)

    blank = tf.zeros_like(state.rho)  # (B, m), newest first
    start = tf.constant(0), downhill, blank, blank, -tf.ones_like(count)
    # a `for` loop would count its iterations with operations that run on the GPU
    _, q, alphas, rhos, newest = tf.while_loop(lambda k, *_: k < max_count, first_loop, start, parallel_iterations=1)
    _, y, _ = _get_difference(state, newest)
    if free is not None:
        y *= free
    rho = tf.reduce_sum(tf.where(indices == newest[:, None], rhos, 0.0), axis=1)
    q *= _per_pixel(_zero_where(newest < 0, 1.0 / (rho * _dot(y, y))))
    return tf.while_loop(lambda k, _: k >= 0, second_loop, (max_count - 1, q), parallel_iterations=1)[1]


def _get_difference(state: LBFGSState, j: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the j-th newest s and y (B, H, W, 3) and rho (B,) of each pair; 0 is the newest."""
    at = (state.place - 1 - j) % state.rho.shape[1]  # (B,)
    return tuple(tf.gather(rows, at, batch_dims=1) for rows in (state.s, state.y, state.rho))


def _free_mask(image: tf.Tensor, direction: tf.Tensor) -> tf.Tensor:
    """Return a mask (B, H, W, 3): 0 where the direction pushes a variable on a bound of [0, 1] outward, else 1."""
    held = ((image <= 0.0) & (direction < 0.0)) | ((image >= 1.0) & (direction > 0.0))
    return tf.cast(~held, image.dtype)


def _clip(image: tf.Tensor, clip: bool) -> tf.Tensor:
    return tf.clip_by_value(image, 0.0, 1.0) if clip else image


def _zero_where(mask: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Return the numbers (B,), with 0 for the pairs where the mask `mask` (B,) is true."""
    return tf.where(mask, tf.zeros_like(number), number)


def _per_pixel(x: tf.Tensor) -> tf.Tensor:
    return x[:, None, None, None]  # (B,) -> (B, 1, 1, 1)


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return _sum(a * b)


def _sum(x: tf.Tensor) -> tf.Tensor:
    """Return the sum (B,) over each pair's (H, W, 3).

    Rows are summed first: TensorFlow sums a batch of one as a whole in another order, and a pair's sum must not depend on B.
    """
    return tf.reduce_sum(tf.reduce_sum(x, axis=(2, 3)), axis=1)
