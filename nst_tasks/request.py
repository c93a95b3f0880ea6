"""Run options and their validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nst_tasks import presets, recipes, weights
from nst_tasks.core.architecture import check_layers
from nst_tasks.core.method import MAX_STEPS, Precision
from nst_tasks.errors import SettingsError, redact, without_secrets
from nst_tasks.recipes import Recipe

Runner = Literal["threads", "dask", "ray"]
"""Backend that runs the batches: threads of this process, or workers of a Dask or Ray cluster."""


@dataclass(frozen=True)
class Request:
    """Options of one run: manifest, output, and the defaults for empty cells of its rows."""

    manifest: str
    out: str
    recipe: str = presets.DEFAULT
    size: int | None = None
    steps: int | None = None
    backbone: str = weights.DEFAULT
    weights: str | None = None
    strict: bool = False
    max_failures: str | None = None
    upscale: bool = False
    history_every: int = 1
    snapshots: int | None = None
    checkpoint_every: str = "30s"
    pair_timeout: float | None = None
    runner: Runner = "threads"
    precision: Precision | None = None
    plateau: float | None = None


def unstorable(request: Request) -> list[str]:
    """Return one line for each path or URI of a request that Prefect must not, or cannot, store as a flow run parameter."""
    options = {"--out": request.out, "--recipe": request.recipe, "--weights": request.weights or ""}
    return unstorable_in({"manifest": request.manifest, **options})


def unstorable_in(places: Mapping[str, str]) -> list[str]:
    """Return one line for each URI that contains a secret, which Prefect would show, or is not UTF-8, as Prefect stores it."""
    remedy = "which Prefect would store; give credentials by environment variables or a profile"
    return [
        f"{name}: {redact(uri)} is not UTF-8, in which Prefect would store it; rename it"
        for name, uri in places.items()
        if not is_text(uri)
    ] + [
        f"{name}: {redact(uri)} has a password or a query, {remedy}"
        for name, uri in places.items()
        if without_secrets(uri) != uri
    ]


def is_text(name: str) -> bool:
    """Return whether a file name can be encoded as UTF-8; Python represents bytes of other encodings as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def option_problems(request: Request, recipe: Recipe) -> list[str]:
    """Return one line for each option that is out of range or incompatible with this recipe."""
    problems = []
    options: list[dict[str, Any]] = [
        {"size": request.size},
        {"steps": request.steps},
        {"precision": request.precision},
        {"plateau": request.plateau},
    ]
    for option in options:
        try:
            recipes.override(recipe, **option)
        except SettingsError as error:
            problems.append(f"--{error}")
    try:
        if request.backbone in weights.BACKBONES:  # an unknown name is reported by `weights.sha256`
            check_layers(weights.architecture(request.backbone), recipe.method.layers)
    except SettingsError as error:
        problems.append(f"--recipe {recipe.name}: {error}")
    try:
        failure_limit(request.max_failures, 1)
    except SettingsError as error:
        problems.append(str(error))
    if not 1 <= request.history_every <= MAX_STEPS:
        problems.append(f"--history-every: {request.history_every} is not in 1..{MAX_STEPS}")
    if not 0 <= (request.snapshots or 0) <= MAX_STEPS:
        problems.append(f"--snapshots: {request.snapshots} is not in 0..{MAX_STEPS}")
    try:
        checkpoint_interval(request.checkpoint_every)
    except SettingsError as error:
        problems.append(str(error))
    if request.pair_timeout is not None and not 0 < request.pair_timeout < math.inf:
        problems.append(f"--pair-timeout: {request.pair_timeout} is not a number of seconds above 0")
    return problems


def checkpoint_interval(text: str) -> tuple[int, float]:
    """Parse a checkpoint interval into (steps, seconds): `50` is steps, `30s` is seconds of compute, `0` is never.

    At least one of the two is 0.

    Raises:
        SettingsError: The text is neither a number of steps nor of seconds.
    """
    number = text.strip()
    try:
        steps, seconds = (0, float(number[:-1])) if number.endswith("s") else (int(number), 0.0)
    except ValueError:
        steps, seconds = -1, 0.0
    if not (0 <= steps <= MAX_STEPS and 0 <= seconds < math.inf):
        raise SettingsError(f"--checkpoint-every: {text!r} is not a number of steps such as 50, or of seconds such as 30s")
    return steps, seconds


def failure_limit(text: str | None, rows: int) -> int:
    """Return the number of `rows` rows that may fail: `N` or `P%`, by default all except one.

    Raises:
        SettingsError: The text is neither a whole number nor a percentage.
    """
    if text is None:
        return max(rows - 1, 0)
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if rest or not value >= 0 or (percent and value > 100):  # not `value < 0`, which is false for NaN
        raise SettingsError(f"--max-failures: {text!r} is not a whole number such as 10, or a percentage such as 5%")
    return int(rows * value / 100) if percent else int(value)
