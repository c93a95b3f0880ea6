"""L-BFGS against dense BFGS, against torch's algorithm written out in NumPy and against SciPy's L-BFGS-B, all in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from nst_tasks.core import lbfgs, losses, vgg
from nst_tasks.core.lbfgs import FIRST_CHANGE_RMS, MAX_TRIALS, LBFGSState
from nst_tasks.core.method import LBFGS
from nst_tasks.core.vgg import Backbone

Array = np.ndarray
Function = Callable[[Array], tuple[float, Array]]
"""A landscape: the variables of one picture, flat, to their loss and gradient."""

DECREASE = LBFGS(history=10)
SEARCHES = [pytest.param(LBFGS(5, search, 0.5), id=search) for search in ("decrease", "fixed")]


@functools.cache
def trace_update(optimizer: LBFGS, clip: bool, dtype: tf.DType = tf.float64) -> Callable:
    """Return one update, traced once for pictures and batches of every size."""
    image = tf.TensorSpec((None, None, None, 3), dtype)
    losses_spec, whole = tf.TensorSpec((None,), dtype), tf.TensorSpec((), tf.int32)

    @tf.function(input_signature=[lbfgs.spec(optimizer, image), image, losses_spec, image, whole], autograph=False)
    def update(
        state: LBFGSState, picture: tf.Tensor, loss: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor
    ) -> tuple[LBFGSState, tf.Tensor]:
        return lbfgs.update(optimizer, state, picture, loss, gradient, clip, step)

    return update


class Walk:
    """The images evaluated one after another, (T, B, H, W, 3), their losses (T, B), and the states (T) after each."""

    def __init__(self, optimizer: LBFGS, functions: Sequence[Function], start: Array, clip: bool) -> None:
        self.functions, self.update = functions, trace_update(optimizer, clip, tf.as_dtype(start.dtype))
        self.image, self.state = tf.constant(start), lbfgs.init(optimizer, tf.constant(start))
        self.images: list[Array] = []
        self.losses: list[list[float]] = []
        self.states: list[LBFGSState] = []

    def go(self, evaluations: int) -> Walk:
        for _ in range(evaluations):
            image = self.image.numpy()
            found = [function(one.ravel()) for function, one in zip(self.functions, image, strict=True)]
            gradient = np.stack([gradient for _, gradient in found]).reshape(image.shape)
            self.images.append(image)
            self.losses.append([loss for loss, _ in found])
            loss, step = tf.constant(self.losses[-1], image.dtype), tf.constant(len(self.states))
            self.state, self.image = self.update(self.state, image, loss, tf.constant(gradient, image.dtype), step)
            self.states.append(self.state)
        return self

    def count(self, pair: int, target: float) -> float:
        """Count the evaluations until a pair's loss reaches the target."""
        low = np.flatnonzero(np.array(self.losses)[:, pair] <= target)
        return low[0] + 1 if len(low) else np.inf


def scipy_walk(function: Function, start: Array, history: int, bounded: bool, evaluations: int = 3000) -> tuple[Array, Array]:
    """Return SciPy's last image, and the losses of all images that it evaluated."""
    evaluated: list[float] = []

    def evaluate(x: Array) -> tuple[float, Array]:
        loss, gradient = function(x)
        evaluated.append(loss)
        return loss, gradient

    options = {"maxcor": history, "ftol": 1e-15, "gtol": 1e-10, "maxfun": evaluations, "maxiter": evaluations}
    bounds = [(0.0, 1.0)] * start.size if bounded else None
    found = scipy.optimize.minimize(evaluate, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x, np.array(evaluated)


def rosenbrock(x: Array) -> tuple[float, Array]:
    """Compute extended Rosenbrock: `sum 100 (b - a^2)^2 + (1 - a)^2` over pairs (a, b), without a last odd variable."""
    a, b = x[: x.size // 2 * 2].reshape(-1, 2).T
    gradient = np.zeros_like(x)
    gradient[: a.size * 2] = np.stack([-400 * a * (b - a * a) - 2 * (1 - a), 200 * (b - a * a)], axis=1).ravel()
    return float(np.sum(100 * (b - a * a) ** 2 + (1 - a) ** 2)), gradient


def quadratic(seed: int, size: int, spread: float = 2.0) -> tuple[Function, Array, Array]:
    """`(x - c)' A (x - c) / 2` with curvatures 10^-spread..10^spread along random axes; its c, partly beyond [0, 1], and A."""
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.standard_normal((size, size)))
    a = axes @ np.diag(10.0 ** random.uniform(-spread, spread, size)) @ axes.T
    c = random.uniform(-0.5, 1.5, size)
    return (lambda x: (float((x - c) @ a @ (x - c)) / 2, a @ (x - c))), c, a


def bowl(centre: float | Array, curvature: float = 1.0) -> Function:
    """`curvature |x - centre|^2 / 2`: whatever the line, the cubic and the secant find its minimum in one trial."""
    return lambda x: (float(curvature * np.sum((x - centre) ** 2)) / 2, curvature * (x - centre))


def direction_of(walk: Walk) -> Array:
    return (walk.image.numpy() - walk.images[-1]).ravel()


# --- the direction, and the fixed step ---


def dense_inverse_hessian(differences: list[tuple[Array, Array]]) -> Array:
    """BFGS's matrix H after the differences (s, y), oldest first: Nocedal and Wright, (6.17), from (6.20) of the newest."""
    s, y = differences[-1]
    identity = np.eye(s.size)
    h = (s @ y) / (y @ y) * identity
    for s, y in differences:
        rho = 1.0 / (s @ y)
        v = identity - rho * np.outer(y, s)
        h = v.T @ h @ v + rho * np.outer(s, s)
    return h


@pytest.mark.parametrize("updates", [2, 3, 5, 6, 9])
def test_the_direction_is_that_of_dense_bfgs(updates: int) -> None:
    function, _, _ = quadratic(3, 12, spread=0.5)
    rate = 0.5
    walk = Walk(LBFGS(5, "fixed", rate), [function], np.random.default_rng(0).random((1, 2, 2, 3)), clip=False).go(updates)
    points = [image.ravel() for image in walk.images]
    gradients = [function(point)[1] for point in points]
    differences = [
        (after - before, g_after - g_before)
        for before, after, g_before, g_after in zip(points, points[1:], gradients, gradients[1:], strict=False)
    ]
    expected = -rate * dense_inverse_hessian(differences[-5:]) @ gradients[-1]
    np.testing.assert_allclose(direction_of(walk), expected, rtol=1e-9, atol=1e-13)


def test_differences_not_yet_written_are_not_read() -> None:
    """The last place of five is first written by the sixth update: until then it may hold anything, even NaN."""
    usual, walk = (
        Walk(LBFGS(5, "fixed", 0.5), [quadratic(3, 12, spread=0.5)[0]], np.full((1, 2, 2, 3), 0.25), clip=False)
        for _ in range(2)
    )
    blank = walk.state.s.numpy()
    blank[:, 4] = np.nan
    walk.state = walk.state._replace(s=tf.constant(blank), y=tf.constant(blank))
    np.testing.assert_array_equal(walk.go(5).image, usual.go(5).image)
    assert int(walk.state.count[0]) == 4


def plain_fixed(function: Function, x: Array, history: int, rate: float, evaluations: int) -> tuple[Array, int]:
    """Return the images of torch.optim.LBFGS without a line search, and how many differences it skipped."""
    path, passed, differences = [], 0, []
    before = gradient_before = direction = np.zeros_like(x)
    for k in range(evaluations):
        path.append(x)
        _, gradient = function(x)
        if k == 0:
            direction, length = -gradient, min(1.0, 1.0 / np.abs(gradient).sum()) * rate
        else:
            s, y = x - before, gradient - gradient_before
            if s @ y > 1e-10:
                differences = [*differences, (s, y)][-history:]
                scale = (s @ y) / (y @ y)
            else:
                passed += 1
            direction, alphas, length = -gradient, [], rate
            for s, y in reversed(differences):
                alphas.append(s @ direction / (s @ y))
                direction = direction - alphas[-1] * y
            direction = direction * scale
            for (s, y), alpha in zip(differences, reversed(alphas), strict=True):
                direction = direction + s * (alpha - y @ direction / (s @ y))
        before, gradient_before = x, gradient
        x = x + length * direction
    return np.stack(path), passed


@pytest.mark.parametrize(("start", "rate"), [((0.6, 2.0), 0.3), ((-1.2, 1.0), 0.1)])
def test_forty_fixed_steps_are_those_of_the_published_algorithm(start: tuple[float, float], rate: float) -> None:
    image = np.array([*start, 0.0]).reshape(1, 1, 1, 3)
    walk = Walk(LBFGS(5, "fixed", rate), [rosenbrock], image, clip=False).go(40)
    expected, passed = plain_fixed(rosenbrock, image.ravel(), 5, rate, 40)
    assert passed > 0  # a difference without curvature is on the way, and is not remembered
    np.testing.assert_allclose(np.stack(walk.images).reshape(40, 3), expected, rtol=1e-6, atol=1e-9)


# --- the line search, by hand ---


def test_the_first_trial_changes_the_image_by_a_hundredth() -> None:
    image = np.full((1, 4, 5, 3), 0.5)
    walk = Walk(DECREASE, [bowl(np.linspace(0, 3, 60), 1e6)], image, clip=False).go(1)
    np.testing.assert_allclose(np.sqrt(np.mean(direction_of(walk) ** 2)), FIRST_CHANGE_RMS, rtol=1e-12)


def test_a_step_beyond_the_minimum_is_shortened_to_it() -> None:
    # 0.004 away, and the first trial goes 0.01: to 2.5 times the distance, where the loss is higher than before
    walk = Walk(DECREASE, [bowl(0.504)], np.full((1, 2, 2, 3), 0.5), clip=False).go(3)
    np.testing.assert_allclose(walk.images[1], 0.51, rtol=1e-12)
    np.testing.assert_allclose(walk.images[2], 0.504, rtol=1e-12)


def test_shortened_step_is_between_a_tenth_and_a_half() -> None:
    # of a trial of 0.01; the loss falls enough (by 1e-4 of what the slope promises) from a minimum at 0.005 / (1 - 1e-4) on
    for minimum, second in ((0.0002, 0.001), (0.0049, 0.0049), (0.0050003, 0.005), (0.0050007, 0.0050007)):
        walk = Walk(DECREASE, [bowl(0.5 + minimum)], np.full((1, 2, 2, 3), 0.5), clip=False).go(3)
        np.testing.assert_allclose(walk.images[2] - 0.5, second, rtol=1e-9)


def test_line_search_ends_at_the_curvature_condition() -> None:
    # the first trial goes 0.01: of 0.09 to the minimum, which leaves 8/9 of the slope, or of 0.11, which leaves 10/11
    for away, remembered, second in ((0.09, 1, 0.09), (0.11, 0, 0.01 + 9 * 0.01)):
        walk = Walk(DECREASE, [bowl(0.2 + away)], np.full((1, 2, 2, 3), 0.2), clip=False).go(3)
        assert int(walk.states[1].count[0]) == remembered
        np.testing.assert_allclose(walk.images[2] - 0.2, second, rtol=1e-9)


def test_steps_grow_ninefold_on_an_endless_slope() -> None:
    way = np.linspace(-1, 1, 12)
    walk = Walk(DECREASE, [lambda x: (float(way @ x), way)], np.zeros((1, 2, 2, 3)), clip=False).go(6)
    moves = [float(np.linalg.norm(after - before)) for before, after in zip(walk.images, walk.images[1:], strict=False)]
    np.testing.assert_allclose(np.array(moves[1:]) / moves[:-1], 9.0, rtol=1e-9)
    assert int(walk.state.count[0]) == 0


def test_line_search_continues_between_two_trials() -> None:
    # down a slope of -1 to a cliff at 0.05: 0.01 is still steep, 0.1 falls off, and the next trials lie between
    def cliff(x: Array) -> tuple[float, Array]:
        slope = -1.0 if x.mean() < 0.05 else 9.0
        return 1.0 - float(x.mean()) if slope < 0 else 5.0, np.full_like(x, slope / x.size)

    walk = Walk(DECREASE, [cliff], np.zeros((1, 2, 2, 3)), clip=False).go(12)
    places = [float(image.mean()) for image in walk.images]
    np.testing.assert_allclose(places[:3], [0.0, 0.01, 0.1], rtol=1e-9)
    low, high = 0.01, 0.1
    for place in places[3:]:
        assert low + 0.0999 * (high - low) <= place <= low + 0.5001 * (high - low)
        low, high = (place, high) if place < 0.05 else (low, place)
    assert high - low < 0.01


def test_near_the_minimum_a_rise_by_rounding_is_no_rise() -> None:
    # in float32 a loss of 1000 hides all decreases below 1e-4, which would leave the image 0.01 away; the slopes still tell
    curvature = np.geomspace(0.01, 1.0, 12)

    def high_up(x: Array) -> tuple[float, Array]:
        return float(np.float32(1000.0 + np.sum(curvature * (x - 0.7) ** 2) / 2)), curvature * (x - 0.7)

    walk = Walk(DECREASE, [high_up], np.full((1, 2, 2, 3), 0.5, np.float32), clip=False).go(60)
    np.testing.assert_allclose(walk.state.point, 0.7, atol=1e-5)


# --- losses that are not finite ---

NAN_GRADIENT = np.array([0.0, np.nan] + [0.0] * 10)


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf, 1.0])
def test_a_trial_that_is_not_finite_is_a_tenth_as_long_next(loss: float) -> None:
    def wall(x: Array) -> tuple[float, Array]:  # behind 0.5 + 2e-5, on the way to 0.500008
        return bowl(0.500008)(x) if x.mean() < 0.50002 else (loss, NAN_GRADIENT)

    walk = Walk(DECREASE, [wall], np.full((1, 2, 2, 3), 0.5), clip=False).go(6)
    places = [float(image.mean()) - 0.5 for image in walk.images]
    np.testing.assert_allclose(places[1:], [1e-2, 1e-3, 1e-4, 1e-5, 8e-6], rtol=1e-9)
    np.testing.assert_allclose(lbfgs.best(walk.state)[0], 0.500008, rtol=1e-12)


def test_a_wall_across_the_valley_is_stepped_back_from() -> None:
    # beyond a^2 + b^2 = 2.5 there is nothing; the way from (-1.2, 1) to (1, 1) runs along it, and steps often fall over
    def walled(x: Array) -> tuple[float, Array]:
        return rosenbrock(x) if x @ x < 2.5 else (np.inf, np.full_like(x, np.nan))

    walk = Walk(DECREASE, [walled], np.array([-1.2, 1.0, 0.0]).reshape(1, 1, 1, 3), clip=False).go(80)
    assert not np.all(np.isfinite(walk.losses))
    np.testing.assert_allclose(lbfgs.best(walk.state)[0].numpy().ravel(), [1, 1, 0], atol=1e-6)


def test_fixed_step_restarts_shorter_from_the_best_image() -> None:
    # only the first image has a loss: the trials after it come nearer and nearer, until no more are made
    def island(x: Array) -> tuple[float, Array]:
        return (1.0, np.full_like(x, 0.5)) if np.all(x == 0) else (np.nan, np.full_like(x, np.nan))

    walk = Walk(LBFGS(5, "fixed"), [island], np.zeros((1, 2, 2, 3)), clip=False).go(2 * MAX_TRIALS + 5)
    changes = np.array([-float(image.mean()) for image in walk.images])
    np.testing.assert_array_equal(changes[0 : 2 * MAX_TRIALS : 2], 0.0)
    # the first trial: the gradient over its L1 norm 6
    np.testing.assert_allclose(changes[1 : 2 * MAX_TRIALS : 2], 0.5 / 6 * 0.1 ** np.arange(MAX_TRIALS), rtol=1e-12)
    np.testing.assert_array_equal(changes[2 * MAX_TRIALS :], 0.0)
    assert np.all(walk.state.settled) and not np.any(walk.states[2 * MAX_TRIALS - 2].settled)


def test_a_fixed_step_forgets_what_led_into_nothing() -> None:
    def walled(x: Array) -> tuple[float, Array]:
        return bowl(0.8)(x) if x.mean() < 0.75 else (np.inf, np.zeros_like(x))

    walk = Walk(LBFGS(5, "fixed"), [walled], np.full((1, 2, 2, 3), 0.2), clip=False).go(5)
    counts = [int(state.count[0]) for state in walk.states]
    assert counts == [0, 1, 0, 0, 1]  # a short step, the whole way into the wall, its best image again, a shorter step
    np.testing.assert_array_equal(walk.images[3], walk.images[1])
    first, again = (np.abs(walk.images[k + 1] - walk.images[k]).sum() for k in (0, 3))
    np.testing.assert_allclose((first, again), (1.0, 0.1), rtol=1e-9)  # the gradient over its L1 norm


@pytest.mark.parametrize("optimizer", SEARCHES)
def test_non_finite_first_loss_keeps_the_image(optimizer: LBFGS) -> None:
    start = np.full((1, 2, 2, 3), 0.25)
    walk = Walk(optimizer, [lambda x: (np.nan, np.zeros_like(x))], start, clip=True).go(MAX_TRIALS + 2)
    for image in (*walk.images, walk.image, lbfgs.best(walk.state)[0]):
        np.testing.assert_array_equal(image, start)
    assert np.isinf(lbfgs.best(walk.state)[1])


# --- the best image, and the end ---


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer", SEARCHES)
def test_the_best_image_is_the_evaluated_one_of_least_loss(optimizer: LBFGS, clip: bool) -> None:
    function, _, _ = quadratic(5, 12)
    random = np.random.default_rng(1)

    def rough(x: Array) -> tuple[float, Array]:
        loss, gradient = function(x)
        return (loss * random.uniform(0.5, 1.5) if random.random() < 0.9 else np.nan), gradient

    walk = Walk(optimizer, [rough], random.random((1, 2, 2, 3)), clip).go(60)
    seen = np.array(walk.losses)[:, 0]
    for k in range(60):
        if not np.isfinite(seen[: k + 1]).any():
            continue
        image, loss = lbfgs.best(walk.states[k])
        least = int(np.nanargmin(seen[: k + 1]))
        assert float(loss[0]) == seen[least]
        np.testing.assert_array_equal(image, walk.images[least])


def test_a_point_without_a_slope_is_the_end() -> None:
    for clip, function in ((False, bowl(0.5)), (True, bowl(-1.0))):  # the minimum; a corner with the slope outward
        start = np.full((1, 2, 2, 3), 0.0 if clip else 0.5)
        walk = Walk(DECREASE, [function], start, clip).go(3)
        assert np.all(walk.states[0].settled)
        for image in walk.images:
            np.testing.assert_array_equal(image, start)


def test_lbfgs_resets_then_settles_without_progress() -> None:
    seen: list[tuple[float, Array]] = []

    def lying(x: Array) -> tuple[float, Array]:  # from the fifth evaluation on: a little higher, and steeply up
        if len(seen) < 4:
            seen.append(rosenbrock(x))
            return seen[-1]
        return seen[-1][0] + 1e-6, -1e3 * seen[-1][1]

    walk = Walk(DECREASE, [lying], np.array([-1.2, 1.0, 0.0]).reshape(1, 1, 1, 3), clip=False)
    walk.go(4 + 2 * MAX_TRIALS + 3)
    counts = [int(state.count[0]) for state in walk.states]
    assert min(counts[3 : 3 + MAX_TRIALS]) > 0 and max(counts[3 + MAX_TRIALS :]) == 0
    settled = [bool(state.settled[0]) for state in walk.states]
    assert settled.index(True) == 3 + 2 * MAX_TRIALS
    # the line after forgetting is straight down from the accepted point
    down = -walk.states[3].gradient.numpy().ravel()
    line = walk.states[3 + MAX_TRIALS].direction.numpy().ravel()
    np.testing.assert_allclose(line / np.linalg.norm(line), down / np.linalg.norm(down), rtol=1e-12, atol=1e-15)
    best, loss = lbfgs.best(walk.state)
    assert float(loss[0]) == np.min(walk.losses)
    for image in (*walk.images[4 + 2 * MAX_TRIALS :], walk.image):
        np.testing.assert_array_equal(image, best)


def test_a_step_too_small_to_change_the_image_ends_the_line() -> None:
    # each trial a tenth of the last: after eight, 1e-10 is lost in the rounding of 0.5, and the twenty are not used up
    def pit(x: Array) -> tuple[float, Array]:
        return (0.0 if np.all(x == 0.5) else np.nan), np.ones_like(x)

    walk = Walk(DECREASE, [pit], np.full((1, 2, 2, 3), 0.5, np.float32), clip=False).go(12)
    assert np.all(walk.state.settled)


# --- bounds ---


def test_variables_at_a_bound_do_not_bend_the_direction() -> None:
    # six variables at 0 are pushed outward by a gradient that changes with the other six, which go as if alone
    function, _, _ = quadratic(4, 6, spread=1.0)

    def free(x: Array) -> tuple[float, Array]:
        loss, gradient = function(x[:6])
        return loss, np.concatenate([gradient, np.zeros(6)])

    def held(x: Array) -> tuple[float, Array]:
        push = 50.0 * (1 + x[:6] ** 2)
        loss, gradient = function(x[:6])
        return loss + float(push @ x[6:]), np.concatenate([gradient + 100.0 * x[:6] * x[6:], push])

    start = np.concatenate([np.full(6, 0.5), np.zeros(6)]).reshape(1, 2, 2, 3)
    alone, beside = (Walk(DECREASE, [f], start, clip=True).go(12) for f in (free, held))
    assert int(alone.state.count[0]) > 5
    np.testing.assert_allclose(np.stack(beside.images), np.stack(alone.images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", SEARCHES)
def test_every_image_is_within_the_bounds(optimizer: LBFGS) -> None:
    function, _, _ = quadratic(6, 12)
    walk = Walk(optimizer, [function], np.random.default_rng(2).random((1, 2, 2, 3)), clip=True).go(40)
    images = np.stack(walk.images)
    assert images.min() == 0.0 and images.max() == 1.0


def test_no_line_leads_out_of_the_bounds() -> None:
    # lengthened down an even slope, where one variable after the other comes to its bound, and turned among many bounds
    way = np.linspace(-1.0, 1.0, 12)
    for function in (lambda x: (float(way @ x), way), quadratic(6, 12)[0]):
        walk = Walk(DECREASE, [function], np.random.default_rng(2).uniform(0.2, 0.8, (1, 2, 2, 3)), clip=True).go(30)
        at_bounds = 0
        for state in walk.states:
            point, direction, gradient = (tensor.numpy() for tensor in (state.point, state.direction, state.gradient))
            assert not np.any(((point <= 0) & (direction < 0)) | ((point >= 1) & (direction > 0)))
            if not state.settled[0]:
                np.testing.assert_allclose(state.slope[0], np.sum(gradient * direction), rtol=1e-9)
                at_bounds += int(np.sum((point <= 0) | (point >= 1)))
        assert at_bounds > 10


def test_fixed_steps_reach_the_bounded_minimum() -> None:
    function, _, _ = quadratic(7, 12, spread=0.5)
    start = np.random.default_rng(3).random((1, 2, 2, 3))
    expected, _ = scipy_walk(function, start, 10, bounded=True)
    walk = Walk(LBFGS(5, "fixed", 0.5), [function], start, clip=True).go(60)
    assert np.any((expected == 0) | (expected == 1))
    np.testing.assert_allclose(lbfgs.best(walk.state)[0].numpy().ravel(), expected, atol=1e-6)


# --- SciPy's L-BFGS-B with the same history: the same minimum, in at most 1.3 times its evaluations ---

STARTS = 8


@pytest.mark.parametrize(("shape", "variables"), [((1, 1, 3), 2), ((2, 4, 3), 24)])
def test_rosenbrock_needs_as_many_evaluations_as_scipy(shape: tuple[int, ...], variables: int) -> None:
    # to within 1e-8 of the least loss, 0; the published start and seven seeded ones
    starts = [np.random.default_rng(seed).uniform(-2, 2, np.prod(shape)) for seed in range(STARTS)]
    starts[0] = np.resize([-1.2, 1.0], np.prod(shape))
    walk = Walk(DECREASE, [rosenbrock] * STARTS, np.stack(starts).reshape(STARTS, *shape), clip=False).go(200)
    ours = np.array([walk.count(pair, 1e-8) for pair in range(STARTS)])
    theirs = np.array([np.argmax(scipy_walk(rosenbrock, start, 10, bounded=False)[1] <= 1e-8) + 1 for start in starts])
    assert ours[0] <= 1.3 * theirs[0] and ours.sum() <= 1.3 * theirs.sum(), f"{ours} to SciPy's {theirs}"
    found = lbfgs.best(walk.state)[0].numpy().reshape(STARTS, -1)[:, :variables]
    np.testing.assert_allclose(found, 1.0, atol=1e-5)


def test_bounded_quadratics_need_as_many_evaluations() -> None:
    # to within 1e-8 of SciPy's least loss, in proportion
    problems = [quadratic(seed, 48) for seed in range(STARTS)]
    functions = [function for function, _, _ in problems]
    starts = np.random.default_rng(0).random((STARTS, 4, 4, 3))
    walk = Walk(LBFGS(history=20), functions, starts, clip=True).go(200)
    ours, theirs = [], []
    for pair, function in enumerate(functions):
        expected, losses_of_scipy = scipy_walk(function, starts[pair], 20, bounded=True)
        assert 0.05 < np.mean((expected == 0) | (expected == 1)) < 0.9
        np.testing.assert_allclose(lbfgs.best(walk.state)[0][pair].numpy().ravel(), expected, atol=1e-4)
        target = losses_of_scipy.min() * (1 + 1e-8)
        ours.append(walk.count(pair, target))
        theirs.append(int(np.argmax(losses_of_scipy <= target)) + 1)
    assert sum(ours) <= 1.3 * sum(theirs), f"{ours} to SciPy's {theirs}"


# --- a transfer on the tiny network in float64, within [0, 1] ---

SIDE = 8


def clipped_blobs(seed: int) -> Array:
    """Make a picture (1, SIDE, SIDE, 3) of soft blobs with some grain, partly at the bounds."""
    random = np.random.default_rng(seed)
    coarse = tf.image.resize(random.random((4, 5, 3)), (SIDE, SIDE), "bicubic").numpy()
    return np.clip(1.28 * coarse - 0.14 + 0.03 * random.standard_normal((SIDE, SIDE, 3)), 0.0, 1.0)[None]


def transfer_loss(backbone: Backbone, seed: int, content: str, styles: Sequence[str], activation: str) -> Function:
    """Content and Gram losses over the mean square of the style's features, which leaves both about 1."""
    layers = {content, *styles}
    features = functools.partial(
        vgg.extract_activations, backbone, layers=layers, pooling="average", padding="zero", activation=activation
    )
    aims, style = features(tf.constant(clipped_blobs(seed))), features(tf.constant(clipped_blobs(seed + 100)))

    def gram(x: tf.Tensor) -> tf.Tensor:
        return losses.gram_matrix(losses.sums(x))

    scale = {layer: tf.reduce_mean(tf.square(style[layer])) for layer in layers}

    @tf.function(input_signature=[tf.TensorSpec((1, SIDE, SIDE, 3), tf.float64)], autograph=False)
    def evaluate(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(image)
            found = features(image)
            loss = 0.1 * tf.reduce_mean(tf.square(found[content] - aims[content])) / scale[content] + tf.add_n(
                [tf.reduce_mean(tf.square(gram(found[layer]) - gram(style[layer]))) / scale[layer] ** 2 for layer in styles]
            )  # fmt: skip
        return loss, tape.gradient(loss, image)

    def function(x: Array) -> tuple[float, Array]:
        loss, gradient = evaluate(tf.constant(x.reshape(1, SIDE, SIDE, 3)))
        return float(loss), gradient.numpy().ravel()

    return function


SMOOTH = ("block1_conv1", ("block1_conv1",), "linear")
KINKED = ("block2_conv1", ("block1_conv1", "block2_conv1", "block3_conv1"), "relu")


@pytest.mark.parametrize(("layers", "evaluations", "share", "atol"), [(SMOOTH, 300, 1e-8, 1e-5), (KINKED, 60, 1e-2, None)])
def test_transfer_needs_as_many_evaluations_as_scipy(
    tiny64: Backbone, layers: tuple, evaluations: int, share: float, atol: float | None
) -> None:
    """To within a share of all that SciPy took off the loss.

    Below the first ReLU the loss is smooth and its minimum one; above, it has kinks and many minima, and two searches that
    round differently part: there only the way down is compared, to 1 % of SciPy's in sixty evaluations.
    """
    functions = [transfer_loss(tiny64, seed, *layers) for seed in range(3)]
    starts = np.concatenate([clipped_blobs(seed) for seed in range(3)])
    walk = Walk(LBFGS(history=20), functions, starts, clip=True).go(80)
    ours, theirs = [], []
    for pair, function in enumerate(functions):
        expected, losses_of_scipy = scipy_walk(function, starts[pair], 20, bounded=True, evaluations=evaluations)
        target = losses_of_scipy.min() + share * (losses_of_scipy[0] - losses_of_scipy.min())
        ours.append(walk.count(pair, target))
        theirs.append(int(np.argmax(losses_of_scipy <= target)) + 1)
        if atol is not None:
            assert np.mean((expected == 0) | (expected == 1)) > 0.01
            np.testing.assert_allclose(lbfgs.best(walk.state)[0][pair].numpy().ravel(), expected, atol=atol)
    assert sum(ours) <= 1.3 * sum(theirs), f"{ours} to SciPy's {theirs}"


# --- batches, resumes, compilation ---


def landscapes(size: int) -> list[Function]:
    """Three landscapes that part a batch: a bowl soon at its end, a long valley, and one with a wall."""
    curvature, centre = np.geomspace(0.1, 30.0, size), np.linspace(-0.3, 1.3, size)

    def walled(x: Array) -> tuple[float, Array]:
        if np.mean(x) > 0.5 + 0.3 / size:
            return np.nan, np.full_like(x, np.nan)
        return float(np.sum(curvature * (x - centre) ** 2)), 2 * curvature * (x - centre)

    return [bowl(0.75), rosenbrock, walled]


@pytest.mark.parametrize("optimizer", SEARCHES)
@pytest.mark.parametrize(("size", "clip"), [((3, 5), False), ((100, 37), True)])
def test_each_of_a_batch_is_as_alone_bit_for_bit(optimizer: LBFGS, clip: bool, size: tuple[int, int]) -> None:
    functions = landscapes(size[0] * size[1] * 3)
    start = np.random.default_rng(8).uniform(0.3, 0.7, (3, *size, 3)).astype(np.float32)
    together = Walk(optimizer, functions, start, clip).go(30)
    for pair, function in enumerate(functions):
        alone = Walk(optimizer, [function], start[pair : pair + 1], clip).go(30)
        np.testing.assert_array_equal(np.stack(together.images)[:, pair], np.stack(alone.images)[:, 0])
        for name, ours, theirs in zip(LBFGSState._fields, together.state, alone.state, strict=True):
            np.testing.assert_array_equal(ours[pair], theirs[0], err_msg=name)


@pytest.mark.parametrize("optimizer", SEARCHES)
def test_restored_state_continues_bit_for_bit(optimizer: LBFGS) -> None:
    functions = landscapes(45)
    start = np.random.default_rng(8).uniform(0.3, 0.7, (3, 3, 5, 3))
    whole = Walk(optimizer, functions, start, clip=True).go(24)
    for stop in (1, 7, 13):
        walk = Walk(optimizer, functions, start, clip=True).go(stop)
        saved = [tensor.numpy() for tensor in walk.state]
        walk.state, walk.image = LBFGSState(*map(tf.constant, saved)), tf.constant(walk.image.numpy())
        walk.go(24 - stop)
        np.testing.assert_array_equal(np.stack(walk.images), np.stack(whole.images))


@pytest.mark.parametrize("optimizer", SEARCHES)
def test_update_leaves_its_state_unchanged(optimizer: LBFGS) -> None:
    walk = Walk(optimizer, [rosenbrock], np.full((1, 2, 2, 3), 0.25), clip=True).go(4)
    state, before = walk.state, [tensor.numpy().copy() for tensor in walk.state]
    walk.go(3)
    for name, tensor, array in zip(LBFGSState._fields, state, before, strict=True):
        np.testing.assert_array_equal(tensor, array, err_msg=name)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_the_spec_is_that_of_a_state(dtype: tf.DType) -> None:
    optimizer, shape = LBFGS(history=7), (2, 3, 5, 3)
    state = lbfgs.init(optimizer, tf.zeros(shape, dtype))
    for size in (shape, (None, None, None, 3)):
        for name, tensor, spec in zip(
            LBFGSState._fields, state, lbfgs.spec(optimizer, tf.TensorSpec(size, dtype)), strict=True
        ):
            assert spec.is_compatible_with(tensor), name
    assert lbfgs.spec(optimizer, tf.TensorSpec((None, None, None, 3), dtype)).s.shape.as_list() == [None, 7, None, None, 3]


@pytest.mark.parametrize("optimizer", SEARCHES)
def test_a_loop_in_one_graph_serves_every_size(optimizer: LBFGS) -> None:
    image, traces = tf.TensorSpec((None, None, None, 3), tf.float64), []

    @tf.function(input_signature=[lbfgs.spec(optimizer, image), image, tf.TensorSpec((), tf.int32)], autograph=False)
    def run(state: LBFGSState, picture: tf.Tensor, n: tf.Tensor) -> tuple[LBFGSState, tf.Tensor]:
        traces.append(n)

        def step(k: tf.Tensor, state: LBFGSState, picture: tf.Tensor) -> tuple[tf.Tensor, LBFGSState, tf.Tensor]:
            gradient = picture - 0.75
            loss = tf.reduce_sum(tf.square(gradient), axis=(1, 2, 3)) / 2.0
            return k + 1, *lbfgs.update(optimizer, state, picture, loss, gradient, True, k)

        return tf.while_loop(lambda k, *_: k < n, step, (tf.constant(0), state, picture))[1:]

    for shape in ((1, 2, 2, 3), (2, 3, 4, 3)):
        start = tf.constant(np.random.default_rng(9).random(shape))
        state, end = run(lbfgs.init(optimizer, start), start, tf.constant(6))
        walk = Walk(optimizer, [bowl(0.75)] * shape[0], start.numpy(), clip=True).go(6)
        np.testing.assert_allclose(end, walk.image, rtol=1e-9)
        np.testing.assert_array_equal(state.count, walk.state.count)
    assert len(traces) == 1


def test_eager_update_is_that_of_the_graph() -> None:
    walk = Walk(DECREASE, [rosenbrock], np.full((1, 2, 2, 3), 0.25), clip=True).go(8)
    loss, gradient = rosenbrock(walk.images[-1].ravel())
    state, image = lbfgs.update(
        DECREASE, walk.states[-2], tf.constant(walk.images[-1]), tf.constant([loss], tf.float64),
        tf.constant(gradient.reshape(1, 2, 2, 3)), True, tf.constant(len(walk.images) - 1),
    )  # fmt: skip
    np.testing.assert_allclose(image, walk.image, rtol=1e-12)
    np.testing.assert_array_equal(state.count, walk.state.count)
