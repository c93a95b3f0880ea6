"""What one style transfer computes, as plain frozen values: the losses, the optimizer, the schedule.

A recipe is a named and cited `Method`; `transfer` carries one out. Values only, no TensorFlow: listing recipes stays quick.
Impossible settings are refused at construction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from nst_tasks.errors import SettingsError

NUMERICS_VERSION = 1
"""Raised whenever a change to the core changes pixels: part of a pair's key, so that old outputs are recomputed."""

MAX_STEPS = 100_000

LayerWeights = tuple[tuple[str, float], ...]
"""Layer names (Keras's, such as `block4_conv2`) with their weights."""


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise SettingsError(sentence)


def _require_weight(name: str, value: float) -> None:
    _require(math.isfinite(value) and value >= 0, f"{name}: {value!r} is not a finite number of 0 or more")


def _require_layers(name: str, layers: LayerWeights) -> None:
    names = [layer for layer, _ in layers]
    _require(bool(names), f"{name}: no layer is named; name at least one, such as block4_conv2")
    _require(len(set(names)) == len(names), f"{name}: a layer is named twice among {', '.join(names)}")
    for layer, weight in layers:
        _require_weight(f"{name} {layer}", weight)


@dataclass(frozen=True)
class ContentLoss:
    """`weight * sum_l w_l * mean((F_l - P_l)^2)` over features F of the image and P of the content.

    With `relative`, the error at each position is measured against the content's energy there and counts by the content's
    local contrast (`losses.content_distance`), so that one weight fits every backbone and flat skies may be painted.
    """

    layers: LayerWeights
    weight: float
    relative: bool = False

    def __post_init__(self) -> None:
        _require_layers("content layers", self.layers)
        _require_weight("content_weight", self.weight)


@dataclass(frozen=True)
class StyleLoss:
    """`weight * sum_l w_l * D(F_l, S_l)`, D a distance between the feature statistics of image and style.

    `gram`: D is the mean squared difference of the Gram matrices `F^T F / (H W)` (Gatys et al. 2015, arXiv 1508.06576).
    `wasserstein`: D is the squared 2-Wasserstein distance of the Gaussians with the features' means and covariances, over C.
    With `relative`, each layer's features are first divided by the root mean square of the style's features there, as
    Gatys et al. 2016 normalized their network once: one set of weights then fits every backbone.
    """

    layers: LayerWeights
    weight: float
    statistic: Literal["gram", "wasserstein"] = "gram"
    relative: bool = False

    def __post_init__(self) -> None:
        _require_layers("style layers", self.layers)
        _require_weight("style_weight", self.weight)
        _require(self.statistic in ("gram", "wasserstein"), f"style statistic: {self.statistic!r} is not gram or wasserstein")


@dataclass(frozen=True)
class TotalVariation:
    """`weight * TV(x)` of the image x in [0, 1], over neighbours along rows and columns.

    `l1_sum`: the sum of absolute differences (`tf.image.total_variation`).
    `l2_mean`: the mean over pixels of the squared differences, so that the weight does not depend on the picture's size.
    """

    weight: float
    kind: Literal["l1_sum", "l2_mean"] = "l1_sum"

    def __post_init__(self) -> None:
        _require_weight("tv_weight", self.weight)
        _require(self.kind in ("l1_sum", "l2_mean"), f"total variation kind: {self.kind!r} is not l1_sum or l2_mean")


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980), epsilon added outside the bias correction as Keras does.

    The learning rate is in units of the image's [0, 1] range. With `decay_to`, it falls over each level along a cosine from
    `learning_rate` to `learning_rate * decay_to`; 1 keeps it constant.
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
class Pyramid:
    """Coarse to fine: levels of longest side `smallest * ratio^k` up to the asked size, each started from the one before.

    Every level but the last takes `coarse_steps`; the last takes the method's `steps`.
    """

    smallest: int
    ratio: float
    coarse_steps: int

    def __post_init__(self) -> None:
        _require(self.smallest >= 32, f"pyramid smallest: {self.smallest!r} is below 32 px")
        _require(1.1 < self.ratio < math.inf, f"pyramid ratio: {self.ratio!r} is not a finite number above 1.1")
        _require(0 <= self.coarse_steps <= MAX_STEPS, f"pyramid coarse_steps: {self.coarse_steps!r} is not in 0..{MAX_STEPS}")


@dataclass(frozen=True)
class Method:
    """All that decides the arithmetic of one transfer, whichever pictures it is given."""

    content: ContentLoss
    style: StyleLoss
    total_variation: TotalVariation
    optimizer: Adam
    steps: int
    pyramid: Pyramid | None = None
    init_noise: float = 0.0
    """Standard deviation, in units of the [0, 1] range, of the seeded Gaussian noise added to the content as initial image."""
    pooling: Literal["max", "average"] = "max"
    padding: Literal["zero", "replicate"] = "zero"
    """How the first convolution sees beyond the border; the later ones always see zeros."""

    def __post_init__(self) -> None:
        _require(0 <= self.steps <= MAX_STEPS, f"steps: {self.steps!r} is not in 0..{MAX_STEPS}")
        _require(0 <= self.init_noise <= 1, f"init_noise: {self.init_noise!r} is not in [0, 1]")
        _require(self.pooling in ("max", "average"), f"pooling: {self.pooling!r} is not max or average")
        _require(self.padding in ("zero", "replicate"), f"padding: {self.padding!r} is not zero or replicate")

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer whose features the losses need, sorted by name (which is also their order in the network)."""
        return tuple(sorted({name for name, _ in self.content.layers + self.style.layers}))


def as_plain(value: Any) -> Any:
    """A frozen value as nested dicts and lists, for JSON: the same value always gives the same text."""
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [as_plain(item) for item in value]
    return value
