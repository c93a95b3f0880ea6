"""`Outcome`, the record of one pair, and its JSON marker.

The marker is written last, after the image and the loss history, and commits the pair: readers trust markers only.
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
"""Keys of `Outcome.losses`: the final total loss and its weighted terms."""

QUALITY = ("style_gap_held_out", "style_gap_used", "content_cosine", "luminance_ssim")
"""Keys of `Outcome.quality` that hold one number for the whole image."""


FOLDERS = ("images", "thumbnails", "history", "outcomes", "checkpoints", "claims")
"""Folders below the output in which a run writes one or more files per pair."""

QUARANTINED = "quarantined"
"""Flag of a failed pair that is not retried while its marker exists."""


class Status(StrEnum):
    """Final status of a manifest row in a run; a marker holds only succeeded or failed."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """Record of one pair: everything needed to trust, reproduce or explain its image."""

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
    """`core.quality.Quality.as_plain`: numbers for `QUALITY`, and `style_gap` with a number per layer; any may be absent."""
    flags: tuple[str, ...] = ()
    """Names from `core.flags.FLAGS`."""
    image: str = ""
    image_bytes: int = 0
    image_sha256: str = ""
    history: str = ""
    history_bytes: int = 0
    thumbnail: str = ""
    error: str = ""

    @property
    def precision(self) -> str:
        """Precision in which the network computed; empty if unknown."""
        method = self.recipe.get("method")
        return str(method.get("precision", "")) if isinstance(method, dict) else ""

    @property
    def is_broken(self) -> bool:
        """Return whether the row produced no image: it failed or was rejected."""
        return self.status in (Status.FAILED, Status.REJECTED)


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count the rows by final status, in the order of `Status`."""
    found = Counter(outcome.status for outcome in outcomes)
    return {str(status): found[status] for status in Status}


def image_path(id: str, format: str) -> str:
    """Return the path of a pair's image, relative to the output folder."""
    return f"images/{id}.{format}"


def history_path(id: str) -> str:
    """Return the path of a pair's loss history, relative to the output folder."""
    return f"history/{id}.parquet"


def thumbnail_path(id: str) -> str:
    """Return the path of a pair's thumbnail strip (content, styles, result), relative to the output folder."""
    return f"thumbnails/{id}.jpg"


def snapshot_path(id: str, step: int) -> str:
    """Return the path of a pair's unfinished image after `step` steps over all levels, relative to the output folder."""
    return f"images/{id}.snapshots/step-{step:06d}.png"


def marker_path(id: str) -> str:
    """Return the path of a pair's outcome marker, relative to the output folder."""
    return f"outcomes/{id}.json"


def to_json(outcome: Outcome) -> bytes:
    """Encode an outcome as its marker's JSON, with sorted keys, so that equal outcomes give equal bytes."""
    record = {"marker_version": MARKER_VERSION, **asdict(outcome)}
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


_JSON_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict}

_KINDS = {field.name: _JSON_TYPES.get(str(field.type).partition("[")[0], object) for field in fields(Outcome)}
"""Types of the `Outcome` fields that JSON stores directly; `object` for the others."""


def from_json(data: bytes) -> Outcome:
    """Decode a marker's JSON, ignoring fields that a newer version of nst added.

    Raises:
        ValueError: The bytes are not a marker, are damaged, or have another marker version.
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
    # readers open and link to these paths: a forged marker must not lead to other files
    thumbnails = {thumbnail_path(found.id), f"thumbnails/{found.id}.webp"}  # WebP before version 0.5
    own = {history_path(found.id)} | thumbnails | {image_path(found.id, format) for format in FORMATS}
    if not {found.image, found.history, found.thumbnail} <= own | {""} or "/" in found.id:
        raise ValueError("an outcome marker that names files other than its own")
    return found


def _is_measured(losses: Any, quality: Any, flags: Any) -> bool:
    """Return whether the values are fit for a report: finite losses and quality measures, and flags that are names."""
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
    # written this way, the comparison also refuses NaN and integers too large for a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


SUMMARY_COLUMNS = (
    "id", "row", "status", "content", "style", "recipe", "precision", "backbone", "height", "width", "steps", "steps_done",
    "seed", "seconds",
    "total", "content_loss", "style_loss", "tv_loss",
    "style_gap", "style_gap_used", "content_cosine", "luminance_ssim", "flags", "image", "history", "key", "run_id", "error",
)  # fmt: skip


def summary(outcomes: list[Outcome]) -> pd.DataFrame:
    """Build the summary table: one row per manifest row, in manifest order, with `SUMMARY_COLUMNS`.

    The column `style_gap` is the mean over the held-out layers.
    """
    import pandas as pd  # imported here, because validating a manifest does not need it

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
