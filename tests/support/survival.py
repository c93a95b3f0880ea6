"""Runs to which something happens, and what must hold whatever it was."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nst_tasks.images import codec
from nst_tasks.inputs import manifest
from nst_tasks.inputs.options import RunOptions
from nst_tasks.outputs import outcome
from nst_tasks.outputs.layout import marker_path
from nst_tasks.outputs.outcome import Status
from nst_tasks.storage import files
from nst_tasks.storage.uri import get_folder, join_uri
from tests.support.commands import NST
from tests.support.pictures import PATTERNS, encode_pattern
from tests.support.runs import SHALLOW
from tests.support.waiting import TIMEOUT, wait_until

if TYPE_CHECKING:
    from flows.console import FlowEnd

COARSE_TO_FINE = "[pyramid]\nsmallest = 40\nratio = 1.6\n"
RECIPES = {
    "best": f'base = "tf-eager-2018"\n{SHALLOW}',  # Adam, the best image kept
    "averaged": f'base = "wasserstein"\n{SHALLOW}{COARSE_TO_FINE}',  # Adam, averaged images
    "coarse": f'base = "painterly"\n{SHALLOW}{COARSE_TO_FINE}',  # L-BFGS
    "falling": f'base = "keras-io"\n{SHALLOW}',  # SGD at a falling learning rate
}
ROWS = (
    "id,content,style,recipe,seed\n"
    "best,cat.png,oil.png,best.toml,\n"
    "averaged,dog.png,ink.png,averaged.toml,\n"
    "coarse,cat.png,ink.png,coarse.toml,7\n"
    "falling,dog.png,oil.png,falling.toml,\n"
)
"""Every state that a pair may be interrupted in: Adam, L-BFGS, a falling rate; best, averaged and last images; levels."""
IDS = ["best", "averaged", "coarse", "falling"]
STEPS = 24


def write_inputs(folder: str, rows: str = ROWS) -> str:
    """Write a manifest of these rows, the recipe files and the pictures into a folder anywhere; return the manifest's URI."""
    for name in PATTERNS:
        files.write(join_uri(folder, f"{name}.png"), encode_pattern(name))
    for name, text in RECIPES.items():
        files.write(join_uri(folder, f"{name}.toml"), text.encode())
    files.write(join_uri(folder, "m.csv"), rows.encode())
    return join_uri(folder, "m.csv")


def run_inputs(manifest: str, out: str, steps: int = STEPS) -> FlowEnd:
    """Run the manifest in this process, with the tiny backbone, at the pictures' own size."""
    from flows.console import run_flow

    return run_flow(manifest, out, RunOptions(backbone="tiny", size=96, steps=steps))


def build_command(manifest: str, out: str, steps: int = STEPS, *options: str) -> list[str]:
    """Return the command that does the same as a process of its own."""
    return [NST, "run", manifest, "--out", out, "--backbone", "tiny", "--size", "96", "--steps", str(steps), *options]


def read_results(out: str, ids: Sequence[str]) -> dict[str, tuple[bytes, pd.DataFrame, dict[str, float]]]:
    """Read what is the same however a run went: picture, losses, and the marker's losses, by id."""
    by_id = {}
    for id in ids:
        marker = outcome.from_json(files.read(join_uri(out, marker_path(id))))
        history = pd.read_parquet(io.BytesIO(files.read(join_uri(out, marker.history))))
        by_id[id] = (files.read(join_uri(out, marker.image)), history.drop(columns=["run_id", "seconds"]), marker.losses)
    return by_id


def assert_same_results(out: str, calm: str, ids: Sequence[str] = IDS) -> None:
    """Check that the results are the same byte for byte, but for who made them when."""
    results, calm_results = read_results(out, ids), read_results(calm, ids)
    for id in ids:
        assert results[id][0] == calm_results[id][0], f"{id}: another picture"
        pd.testing.assert_frame_equal(results[id][1], calm_results[id][1], check_exact=True, obj=f"{id}: the losses")
        assert results[id][2] == calm_results[id][2], f"{id}: other losses in the marker"


def assert_markers_hold(out: str) -> dict[str, outcome.Outcome]:
    """Check that each marker of a success has its picture, history and thumbnail, whole; return the outcomes by id."""
    by_id = {}
    for name in files.list_files(join_uri(out, "outcomes")):
        marker = outcome.from_json(files.read(join_uri(out, "outcomes", name)))
        assert name == f"{marker.id}.json"
        by_id[marker.id] = marker
        if marker.status != Status.SUCCEEDED:
            assert marker.status == Status.FAILED and marker.error and not marker.image, name
            continue
        picture = files.read(join_uri(out, marker.image))
        assert (len(picture), hashlib.sha256(picture).hexdigest()) == (marker.image_bytes, marker.image_sha256), name
        assert codec.read_metadata(picture)["nst:key"] == marker.key, name
        assert codec.decode(picture, 10**6).rgb.shape == (marker.height, marker.width, 3), name
        history = files.read(join_uri(out, marker.history))
        assert len(history) == marker.history_bytes, name
        losses = pd.read_parquet(io.BytesIO(history))
        assert set(losses.pair_id) == {marker.id} and losses.total.iloc[-1] == marker.losses["total"], name
        assert losses.groupby("level").step.apply(list).map(lambda steps: steps == list(range(len(steps)))).all(), name
        assert files.stat(join_uri(out, marker.thumbnail)), name
    return by_id


def assert_nothing_lost(out: str, rows: str = ROWS, swept: bool = True) -> Counter[str]:
    """Check that the newest finished run accounts for every row of its manifest once, and return its counts.

    Without `swept`, what its pairs needed on the way may lie about until the next run.
    """
    markers = assert_markers_hold(out)
    finished_records = [uri for uri in files.expand_glob(join_uri(out, "runs", "*", "run.json"))]
    newest = get_folder(max(finished_records))
    record = json.loads(files.read(join_uri(newest, "run.json")))
    summary = pd.read_parquet(io.BytesIO(files.read(join_uri(newest, "summary.parquet"))))
    parsed_manifest = manifest.parse(rows.encode(), "/")
    assert record["rows"] == sum(record["counts"].values()) == parsed_manifest.rows == len(summary)
    assert sorted(summary.row) == sorted(
        [pair.row for pair in parsed_manifest.pairs] + [row.row for row in parsed_manifest.rejected]
    )
    counts = Counter(map(str, summary.status))
    assert {status: counts[status] for status in map(str, Status)} == record["counts"]
    pairs = summary[summary.status != "rejected"]
    assert sorted(pairs.id) == sorted(pair.id for pair in parsed_manifest.pairs)
    for row in pairs.itertuples():
        if row.status == "failed":
            assert row.error and not row.image
        else:
            assert (markers[row.id].status, markers[row.id].key) == (Status.SUCCEEDED, row.key), row.id
    if swept:
        for left in ("checkpoints", "claims"):
            assert files.list_files(join_uri(out, left)) == {}, f"{left} of finished pairs"
    return counts


def kill_until_done(command: list[str], out: Path, kills: int, seed: int) -> tuple[int, subprocess.CompletedProcess[str]]:
    """Run the command again and again, killed with SIGKILL at a random moment after it got somewhere, and then let it end.

    Returns:
        The number of kills, fewer than `kills` if the run finished before, and the run that ended by itself.
    """
    generator, kill_count = random.Random(seed), 0
    while True:
        before = list_progress(out)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if kill_count < kills:
            wait_until(lambda: process.poll() is not None or list_progress(out) != before)  # noqa: B023
            time.sleep(generator.uniform(0.0, 2.0))
        if kill_count < kills and process.poll() is None:
            process.kill()
            process.communicate()
            kill_count += 1
            assert_markers_hold(str(out))
            continue
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        return kill_count, subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def list_progress(out: Path) -> set[str]:
    """Return the checkpoints and markers that are there."""
    return {str(path) for folder in ("checkpoints", "outcomes") for path in (out / folder).glob("[!.]*")}
