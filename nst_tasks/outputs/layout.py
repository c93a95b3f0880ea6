"""Paths of everything below an output folder, `OUT`; all are relative to it.

A sweep's output holds the ledger and, by name, an output folder of each manifest.
"""

from __future__ import annotations

import re
from datetime import datetime

IMAGES_FOLDER = "images"
THUMBNAILS_FOLDER = "thumbnails"
HISTORY_FOLDER = "history"
OUTCOMES_FOLDER = "outcomes"
CHECKPOINTS_FOLDER = "checkpoints"
CLAIMS_FOLDER = "claims"
RUNS_FOLDER = "runs"
LEDGER_FOLDER = "_ledger"
"""Folder of a sweep's output; an inbox refuses manifests whose names, and hence output folders, begin with `_`."""

FOLDERS_PER_PAIR = (
    IMAGES_FOLDER, THUMBNAILS_FOLDER, HISTORY_FOLDER, OUTCOMES_FOLDER, CHECKPOINTS_FOLDER, CLAIMS_FOLDER,
)  # fmt: skip
"""Folders in which a run writes one or more files per pair."""

REPORT_PATH = "report.html"
"""Path of the report on all runs."""


# Files of a pair


def image_path(id: str, format: str) -> str:
    """Return the path of a pair's image."""
    return f"{IMAGES_FOLDER}/{id}.{format}"


def snapshot_path(id: str, step: int) -> str:
    """Return the path of a pair's unfinished image after `step` steps over all levels."""
    return f"{IMAGES_FOLDER}/{id}.snapshots/step-{step:06d}.png"


def thumbnail_path(id: str, format: str = "jpg") -> str:
    """Return the path of a pair's thumbnail strip (content, styles, result)."""
    return f"{THUMBNAILS_FOLDER}/{id}.{format}"


def history_path(id: str) -> str:
    """Return the path of a pair's loss history."""
    return f"{HISTORY_FOLDER}/{id}.parquet"


def marker_path(id: str) -> str:
    """Return the path of a pair's outcome marker."""
    return f"{OUTCOMES_FOLDER}/{id}.json"


def parse_marker_name(name: str) -> str | None:
    """Return the pair id in the name of an outcome marker, or None for another file."""
    return name.removesuffix(".json") if name.endswith(".json") else None


# Files of a pair while it is unfinished


def checkpoint_path(key: str, level: int, step: int) -> str:
    """Return the path of a pair's checkpoint."""
    return f"{CHECKPOINTS_FOLDER}/{key}.{level}-{step:06d}.npz"


def parse_checkpoint_name(name: str) -> tuple[str, int, int] | None:
    """Return key, level and step in the name of a checkpoint, or None for another file."""
    match = re.fullmatch(r"([^.]*)\.(\d+)-(\d+)\.npz", name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def claim_path(key: str, generation: int) -> str:
    """Return the path of a pair's claim."""
    return f"{CLAIMS_FOLDER}/{key}.{generation}.json"


def parse_claim_name(name: str) -> tuple[str, int] | None:
    """Return key and generation in the name of a claim, or None for another file."""
    match = re.fullmatch(r"(.*)\.(\d+)\.json", name)
    return (match[1], int(match[2])) if match else None


# Files of a run


def run_folder(run_id: str) -> str:
    """Return the path of a run's folder."""
    return f"{RUNS_FOLDER}/{run_id}"


RUN_FOLDER_TO_OUT = "../../"
"""Relative URL from a run's folder to the output folder."""


def manifest_path(run_id: str) -> str:
    """Return the path of the copy of a run's manifest."""
    return f"{run_folder(run_id)}/manifest.csv"


def rejected_path(run_id: str) -> str:
    """Return the path of a run's rejected rows."""
    return f"{run_folder(run_id)}/rejected.csv"


def summary_path(run_id: str) -> str:
    """Return the path of a run's summary table."""
    return f"{run_folder(run_id)}/summary.parquet"


def run_report_path(run_id: str) -> str:
    """Return the path of the report on one run."""
    return f"{run_folder(run_id)}/report.html"


def run_record_path(run_id: str) -> str:
    """Return the path of a run's record: its options, counts, failures and warnings as JSON."""
    return f"{run_folder(run_id)}/run.json"


def stop_path(run_id: str) -> str:
    """Return the path of a run's stop signal."""
    return f"{run_folder(run_id)}/stop"


# Files of a sweep


def ledger_folder(file: str) -> str:
    """Return the path of the folder with the ledger entries of a manifest, by its file name in the inbox."""
    return f"{LEDGER_FOLDER}/{file}"


def ledger_path(file: str, began: datetime, token: str) -> str:
    """Return the path of a ledger entry; entries of one manifest sort by time, and `token` tells those of one moment apart."""
    return f"{ledger_folder(file)}/{began:%Y%m%dT%H%M%S.%fZ}-{token}.json"
