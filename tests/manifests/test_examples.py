"""The example manifests: they parse, and name sample pictures that there are; tests/integration runs them."""

from __future__ import annotations

from importlib import resources

import pytest

from manifests.samples import samples
from nst_tasks.inputs import manifest

EXAMPLES = {path.name: path.read_bytes() for path in resources.files("manifests").iterdir() if path.name.endswith(".csv")}


def test_these_are_the_examples() -> None:
    """A new one belongs into a test below."""
    assert set(EXAMPLES) == {"demo.csv", "every-column.csv", "recipes.csv", "styles.csv"}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_manifest_is_valid_and_names_samples(name: str) -> None:
    parsed = manifest.parse(EXAMPLES[name], "/samples")
    assert parsed.problems == ()
    given = {f"/samples/{sample}" for sample in samples()}
    assert {uri for pair in parsed.pairs for _, uri in pair.image_uris} <= given


def test_the_grids_manifest_is_three_contents_by_four_styles() -> None:
    parsed = manifest.parse(EXAMPLES["styles.csv"], "/")
    assert {(pair.content, pair.styles[0]) for pair in parsed.pairs} == {
        (f"/content/{content}.jpg", f"/style/{style}.webp")
        for content in ("astronaut", "chelsea", "rocket")
        for style in ("swirls", "dunes", "stipple", "ink")
    }
