"""The demo's sample images: photographs from scikit-image, styles shipped with the package."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from manifests.samples import samples
from nst_tasks.errors import SettingsError


def test_samples_are_contents_and_styles() -> None:
    files = samples()
    assert files is samples(), "read twice"
    assert list(files) == [
        "content/astronaut.jpg", "content/chelsea.jpg", "content/coffee.jpg", "content/rocket.jpg",
        "style/swirls.webp", "style/dunes.webp", "style/stipple.webp", "style/ink.webp",
    ]  # fmt: skip
    for name, content in files.items():
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.format == ("JPEG" if name.endswith(".jpg") else "WEBP")
            assert picture.mode == "RGB"
            assert 256 <= max(picture.size) <= 512
            assert np.asarray(picture).std() > 30


def test_shipped_styles_are_small() -> None:
    assert all(50_000 < len(data) < 150_000 for name, data in samples().items() if name.startswith("style/"))


def test_missing_scikit_image_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(SettingsError) as caught:
        samples.__wrapped__()
    assert str(caught.value) == 'scikit-image is not installed; install it with: pip install "nst[demo]"'
