"""Outcomes as a run leaves them."""

from __future__ import annotations

from typing import Any

from nst_tasks.outputs.outcome import Outcome, Status


def make_outcome(id: str = "cat_oil", row: int = 2, **fields: Any) -> Outcome:
    """Return the outcome of a pair that succeeded, with these fields instead of the usual ones."""
    usual: dict[str, Any] = {
        "id": id, "row": row, "status": Status.SUCCEEDED, "recipe": {"name": "painterly"},
        "image": f"images/{id}.png", "thumbnail": f"thumbnails/{id}.jpg", "history": f"history/{id}.parquet",
    }  # fmt: skip
    return Outcome(**usual | fields)
