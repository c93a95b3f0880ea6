"""Paths of everything that a run writes below its output folder."""

from __future__ import annotations

FOLDERS_PER_PAIR = ("images", "thumbnails", "history", "outcomes", "checkpoints", "claims")
"""Folders below the output in which a run writes one or more files per pair."""


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
