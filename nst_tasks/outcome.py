"""What became of a pair: `Outcome`, and the JSON marker that commits it.

The marker is written last, after image and history; a reader trusts markers only.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nst_tasks.source import FORMATS, Source

if TYPE_CHECKING:
    import pandas as pd

MARKER_VERSION = 1

LOSSES = ("total", "content", "style", "tv")
"""Keys of an outcome's losses: the last total and its weighted terms."""

QUALITY = ("style_gap_held_out", "style_gap_used", "content_cosine", "luminance_ssim")
"""Keys of an outcome's quality that hold one number for the whole picture."""


FOLDERS = ("images", "thumbnails", "history", "outcomes", "checkpoints", "claims")
"""Below the output, where a run writes one file a pair or more."""

QUARANTINED = "quarantined"
"""The flag of a failed pair that is not tried again while its marker stands."""


class Status(StrEnum):
    """Where a manifest row ended in a run; a marker only ever says succeeded or failed."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """The record of one pair: everything needed to trust, repeat or explain its picture."""

    id: str
    row: int
    status: Status
    run_id: str = ""
    key: str = ""
    content: Source | None = None
    styles: tuple[Source, ...] = ()
    style_weights: tuple[float, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    init: Source | None = None
    keep_color: str = ""
    mask: Source | None = None
    backbone: str = ""
    weights_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    height: int = 0
    width: int = 0
    steps: int = 0
    steps_done: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    """`core.quality.Quality.as_plain`: a number by each of `QUALITY`, and `style_gap`, a number by layer; any may be absent."""
    flags: tuple[str, ...] = ()
    """Names among `core.flags.FLAGS`."""
    image: str = ""
    image_bytes: int = 0
    image_sha256: str = ""
    history: str = ""
    history_bytes: int = 0
    thumbnail: str = ""
    error: str = ""

    @property
    def precision(self) -> str:
        """In which precision the network computed, if it is known."""
        method = self.recipe.get("method")
        return str(method.get("precision", "")) if isinstance(method, dict) else ""

    @property
    def is_broken(self) -> bool:
        """Whether the row came to no picture: it failed or was rejected."""
        return self.status in (Status.FAILED, Status.REJECTED)


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many rows ended in each status, in the order of `Status`."""
    found = Counter(outcome.status for outcome in outcomes)
    return {str(status): found[status] for status in Status}


def image_path(id: str, format: str) -> str:
    """Where a pair's picture lies below the output."""
    return f"images/{id}.{format}"


def history_path(id: str) -> str:
    """Where a pair's loss history lies below the output."""
    return f"history/{id}.parquet"


def thumbnail_path(id: str) -> str:
    """Where a pair's thumbnail strip (content, styles, result) lies below the output."""
    return f"thumbnails/{id}.jpg"


def snapshot_path(id: str, step: int) -> str:
    """Where a pair's unfinished picture after `step` steps over all levels lies below the output."""
    return f"images/{id}.snapshots/step-{step:06d}.png"


def marker_path(id: str) -> str:
    """Where a pair's outcome marker lies below the output."""
    return f"outcomes/{id}.json"


def to_json(outcome: Outcome) -> bytes:
    """The marker's bytes: sorted keys, so that the same outcome gives the same bytes."""
    record = {"marker_version": MARKER_VERSION, **asdict(outcome)}
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


_JSON_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict}

_KINDS = {field.name: _JSON_TYPES.get(str(field.type).partition("[")[0], object) for field in fields(Outcome)}
"""Types of an outcome's fields where JSON holds them as they are, and `object` for the others."""


def from_json(data: bytes) -> Outcome:
    """The outcome in a marker's bytes; fields that a newer version added are ignored.

    Raises:
        ValueError: the bytes are no marker: damaged, or of another version.
    """
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("marker_version") != MARKER_VERSION:
        raise ValueError("not an outcome marker of this version")
    values = {name: record[name] for name in _KINDS if name in record}
    measured = _is_measured(values.get("losses", {}), values.get("quality", {}), values.get("flags", []))
    if not measured or not all(map(isinstance, values.values(), map(_KINDS.__getitem__, values))):
        raise ValueError("an outcome marker with missing or wrong fields")
    try:
        values["status"] = Status(values["status"])
        for name in ("content", "init", "mask"):
            values[name] = Source(**values[name]) if values.get(name) else None
        values["styles"] = tuple(Source(**style) for style in values.get("styles", ()))
        values["style_weights"] = tuple(values.get("style_weights", ()))
        values["flags"] = tuple(values.get("flags", ()))
        found = Outcome(**values)
    except (KeyError, TypeError) as error:
        raise ValueError("an outcome marker with missing or wrong fields") from error
    # its paths are opened and linked to: one that somebody else wrote must not lead elsewhere
    thumbnails = {thumbnail_path(found.id), f"thumbnails/{found.id}.webp"}  # before 0.5 it was a WebP
    own = {history_path(found.id)} | thumbnails | {image_path(found.id, format) for format in FORMATS}
    if not {found.image, found.history, found.thumbnail} <= own | {""} or "/" in found.id:
        raise ValueError("an outcome marker that names files other than its own")
    return found


def _is_measured(losses: Any, quality: Any, flags: Any) -> bool:
    """Whether these hold what a report computes with and shows: finite numbers and names."""
    if not isinstance(losses, dict) or not isinstance(quality, dict) or not isinstance(flags, list):
        return False
    gaps = quality.get("style_gap", {})
    if not isinstance(gaps, dict) or (losses and not losses.keys() >= set(LOSSES)):
        return False
    numbers = [
        *(losses[term] for term in LOSSES if losses),
        *gaps.values(),
        *(quality[name] for name in QUALITY if name in quality),
    ]
    return all(map(_is_finite, numbers)) and all(isinstance(flag, str) for flag in flags)


def _is_finite(value: Any) -> bool:
    # so written, it refuses NaN and whole numbers that no float can hold
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


SUMMARY_COLUMNS = (
    "id", "row", "status", "content", "style", "recipe", "precision", "backbone", "height", "width", "steps", "steps_done",
    "seed", "seconds",
    "total", "content_loss", "style_loss", "tv_loss",
    "style_gap", "style_gap_used", "content_cosine", "luminance_ssim", "flags", "image", "history", "key", "run_id", "error",
)  # fmt: skip


def summary(outcomes: list[Outcome]) -> pd.DataFrame:
    """One row per manifest row, in manifest order, with `SUMMARY_COLUMNS`; `style_gap` is the mean over the held-out layers."""
    import pandas as pd  # here, because a manifest is validated without it

    rows = [
        (
            o.id, o.row, str(o.status), o.content.uri if o.content else "", "|".join(style.uri for style in o.styles),
            o.recipe.get("name", ""), o.precision, o.backbone, o.height, o.width, o.steps, o.steps_done, o.seed, o.seconds,
            *(o.losses.get(term, float("nan")) for term in LOSSES),
            *(o.quality.get(name, float("nan")) for name in QUALITY), "|".join(o.flags),
            o.image, o.history, o.key, o.run_id, o.error,
        )
        for o in sorted(outcomes, key=lambda o: o.row)
    ]  # fmt: skip
    return pd.DataFrame.from_records(rows, columns=list(SUMMARY_COLUMNS))
