"""Machine settings from environment variables, read once at startup and passed down by value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from nst_tasks.errors import SettingsError, redact
from nst_tasks.storage.access import Access, is_valid_root

ENVIRONMENT_PREFIX = "NST_"


MAX_RETRY_DELAY_SECONDS = 15.0
"""Longest delay in seconds before a retry, so that a recovered store is noticed soon."""


@dataclass(frozen=True)
class Settings:
    """Settings of a machine, as opposed to options of a run."""

    max_megapixels: int = 100
    device_memory_gib: float = 8.0
    batch: int = 0
    readers: int = 8
    retries: int = 10
    retry_seconds: float = 2.0
    lease_seconds: float = 120.0
    task_runs: int = 300
    image_artifacts: int = 100
    local_workers: int = 0
    allow_http: int = 0
    inbox: str = ""
    out: str = ""
    cron: str = "0 2 * * *"
    timezone: str = "UTC"
    dask_address: str = ""
    ray_address: str = ""
    allowed_roots: tuple[str, ...] = ()

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


NUMBER_FIELDS = {
    "max_megapixels": ("1", "10000", "the largest picture that is decoded, in megapixels"),
    "device_memory_gib": ("0.5", "1000", "memory that one batch may take on a device, in GiB"),
    "batch": ("0", "256", "the most pairs in a GPU's batch, 0 chooses 8; a CPU's holds one"),
    "readers": ("1", "64", "pictures read at once when a manifest's pictures are inspected"),
    "retries": ("0", "20", "how often something is tried again after the store failed for the moment"),
    "retry_seconds": ("0", "600", "the delay before the first retry, doubled each time up to 15 s"),
    "lease_seconds": ("2", "3600", "how long the claim of a run that went away silently keeps its pairs from other runs"),
    "task_runs": ("1", "100000", "task runs of one manifest's batches; with more batches than that, each covers several"),
    "image_artifacts": ("0", "10000", "finished pairs of one manifest that are shown in the Prefect UI as a picture"),
    "local_workers": ("0", "256", "workers that a cluster of this machine's own has; 0: one a GPU, or for each four cores"),
    "allow_http": ("0", "1", "1 allows pictures, recipes and manifests on the web, by http and https"),
}
"""Numeric field -> (smallest, largest, meaning); its environment variable is NST_ and the field in capitals."""


TEXT_FIELDS = {
    "inbox": "folder or prefix whose manifests `nightly` runs",
    "out": "folder or prefix below which each of them has its output",
    "cron": "when `nightly` runs: minute, hour, day of the month, month, day of the week",
    "timezone": "the time zone of that, by its name in the IANA database",
    "dask_address": "the scheduler of `--runner dask`, such as tcp://host:8786; empty starts workers on this machine",
    "ray_address": "the cluster of `--runner ray`, such as ray://host:10001; empty starts workers on this machine",
}
"""Text field -> meaning; the text is validated where it is used."""


ROOTS_FIELD = "allowed_roots"
"""Field whose variable is a list: folders and URIs below which everything read and written must lie."""


def read_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from environment variables; an unset variable leaves its field's default.

    Raises:
        SettingsError: A variable is not a number or out of range, or a root is not valid; the text names all of them.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, int | float | str | tuple[str, ...]] = {}
    problems = []
    for field, (smallest, largest, meaning) in NUMBER_FIELDS.items():
        name = ENVIRONMENT_PREFIX + field.upper()
        text = environment.get(name, "").strip()
        if not text:
            continue
        number_type = type(getattr(Settings, field))
        try:
            value = number_type(text)
        except ValueError:
            value = None
        if value is None or not float(smallest) <= value <= float(largest):
            problems.append(f"{name}: {text!r} is not a number in {smallest}..{largest} ({meaning})")
        else:
            values[field] = value
    for field in TEXT_FIELDS:
        if text := environment.get(ENVIRONMENT_PREFIX + field.upper(), "").strip():
            values[field] = text
    text = environment.get(ENVIRONMENT_PREFIX + ROOTS_FIELD.upper(), "").strip()
    parts = text.split("|") if "|" in text else text.split()  # with |, folder names may have spaces
    values[ROOTS_FIELD] = roots = tuple(root.strip() for root in parts if root.strip())
    for root in roots or filter(None, [text]):
        if not is_valid_root(root):
            remedy = "give whole paths or URIs such as /data s3://team, separated by spaces or |"
            problems.append(
                f"{ENVIRONMENT_PREFIX}{ROOTS_FIELD.upper()}: {redact(root)!r} is not a place to stay below; {remedy}"
            )
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(**values)  # type: ignore[arg-type]  # each value has its field's type
