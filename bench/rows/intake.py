"""Time of a large manifest without optimization, process start to end.

    .venv/bin/python -m bench rows.intake large --pairs 10000

Measures `nst validate`, and `nst plan` and `nst run` on a finished output, where nothing is left to do. The finished output is
written here, with the same files that a run writes, except that all pairs share the image files of the first one, which is
stylized by a real run.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.processes import NST, build_environment
from bench.row import Row, build_cost_row, run_commands
from nst_tasks.images import codec
from nst_tasks.inputs.options import RunOptions
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import outcome
from nst_tasks.outputs.layout import history_path, image_path, marker_path, thumbnail_path
from nst_tasks.planning.inspection import inspect_image, list_image_uris
from nst_tasks.planning.prepare import prepare
from nst_tasks.planning.triage import triage

GOAL_SECONDS = {"validate": 2.0, "plan": 15.0, "run": 20.0}


def large(pairs: int = 10_000, rounds: int = 3) -> list[Row]:
    """Measure the seconds of each command in its own process."""
    seconds: dict[str, list[float]] = {name: [] for name in GOAL_SECONDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, out = write_manifest(folder, pairs), folder / "out"
        environment = build_environment(folder)
        write_finished_output(manifest, out, environment)
        rest = [str(manifest), "--out", str(out), "--backbone", "tiny"]
        commands = {"validate": ["validate", str(manifest)], "plan": ["plan", *rest], "run": ["run", *rest, "--json"]}
        for number in range(rounds + 1):  # the first round creates Prefect's database and does not count
            for command, arguments in commands.items():
                start = time.perf_counter()
                process = subprocess.run([NST, *arguments], env=environment, stdout=subprocess.PIPE, check=True)
                if number:
                    seconds[command].append(time.perf_counter() - start)
        counts = json.loads(process.stdout)["counts"]
        assert counts["skipped"] == pairs, counts
    works = {"validate": "validate", "plan": "plan on a finished output", "run": "rerun that finds all done"}
    goals = GOAL_SECONDS if pairs == 10_000 else {}
    return [
        build_cost_row(f"{pairs:,} rows: {work}", goals.get(name), seconds[name], "s", "process start to end")
        for name, work in works.items()
    ]


def write_manifest(folder: Path, pairs: int) -> Path:
    """Write a manifest of this many pairs, combined from few images of 64 by 48 px, and return its path."""
    side = math.ceil(math.sqrt(pairs))
    for k in range(2 * side):
        picture = np.random.default_rng(k).random((48, 64, 3), np.float32)
        (folder / f"{k}.png").write_bytes(codec.encode(picture, None, "png", {}))
    lines = [f"{row % side}.png,{side + row // side}.png" for row in range(pairs)]
    (folder / "m.csv").write_text("\n".join(["content,style", *lines]) + "\n")
    return folder / "m.csv"


def write_finished_output(manifest: Path, out: Path, environment: Mapping[str, str]) -> None:
    """Write the output of a run of the manifest with the tiny backbone, with the first pair's files for every pair."""
    lines, first_out = manifest.read_text().splitlines()[:2], manifest.with_name("first")
    manifest.with_name("first.csv").write_text("\n".join([*lines, ""]))
    run = [NST, "run", manifest.with_name("first.csv"), "--out", first_out, "--backbone", "tiny", "--steps", "4"]
    subprocess.run(run, env=environment, stdout=subprocess.DEVNULL, check=True)
    (marker,) = (first_out / "outcomes").iterdir()
    first = outcome.from_json(marker.read_bytes())
    files = {path: (first_out / path).read_bytes() for path in (first.image, first.history, first.thumbnail)}
    options, settings = RunOptions(backbone="tiny"), Settings()
    loaded = prepare(str(manifest), str(out), options, settings)
    sources = {uri: inspect_image(uri, settings.max_pixels) for uri in list_image_uris(loaded.manifest.pairs)}
    for folder in ("images", "history", "thumbnails", "outcomes"):
        (out / folder).mkdir(parents=True)
    for job in triage(loaded, sources, options, {}).to_do:
        done = replace(
            first,
            id=job.id,
            row=job.row,
            key=job.key,
            content=job.content,
            styles=job.styles,
            style_weights=job.pair.style_weights,
            recipe=job.recipe.as_plain(),
            height=job.height,
            width=job.width,
            image=image_path(job.id, job.pair.format),
            history=history_path(job.id),
            thumbnail=thumbnail_path(job.id),
        )
        for path, its in (("image", first.image), ("history", first.history), ("thumbnail", first.thumbnail)):
            (out / getattr(done, path)).write_bytes(files[its])
        (out / marker_path(job.id)).write_bytes(outcome.to_json(done))


def main(arguments: Sequence[str]) -> None:
    """Measure the rows of one command."""
    run_commands(__name__, arguments, large)
