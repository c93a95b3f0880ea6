"""What became of a pair: `Outcome`, and the JSON marker that commits it.

The marker is written last, after image and history; a reader trusts markers only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nst_tasks.source import FORMATS, Source

if TYPE_CHECKING:
    import pandas as pd

MARKER_VERSION = 1


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
    keep_color: bool = False
    backbone: str = ""
    weights_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    height: int = 0
    width: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    image: str = ""
    image_bytes: int = 0
    image_sha256: str = ""
    history: str = ""
    history_bytes: int = 0
    thumbnail: str = ""
    error: str = ""

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
    return f"thumbnails/{id}.webp"


def marker_path(id: str) -> str:
    """Where a pair's outcome marker lies below the output."""
    return f"outcomes/{id}.json"


def to_json(outcome: Outcome) -> bytes:
    """The marker's bytes: sorted keys, so that the same outcome gives the same bytes."""
    record = {"marker_version": MARKER_VERSION, **asdict(outcome)}
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "dict": dict}
"""Types of fields that JSON holds as they are, by the name in `Outcome`."""


def from_json(data: bytes) -> Outcome:
    """The outcome in a marker's bytes; fields that a newer version added are ignored.

    Raises:
        ValueError: the bytes are no marker: damaged, or of another version.
    """
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("marker_version") != MARKER_VERSION:
        raise ValueError("not an outcome marker of this version")
    values = {f.name: record[f.name] for f in fields(Outcome) if f.name in record}
    kinds = {f.name: _KINDS.get(str(f.type).partition("[")[0], object) for f in fields(Outcome)}
    if not all(isinstance(value, kinds[name]) for name, value in values.items()):
        raise ValueError("an outcome marker with missing or wrong fields")
    try:
        values["status"] = Status(values["status"])
        values["content"] = Source(**values["content"]) if values.get("content") else None
        values["styles"] = tuple(Source(**style) for style in values.get("styles", ()))
        values["style_weights"] = tuple(values.get("style_weights", ()))
        found = Outcome(**values)
    except (KeyError, TypeError) as error:
        raise ValueError("an outcome marker with missing or wrong fields") from error
    # its paths are opened and linked to: one that somebody else wrote must not lead elsewhere
    own = {history_path(found.id), thumbnail_path(found.id)} | {image_path(found.id, format) for format in FORMATS}
    if not {found.image, found.history, found.thumbnail} <= own | {""} or "/" in found.id:
        raise ValueError("an outcome marker that names files other than its own")
    return found


SUMMARY_COLUMNS = (
    "id", "row", "status", "content", "style", "recipe", "backbone", "height", "width", "steps", "seed", "seconds",
    "total", "content_loss", "style_loss", "tv_loss", "image", "history", "key", "run_id", "error",
)  # fmt: skip


def summary(outcomes: list[Outcome]) -> pd.DataFrame:
    """One row per manifest row, in manifest order, with `SUMMARY_COLUMNS`."""
    import pandas as pd  # here, because a manifest is validated without it

    rows = [
        (
            o.id, o.row, str(o.status), o.content.uri if o.content else "", "|".join(style.uri for style in o.styles),
            o.recipe.get("name", ""), o.backbone, o.height, o.width, o.steps, o.seed, o.seconds,
            *(o.losses.get(term, float("nan")) for term in ("total", "content", "style", "tv")),
            o.image, o.history, o.key, o.run_id, o.error,
        )
        for o in sorted(outcomes, key=lambda o: o.row)
    ]  # fmt: skip
    return pd.DataFrame.from_records(rows, columns=list(SUMMARY_COLUMNS))
