"""Run-level settings from the environment: built once at the front door, passed down by value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from nst_tasks.access import Access, is_root
from nst_tasks.errors import SettingsError, redact

PREFIX = "NST_"

LONGEST_DELAY = 15.0
"""Seconds before a retry: a store that is back is soon noticed, and so is a wish to stop."""


@dataclass(frozen=True)
class Settings:
    """What an operator sets for a machine rather than a person for a manifest; see `VARIABLES`."""

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
        """The largest picture that is decoded, in pixels."""
        return self.max_megapixels * 1_000_000

    @property
    def access(self) -> Access:
        """What may be read and written."""
        return Access(self.allowed_roots, web=bool(self.allow_http))

    @property
    def delays(self) -> list[float]:
        """Seconds to wait before each retry: doubled up to a limit, and by default two minutes in all."""
        longest = max(self.retry_seconds, LONGEST_DELAY)
        return [min(self.retry_seconds * 2**k, longest) for k in range(self.retries)]


VARIABLES = {
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
"""Field -> (smallest, largest, meaning); the environment variable is NST_ and the field in capitals."""

TEXTS = {
    "inbox": "folder or prefix whose manifests `nightly` runs",
    "out": "folder or prefix below which each of them has its output",
    "cron": "when `nightly` runs: minute, hour, day of the month, month, day of the week",
    "timezone": "the time zone of that, by its name in the IANA database",
    "dask_address": "the scheduler of `--runner dask`, such as tcp://host:8786; empty starts workers on this machine",
    "ray_address": "the cluster of `--runner ray`, such as ray://host:10001; empty starts workers on this machine",
}
"""Field -> meaning, where the variable's text is taken as it is; whoever uses it checks it."""

ROOTS = "allowed_roots"
"""The field whose variable is a list: folders and URIs below which all that is read and written must lie."""


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings with each field overridden by its environment variable.

    Raises:
        SettingsError: a variable is not a number or out of range, or a root is no place; all of them are named.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, int | float | str | tuple[str, ...]] = {}
    problems = []
    for field, (smallest, largest, meaning) in VARIABLES.items():
        name = PREFIX + field.upper()
        text = environment.get(name, "").strip()
        if not text:
            continue
        kind = type(getattr(Settings, field))
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not float(smallest) <= value <= float(largest):
            problems.append(f"{name}: {text!r} is not a number in {smallest}..{largest} ({meaning})")
        else:
            values[field] = value
    for field in TEXTS:
        if text := environment.get(PREFIX + field.upper(), "").strip():
            values[field] = text
    text = environment.get(PREFIX + ROOTS.upper(), "").strip()
    separated = text.split("|") if "|" in text else text.split()  # a | lets a folder's name have a space
    values[ROOTS] = roots = tuple(root.strip() for root in separated if root.strip())
    for root in roots or filter(None, [text]):
        if not is_root(root):
            remedy = "give whole paths or URIs such as /data s3://team, separated by spaces or |"
            problems.append(f"{PREFIX}{ROOTS.upper()}: {redact(root)!r} is not a place to stay below; {remedy}")
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(**values)  # type: ignore[arg-type]  # each value was made by its field's own type


@dataclass(frozen=True)
class Run:
    """What every task of one run needs to know besides its own jobs; small enough to travel with each."""

    id: str
    out: str
    backbone: str
    weights: str | None
    weights_sha256: str
    history_every: int
    settings: Settings
    snapshots: int = 0
    """Every so many steps the unfinished picture is written beside the image; 0 is never."""
    checkpoint_steps: int = 0
    checkpoint_seconds: float = 30.0
    """A checkpoint is written every so many steps or seconds of compute; 0 is never."""
    pair_timeout: float = 0.0
    """Seconds of compute after which a pair fails; 0 is never."""
    exclusive: bool = False
    """Whether the output's store lets only one of several runs claim a pair."""
