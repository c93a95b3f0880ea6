"""Recipes: named style transfers, each with its source and what knowingly differs from it.

`presets` holds those that come with nst, `recipe_file` reads those that a person wrote. A manifest row may override a recipe's
numbers: see `override`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nst_tasks.core.method import MAX_STEPS, Method, Plateau, Precision, Pyramid, as_plain
from nst_tasks.errors import SettingsError

MIN_SIZE, MAX_SIZE = 64, 8192
"""Bounds of a picture's longest side, in pixels."""

INIT_NOISE = 0.1
"""Standard deviation of the initial noise, in [0, 1] units, where it is asked for and the recipe has none."""


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


def override(
    recipe: Recipe,
    *,
    size: int | None = None,
    steps: int | None = None,
    init: str | None = None,
    content_weight: float | None = None,
    style_weight: float | None = None,
    tv_weight: float | None = None,
    precision: Precision | None = None,
    plateau: float | None = None,
) -> Recipe:
    """The recipe with a row's settings in place of its own; None keeps the recipe's.

    `steps` are those of the last (or only) level; a pyramid's coarser levels are scaled in proportion. `init` is one of
    `method.INITS`; with `noise`, a recipe without initial noise gets `INIT_NOISE`, so that there is something to start from.
    `plateau` is the tolerance of the recipe's `method.Plateau`, or of a usual one; 0 takes it away.

    Raises:
        SettingsError: a number is out of range, or `init` or `precision` is none that there is.
    """
    method = recipe.method
    if steps is not None:
        method = replace(method, steps=steps)  # first: what is out of range is then refused by this name
        if method.pyramid is not None and recipe.method.steps:
            method = replace(method, pyramid=_scaled(method.pyramid, steps, recipe.method.steps))
    if init is not None:
        method = replace(method, init=init)  # type: ignore[arg-type]  # refused at construction unless it is one of INITS
        if init == "noise" and method.init_noise == 0:
            method = replace(method, init_noise=INIT_NOISE)
    if content_weight is not None:
        method = replace(method, content=replace(method.content, weight=content_weight))
    if style_weight is not None:
        method = replace(method, style=replace(method.style, weight=style_weight))
    if tv_weight is not None:
        method = replace(method, total_variation=replace(method.total_variation, weight=tv_weight))
    if precision is not None:
        method = replace(method, precision=precision)
    if plateau is not None:
        method = replace(method, plateau=replace(method.plateau or Plateau(), tolerance=plateau) if plateau else None)
    return replace(recipe, method=method, size=recipe.size if size is None else size)


def _scaled(pyramid: Pyramid, steps: int, before: int) -> Pyramid:
    """The pyramid whose coarser levels take part in a change from `before` steps at the last level to `steps`."""

    def scaled(coarse: int) -> int:
        return min(round(coarse * steps / before), MAX_STEPS)

    first_steps = None if pyramid.first_steps is None else scaled(pyramid.first_steps)
    return replace(pyramid, coarse_steps=scaled(pyramid.coarse_steps), first_steps=first_steps)
