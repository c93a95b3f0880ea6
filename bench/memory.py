"""Peak memory of a few steps by image size, the source of the constants of `core.memory`.

    .venv/bin/python -m bench memory
    .venv/bin/python -m bench memory --sizes 256,512
    .venv/bin/python -m bench memory --only painterly float32 512   # prints the peak in bytes

Each size runs in its own process, because the peak of a process never falls. Prints bytes per pixel between neighboring sizes:
the slope, which excludes TensorFlow's constant share. Above 362 px, in mixed precision above 256 px, images are computed in
bands (core/bands.py).
"""

from __future__ import annotations

import itertools
import resource
import subprocess
from collections.abc import Sequence

from bench.processes import BENCH, ROOT, create_parser

STEPS = 3


def measure_peak_bytes(recipe: str, precision: str, size: int) -> int:
    """Run a few steps of a recipe at one size and return this process's peak resident memory."""
    import numpy as np

    from bench import ours

    content = np.random.default_rng(0).random((size, size, 3), np.float32)
    ours.start(ours.build_backbone(), ours.build_method(recipe, precision), content, content[::-1]).advance(STEPS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux reports KiB


def print_table(sizes: Sequence[int]) -> None:
    """Print the peak at each size, and the slope from the size before it."""
    for recipe, precision in itertools.product(("painterly", "tf-tutorial"), ("float32", "mixed")):
        previous = None
        for size in sizes:
            command = [*BENCH, "memory", "--only", recipe, precision, str(size)]
            process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
            peak = int(process.stdout)
            slope = "" if previous is None else f"{(peak - previous[1]) / (size**2 - previous[0] ** 2):8.0f} bytes per pixel"
            print(f"{recipe:12} {precision:8} {size:4} px  peak {peak / 2**30:5.2f} GiB {slope}", flush=True)
            previous = size, peak


def main(arguments: Sequence[str]) -> None:
    """Print the table, or one peak."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("--sizes", default="256,352,512,1024,2048", help="sides in pixels, by commas")
    parser.add_argument("--only", nargs=3, metavar=("RECIPE", "PRECISION", "SIZE"), help="measure in this process, once")
    args = parser.parse_args(arguments)
    if args.only:
        recipe, precision, size = args.only
        print(measure_peak_bytes(recipe, precision, int(size)))
    else:
        print_table([int(size) for size in args.sizes.split(",")])
