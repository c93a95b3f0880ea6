"""The painted styles and the demo's samples: same seed same bytes, the palette, strokes that follow their direction."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from nst_tasks.errors import SettingsError
from nst_tasks.painting import STYLES, paint
from nst_tasks.samples import samples
from nst_tasks.strokes import Composition, Layer, Pass, carry_out, stretch_canvas

AGREEMENT = {"swirls": 0.85, "dunes": 0.85, "stipple": 0.5, "ink": 0.85}
"""What each style must reach of 1; stipple's dabs are not twice as long as wide."""


def energy_and_agreement(picture: NDArray, direction: NDArray) -> tuple[float, float]:
    """Mean squared gradient of the fine detail, and mean cos 2(texture's direction - direction): 1 along, -1 across.

    The texture's direction is that of the least change in the structure tensor, weighted by its coherence.
    """
    grey = picture.mean(axis=-1, dtype=np.float64)
    grey -= gaussian_filter(grey, 4)  # what is broader than strokes says nothing about strokes
    across, down = gaussian_filter(grey, 1, order=(0, 1)), gaussian_filter(grey, 1, order=(1, 0))
    xx, xy, yy = (gaussian_filter(product, 4) for product in (across * across, across * down, down * down))
    weight = np.hypot(xx - yy, 2 * xy)
    least_change = np.arctan2(2 * xy, xx - yy) / 2 + np.pi / 2
    agreement = (weight * np.cos(2 * (least_change - direction))).sum() / weight.sum()
    return float((xx + yy).mean()), float(agreement)


def shares(picture: NDArray) -> dict[str, float]:
    """The share of the pixels in a few plain classes of colour."""
    red, green, blue = picture.reshape(-1, 3).astype(int).T
    grey = (red + green + blue) / 3
    return {
        "blue": float((blue > red + 15).mean()),
        "yellow": float(((red > blue + 60) & (red > 150) & (green > 110)).mean()),
        "warm": float((red > blue + 40).mean()),
        "red": float(((red > 120) & (red > 2 * green)).mean()),
        "black": float((grey < 70).mean()),
        "paper": float((grey > 180).mean()),
    }


@pytest.mark.parametrize("style", STYLES)
def test_one_seed_gives_one_painting(style: str) -> None:
    first = paint(style, 64, 80, 7)
    assert first.shape == (64, 80, 3)
    assert first.dtype == np.uint8
    assert first.tobytes() == paint(style, 64, 80, 7).tobytes()
    other = paint(style, 64, 80, 8)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("style", STYLES)
def test_size_changes_the_grain_not_the_painting(style: str) -> None:
    small, large = (Image.fromarray(paint(style, side, side, 3)).resize((16, 16), 4) for side in (80, 160))
    small, large = (np.asarray(picture, float) for picture in (small, large))
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.9


def test_palettes() -> None:
    swirls, dunes, stipple, ink = (shares(paint(style, 128, 128, 0)) for style in STYLES)
    assert swirls["blue"] > 0.7
    assert 0.04 < swirls["yellow"] < 0.25
    assert dunes["warm"] > 0.75
    assert 0.04 < dunes["blue"] < 0.25  # the counter strokes
    assert stipple["blue"] > 0.3
    assert stipple["warm"] > 0.2
    assert stipple["black"] < 0.1
    assert ink["blue"] < 0.01
    assert ink["black"] > 0.2
    assert ink["paper"] > 0.3
    assert ink["red"] > 0.01


@pytest.mark.parametrize("style", STYLES)
def test_strokes_follow_the_composition(style: str) -> None:
    canvas = stretch_canvas(256, 256, 0)
    composition = STYLES[style](canvas)
    energy, agreement = energy_and_agreement(carry_out(composition, canvas), composition.direction)
    ground, _ = energy_and_agreement(255 * composition.ground, composition.direction)
    assert agreement > AGREEMENT[style]
    assert energy > 5 * ground  # the strokes are in the paint, not in the underpainting

    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3))
    assert abs(energy_and_agreement(noise, composition.direction)[1]) < 0.15


def around(x: NDArray, y: NDArray) -> NDArray:
    return np.arctan2(y - 0.5, x - 0.5) + np.pi / 2


@pytest.mark.parametrize(("turn", "along"), [(0.0, True), (np.pi / 2, False)])
def test_relief_alone_shows_the_strokes_on_a_ground_of_one_colour(turn: float, along: bool) -> None:
    canvas = stretch_canvas(256, 256, 0)
    circles, flat = around(canvas.x, canvas.y), np.full((256, 256, 3), 0.5)
    layer = Layer(Pass(10, 50, 3.0, turn=turn), flat, np.ones((256, 256)))
    picture = carry_out(Composition(flat, circles, (layer,), flat[0, :1], relief=0.3), canvas)
    _, agreement = energy_and_agreement(picture, circles)
    assert agreement > 0.9 if along else agreement < -0.5


def test_long_strokes_bend_with_the_direction() -> None:
    """Strokes set on a circle stay on it; straight ones would leave it by length^2 / (8 radius), here 18 of 512."""
    canvas = stretch_canvas(256, 256, 0)
    black, white = np.zeros((256, 256, 3)), np.ones((256, 256, 3))
    radius = np.hypot(canvas.x - 0.5, canvas.y - 0.5)
    ring = (np.abs(radius - 0.2) < 0.004).astype(np.float32)
    layer = Layer(Pass(6, 120, 60.0, jitter=0.0, streak=0.0, wander=0.0), white, ring)
    picture = carry_out(Composition(black, around(canvas.x, canvas.y), (layer,), white[0, :1], relief=0.0), canvas)
    painted = picture[..., 0] > 128
    assert painted[ring > 0].mean() > 0.9
    off = 512 * np.abs(radius - 0.2)[painted]
    assert np.quantile(off, 0.95) < 8


def test_a_pass_paints_only_where_it_may() -> None:
    canvas = stretch_canvas(128, 128, 0)
    black, white = np.zeros((128, 128, 3)), np.ones((128, 128, 3))
    left = (canvas.x < 0.5).astype(np.float32)
    layer = Layer(Pass(8, 16, 4.0, jitter=0.0, streak=0.0), white, left)
    picture = carry_out(Composition(black, np.zeros((128, 128)), (layer,), white[0, :1], relief=0.0), canvas)
    assert picture[:, :56].mean() > 200
    assert picture[:, 72:].max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cubes", 96, 96, 0), "style: 'cubes' is not one of swirls, dunes, stipple, ink"),
        (("ink", 63, 96, 0), "height: 63 is not in 64..4096 pixels"),
        (("ink", 96, 4097, 0), "width: 4097 is not in 64..4096 pixels"),
        (("ink", 96, 96, -1), "seed: -1 is below 0"),
    ],
)
def test_impossible_paintings_are_refused(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        paint(*arguments)
    assert str(caught.value) == message


def test_samples_are_pictures_of_both_kinds() -> None:
    files = samples()
    assert files is samples(), "painted twice"
    assert list(files) == [
        "content/astronaut.jpg", "content/chelsea.jpg", "content/coffee.jpg", "content/rocket.jpg",
        "style/swirls.png", "style/dunes.png", "style/stipple.png", "style/ink.png",
    ]  # fmt: skip
    for name, content in files.items():
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.format == ("JPEG" if name.endswith(".jpg") else "PNG")
            assert picture.mode == "RGB"
            assert 256 <= max(picture.size) <= 512
            assert np.asarray(picture).std() > 30


def test_samples_without_scikit_image_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(SettingsError) as caught:
        samples.__wrapped__()
    assert str(caught.value) == 'scikit-image is not installed; install it with: pip install "nst[demo]"'
