"""Paths below OUT: one of each kind, parsed names, and no such path in any other module."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nst_tasks.outputs import layout

ROOT = Path(__file__).parents[2]
BEGAN = datetime(2026, 11, 22, 2, 0, 0, 7, UTC)
PATHS = {
    layout.image_path("a", "jpg"): "images/a.jpg",
    layout.snapshot_path("a", 12): "images/a.snapshots/step-000012.png",
    layout.thumbnail_path("a"): "thumbnails/a.jpg",
    layout.thumbnail_path("a", "webp"): "thumbnails/a.webp",
    layout.history_path("a"): "history/a.parquet",
    layout.marker_path("a"): "outcomes/a.json",
    layout.checkpoint_path("5a", 1, 20): "checkpoints/5a.1-000020.npz",
    layout.claim_path("5a", 3): "claims/5a.3.json",
    layout.run_folder("r"): "runs/r",
    layout.manifest_path("r"): "runs/r/manifest.csv",
    layout.rejected_path("r"): "runs/r/rejected.csv",
    layout.summary_path("r"): "runs/r/summary.parquet",
    layout.run_report_path("r"): "runs/r/report.html",
    layout.run_record_path("r"): "runs/r/run.json",
    layout.stop_path("r"): "runs/r/stop",
    layout.REPORT_PATH: "report.html",
    layout.ledger_folder("m.csv"): "_ledger/m.csv",
    layout.ledger_path(
        "m.csv", datetime(2026, 11, 22, 2, 0, 0, 7, UTC), "ab12"
    ): "_ledger/m.csv/20261122T020000.000007Z-ab12.json",
}


def test_one_path_of_each_kind() -> None:
    assert list(PATHS) == list(PATHS.values())


def test_generated_names_are_parsed() -> None:
    def get_name(path: str) -> str:
        return path.rpartition("/")[2]

    assert layout.parse_marker_name(get_name(layout.marker_path("a.b"))) == "a.b"
    assert layout.parse_checkpoint_name(get_name(layout.checkpoint_path("5a", 1, 2_000_000))) == ("5a", 1, 2_000_000)
    assert layout.parse_claim_name(get_name(layout.claim_path("5a", 10))) == ("5a", 10)


@pytest.mark.parametrize("name", ["notes.txt", "5a.json", "5a.1-x.npz", "5a.1-2.npz~", "5a.x.json", "5a.1.json~", "5a-1.json"])
def test_names_of_other_files_are_not_parsed(name: str) -> None:
    assert layout.parse_checkpoint_name(name) is None
    assert layout.parse_claim_name(name) is None
    assert (layout.parse_marker_name(name) is None) == (not name.endswith(".json"))


def test_run_folder_has_the_path_back_to_the_output() -> None:
    assert layout.run_folder("r").count("/") + 1 == layout.RUN_FOLDER_TO_OUT.count("../")


# One module for all paths

NAMES = (
    "images", "thumbnails", "history", "outcomes", "checkpoints", "claims", "runs", "_ledger", "snapshots",
    "manifest.csv", "rejected.csv", "summary.parquet", "report.html", "run.json", "stop",
)  # fmt: skip
SEGMENT = re.compile(rf"(?:^|[/.])(?:{'|'.join(map(re.escape, NAMES))})(?:/|$)")
COLUMN = ("nst_tasks/outputs/report.py", "history")  # a column of the summary


def list_path_literals(source: str) -> list[str]:
    """List string constants, other than docstrings, that name a path below OUT between slashes."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [str(node.value) for node in texts if id(node) not in docstrings and SEGMENT.search(str(node.value))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('join_uri(out, "claims", name)', ["claims"]),
        ('f"{out}/images"', ["/images"]),
        ('f"outcomes/{id}.json"', ["outcomes/"]),
        ('f"{folder}/run.json"', ["/run.json"]),
        ('def f():\n    """Write `OUT/report.html`, claims/ and images."""', []),
        ('print("run.json has them all, see the claims")', []),
    ],
)
def test_path_literals_are_found(source: str, expected: list[str]) -> None:
    assert list_path_literals(source) == expected


def test_no_other_module_spells_a_path_below_the_output() -> None:
    modules = [path for package in ("nst_tasks", "flows") for path in (ROOT / package).rglob("*.py")]
    literals = {(str(path.relative_to(ROOT)), text) for path in modules for text in list_path_literals(path.read_text())}
    assert {path for path, _ in literals - {COLUMN}} == {"nst_tasks/outputs/layout.py"}
