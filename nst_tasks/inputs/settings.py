"""Machine settings from environment variables, read once at startup and passed down by value.

A field of `Settings` is the one place of a setting: its variable, type, default, bounds and help. The table in
docs/configuration.md and .env.example are generated from it by `make docs`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from nst_tasks.errors import SettingsError, redact
from nst_tasks.storage.access import Access, is_valid_root

ENVIRONMENT_PREFIX = "NST_"


MAX_RETRY_DELAY_SECONDS = 15.0
"""Longest delay in seconds before a retry, so that a recovered store is noticed soon."""


def _split_roots(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = value.split("|") if "|" in value else value.split()  # with |, folder names may have spaces
    return tuple(root.strip() for root in parts if root.strip()) or (value,)  # a lone | is refused, not ignored


def _check_root(root: str) -> str:
    if not is_valid_root(root):
        remedy = "give whole paths or URIs such as /data s3://team, separated by spaces or |"
        raise ValueError(f"{redact(root)!r} is not a place to stay below; {remedy}")
    return root


def _refuse_fraction(value: object) -> object:
    if isinstance(value, str) and "." in value:  # pydantic reads 4.0 as 4
        raise PydanticCustomError("whole_number", "a whole number has no point")
    return value


_WholeNumber = Annotated[int, BeforeValidator(_refuse_fraction)]
_Root = Annotated[str, AfterValidator(_check_root)]
_Roots = Annotated[tuple[_Root, ...], BeforeValidator(_split_roots)]


class Settings(BaseSettings):
    """Settings of a machine, as opposed to options of a run.

    Texts other than roots are validated where they are used.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, enable_decoding=False, frozen=True, hide_input_in_errors=True
    )

    max_megapixels: _WholeNumber = Field(100, ge=1, le=10000, description="the largest picture that is decoded, in megapixels")
    device_memory_gib: float = Field(8.0, ge=0.5, le=1000, description="memory that one batch may take on a device, in GiB")
    batch: _WholeNumber = Field(0, ge=0, le=256, description="the most pairs in a GPU's batch, 0 chooses 8; a CPU's holds one")
    readers: _WholeNumber = Field(8, ge=1, le=64, description="pictures read at once when a manifest's pictures are inspected")
    retries: _WholeNumber = Field(
        10, ge=0, le=20, description="how often something is tried again after the store failed for the moment"
    )
    retry_seconds: float = Field(
        2.0, ge=0, le=600, description="the delay before the first retry, doubled each time up to 15 s"
    )
    lease_seconds: float = Field(
        120.0, ge=2, le=3600, description="how long the claim of a run that went away silently keeps its pairs from other runs"
    )
    task_runs: _WholeNumber = Field(
        300,
        ge=1,
        le=100000,
        description="task runs of one manifest's batches; with more batches than that, each covers several",
    )
    image_artifacts: _WholeNumber = Field(
        100, ge=0, le=10000, description="finished pairs of one manifest that are shown in the Prefect UI as a picture"
    )
    local_workers: _WholeNumber = Field(
        0, ge=0, le=256, description="workers that a cluster of this machine's own has; 0: one a GPU, or for each four cores"
    )
    allow_http: _WholeNumber = Field(
        0, ge=0, le=1, description="1 allows pictures, recipes and manifests on the web, by http and https"
    )
    inbox: str = Field("", description="folder or prefix whose manifests `nightly` runs")
    out: str = Field("", description="folder or prefix below which each of these manifests has its output")
    cron: str = Field("0 2 * * *", description="schedule of `nightly`: minute, hour, day of the month, month, day of the week")
    timezone: str = Field("UTC", description="time zone of the schedule, by its name in the IANA database")
    dask_address: str = Field(
        "", description="scheduler for `--runner dask`, such as tcp://host:8786; without it, workers start on this machine"
    )
    ray_address: str = Field(
        "", description="cluster for `--runner ray`, such as ray://host:10001; without it, workers start on this machine"
    )
    allowed_roots: _Roots = Field(
        (),
        description="folders and URIs, separated by spaces or |, below which everything read and written must lie; "
        "without it, everywhere",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from arguments only: variables are read by `read_environment`, files never."""
        return (init_settings,)

    @property
    def max_pixels(self) -> int:
        """Size in pixels of the largest image that is decoded."""
        return self.max_megapixels * 1_000_000

    @property
    def access(self) -> Access:
        """Permission to read and write, from `allowed_roots` and `allow_http`."""
        return Access(self.allowed_roots, web=bool(self.allow_http))

    @property
    def retry_delays(self) -> list[float]:
        """Delays in seconds before each retry, doubled up to `MAX_RETRY_DELAY_SECONDS`; two minutes in all by default."""
        longest = max(self.retry_seconds, MAX_RETRY_DELAY_SECONDS)
        return [min(self.retry_seconds * 2**k, longest) for k in range(self.retries)]


def read_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from environment variables; an unset or blank variable leaves its field's default.

    Raises:
        SettingsError: A variable is not a number or out of range, or a root is not valid; the text names all of them.
    """
    texts = {name: text.strip() for name, text in (os.environ if environment is None else environment).items()}
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): text for name, text in texts.items() if text and name.isupper()}
    try:
        return Settings(**source())
    except ValidationError as error:
        problems = "\n".join(map(_describe_problem, error.errors()))
    raise SettingsError(problems)


def get_range(field: str) -> str:
    """Return the bounds of a numeric field as `smallest..largest`, and an empty text for any other field."""
    schema = Settings.model_json_schema()["properties"][field]
    return f"{schema['minimum']}..{schema['maximum']}" if "minimum" in schema else ""


def _describe_problem(error: ErrorDetails) -> str:
    field = str(error["loc"][0])
    if error["type"] == "value_error":
        problem = str(error["ctx"]["error"])
    else:
        problem = f"{error['input']!r} is not a number in {get_range(field)} ({Settings.model_fields[field].description})"
    return f"{ENVIRONMENT_PREFIX}{field.upper()}: {problem}"
