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
from typing import Any

from nst_tasks.images.picture import OUTPUT_FORMATS, Source
from nst_tasks.outputs.layout import history_path, image_path, thumbnail_path

MARKER_VERSION = 1


LOSS_KEYS = ("total", "content", "style", "tv")
"""Keys of `Outcome.losses`: the final total loss and its weighted terms."""


QUALITY_KEYS = ("style_gap_held_out", "style_gap_used", "content_cosine", "luminance_ssim")
"""Keys of `Outcome.quality` that hold one number for the whole image."""


QUARANTINED_FLAG = "quarantined"
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
    """`core.metrics.Quality.as_plain`: numbers by `QUALITY_KEYS` and `style_gap` by layer; any may be absent."""
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


def count_by_status(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count the rows by final status, in the order of `Status`."""
    totals = Counter(outcome.status for outcome in outcomes)
    return {str(status): totals[status] for status in Status}


def to_json(outcome: Outcome) -> bytes:
    """Encode an outcome as its marker's JSON, with sorted keys, so that equal outcomes give equal bytes."""
    record = {"marker_version": MARKER_VERSION, **asdict(outcome)}
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


_JSON_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict}


_FIELD_TYPES = {field.name: _JSON_TYPES.get(str(field.type).partition("[")[0], object) for field in fields(Outcome)}
"""Types of the `Outcome` fields that JSON stores directly; `object` for the others."""


def from_json(data: bytes) -> Outcome:
    """Decode a marker's JSON, ignoring fields that a newer version of nst added.

    Raises:
        ValueError: The bytes are not a marker, are damaged, or have another marker version.
    """
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("marker_version") != MARKER_VERSION:
        raise ValueError("not an outcome marker of this version")
    values = {name: record[name] for name in _FIELD_TYPES if name in record}
    is_reportable = _is_reportable(values.get("losses", {}), values.get("quality", {}), values.get("flags", []))
    if not is_reportable or not all(map(isinstance, values.values(), map(_FIELD_TYPES.__getitem__, values))):
        raise ValueError("an outcome marker with missing or wrong fields")
    try:
        values["status"] = Status(values["status"])
        for name in ("content", "init", "mask"):
            values[name] = Source(**values[name]) if values.get(name) else None
        values["styles"] = tuple(Source(**style) for style in values.get("styles", ()))
        values["style_weights"] = tuple(values.get("style_weights", ()))
        values["flags"] = tuple(values.get("flags", ()))
        outcome = Outcome(**values)
    except (KeyError, TypeError) as error:
        raise ValueError("an outcome marker with missing or wrong fields") from error
    # readers open and link to these paths: a forged marker must not lead to other files
    thumbnails = {thumbnail_path(outcome.id), thumbnail_path(outcome.id, "webp")}  # WebP before version 0.5
    allowed_paths = {history_path(outcome.id)} | thumbnails | {image_path(outcome.id, format) for format in OUTPUT_FORMATS}
    if not {outcome.image, outcome.history, outcome.thumbnail} <= allowed_paths | {""} or "/" in outcome.id:
        raise ValueError("an outcome marker that names files other than its own")
    return outcome


def _is_reportable(losses: Any, quality: Any, flags: Any) -> bool:
    """Return whether the values are fit for a report: finite losses and quality measures, and flags that are names."""
    if not isinstance(losses, dict) or not isinstance(quality, dict) or not isinstance(flags, list):
        return False
    gaps = quality.get("style_gap", {})
    if not isinstance(gaps, dict) or (losses and not losses.keys() >= set(LOSS_KEYS)):
        return False
    numbers = [
        *(losses[term] for term in LOSS_KEYS if losses),
        *gaps.values(),
        *(quality[name] for name in QUALITY_KEYS if name in quality),
    ]
    return all(map(_is_finite, numbers)) and all(isinstance(flag, str) for flag in flags)


def _is_finite(value: Any) -> bool:
    # written this way, the comparison also refuses NaN and integers too large for a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
