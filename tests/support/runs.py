"""Small runs of whole manifests: what they are given, their call in this process, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from nst_tasks.errors import InputError
from nst_tasks.inputs.options import RunOptions
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import outcome
from nst_tasks.outputs.layout import history_path, marker_path
from nst_tasks.planning.prepare import prepare

if TYPE_CHECKING:
    from flows.console import FlowEnd


SHALLOW = "[content.layers]\nblock2_conv1 = 1.0\n[style.layers]\nblock1_conv1 = 1.0\nblock2_conv1 = 1.0\n"
"""Tables of a recipe file that has the first layers only: most of the time of a small run is the tracing of its graphs."""


def write_shallow_recipe(folder: Path) -> str:
    """Write `tf-tutorial` with the first layers only into the folder as shallow.toml and return its path."""
    (folder / "shallow.toml").write_text(f'base = "tf-tutorial"\n{SHALLOW}')
    return str(folder / "shallow.toml")


def write_manifest(folder: Path, *rows: str, header: str = "id,content,style", name: str = "m.csv") -> str:
    """Write a manifest into the folder and return its path."""
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return str(folder / name)


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below the folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def request_of(folder: Path, manifest: str = "", out: str = "", **options: Any) -> tuple[str, str, RunOptions]:
    """Return manifest, output and options of a run with the tiny backbone: by default the folder's m.csv into its `out`."""
    return manifest or str(folder / "m.csv"), out or str(folder / "out"), RunOptions(**{"backbone": "tiny"} | options)


def refusals(request: tuple[str, str, RunOptions]) -> list[str]:
    """Return the lines of the error with which the request is refused."""
    with pytest.raises(InputError) as refused:
        prepare(*request, Settings())
    return str(refused.value).splitlines()


def run(folder: Path, rows: str, out: Path, **options: Any) -> FlowEnd:
    """Write the text of a manifest into the folder and run it in this process, at 64 pixels in three steps unless said."""
    from flows.console import run_flow

    (folder / "m.csv").write_text(rows)
    return run_flow(*request_of(folder, out=str(out), **{"size": 64, "steps": 3} | options))


def read_marker(out: Path, id: str) -> outcome.Outcome:
    """Read a pair's outcome marker."""
    return outcome.from_json((out / marker_path(id)).read_bytes())


def read_losses(out: Path, id: str) -> pd.DataFrame:
    """Read a pair's loss history, without what differs from run to run."""
    return pd.read_parquet(out / history_path(id)).drop(columns=["run_id", "seconds"])
