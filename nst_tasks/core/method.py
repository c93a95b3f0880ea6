"""Settings of one style transfer as frozen dataclasses: losses, optimizer and schedule.

A `Recipe` is a named and cited `Method`, and `transfer` runs one. This module does not import TensorFlow, so that listing
recipes is fast. Invalid settings raise `SettingsError` at construction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from nst_tasks.errors import SettingsError

NUMERICS_VERSION = 3
"""Version of the core's arithmetic, part of every job's key: raise it with each change that alters pixels."""


MAX_STEPS = 100_000


LARGE_IMAGE_PIXELS = 2**22
"""Pixels above which an image is large: there L-BFGS's history takes the most memory, 24 bytes a pixel for each entry."""


LARGE_IMAGE_HISTORY = 2
"""Longest L-BFGS history for a large image. At 192 px, `painterly` ends with a loss 1 to 2 % higher than with its usual 20."""


LayerWeights = tuple[tuple[str, float], ...]
"""Pairs of a layer's name in Keras, such as `block4_conv2`, and its weight."""


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise SettingsError(sentence)


def _require_weight(name: str, value: float) -> None:
    _require(math.isfinite(value) and value >= 0, f"{name}: {value!r} is not a finite number of 0 or more")


def _require_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name}: {value!r} is not {', '.join(choices[:-1])} or {choices[-1]}")


def _require_layers(name: str, layers: LayerWeights) -> None:
    names = [layer for layer, _ in layers]
    _require(bool(names), f"{name}: no layer is named; name at least one, such as block4_conv2")
    _require(len(set(names)) == len(names), f"{name}: a layer is named twice among {', '.join(names)}")
    for layer, weight in layers:
        _require_weight(f"{name} {layer}", weight)


@dataclass(frozen=True)
class ContentLoss:
    """Content loss `weight * sum_l w_l * error(F_l - P_l)`, with features F of the image and P of the content.

    `error` is the mean of squares (`mse`) or their sum (`sse`). With `relative`, the error at each position is divided by the
    content's energy there and weighted by the content's local contrast (`losses.content_distance`). One weight then fits every
    backbone, and flat regions such as skies may change.
    """

    layers: LayerWeights
    weight: float
    error: Literal["mse", "sse"] = "mse"
    relative: bool = False

    def __post_init__(self) -> None:
        _require_layers("content layers", self.layers)
        _require_weight("content_weight", self.weight)
        _require_one_of("content error", self.error, ("mse", "sse"))
        _require(not (self.relative and self.error == "sse"), "content relative: only with the error mse")


@dataclass(frozen=True)
class StyleLoss:
    """Style loss `weight * sum_l w_l * D(F_l, S_l)`, with D a distance between the feature statistics of image and style.

    `gram`: D is the mean (`mse`) or sum (`sse`) of squares of the difference of the Gram matrices `F^T F / N` (Gatys et al.
    2015, arXiv 1508.06576). `normalization` sets N: `none` is 1, `hw` the layer's h w positions, `chw` its C h w elements,
    `sqrt_chw` the square root of these, `image_hw` the image's H W pixels.
    `wasserstein`: D is the squared 2-Wasserstein distance, divided by C, of the Gaussians with the features' means and
    covariances.
    With `relative`, each layer's features are first divided by the root mean square of the style's features at that layer,
    similar to the fixed normalization of the network by Gatys et al. 2016. One set of weights then fits every backbone.
    """

    layers: LayerWeights
    weight: float
    statistic: Literal["gram", "wasserstein"] = "gram"
    normalization: Literal["none", "hw", "chw", "sqrt_chw", "image_hw"] = "hw"
    error: Literal["mse", "sse"] = "mse"
    relative: bool = False

    def __post_init__(self) -> None:
        _require_layers("style layers", self.layers)
        _require_weight("style_weight", self.weight)
        _require_one_of("style statistic", self.statistic, ("gram", "wasserstein"))
        _require_one_of("style normalization", self.normalization, ("none", "hw", "chw", "sqrt_chw", "image_hw"))
        _require_one_of("style error", self.error, ("mse", "sse"))
        is_default = (self.normalization, self.error) == ("hw", "mse")
        _require(
            is_default or self.statistic == "gram",
            "style statistic wasserstein: only with the normalization hw and the error mse",
        )
        _require(is_default or not self.relative, "style relative: only with the normalization hw and the error mse")


Precision = Literal["float32", "mixed", "auto"]


PRECISIONS: tuple[Precision, ...] = get_args(Precision)


TV_KINDS = ("l1_sum", "l2_mean", "squared_sum", "power_sum", "nine_point")


@dataclass(frozen=True)
class TotalVariation:
    """Total variation loss `weight * TV(x)` of an image x in [0, 1], with dx and dy the differences along rows and columns.

    `l1_sum`: the sum of |dx| and |dy| (`tf.image.total_variation`).
    `l2_mean`: the mean of dx^2 plus the mean of dy^2, so that the weight does not depend on the image's size.
    `squared_sum`: half the sum of `dx^2 + dy^2` (jcjohnson/neural-style).
    `power_sum`: the sum of `(dx^2 + dy^2)^1.25` (Keras example).
    `nine_point`: means of squares over the eight neighbours, with the diagonal ones at a quarter of the weight
    (crowsonkb/style-transfer-pytorch).
    """

    weight: float
    kind: Literal["l1_sum", "l2_mean", "squared_sum", "power_sum", "nine_point"] = "l1_sum"

    def __post_init__(self) -> None:
        _require_weight("tv_weight", self.weight)
        _require_one_of("total variation kind", self.kind, TV_KINDS)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980), with epsilon added outside the bias correction as in Keras.

    The learning rate is in units of the image's [0, 1] range. Over each level it follows a cosine from `learning_rate` down to
    `learning_rate * decay_to`; with `decay_to` 1 it is constant.
    """

    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    decay_to: float = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.learning_rate < math.inf, f"learning_rate: {self.learning_rate!r} is not a finite number above 0")
        _require(0 <= self.beta_1 < 1, f"beta_1: {self.beta_1!r} is not in [0, 1)")
        _require(0 <= self.beta_2 < 1, f"beta_2: {self.beta_2!r} is not in [0, 1)")
        _require(0 < self.epsilon < math.inf, f"epsilon: {self.epsilon!r} is not a finite number above 0")
        _require(0 < self.decay_to <= 1, f"decay_to: {self.decay_to!r} is not in (0, 1]")


@dataclass(frozen=True)
class SGD:
    """Gradient descent with the exponentially decaying learning rate `learning_rate * decay^(t / decay_steps)` at update t."""

    learning_rate: float
    decay: float = 1.0
    decay_steps: int = 100

    def __post_init__(self) -> None:
        _require(0 < self.learning_rate < math.inf, f"learning_rate: {self.learning_rate!r} is not a finite number above 0")
        _require(0 < self.decay <= 1, f"decay: {self.decay!r} is not in (0, 1]")
        _require(self.decay_steps >= 1, f"decay_steps: {self.decay_steps!r} is not a whole number of 1 or more")


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS (Liu and Nocedal 1989) over the last `history` pairs of differences; a step is one evaluation.

    `line_search`: `decrease` accepts a trial only if the loss falls enough and otherwise shortens the step. `fixed` always
    moves by `learning_rate` times the quasi-Newton direction, as torch.optim.LBFGS does without a line search.
    """

    history: int = 20
    line_search: Literal["decrease", "fixed"] = "decrease"
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _require(1 <= self.history <= 200, f"history: {self.history!r} is not in 1..200")
        _require_one_of("line_search", self.line_search, ("decrease", "fixed"))
        _require(0 < self.learning_rate < math.inf, f"learning_rate: {self.learning_rate!r} is not a finite number above 0")


Optimizer = Adam | SGD | LBFGS


@dataclass(frozen=True)
class Pyramid:
    """Coarse-to-fine schedule: levels whose longest side is the final one divided by `ratio^k`, down to `smallest` pixels.

    Each level starts from the result of the coarser one. The last level takes the method's `steps`, every other one
    `coarse_steps`, except that the first takes `first_steps` if given. `levels` limits the number of levels. With `carry`,
    Adam's moments are resized along with the image; otherwise each level starts with a fresh optimizer.
    """

    smallest: int
    ratio: float
    coarse_steps: int
    first_steps: int | None = None
    levels: int | None = None
    carry: bool = False

    def __post_init__(self) -> None:
        _require(self.smallest >= 32, f"pyramid smallest: {self.smallest!r} is below 32 px")
        _require(1.1 < self.ratio < math.inf, f"pyramid ratio: {self.ratio!r} is not a finite number above 1.1")
        for name, steps in (("coarse_steps", self.coarse_steps), ("first_steps", self.first_steps or 0)):
            _require(0 <= steps <= MAX_STEPS, f"pyramid {name}: {steps!r} is not in 0..{MAX_STEPS}")
        _require(self.levels is None or self.levels >= 1, f"pyramid levels: {self.levels!r} is not 1 or more")


@dataclass(frozen=True)
class Plateau:
    """Criterion that ends a level early when its loss stops falling, checked every `window` steps from the second window on.

    A level ends when the mean total loss of the last `window` steps is not below that of the `window` steps before by more than
    the share `tolerance`. Means tolerate the rises of a line search's trials.
    """

    window: int = 20
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        _require(1 <= self.window <= MAX_STEPS, f"plateau window: {self.window!r} is not in 1..{MAX_STEPS}")
        _require(0 < self.tolerance < 1, f"plateau: {self.tolerance!r} is not a share between 0 and 1; take one such as 0.01")

    def is_reached(self, totals: Sequence[float]) -> bool:
        """Return whether a level ends after these total losses, one for each step; False if a compared one is not finite."""
        if len(totals) < 2 * self.window or len(totals) % self.window:
            return False
        before, last = math.fsum(totals[-2 * self.window : -self.window]), math.fsum(totals[-self.window :])
        return math.isfinite(before) and math.isfinite(last) and before - last <= self.tolerance * before


INITS = ("content", "style", "noise")


@dataclass(frozen=True)
class Method:
    """All settings that decide the arithmetic of a transfer, independent of its images."""

    content: ContentLoss
    style: StyleLoss
    total_variation: TotalVariation
    optimizer: Optimizer
    steps: int
    pyramid: Pyramid | None = None
    init: Literal["content", "style", "noise"] = "content"
    """Initial image: the content, the first style (covering the content's frame), or ImageNet's mean colour (`noise`)."""
    init_noise: float = 0.0
    """Standard deviation, in units of the [0, 1] range, of the seeded Gaussian noise added to the initial image."""
    pooling: Literal["max", "average"] = "max"
    padding: Literal["zero", "replicate"] = "zero"
    """Padding of the first convolution at the image's border; later convolutions always pad with zeros."""
    activation: Literal["relu", "linear"] = "relu"
    """Features that the losses use: after the layer's ReLU (`relu`) or before it (`linear`)."""
    feature_scale: float = 1.0
    """Factor on every feature: 1 for constants published for networks fed with 0-255, 1/57.4 for unit-variance input."""
    style_shape: Literal["own", "content"] = "own"
    """Style's shape: `own` keeps its proportions and fits the level's longest side; `content` stretches it to the content's."""
    clip: bool = True
    """True clips the image to [0, 1] at every step, False only when it is written."""
    output: Literal["last", "best", "average"] = "last"
    """Result of a level: its last image, the one of lowest loss, or the exponential moving average with `average_decay`."""
    average_decay: float = 0.99
    plateau: Plateau | None = None
    """Criterion for ending a level early; None disables it. The learning rate's schedule ignores an early end."""
    precision: Precision = "float32"
    """Compute precision. `mixed`: weights and features in bfloat16; images, losses and sums over positions in float32.

    The caller, which knows the hardware, resolves `auto`; the core treats it as `float32`.
    """

    def __post_init__(self) -> None:
        _require(0 <= self.steps <= MAX_STEPS, f"steps: {self.steps!r} is not in 0..{MAX_STEPS}")
        _require_one_of("init", self.init, INITS)
        _require(0 <= self.init_noise <= 1, f"init_noise: {self.init_noise!r} is not in [0, 1]")
        _require_one_of("pooling", self.pooling, ("max", "average"))
        _require_one_of("padding", self.padding, ("zero", "replicate"))
        _require_one_of("activation", self.activation, ("relu", "linear"))
        _require(0 < self.feature_scale < math.inf, f"feature_scale: {self.feature_scale!r} is not a finite number above 0")
        _require_one_of("style_shape", self.style_shape, ("own", "content"))
        _require_one_of("precision", self.precision, PRECISIONS)
        _require_one_of("output", self.output, ("last", "best", "average"))
        _require(0 <= self.average_decay < 1, f"average_decay: {self.average_decay!r} is not in [0, 1)")
        carries = self.pyramid is not None and self.pyramid.carry
        _require(not carries or isinstance(self.optimizer, Adam), "pyramid carry: only with the optimizer adam")
        is_lbfgs = isinstance(self.optimizer, LBFGS)
        _require(
            not is_lbfgs or self.output != "average", "output average: not with the optimizer lbfgs, which keeps its best image"
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers whose features the losses use, sorted by name, which is also their order in the network."""
        return tuple(sorted({name for name, _ in self.content.layers + self.style.layers}))

    @functools.cached_property
    def plain(self) -> Any:
        """Nested dicts and lists of the method, for JSON."""
        return as_plain(self)


def limit_history(method: Method, height: int, width: int) -> Method:
    """Return the method with its L-BFGS history limited to `LARGE_IMAGE_HISTORY` above `LARGE_IMAGE_PIXELS` pixels."""
    optimizer = method.optimizer
    if height * width <= LARGE_IMAGE_PIXELS or not isinstance(optimizer, LBFGS) or optimizer.history <= LARGE_IMAGE_HISTORY:
        return method
    return replace(method, optimizer=replace(optimizer, history=LARGE_IMAGE_HISTORY))


@functools.lru_cache(maxsize=1024)
def strip_numbers(method: Method) -> Method:
    """Return the method without the numbers that its graphs take as inputs; methods that are then equal share their graphs."""
    optimizer = method.optimizer
    return replace(
        method,
        content=replace(method.content, layers=_strip_weights(method.content.layers), weight=1.0),
        style=replace(method.style, layers=_strip_weights(method.style.layers), weight=1.0),
        total_variation=replace(method.total_variation, weight=float(method.total_variation.weight > 0.0)),  # 0 skips its work
        optimizer=optimizer if isinstance(optimizer, LBFGS) else replace(optimizer, learning_rate=1.0),
        steps=0,
        pyramid=None,
        plateau=None,
        init="content",
        init_noise=0.0,
        style_shape="own",
    )


def _strip_weights(layers: LayerWeights) -> LayerWeights:
    return tuple((layer, 1.0) for layer, _ in layers)


def as_plain(value: Any) -> Any:
    """Return a frozen value as nested dicts and lists, for JSON; equal values give equal text."""
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [as_plain(item) for item in value]
    return value


MIN_SIZE, MAX_SIZE = 64, 8192
"""Bounds of an image's longest side, in pixels."""
