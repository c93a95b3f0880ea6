"""`Outcome`, the record of one pair, and its JSON marker.

The marker is written last, after the image and the loss history, and commits the pair: readers trust markers only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, GetPydanticSchema, ValidationError
from typing_extensions import TypedDict

from nst_tasks.images.picture import OUTPUT_FORMATS, Source
from nst_tasks.outputs.layout import history_path, image_path, thumbnail_path
from nst_tasks.outputs.record import Count, decode


class _Header(TypedDict):
    marker_version: Literal[1]


_HEADER: _Header = {"marker_version": 1}


class _Losses(TypedDict):
    total: FiniteFloat
    content: FiniteFloat
    style: FiniteFloat
    tv: FiniteFloat


_NoLosses = Annotated[dict[str, float], Field(max_length=0)]


class _ImageQuality(TypedDict, total=False):
    style_gap_held_out: FiniteFloat
    style_gap_used: FiniteFloat
    content_cosine: FiniteFloat
    luminance_ssim: FiniteFloat


class _Quality(_ImageQuality, total=False):
    style_gap: dict[str, FiniteFloat]


LOSS_KEYS = tuple(_Losses.__annotations__)
"""Keys of `Outcome.losses`: the final total loss and its weighted terms."""


QUALITY_KEYS = tuple(_ImageQuality.__annotations__)
"""Keys of `Outcome.quality` that hold one number for the whole image."""


QUARANTINED_FLAG = "quarantined"
"""Flag of a failed pair that is not retried while its marker exists."""


class Status(StrEnum):
    """Final status of a manifest row in a run; a marker holds only succeeded or failed."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    SKIPPED = "skipped"


def _read_as(kind: Any) -> GetPydanticSchema:
    """Annotate a field whose JSON must be of a narrower type than the field's own."""
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(kind))


@dataclass(frozen=True)
class Outcome:
    """Record of one pair: everything needed to trust, reproduce or explain its image."""

    id: str
    row: Count
    status: Status
    run_id: str = ""
    key: str = ""
    content: Source | None = None
    styles: tuple[Source, ...] = ()
    style_weights: tuple[FiniteFloat, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: Count = 0
    init: Source | None = None
    keep_color: str = ""
    mask: Source | None = None
    backbone: str = ""
    weights_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    height: Count = 0
    width: Count = 0
    steps: Count = 0
    steps_done: Count = 0
    seconds: FiniteFloat = 0.0
    losses: Annotated[dict[str, float], _read_as(_Losses | _NoLosses)] = field(default_factory=dict)
    quality: Annotated[dict[str, Any], _read_as(_Quality)] = field(default_factory=dict)
    """`core.metrics.Quality.as_plain`: numbers by `QUALITY_KEYS` and `style_gap` by layer; any may be absent."""
    flags: tuple[str, ...] = ()
    """Names from `core.flags.FLAGS`."""
    image: str = ""
    image_bytes: Count = 0
    image_sha256: str = ""
    history: str = ""
    history_bytes: Count = 0
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
    fields = {**_HEADER, **asdict(outcome)}
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(data: bytes) -> Outcome:
    """Decode a marker's JSON, ignoring fields that a newer version of nst added.

    Raises:
        ValueError: The bytes are not a marker, are damaged, or have another marker version.
    """
    try:
        decode(_Header, data)
    except ValidationError as error:
        raise ValueError("not an outcome marker of this version") from error
    try:
        outcome = decode(Outcome, data)
    except ValidationError as error:
        raise ValueError("an outcome marker with missing or wrong fields") from error
    # readers open and link to these paths: a forged marker must not lead to other files
    thumbnails = {thumbnail_path(outcome.id), thumbnail_path(outcome.id, "webp")}  # WebP before version 0.5
    allowed_paths = {history_path(outcome.id)} | thumbnails | {image_path(outcome.id, format) for format in OUTPUT_FORMATS}
    if not {outcome.image, outcome.history, outcome.thumbnail} <= allowed_paths | {""} or "/" in outcome.id:
        raise ValueError("an outcome marker that names files other than its own")
    return outcome
