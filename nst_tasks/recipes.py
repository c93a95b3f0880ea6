"""Recipes: named style transfers, each with its source and what knowingly differs from it.

`PRESETS` is the list that `nst recipes` prints. A manifest row may override a recipe's numbers: see `override`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nst_tasks.core.method import MAX_STEPS, Adam, ContentLoss, Method, Pyramid, StyleLoss, TotalVariation, as_plain
from nst_tasks.errors import SettingsError

MIN_SIZE, MAX_SIZE = 64, 8192
"""Bounds of a picture's longest side, in pixels."""

DEFAULT = "painterly"


@dataclass(frozen=True)
class Recipe:
    """A cited `Method` together with the size its constants are meant for.

    `size` is the longest side of the result, in pixels. `differs` says in one sentence what knowingly departs from `source`.
    """

    name: str
    summary: str
    source: str
    differs: str
    size: int
    method: Method

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise SettingsError(f"size: {self.size!r} is not in {MIN_SIZE}..{MAX_SIZE} pixels")

    def as_plain(self) -> dict[str, Any]:
        """The recipe as nested dicts and lists, for JSON."""
        plain: dict[str, Any] = as_plain(self)
        return plain


PAINTERLY = Recipe(
    name="painterly",
    summary="our default: feature distributions matched from coarse to fine; paints skies, keeps edges, on every backbone",
    source="nst; optimal transport of Gaussian feature statistics, coarse to fine, as crowsonkb/style-transfer-pytorch does",
    differs="our own: features normalized per layer, content held by local contrast, other layers, sizes and steps",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block4_conv2", 1.0),), weight=0.6, relative=True),
        style=StyleLoss(
            layers=tuple((f"block{block}_conv1", 1.0) for block in range(1, 5)),
            weight=1.0,
            statistic="wasserstein",
            relative=True,
        ),
        total_variation=TotalVariation(weight=2.0, kind="l2_mean"),
        optimizer=Adam(learning_rate=0.03, beta_1=0.9, beta_2=0.99, epsilon=1e-8, decay_to=0.2),
        steps=40,
        pyramid=Pyramid(smallest=64, ratio=1.6, coarse_steps=60),
        init_noise=0.15,
        padding="replicate",
    ),
)

TF_TUTORIAL = Recipe(
    name="tf-tutorial",
    summary="the TensorFlow 2 tutorial: Gram matrices on VGG19, Adam from the content picture",
    source="TensorFlow tutorial, tensorflow.org/tutorials/generative/style_transfer, after arXiv 1508.06576",
    differs="constants as published, for VGG19; on vgg16-hed, whose activations are smaller, they let total variation blur",
    size=512,
    method=Method(
        content=ContentLoss(layers=(("block5_conv2", 1.0),), weight=1e4),
        style=StyleLoss(layers=tuple((f"block{block}_conv1", 0.2) for block in range(1, 6)), weight=1e-2),
        total_variation=TotalVariation(weight=30.0, kind="l1_sum"),
        optimizer=Adam(learning_rate=0.02, beta_1=0.99, beta_2=0.999, epsilon=1e-1),
        steps=1000,
    ),
)

PRESETS: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (PAINTERLY, TF_TUTORIAL)}


def override(
    recipe: Recipe,
    *,
    size: int | None = None,
    steps: int | None = None,
    content_weight: float | None = None,
    style_weight: float | None = None,
    tv_weight: float | None = None,
) -> Recipe:
    """The recipe with a row's numbers in place of its own; None keeps the recipe's.

    `steps` are those of the last (or only) level; a pyramid's coarse levels are scaled in proportion.

    Raises:
        SettingsError: a number is out of range.
    """
    method = recipe.method
    if steps is not None:
        method = replace(method, steps=steps)  # first: what is out of range is then refused by this name
        if method.pyramid is not None and recipe.method.steps:
            coarse_steps = min(round(method.pyramid.coarse_steps * steps / recipe.method.steps), MAX_STEPS)
            method = replace(method, pyramid=replace(method.pyramid, coarse_steps=coarse_steps))
    if content_weight is not None:
        method = replace(method, content=replace(method.content, weight=content_weight))
    if style_weight is not None:
        method = replace(method, style=replace(method.style, weight=style_weight))
    if tv_weight is not None:
        method = replace(method, total_variation=replace(method.total_variation, weight=tv_weight))
    return replace(recipe, method=method, size=recipe.size if size is None else size)


def find(name: str) -> Recipe:
    """The preset of this name.

    Raises:
        SettingsError: there is none; the nearest known name is suggested.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PRESETS)}"
    raise SettingsError(f"recipe: {name!r} is not known; {hint}")
