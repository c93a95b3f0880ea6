"""Run options: one field of one model is the one place of an option.

`flows.cli_options` makes a command-line option of each field, Prefect shows the model as the nested form of a deployment, and
`planning.inbox` takes the ledger's version of a manifest from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from nst_tasks.core.method import MAX_SIZE, MAX_STEPS, MIN_SIZE, Precision
from nst_tasks.core.vgg_layers import check_layers
from nst_tasks.errors import SettingsError, redact, strip_secrets
from nst_tasks.inputs import presets, weights
from nst_tasks.inputs.recipe import Overrides, Recipe, override
from nst_tasks.inputs.recipe_file import is_recipe_file
from nst_tasks.storage.uri import make_absolute

RunnerName = Literal["threads", "dask", "ray"]


def resolve_recipe_name(recipe: str) -> str:
    """Return a recipe's name unchanged, or the path of a recipe file made absolute, valid in any working folder."""
    return make_absolute(recipe) if is_recipe_file(recipe) else recipe


def _resolve_file(path: str | None) -> str | None:
    return make_absolute(path) if path else None


class ResultOptions(BaseModel):
    """Options that decide how images look, for rows of a manifest that do not say so themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Annotated[str, AfterValidator(resolve_recipe_name)] = Field(
        presets.DEFAULT,
        description="Recipe of the rows that name none: one that `nst recipes` lists, or a TOML file, path or URI.",
    )
    size: int | None = Field(
        None,
        description="Longest side of the results, in pixels; the recipe's by default.",
        json_schema_extra={"minimum": MIN_SIZE, "maximum": MAX_SIZE},
    )
    steps: int | None = Field(
        None,
        description="Optimization steps at full size; the recipe's by default.",
        json_schema_extra={"minimum": 0, "maximum": MAX_STEPS},
    )
    precision: Precision | None = Field(
        None, description="Of the network: mixed has bfloat16, auto is mixed where that is fast; the recipe's by default."
    )
    plateau: float | None = Field(
        None,
        description=(
            "A level ends once its mean loss falls by no more than this share over 20 steps; 0 never; the recipe's by default."
        ),
    )
    backbone: str = Field(
        weights.DEFAULT_BACKBONE,
        description=f"Network whose features are used: {', '.join(weights.BACKBONES)}.",
        json_schema_extra={"enum": [*weights.BACKBONES]},
    )
    weights: Annotated[str | None, AfterValidator(_resolve_file)] = Field(
        None, description="Keras weights file for vgg19 or vgg16, path or URI."
    )
    upscale: bool = Field(False, description="Enlarge pictures that are smaller than the size.")

    @property
    def uris(self) -> dict[str, str]:
        """Paths and URIs among the options, by the name of their command-line option."""
        return {"--recipe": self.recipe, "--weights": self.weights or ""}

    @property
    def overrides(self) -> Overrides:
        """Values in place of the recipe's, for rows that have none of their own: the options that `Overrides` has."""
        return Overrides(**self.model_dump(include={field.name for field in fields(Overrides)}))

    def find_problems(self, recipe: Recipe) -> list[str]:
        """Return one line for each option that is out of range or incompatible with this recipe."""
        problems = []
        for name, value in vars(self.overrides).items():
            try:
                override(recipe, Overrides(**{name: value}))  # one by one, so that every problem is found
            except SettingsError as error:
                problems.append(f"--{error}")
        try:
            if self.backbone in weights.BACKBONES:  # an unknown name is reported by `inputs.weights.compute_sha256`
                check_layers(weights.get_architecture(self.backbone), recipe.method.layers)
        except SettingsError as error:
            problems.append(f"--recipe {recipe.name}: {error}")
        return problems


class SweepOptions(ResultOptions):
    """Options of each manifest's run in a sweep of an inbox: how images look, where batches run, how much may fail."""

    strict: bool = Field(False, description="Run nothing of a manifest of which any row is rejected.")
    max_failures: str | None = Field(None, description="A manifest's run ends Failed above this many failed rows: N or P%.")
    pair_timeout: float | None = Field(None, description="Seconds of compute after which a pair fails; never by default.")
    runner: RunnerName = Field(
        "threads", description="Where batches run: threads of this process, or a cluster's workers; one batch a device."
    )

    def find_problems(self, recipe: Recipe) -> list[str]:
        """Return one line for each option that is out of range or incompatible with this recipe."""
        problems = super().find_problems(recipe)
        try:
            parse_failure_limit(self.max_failures, 1)
        except SettingsError as error:
            problems.append(str(error))
        if self.pair_timeout is not None and not 0 < self.pair_timeout < math.inf:
            problems.append(f"--pair-timeout: {self.pair_timeout} is not a number of seconds above 0")
        return problems


class RunOptions(SweepOptions):
    """Options of one manifest's run: those of a sweep, and what it records on the way."""

    history_every: int = Field(1, description="Keep every N-th step in the loss history; first and last stay.")
    snapshots: int | None = Field(
        None, description="Write the unfinished picture beside the image every N steps; never by default."
    )
    checkpoint_every: str = Field(
        "30s",
        description="Write a checkpoint every so many seconds of compute such as 30s, or steps such as 50; 0: never.",
    )

    def find_problems(self, recipe: Recipe) -> list[str]:
        """Return one line for each option that is out of range or incompatible with this recipe."""
        problems = super().find_problems(recipe)
        if not 1 <= self.history_every <= MAX_STEPS:
            problems.append(f"--history-every: {self.history_every} is not in 1..{MAX_STEPS}")
        if not 0 <= (self.snapshots or 0) <= MAX_STEPS:
            problems.append(f"--snapshots: {self.snapshots} is not in 0..{MAX_STEPS}")
        try:
            parse_checkpoint_interval(self.checkpoint_every)
        except SettingsError as error:
            problems.append(str(error))
        return problems


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
