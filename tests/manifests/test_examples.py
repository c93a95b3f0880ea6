"""The example manifests: they are valid and name existing sample pictures; tests/integration runs them."""

from __future__ import annotations

from importlib import resources

import pytest

from manifests.samples import samples
from nst_tasks.inputs import manifest

EXAMPLES = {path.name: path.read_bytes() for path in resources.files("manifests").iterdir() if path.name.endswith(".csv")}


def test_these_are_the_examples() -> None:
    """Each new example needs a test below."""
    assert set(EXAMPLES) == {"demo.csv", "every-column.csv", "recipes.csv", "styles.csv"}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_manifest_is_valid_and_names_samples(name: str) -> None:
    result = manifest.parse(EXAMPLES[name], "/samples")
    assert result.problems == ()
    sample_uris = {f"/samples/{sample}" for sample in samples()}
    assert {uri for pair in result.pairs for _, uri in pair.image_uris} <= sample_uris


def test_the_grids_manifest_is_three_contents_by_four_styles() -> None:
    result = manifest.parse(EXAMPLES["styles.csv"], "/")
    assert {(pair.content, pair.styles[0]) for pair in result.pairs} == {
        (f"/content/{content}.jpg", f"/style/{style}.webp")
        for content in ("astronaut", "chelsea", "rocket")
        for style in ("swirls", "dunes", "stipple", "ink")
    }
