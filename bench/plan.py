"""How long a plan takes where nothing is left to do: the output of every pair is there, and only has to be believed.

    .venv/bin/python bench/plan.py [ROWS]

Makes a manifest of 10,000 rows (or so many) and a finished output for it in a temporary folder, markers as a run leaves them
and files of a few bytes beside them, and prints the seconds of `nst plan` as a process of its own.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nst_tasks import images, intake, outcome
from nst_tasks.outcome import Outcome, Status
from nst_tasks.request import Request
from nst_tasks.settings import Settings


def finish(manifest: Path, out: Path) -> None:
    """Write what a run of a manifest with the tiny backbone leaves behind, but for the pictures' own bytes."""
    request, settings = Request(str(manifest), str(out), backbone="tiny"), Settings()
    taken = intake.prepare(request, settings)
    sources = {uri: intake.inspect(uri, settings.max_pixels) for uri in intake.picture_uris(taken.manifest.pairs)}
    for folder in ("images", "history", "outcomes"):
        (out / folder).mkdir(parents=True)
    for job in intake.triage(taken, sources, request, {}).to_do:
        done = Outcome(
            id=job.id,
            row=job.row,
            status=Status.SUCCEEDED,
            key=job.key,
            content=job.content,
            styles=job.styles,
            style_weights=job.style_weights,
            recipe=job.recipe.as_plain(),
            height=job.height,
            width=job.width,
            losses=dict.fromkeys(outcome.LOSSES, 1.0),
            quality=dict.fromkeys(outcome.QUALITY, 0.5),
            image=outcome.image_path(job.id, job.format),
            image_bytes=5,
            history=outcome.history_path(job.id),
            history_bytes=5,
        )
        for path in (done.image, done.history):
            (out / path).write_bytes(b"bytes")
        (out / outcome.marker_path(job.id)).write_bytes(outcome.to_json(done))


def main(rows: int) -> None:
    """Print the seconds."""
    side = math.ceil(math.sqrt(rows))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for k in range(2 * side):
            picture = np.random.default_rng(k).random((48, 64, 3), np.float32)
            (folder / f"{k}.png").write_bytes(images.encode(picture, None, "png", {}))
        lines = [f"{row % side}.png,{side + row // side}.png" for row in range(rows)]
        (folder / "m.csv").write_text("\n".join(["content,style", *lines]) + "\n")
        finish(folder / "m.csv", folder / "out")
        command = ["nst", "plan", str(folder / "m.csv"), "--out", str(folder / "out"), "--backbone", "tiny"]
        began = time.monotonic()
        done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, check=True, text=True)
        print(done.stdout, end="")
        print(f"{rows} rows: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
