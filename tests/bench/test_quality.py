"""Tables of the recipes' quality, from results written by hand."""

from __future__ import annotations

import math

from bench import quality


def build_row(recipe: str, pair: str, gap: str, precision: str = "float32", factor: str = "1.0") -> dict[str, str]:
    numbers = dict.fromkeys(("style_gap_used", "content_cosine", "luminance_ssim", "seconds"), "0.5")
    return {"recipe": recipe, "precision": precision, "factor": factor, "pair": pair, "style_gap_held_out": gap, **numbers}


def test_means_are_over_pairs_with_results_of_every_recipe() -> None:
    rows = [build_row("r", "one", "0.2"), build_row("r", "two", "0.4"), build_row("r", "three", "0.9")]
    rows += [build_row("s", "one", "0.6"), build_row("s", "two", "")]
    means = quality.compute_means(rows, "float32")
    assert round(means["r"][0]["style_gap_held_out"], 6) == 0.3
    assert math.isnan(means["s"][0]["style_gap_held_out"])  # it diverged on one pair
    assert quality.compute_means(rows, "mixed") == {}


def test_table_has_recipes_in_the_order_of_their_style_gap() -> None:
    rows = [build_row("low", "one", "0.2"), build_row("high", "one", "0.7"), build_row("high", "one", "0.1", factor="4.0")]
    _, _, *lines = quality.format_table(quality.compute_means(rows, "float32")).splitlines()
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| `high`", "x 1", "0.70"],
        ["| `high`", "x 4", "0.10"],
        ["| `low`", "x 1", "0.20"],
    ]
