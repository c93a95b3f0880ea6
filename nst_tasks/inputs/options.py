"""Run options and their validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nst_tasks.core.method import MAX_STEPS, Precision
from nst_tasks.core.vgg_layers import check_layers
from nst_tasks.errors import SettingsError, redact, strip_secrets
from nst_tasks.inputs import presets, weights
from nst_tasks.inputs.recipe import Recipe, override

RunnerName = Literal["threads", "dask", "ray"]
"""Backend that runs the batches: threads of this process, or workers of a Dask or Ray cluster."""


@dataclass(frozen=True)
class Request:
    """Options of one run: manifest, output, and the defaults for empty cells of its rows."""

    manifest: str
    out: str
    recipe: str = presets.DEFAULT
    size: int | None = None
    steps: int | None = None
    backbone: str = weights.DEFAULT_BACKBONE
    weights: str | None = None
    strict: bool = False
    max_failures: str | None = None
    upscale: bool = False
    history_every: int = 1
    snapshots: int | None = None
    checkpoint_every: str = "30s"
    pair_timeout: float | None = None
    runner: RunnerName = "threads"
    precision: Precision | None = None
    plateau: float | None = None


def find_unstorable_options(request: Request) -> list[str]:
    """Return one line for each path or URI of a request that Prefect must not, or cannot, store as a flow run parameter."""
    options = {"--out": request.out, "--recipe": request.recipe, "--weights": request.weights or ""}
    return find_unstorable_uris({"manifest": request.manifest, **options})


def find_unstorable_uris(uris: Mapping[str, str]) -> list[str]:
    """Return one line for each URI that contains a secret, which Prefect would show, or is not UTF-8, as Prefect stores it."""
    remedy = "which Prefect would store; give credentials by environment variables or a profile"
    return [
        f"{name}: {redact(uri)} is not UTF-8, in which Prefect would store it; rename it"
        for name, uri in uris.items()
        if not is_utf8(uri)
    ] + [
        f"{name}: {redact(uri)} has a password or a query, {remedy}" for name, uri in uris.items() if strip_secrets(uri) != uri
    ]


def is_utf8(name: str) -> bool:
    """Return whether a file name can be encoded as UTF-8; Python represents bytes of other encodings as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_option_problems(request: Request, recipe: Recipe) -> list[str]:
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
            override(recipe, **option)
        except SettingsError as error:
            problems.append(f"--{error}")
    try:
        if request.backbone in weights.BACKBONES:  # an unknown name is reported by `inputs.weights.compute_sha256`
            check_layers(weights.get_architecture(request.backbone), recipe.method.layers)
    except SettingsError as error:
        problems.append(f"--recipe {recipe.name}: {error}")
    try:
        parse_failure_limit(request.max_failures, 1)
    except SettingsError as error:
        problems.append(str(error))
    if not 1 <= request.history_every <= MAX_STEPS:
        problems.append(f"--history-every: {request.history_every} is not in 1..{MAX_STEPS}")
    if not 0 <= (request.snapshots or 0) <= MAX_STEPS:
        problems.append(f"--snapshots: {request.snapshots} is not in 0..{MAX_STEPS}")
    try:
        parse_checkpoint_interval(request.checkpoint_every)
    except SettingsError as error:
        problems.append(str(error))
    if request.pair_timeout is not None and not 0 < request.pair_timeout < math.inf:
        problems.append(f"--pair-timeout: {request.pair_timeout} is not a number of seconds above 0")
    return problems


def parse_checkpoint_interval(text: str) -> tuple[int, float]:
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


def parse_failure_limit(text: str | None, rows: int) -> int:
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
