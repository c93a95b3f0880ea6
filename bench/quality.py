"""Quality of all recipes at equal compute: style gap closed against content kept, at three style weights.

All recipes have the same pairs. Results are computed in float32, and at each recipe's own style weight also in mixed precision.

    .venv/bin/pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python -m bench quality --out bench/results/quality.csv
    .venv/bin/python -m bench quality --out bench/results/quality.csv --plot docs/quality.png

Compute is measured in pixels times steps. The steps of each recipe, at all levels by the same factor, are scaled to cost as
much as `--steps` steps at full size. Each result is appended to the file at once; results that the file already has are not
computed again. The table and the plot show means over the pairs. Without `--manifest` the pairs are `PAIRS`, made of the demo's
images and a poster drawn here; they cover a face, a night sky, text and flat colors.
"""

from __future__ import annotations

import csv
import io
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench import ours
from bench.processes import create_parser
from bench.results import read_rows
from manifests import samples
from nst_tasks.core import metrics, transfer, vgg
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.images import codec
from nst_tasks.images.picture import Picture
from nst_tasks.images.resize import fit_size, resize
from nst_tasks.inputs import manifest, presets
from nst_tasks.inputs.recipe import Overrides, Recipe, override
from nst_tasks.storage import files
from nst_tasks.storage.uri import get_folder

STYLE_WEIGHT_FACTORS = (0.25, 1.0, 4.0)
"""Multiples of each recipe's own style weight."""

PRECISIONS_AND_FACTORS = (*(("float32", factor) for factor in STYLE_WEIGHT_FACTORS), ("mixed", 1.0))
"""Precision and style weight factor of each result."""

PAIRS = (("astronaut", "stipple"), ("rocket", "swirls"), ("poster", "dunes"))

NOT_FINITE = "not_finite"
"""Flag of a result that diverged."""

COLUMNS = (
    "recipe", "precision", "factor", "pair", "steps", "pixel_iterations", "style_gap_held_out", "style_gap_used",
    "content_cosine", "luminance_ssim", "flags", "seconds",
)  # fmt: skip


def draw_poster() -> bytes:
    """Draw a PNG of text and flat colors, which the photographs lack."""
    picture = Image.new("RGB", (512, 384), (244, 240, 228))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 250, 512, 384), fill=(32, 74, 135))
    draw.ellipse((330, 40, 470, 180), fill=(204, 38, 38))
    draw.polygon(((60, 250), (150, 90), (240, 250)), fill=(56, 118, 29))
    draw.text((40, 270), "STYLE", fill=(255, 255, 255), font=ImageFont.load_default(96))
    draw.text((40, 20), "transfer by lot", fill=(30, 30, 30), font=ImageFont.load_default(44))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class Pair(NamedTuple):
    """Content and style to compare recipes on, images (H, W, 3) in [0, 1]."""

    name: str
    content: np.ndarray
    style: np.ndarray


def load_bundled_pairs() -> list[Pair]:
    """Return the pairs of `PAIRS`."""
    images_by_name = {Path(name).stem: data for name, data in samples.samples().items()} | {"poster": draw_poster()}
    return [
        Pair(f"{content} x {style}", *(codec.decode(images_by_name[name], 10**8).rgb for name in (content, style)))
        for content, style in PAIRS
    ]


def load_manifest_pairs(uri: str) -> list[Pair]:
    """Return content and first style of each row of a manifest."""
    return [
        Pair(row.id, *(codec.decode(files.read(image), 10**9).rgb for image in (row.content, row.styles[0])))
        for row in manifest.parse(files.read(uri), get_folder(uri)).pairs
    ]


def resize_to(rgb: np.ndarray, size: int) -> np.ndarray:
    """Resize the image to this longest side."""
    return resize(Picture(rgb, None), *fit_size(rgb.shape[0], rgb.shape[1], size, upscale=True)).rgb


def count_pixel_steps(method: Method, height: int, width: int) -> int:
    """Return the compute of a method: pixels times steps, summed over levels."""
    return sum(level.steps * level.height * level.width for level in plan_levels(method, height, width))


def scale_steps(recipe: Recipe, height: int, width: int, steps: int) -> Recipe:
    """Return the recipe with its steps scaled to cost as much as `steps` steps at full size."""
    share = steps * height * width / count_pixel_steps(recipe.method, height, width)
    return override(recipe, Overrides(steps=max(1, round(recipe.method.steps * share))))


def stylize(backbone: vgg.Backbone, method: Method, content: np.ndarray, style: np.ndarray, size: int) -> tuple[Any, list]:
    """Return the stylized image (H, W, 3) at this longest side, and each level's total losses."""
    state, image, losses = None, None, []
    for level in plan_levels(method, *fit_size(content.shape[0], content.shape[1], size, upscale=True)):
        shape = (level.height, level.width)
        fits_content = method.style_shape == "content"
        style_shape = shape if fits_content else fit_size(style.shape[0], style.shape[1], max(shape), upscale=True)
        level_content = resize(Picture(content, None), *shape).rgb[None]  # (1, h, w, 3)
        statistics = transfer.style_statistics(backbone, method, resize(Picture(style, None), *style_shape).rgb)
        targets = transfer.build_targets(backbone, method, level_content, [[statistics]], [[1.0]])
        if state is None or image is None:
            mean = np.broadcast_to(np.float32(vgg.MEAN_RGB) / np.float32(255), level_content.shape)
            state = transfer.start(method, level_content if method.init == "content" else mean, [0])
        else:
            state = transfer.start_next_level(method, state, image, level)
        terms = np.zeros((0, 1, 3), np.float32)
        if level.steps:
            state, terms = transfer.advance(backbone, method, targets, state, level.steps, level.steps)
        image, last_terms = transfer.compute_result(backbone, method, targets, state)
        losses.append(np.concatenate([terms, last_terms[None]])[:, 0].sum(axis=1))
    assert image is not None
    return np.clip(image.numpy()[0], 0.0, 1.0), losses


def measure_quality(
    backbone: vgg.Backbone, layers: list[str], out: np.ndarray, content: np.ndarray, style: np.ndarray, losses: list
) -> metrics.Quality:
    """Return the quality metrics of a result, computed as in a run."""
    side = metrics.COMPARISON_SIDE_PIXELS
    height, width = fit_size(out.shape[0], out.shape[1], side, upscale=False)
    out, content = (resize(Picture(rgb, None), height, width).rgb for rgb in (out, content))
    content_moments = metrics.content_moments(backbone, content, layers)
    style_moments = metrics.style_moments(backbone, resize_to(style, side), layers)
    return metrics.measure(backbone, layers, out, content_moments, [style_moments], [1.0], losses=losses)


def compute_missing(
    path: Path, pairs: list[Pair], recipes: Iterable[str], size: int, steps: int, pictures: Path | None
) -> None:
    """Compute the results that a file does not have yet, and append each to it.

    Args:
        recipes: Names of recipes.
        size: Longest side in pixels.
        steps: Compute of each recipe, in steps at full size.
        pictures: Folder for the stylized images.
    """
    backbone = ours.build_backbone()
    for folder in filter(None, (path.parent, pictures)):
        folder.mkdir(parents=True, exist_ok=True)
    earlier_rows = read_rows(path) if path.exists() else []
    done = {(row["recipe"], row["precision"], float(row["factor"]), row["pair"]) for row in earlier_rows}
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            table.writeheader()
        for pair, name, (precision, factor) in itertools.product(pairs, recipes, PRECISIONS_AND_FACTORS):
            if (name, precision, factor, pair.name) in done:
                continue
            preset = presets.find_preset(name)
            style_weight = preset.method.style.weight * factor
            recipe = override(preset, Overrides(style_weight=style_weight, precision=precision))
            row, image = compute_row(backbone, recipe, pair, size, steps)
            table.writerow({"recipe": name, "precision": precision, "factor": factor, "pair": pair.name, **row})
            file.flush()
            if pictures and row["flags"] != NOT_FINITE:
                picture_path = pictures / f"{name}_{precision}_{factor:g}_{pair.name.replace(' ', '')}.png"
                picture_path.write_bytes(codec.encode(image, None, "png", {}))


def compute_row(
    backbone: vgg.Backbone, recipe: Recipe, pair: Pair, size: int, steps: int
) -> tuple[dict[str, object], np.ndarray]:
    """Return the measured columns of one result, and its image (H, W, 3)."""
    height, width = fit_size(pair.content.shape[0], pair.content.shape[1], size, upscale=True)
    method = scale_steps(recipe, height, width, steps).method
    start = time.monotonic()
    image, losses = stylize(backbone, method, pair.content, pair.style, size)
    seconds = time.monotonic() - start
    row: dict[str, object] = {"steps": method.steps, "pixel_iterations": count_pixel_steps(method, height, width)}
    if np.isfinite(image).all():
        layers = [layer for layer, _ in method.style.layers]
        quality = measure_quality(backbone, layers, image, pair.content, pair.style, losses)
        row |= {key: value for key, value in quality.as_plain().items() if key in COLUMNS}
        row["flags"] = "|".join(quality.flags)
    else:
        row["flags"] = NOT_FINITE
    return {**row, "seconds": round(seconds, 1)}, image


def compute_means(rows: list[dict[str, str]], precision: str) -> dict[str, list[dict[str, float]]]:
    """Return, for each recipe, the means over the pairs at each factor in ascending order; NaN if one of the pairs diverged.

    A pair counts only once it has results for every recipe and factor, in mixed precision too if the file has any.
    """
    groups: dict[tuple[str, str, float], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        groups[row["recipe"], row["precision"], float(row["factor"])][row["pair"]] = row
    complete = set.intersection(*(set(group) for group in groups.values()))
    means_by_recipe: dict[str, list[dict[str, float]]] = defaultdict(list)
    names = ("style_gap_held_out", "style_gap_used", "content_cosine", "luminance_ssim", "seconds")
    for (recipe, row_precision, factor), group in sorted(groups.items()):
        if row_precision != precision:
            continue
        pairs = [group[pair] for pair in sorted(complete)]
        numbers = {name: float(np.mean([float(row[name] or "nan") for row in pairs])) for name in names}
        means_by_recipe[recipe].append({"factor": factor, **numbers})
    return means_by_recipe


def format_table(means_by_recipe: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table with a row for each recipe and factor.

    Recipes are ordered by their held-out style gap at their own style weight, best first.
    """
    lines = [
        "| recipe | style weight | style gap closed | on its own layers | content cosine | SSIM |",
        "|---|---|---|---|---|---|",
    ]

    def get_published_gap(recipe: str) -> float:
        return max((point["style_gap_held_out"] for point in means_by_recipe[recipe] if point["factor"] == 1.0), default=-1.0)

    for recipe in sorted(means_by_recipe, key=get_published_gap, reverse=True):
        for point in means_by_recipe[recipe]:
            numbers = (point[name] for name in ("style_gap_held_out", "style_gap_used", "content_cosine", "luminance_ssim"))
            cells = ("diverges" if np.isnan(number) else f"{number:.2f}" for number in numbers)
            lines.append(f"| `{recipe}` | x {point['factor']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_precisions(float32: dict[str, list[dict[str, float]]], mixed: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table that compares float32 with mixed precision, each recipe at its own style weight."""
    names = ("style_gap_held_out", "content_cosine", "seconds")
    lines = [
        "| recipe | style gap closed, float32 | mixed | content cosine, float32 | mixed | seconds, float32 | mixed |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in mixed:
        points = [next(point for point in means[recipe] if point["factor"] == 1.0) for means in (float32, mixed)]
        numbers = [point[name] for name in names for point in points]
        cells = ("diverges" if np.isnan(number) else f"{number:.3g}" for number in numbers)
        lines.append(f"| `{recipe}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(means_by_recipe: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot a curve over the style weights for each recipe: x is content kept, y is style gap closed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    for k, recipe in enumerate(presets.PRESETS):
        if recipe in means_by_recipe:
            x = [point["content_cosine"] for point in means_by_recipe[recipe]]
            y = [point["style_gap_held_out"] for point in means_by_recipe[recipe]]
            style = (
                {"color": "black", "linewidth": 3} if recipe == presets.DEFAULT else {"color": f"C{k - 1}", "linewidth": 1.2}
            )
            axes.plot(x, y, "o-", label=recipe, **style)
    axes.set_xlabel("content kept: cosine of block4_conv2 features")
    axes.set_ylabel("style gap closed on held-out layers")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Compute the missing results, print the tables and draw the plot."""
    parser = create_parser(__name__, __doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV file of results, continued if it is there")
    parser.add_argument("--manifest", help="pairs of this manifest instead of the bundled ones")
    parser.add_argument("--recipes", nargs="*", help="only these")
    parser.add_argument("--size", type=int, default=192, help="longest side, in pixels")
    parser.add_argument("--steps", type=int, default=40, help="each recipe's compute, in steps at full size")
    parser.add_argument("--pictures", type=Path, help="folder for the stylized images")
    parser.add_argument("--plot", type=Path, help="only draw and print what the file holds")
    args = parser.parse_args(arguments)
    if not args.plot:
        pairs = load_manifest_pairs(args.manifest) if args.manifest else load_bundled_pairs()
        compute_missing(args.out, pairs, args.recipes or presets.PRESETS, args.size, args.steps, args.pictures)
    rows = read_rows(args.out)
    means_float32 = compute_means(rows, "float32")
    print(format_table(means_float32))
    if mixed := compute_means(rows, "mixed"):
        print(format_precisions(means_float32, mixed))
    if args.plot:
        plot(means_float32, args.plot)
