"""Constants of one run that every task needs besides its own jobs."""

from __future__ import annotations

from dataclasses import dataclass

from nst_tasks.inputs.settings import Settings


@dataclass(frozen=True)
class Run:
    """Context of one run that every task needs besides its jobs; small enough to be sent with each."""

    id: str
    out: str
    backbone: str
    weights: str | None
    weights_sha256: str
    history_every: int
    settings: Settings
    snapshots: int = 0
    """Steps between snapshots of the unfinished image; 0 writes none."""
    checkpoint_steps: int = 0
    """Steps between checkpoints; 0 goes by `checkpoint_seconds` instead."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints if `checkpoint_steps` is 0; 0 disables them."""
    pair_timeout: float = 0.0
    """Seconds of compute after which a pair fails; 0 means no limit."""
    exclusive: bool = False
    """Whether the output store supports create-if-absent, so that concurrent runs cannot claim the same pair."""
