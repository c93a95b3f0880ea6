"""Quality of all recipes at equal compute on the same pairs: style gap closed against content kept, at three style weights.

Computed in float32, and at each recipe's own style weight also in mixed precision.

    .venv/bin/pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python bench/quality.py --out bench/results/quality.csv
    .venv/bin/python bench/quality.py --out bench/results/quality.csv --plot docs/quality.png

Compute is measured in pixels times steps. The steps of each recipe, at all levels by the same factor, are scaled to cost as
much as `--steps` steps at full size. Each result is appended to the file at once; results that the file already has are not
computed again. The table and the plot show means over the pairs. Without `--manifest` the pairs are `PAIRS`, made of the demo's
images and a poster drawn here; they cover a face, a night sky, text and flat colours.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manifests import samples
from nst_tasks.core import metrics, transfer, vgg
from nst_tasks.core.method import Method
from nst_tasks.core.pyramid import plan_levels
from nst_tasks.engine.hardware import detect_flipped_direction
from nst_tasks.images import codec
from nst_tasks.images.picture import Picture
from nst_tasks.images.resize import fit_size, resize
from nst_tasks.inputs import manifest, presets, weights
from nst_tasks.inputs.recipe import Overrides, Recipe, override
from nst_tasks.storage import files
from nst_tasks.storage.uri import get_folder

STYLE_WEIGHT_FACTORS = (0.25, 1.0, 4.0)
"""Multiples of each recipe's own style weight."""

PRECISIONS_AND_FACTORS = (*(("float32", factor) for factor in STYLE_WEIGHT_FACTORS), ("mixed", 1.0))
"""Precision and style weight factor of each result."""

PAIRS = (("astronaut", "stipple"), ("rocket", "swirls"), ("poster", "dunes"))

COLUMNS = (
    "recipe", "precision", "factor", "pair", "steps", "pixel_iterations", "style_gap_held_out", "style_gap_used",
    "content_cosine", "luminance_ssim", "flags", "seconds",
)  # fmt: skip


def draw_poster() -> bytes:
    """Draw a PNG of text and flat colours, which the photographs lack."""
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


def load_bundled_pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, content and style of each pair of `PAIRS`, images (H, W, 3) in [0, 1]."""
    images_by_name = {Path(name).stem: data for name, data in samples.samples().items()} | {"poster": draw_poster()}
    for content, style in PAIRS:
        yield f"{content} x {style}", *(codec.decode(images_by_name[name], 10**8).rgb for name in (content, style))


def load_manifest_pairs(uri: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, content and first style of each row of a manifest, images (H, W, 3) in [0, 1]."""
    for pair in manifest.parse(files.read(uri), get_folder(uri)).pairs:
        yield pair.id, *(codec.decode(files.read(at), 10**9).rgb for at in (pair.content, pair.styles[0]))


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
    state, image, totals = None, None, []
    for level in plan_levels(method, *fit_size(content.shape[0], content.shape[1], size, upscale=True)):
        at = (level.height, level.width)
        shape = at if method.style_shape == "content" else fit_size(style.shape[0], style.shape[1], max(at), upscale=True)
        sized = resize(Picture(content, None), *at).rgb[None]
        target = resize(Picture(style, None), *shape).rgb
        statistics = transfer.style_statistics(backbone, method, target)
        targets = transfer.build_targets(backbone, method, sized, [[statistics]], [[1.0]])
        if state is None or image is None:
            mean = np.broadcast_to(np.float32(vgg.MEAN_RGB) / np.float32(255), sized.shape)
            state = transfer.start(method, sized if method.init == "content" else mean, [0])
        else:
            state = transfer.start_next_level(method, state, image, level)
        terms = np.zeros((0, 1, 3), np.float32)
        if level.steps:
            state, terms = transfer.advance(backbone, method, targets, state, level.steps, level.steps)
        image, last = transfer.compute_result(backbone, method, targets, state)
        totals.append(np.concatenate([terms, last[None]])[:, 0].sum(axis=1))
    assert image is not None
    return np.clip(image.numpy()[0], 0.0, 1.0), totals


def score(
    backbone: vgg.Backbone, layers: list[str], out: np.ndarray, content: np.ndarray, style: np.ndarray, totals: list
) -> metrics.Quality:
    """Return the quality metrics of a result, computed as in a run."""
    side = metrics.COMPARISON_SIDE_PIXELS
    height, width = fit_size(out.shape[0], out.shape[1], side, upscale=False)
    sized, of_content = (resize(Picture(rgb, None), height, width).rgb for rgb in (out, content))
    against = metrics.content_moments(backbone, of_content, layers)
    of_style = metrics.style_moments(backbone, resize_to(style, side), layers)
    return metrics.measure(backbone, layers, sized, against, [of_style], [1.0], losses=totals)


def compute_missing(args: argparse.Namespace) -> None:
    """Compute the results that the file does not have yet."""
    backbone = vgg.build("vgg16-hed", weights.load("vgg16-hed", None), flipped_direction=detect_flipped_direction())
    pairs = list(load_manifest_pairs(args.manifest) if args.manifest else load_bundled_pairs())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["recipe"], row["precision"], float(row["factor"]), row["pair"]) for row in read_rows(args.out)}
    with args.out.open("a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            table.writeheader()
        everything = itertools.product(pairs, args.recipes or presets.PRESETS, PRECISIONS_AND_FACTORS)
        for (pair, content, style), name, (precision, factor) in everything:
            if (name, precision, factor, pair) in done:
                continue
            preset = presets.find_preset(name)
            height, width = fit_size(content.shape[0], content.shape[1], args.size, upscale=True)
            style_weight = preset.method.style.weight * factor
            recipe = override(preset, Overrides(style_weight=style_weight, precision=precision))
            method = scale_steps(recipe, height, width, args.steps).method
            began = time.monotonic()
            out, totals = stylize(backbone, method, content, style, args.size)
            seconds = time.monotonic() - began
            numbers, flags = {}, ("not_finite",)
            if np.isfinite(out).all():
                metrics = score(backbone, [layer for layer, _ in method.style.layers], out, content, style, totals)
                numbers, flags = {key: value for key, value in metrics.as_plain().items() if key in COLUMNS}, metrics.flags
            table.writerow(
                {
                    "recipe": name, "precision": precision, "factor": factor, "pair": pair, "steps": method.steps,
                    "pixel_iterations": count_pixel_steps(method, height, width), **numbers, "flags": "|".join(flags),
                    "seconds": round(seconds, 1),
                }
            )  # fmt: skip
            file.flush()
            if args.pictures and numbers:
                args.pictures.mkdir(parents=True, exist_ok=True)
                path = args.pictures / f"{name}_{precision}_{factor:g}_{pair.replace(' ', '')}.png"
                path.write_bytes(codec.encode(out, None, "png", {}))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a results file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
    for (recipe, computed_in, factor), group in sorted(groups.items()):
        if computed_in != precision:
            continue
        chosen = [group[pair] for pair in sorted(complete)]
        numbers = {name: float(np.mean([float(row[name] or "nan") for row in chosen])) for name in names}
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
        for at in means_by_recipe[recipe]:
            numbers = (at["style_gap_held_out"], at["style_gap_used"], at["content_cosine"], at["luminance_ssim"])
            cells = ("diverges" if np.isnan(number) else f"{number:.2f}" for number in numbers)
            lines.append(f"| `{recipe}` | x {at['factor']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_precisions(plain: dict[str, list[dict[str, float]]], mixed: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table that compares float32 with mixed precision, each recipe at its own style weight."""
    names = ("style_gap_held_out", "content_cosine", "seconds")
    lines = [
        "| recipe | style gap closed, float32 | mixed | content cosine, float32 | mixed | seconds, float32 | mixed |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in mixed:
        both = [next(at for at in found[recipe] if at["factor"] == 1.0) for found in (plain, mixed)]
        numbers = [at[name] for name in names for at in both]
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
            x = [at["content_cosine"] for at in means_by_recipe[recipe]]
            y = [at["style_gap_held_out"] for at in means_by_recipe[recipe]]
            ours = recipe == presets.DEFAULT
            axes.plot(x, y, "o-", label=recipe, color="black" if ours else f"C{k - 1}", linewidth=3 if ours else 1.2)
    axes.set_xlabel("content kept: cosine of block4_conv2 features")
    axes.set_ylabel("style gap closed on held-out layers")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Compute the missing results, print the tables and draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="CSV file of results, continued if it is there")
    parser.add_argument("--manifest", help="pairs of this manifest instead of the bundled ones")
    parser.add_argument("--recipes", nargs="*", help="only these")
    parser.add_argument("--size", type=int, default=192, help="longest side, in pixels")
    parser.add_argument("--steps", type=int, default=40, help="each recipe's compute, in steps at full size")
    parser.add_argument("--pictures", type=Path, help="folder for the results")
    parser.add_argument("--plot", type=Path, help="only draw and print what the file holds")
    args = parser.parse_args()
    if not args.plot:
        compute_missing(args)
    rows = read_rows(args.out)
    means_float32 = compute_means(rows, "float32")
    print(format_table(means_float32))
    if mixed := compute_means(rows, "mixed"):
        print(format_precisions(means_float32, mixed))
    if args.plot:
        plot(means_float32, args.plot)


if __name__ == "__main__":
    main()
