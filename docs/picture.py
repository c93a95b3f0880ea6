"""Assemble README's picture from the thumbnails of an output folder: a row for each pair, content, style and result.

make demo && .venv/bin/python docs/picture.py demo-output docs/demo.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from nst_tasks import images


def main(out: Path, target: Path) -> None:
    """Write the thumbnails below `out`, one under another in the order of their names, as one picture."""
    strips = [images.decode(path.read_bytes(), 10**8).rgb for path in sorted((out / "thumbnails").iterdir())]
    width = max(strip.shape[1] for strip in strips)
    rows = [np.pad(strip, ((0, 6), (0, width - strip.shape[1]), (0, 0)), constant_values=1.0) for strip in strips]
    target.write_bytes(images.encode(np.concatenate(rows), None, "jpg", {}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
