"""Peak memory of a few steps as a function of image size, from which the constants of `core.memory.peak_bytes` are derived.

    .venv/bin/python bench/memory.py

Each size runs in its own process, because the peak of a process never falls. Prints bytes per pixel between neighbouring sizes:
the slope, which excludes TensorFlow's constant share. Above 362 px, in mixed precision above 256 px, images are computed in
bands (core/bands.py).
"""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from dataclasses import replace

SIZES_PX = (256, 352, 512, 1024, 2048)


def measure(recipe: str, size: int, precision: str) -> None:
    """Run three steps of a recipe at one size and print this process's peak in bytes."""
    import numpy as np

    from nst_tasks.core import transfer, vgg
    from nst_tasks.engine.hardware import detect_flipped_direction
    from nst_tasks.engine.runtime import import_tensorflow
    from nst_tasks.inputs import presets, weights

    import_tensorflow()

    method = replace(presets.find_preset(recipe).method, precision=precision)
    backbone = vgg.build("vgg16-hed", weights.load("vgg16-hed", None), flipped_direction=detect_flipped_direction())
    contents = np.random.default_rng(0).random((1, size, size, 3), np.float32)
    style = transfer.style_statistics(backbone, method, contents[0, ::-1])
    targets = transfer.build_targets(backbone, method, contents, [[style]], [[1.0]])
    transfer.advance(backbone, method, targets, transfer.start(method, contents, [0]), 3, 3)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    """Print the table."""
    for recipe, precision in itertools.product(("painterly", "tf-tutorial"), ("float32", "mixed")):
        previous = None
        for size in SIZES_PX:
            command = [sys.executable, __file__, recipe, str(size), precision]
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
            peak = int(done.stdout)
            slope = "" if previous is None else f"{(peak - previous[1]) / (size**2 - previous[0] ** 2):8.0f} bytes per pixel"
            print(f"{recipe:12} {precision:8} {size:4} px  peak {peak / 2**30:5.2f} GiB {slope}", flush=True)
            previous = size, peak


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main()
