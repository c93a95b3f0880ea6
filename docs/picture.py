"""README's pictures, assembled from an output folder.

make demo && .venv/bin/python docs/picture.py pairs demo-output docs/demo.jpg
.venv/bin/nst run demo-output/samples/styles.csv --out demo-output/styles
.venv/bin/python docs/picture.py styles demo-output/styles docs/styles.jpg --samples demo-output/samples --height 150
.venv/bin/nst run demo-output/samples/recipes.csv --out demo-output/recipes
.venv/bin/python docs/picture.py recipes demo-output/recipes docs/recipes.jpg --samples demo-output/samples --height 170
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nst_tasks.images import codec
from nst_tasks.images.picture import Picture, flatten_on_white
from nst_tasks.images.resize import resize
from nst_tasks.images.thumbnail import shrink_strip
from nst_tasks.inputs import presets
from nst_tasks.outputs import outcome
from nst_tasks.outputs.outcome import Outcome

GAP = 6
"""Pixels between pictures."""


def pairs(out: Path) -> np.ndarray:
    """Draw the thumbnails in the order of their names, a row each: content, style, result."""
    strips = [
        codec.decode(shrink_strip(path.read_bytes(), 160, 10**8), 10**8).rgb for path in sorted((out / "thumbnails").iterdir())
    ]
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate(
        [np.pad(strip, ((0, GAP), (0, width - strip.shape[1]), (0, 0)), constant_values=1.0) for strip in strips]
    )


def styles(done: list[Outcome], out: Path, samples: Path, height: int) -> np.ndarray:
    """Draw the results in a grid: a row for each content, a column for each style, with the pictures at the left and on top."""
    contents = list(dict.fromkeys(one.content.name for one in done if one.content))
    columns = list(dict.fromkeys(one.styles[0].name for one in done))
    result = {(one.content.name, one.styles[0].name): out / one.image for one in done if one.content}
    sources = {path.stem: path for path in samples.rglob("*.*")}
    square = np.ones((height, height, 3), np.float32)
    rows = [[square, *(_fitted(sources[style], height, height) for style in columns)]]
    rows += [
        [_fitted(sources[name], height, None), *(_fitted(result[name, style], height, None) for style in columns)]
        for name in contents
    ]
    return _stacked(rows)


def recipes(done: list[Outcome], out: Path, samples: Path, height: int) -> np.ndarray:
    """Content and style, then a result for each recipe under its name, four in a row."""
    sources = {path.stem: path for path in samples.rglob("*.*")}
    by_recipe = {one.recipe["name"]: one for one in done}
    first = done[0]
    assert first.content is not None
    tiles = [
        _named(_fitted(sources[first.content.name], height, None), "content"),
        _named(_fitted(sources[first.styles[0].name], height, None), "style"),
    ]
    tiles += [_named(_fitted(out / by_recipe[name].image, height, None), name) for name in presets.PRESETS if name in by_recipe]
    return _stacked([tiles[k : k + 4] for k in range(0, len(tiles), 4)])


def _fitted(path: Path, height: int, width: int | None) -> np.ndarray:
    """Resize the picture to this height, and crop its middle where a width is given."""
    picture = codec.decode(path.read_bytes(), 10**8)
    rgb = flatten_on_white(picture.rgb, picture.alpha)
    rgb = resize(Picture(rgb, None), height, round(rgb.shape[1] * height / rgb.shape[0])).rgb
    left = 0 if width is None else max(0, (rgb.shape[1] - width) // 2)
    return rgb if width is None else rgb[:, left : left + width]


def _named(rgb: np.ndarray, name: str) -> np.ndarray:
    strip = Image.new("RGB", (rgb.shape[1], 24), (255, 255, 255))
    ImageDraw.Draw(strip).text((4, 2), name, fill=(0, 0, 0), font=ImageFont.load_default(17))
    return np.concatenate([np.asarray(strip, np.float32) / 255, rgb])


def _stacked(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Pictures in rows and columns, each column as wide as its widest picture."""
    widths = [max(row[k].shape[1] for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        padded = [
            np.pad(rgb, ((0, GAP), (0, width + GAP - rgb.shape[1]), (0, 0)), constant_values=1.0)
            for rgb, width in zip(row, widths, strict=False)
        ]
        line = np.concatenate(padded, axis=1)
        lines.append(np.pad(line, ((0, 0), (0, sum(widths) + GAP * len(widths) - line.shape[1]), (0, 0)), constant_values=1.0))
    return np.concatenate(lines)


def main() -> None:
    """Write one of the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("pairs", "styles", "recipes"))
    parser.add_argument("out", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--samples", type=Path, help="folder of the pictures that the results were made of")
    parser.add_argument("--height", type=int, default=200, help="of each picture, in pixels")
    args = parser.parse_args()
    if args.kind == "pairs":
        made = pairs(args.out)
    else:
        done = [outcome.from_json(path.read_bytes()) for path in (args.out / "outcomes").iterdir()]
        done.sort(key=lambda one: one.row)
        made = {"styles": styles, "recipes": recipes}[args.kind](done, args.out, args.samples, args.height)
    args.target.write_bytes(codec.encode(made, None, "jpg", {}))


if __name__ == "__main__":
    main()
