"""Recipes: named style transfers, each with its source and its known differences from it.

`presets` holds the built-in ones, `recipe_file` reads those of users. A run and a manifest row may override values of a recipe
with `override`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nst_tasks.core.method import MAX_SIZE, MAX_STEPS, MIN_SIZE, Method, Plateau, Precision, Pyramid, as_plain
from nst_tasks.errors import SettingsError

DEFAULT_INIT_NOISE = 0.1
"""Standard deviation, in units of the [0, 1] range, of the initial noise if it is requested and the recipe has none."""


@dataclass(frozen=True)
class Recipe:
    """A cited `Method` with the size that its constants are meant for.

    `size` is the longest side of the result, in pixels. `differs` is a sentence with the known differences from `source`.

    Raises:
        SettingsError: The size is out of range.
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
        """Return the recipe as nested dicts and lists, for JSON."""
        plain: dict[str, Any] = as_plain(self)
        return plain


@dataclass(frozen=True)
class Overrides:
    """Values in place of a recipe's own; None keeps the recipe's.

    Args:
        size: Longest side of the result, in pixels.
        steps: Steps of the last (or only) level; those of a pyramid's coarser levels change in proportion.
        init: One of `method.INITS`; with `noise`, a recipe without initial noise gets `DEFAULT_INIT_NOISE`, since it would
            start from a flat image.
        plateau: Tolerance of the recipe's `Plateau`, or of a default one if it has none; 0 removes it.
    """

    size: int | None = None
    steps: int | None = None
    init: str | None = None
    content_weight: float | None = None
    style_weight: float | None = None
    tv_weight: float | None = None
    precision: Precision | None = None
    plateau: float | None = None

    def with_defaults(self, defaults: Overrides) -> Overrides:
        """Return these values, and the defaults where these are None."""
        return replace(defaults, **{name: value for name, value in vars(self).items() if value is not None})


def override(recipe: Recipe, overrides: Overrides) -> Recipe:
    """Return the recipe with other values in place of its own.

    Raises:
        SettingsError: A number is out of range, or `init` or `precision` is unknown.
    """
    method = recipe.method
    if overrides.steps is not None:
        method = replace(method, steps=overrides.steps)  # before the pyramid, so that an error names `steps`
        if method.pyramid is not None and recipe.method.steps:
            method = replace(method, pyramid=_scale_coarse_steps(method.pyramid, overrides.steps, recipe.method.steps))
    if overrides.init is not None:
        method = replace(method, init=overrides.init)  # type: ignore[arg-type]  # refused at construction unless in INITS
        if overrides.init == "noise" and method.init_noise == 0:
            method = replace(method, init_noise=DEFAULT_INIT_NOISE)
    if overrides.content_weight is not None:
        method = replace(method, content=replace(method.content, weight=overrides.content_weight))
    if overrides.style_weight is not None:
        method = replace(method, style=replace(method.style, weight=overrides.style_weight))
    if overrides.tv_weight is not None:
        method = replace(method, total_variation=replace(method.total_variation, weight=overrides.tv_weight))
    if overrides.precision is not None:
        method = replace(method, precision=overrides.precision)
    if overrides.plateau is not None:
        plateau = replace(method.plateau or Plateau(), tolerance=overrides.plateau) if overrides.plateau else None
        method = replace(method, plateau=plateau)
    return replace(recipe, method=method, size=recipe.size if overrides.size is None else overrides.size)


def _scale_coarse_steps(pyramid: Pyramid, steps: int, before: int) -> Pyramid:
    """Return the pyramid with its coarser levels' steps changed in proportion to the last level's, from `before` to `steps`."""

    def scale(coarse: int) -> int:
        return min(round(coarse * steps / before), MAX_STEPS)

    first_steps = None if pyramid.first_steps is None else scale(pyramid.first_steps)
    return replace(pyramid, coarse_steps=scale(pyramid.coarse_steps), first_steps=first_steps)
