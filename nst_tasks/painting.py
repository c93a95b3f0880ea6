"""Pictures painted by code: style pictures that need no network and owe nobody a licence.

A painting is made the way a painter makes one, and the steps are the functions below, from bottom to top:

    composition   what is where: an underpainting (colours) and a direction for the brush at each point
    brush         a bank of stroke textures: ragged ends, bristle streaks, ridges of paint at the edges
    passes        strokes from broad to fine, each bent along the direction field and coloured by the underpainting
    relief        light from the upper left over the thickness of the paint

Lengths are fractions of a 512-pixel square, so that one seed gives one painting at any size. All chance comes from the
seed: the same arguments give the same bytes on one machine. Pure NumPy and Pillow. The compositions imitate no artwork.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_tasks.errors import SettingsError

Floats = NDArray[np.floating]
Pixels = NDArray[np.uint8]

MIN_SIDE, MAX_SIDE = 64, 4096
"""Bounds of a painting's sides, in pixels."""

STAMP_ALONG, STAMP_ACROSS, STAMP_COUNT = 160, 64, 24


@dataclass(frozen=True)
class Pass:
    """One going-over of the canvas with one brush.

    `width` and `length` are a stroke's, in pixels of a 512-pixel square; `cover` is how often the strokes' area covers
    the canvas. `turn` adds to the direction, in radians, and `wander` is its random spread. `jitter` spreads the
    strokes' colours, `streak` the bristles' within a stroke, both in 0..1; `divide` is the share of strokes that take
    the nearest palette colour instead. `thickness` is the paint's height.
    """

    width: float
    length: float
    cover: float
    turn: float = 0.0
    wander: float = 0.08
    jitter: float = 0.06
    streak: float = 0.08
    divide: float = 0.0
    thickness: float = 1.0


@dataclass(frozen=True)
class Layer:
    """A brush, the colours it takes up (H, W, 3) and the chance of a stroke at each place (H, W)."""

    brush: Pass
    colour: Floats
    where: Floats


@dataclass(frozen=True)
class Composition:
    """What is to be painted: ground (H, W, 3) in 0..1, brush direction (H, W) in radians, layers, palette (P, 3).

    `relief` is how strongly the paint's thickness catches the light.
    """

    ground: Floats
    direction: Floats
    layers: tuple[Layer, ...]
    palette: Floats
    relief: float


@dataclass(frozen=True)
class Canvas:
    """Where one paints: coordinates x and y (H, W) in units of a 512-pixel square, and that square's scale."""

    x: Floats
    y: Floats
    scale: float
    rng: np.random.Generator

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in units of a 512-pixel square; rounded, so that one shape has one extent at any size."""
        height, width = self.x.shape
        return round(height / (512 * self.scale), 4), round(width / (512 * self.scale), 4)

    def noise(self, cell: float, octaves: int = 1, stretch: float = 1.0) -> Floats:
        """Smooth noise about -1..1, its coarsest bumps `cell` wide (`stretch` times that sideways)  # (H, W)."""
        height, width = self.x.shape
        total = np.zeros((height, width), np.float32)
        for octave in range(octaves):
            step_y, step_x = cell / 2**octave, cell * stretch / 2**octave
            tall, wide = self.extent[0] / step_y, self.extent[1] / step_x
            lattice = self.rng.uniform(-1, 1, (int(tall) + 4, int(wide) + 4)).astype(np.float32)
            box = (1.0, 1.0, 1.0 + wide, 1.0 + tall)
            total += np.asarray(Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC, box)) / 2**octave
        return total


def paint(style: str, height: int, width: int, seed: int = 0) -> Pixels:
    """Paint a picture in one of the `STYLES`: (height, width, 3) sRGB.

    Raises:
        SettingsError: no such style, or a side or the seed out of range.
    """
    if style not in STYLES:
        raise SettingsError(f"style: {style!r} is not one of {', '.join(STYLES)}")
    for name, side in (("height", height), ("width", width)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise SettingsError(f"{name}: {side!r} is not in {MIN_SIDE}..{MAX_SIDE} pixels")
    if seed < 0:
        raise SettingsError(f"seed: {seed!r} is below 0")
    canvas = stretch_canvas(height, width, seed)
    return carry_out(STYLES[style](canvas), canvas)


def carry_out(composition: Composition, canvas: Canvas) -> Pixels:
    """Paint a composition with strokes and light it: (H, W, 3) sRGB."""
    height, width = canvas.x.shape
    paint_layer = np.concatenate([composition.ground, np.zeros((height, width, 1), np.float32)], axis=2)  # (H, W, 4)
    stamps = _stamps(canvas.rng)
    for layer in composition.layers:
        _lay(paint_layer, layer, composition, stamps, canvas)
    return _lit(paint_layer, composition.relief * canvas.scale)


def stretch_canvas(height: int, width: int, seed: int) -> Canvas:
    """An empty canvas with its own source of chance."""
    scale = (height * width) ** 0.5 / 512
    y, x = (np.mgrid[0:height, 0:width].astype(np.float32) + 0.5) / np.float32(512 * scale)
    return Canvas(x, y, scale, np.random.default_rng(seed))


# --- compositions ---------------------------------------------------------------------------------------------------


def _swirls(canvas: Canvas) -> Composition:
    """Lights in a night sky that turns about them: ultramarine and teal against ochre and cream."""
    palette = _palette("101a4a 1c2f86 2a56b4 4a8fc8 8fc4d2 1f6f7c e8d27a f6edc4 d79a2b")
    x, y, rng = canvas.x, canvas.y, canvas.rng
    stream = y + 0.35 * x + 0.20 * canvas.noise(0.42, 2)  # its level lines are the currents
    angle = _along(stream)
    bands = 0.5 + 0.5 * np.sin(2 * np.pi * (3.1 * stream + 0.25 * canvas.noise(0.2, 2)))
    sky = _ramp(bands, "0f1846 16267a 2350a8 3a7fc0 2f8f9c 9fccd0")
    glow = np.zeros_like(x)
    for centre_x, centre_y, radius in _scatter(canvas, (0.20, 0.17, 0.12, 0.10, 0.085, 0.075, 0.06, 0.06, 0.05, 0.05)):
        across, down = x - centre_x, y - centre_y
        distance = np.hypot(across, down) / radius
        pull = np.exp(-((distance / 1.25) ** 4))
        spin = np.arctan2(down, across)
        angle = _blend(angle, spin + np.pi / 2 + 0.12, pull)
        if radius > 0.15:  # a whirl: two arms of lighter and darker water
            arms = 0.5 + 0.5 * np.sin(2 * spin - 7.0 * np.log(distance + 0.15) + rng.uniform(0, 6))
            tint = _ramp(arms, "121d58 2450a8 5b9fce d5e6d2")
            eye = np.exp(-((distance / 0.22) ** 2))
            tint = _mix(tint, _palette("f3e2a0")[0], eye)
        else:  # a light: a bright core, then rings
            tint = _ramp(distance / 1.35, "fff6d2 fbe79a f2c23c d99a2c 9fc2a0 4d9bc0 2350a8")
            pull = pull * np.where(distance > 0.75, 0.8 + 0.2 * np.cos(9 * (distance - 0.75)), 1)
        sky = _mix(sky, tint, np.clip(pull * 1.15, 0, 1))
        glow = np.maximum(glow, np.exp(-((distance / 0.9) ** 2)))
    everywhere = np.ones_like(x)
    return Composition(
        ground=_mix(sky, palette[0], 0.6 - 0.6 * glow),
        direction=angle,
        layers=(
            Layer(Pass(18, 74, 2.6, jitter=0.05), sky, everywhere),
            Layer(Pass(11, 52, 1.6, jitter=0.07, divide=0.10), sky, everywhere),
            Layer(Pass(8, 36, 0.9, jitter=0.08, divide=0.22, thickness=1.3), sky, 0.35 + 0.65 * glow),
            Layer(Pass(6, 22, 1.2, jitter=0.06, thickness=1.6), sky, glow**2),
            Layer(Pass(7, 11, 2.5, jitter=0.04, thickness=1.6), sky, glow**8),  # where the rings are tight
        ),
        palette=palette,
        relief=0.30,
    )


def _dunes(canvas: Canvas) -> Composition:
    """Sand under a hot evening: long wavy bands of orange, red and ochre, countered by dark blue-green strokes."""
    palette = _palette("5a1220 a8231c d8481a ee7d1d f5ab2e f8d36a 123c48 1d5a5e 0d2233")
    x, y, rng = canvas.x, canvas.y, canvas.rng
    horizon = 0.40 + 0.04 * np.sin(2 * np.pi * (0.8 * x + rng.uniform())) + 0.03 * canvas.noise(0.4)
    sky_stream = y + 0.10 * canvas.noise(0.5, 2, stretch=2.0)
    colour = _ramp(
        np.clip(sky_stream / 0.45, 0, 1) + 0.16 * canvas.noise(0.09, 2, stretch=5.0),
        "7a1a2a b82a1e e2571c f39a2a fbd873",
    )
    angle = _along(sky_stream)
    shade = np.clip(0.25 - 3.0 * y, 0, 0.6)
    sun_x, sun_y, sun = rng.uniform(0.3, 0.7), 0.24, 0.085
    distance = np.hypot(x - sun_x, y - sun_y) / sun
    halo = np.exp(-((distance / 2.0) ** 4))
    colour = _mix(colour, _ramp(distance / 2.2, "fff3c0 fde08a f7b53a ea6f20 c8391c"), halo)
    angle = _blend(angle, np.arctan2(y - sun_y, x - sun_x) + np.pi / 2, halo)
    for ridge in range(5):
        lift = horizon + 0.13 * ridge
        crest = lift + (0.035 + 0.012 * ridge) * np.sin(2 * np.pi * (rng.uniform(0.7, 1.3) * x + rng.uniform()))
        below = (y - crest) / 0.16
        inside = np.clip((y - crest) * 60, 0, 1)
        stream = y - crest + 0.03 * canvas.noise(0.25, 2, stretch=2.0)
        light = 0.5 + 0.5 * np.sin(2 * np.pi * (x * rng.uniform(0.8, 1.4) + 2.2 * (y - crest) + rng.uniform()))
        sand = _ramp(
            np.clip(0.15 + 0.75 * light - 0.1 * below + 0.22 * canvas.noise(0.07, 2, stretch=5.0), 0, 1),
            "6b1420 b3281b de5a1c f2952a f9cf68",
        )
        colour = _mix(colour, sand, inside)
        angle = _blend(angle, _along(stream), inside)
        shade = shade * (1 - inside) + inside * np.clip(1.3 - 3.2 * light, 0, 1) * np.clip(below * 2.5, 0, 1)
    dark = _ramp(0.5 + 0.5 * canvas.noise(0.12, 2), "0b1d2e 123c48 1d5a5e 2f7c74")
    everywhere = np.ones_like(x)
    return Composition(
        ground=_mix(colour, palette[0], 0.5 - 0.5 * halo),
        direction=angle,
        layers=(
            Layer(Pass(17, 96, 2.6, jitter=0.05), colour, everywhere),
            Layer(Pass(11, 76, 1.5, jitter=0.07, divide=0.10), colour, everywhere),
            Layer(Pass(10, 58, 1.7, turn=0.5, jitter=0.05), dark, shade),
            Layer(Pass(7, 46, 0.7, jitter=0.08, divide=0.20, thickness=1.4), colour, 1 - 0.8 * shade),
            Layer(Pass(6, 24, 1.2, jitter=0.05, thickness=1.5), colour, halo**2),
        ),
        palette=palette,
        relief=0.30,
    )


def _stipple(canvas: Canvas) -> Composition:
    """A river bank in summer, in short dabs of divided colour: each area holds its complement."""
    palette = _palette("f7efc8 f6cf52 f08a3c d9485a b05a9c 6a55a8 3f62b8 58a2d4 9fd4dc 2f8f6a 6cb84a b9d65a 1f4a5a")
    x, y, rng = canvas.x, canvas.y, canvas.rng
    wave = canvas.noise(0.3, 2)
    colour = _ramp(np.clip(y / 0.45, 0, 1) + 0.08 * wave, "5f9bd6 8cc0e0 cfe0d0 f8e6b0 f6bf8c")
    angle = np.full_like(x, 0.35) + 0.5 * wave
    sun_x, sun_y = rng.uniform(0.6, 0.8), 0.20
    distance = np.hypot(x - sun_x, y - sun_y)
    near = np.exp(-((distance / 0.19) ** 2))
    colour = _mix(colour, _ramp(distance / 0.3, "fffbe0 ffef9c fbd25c f6b866"), near)
    angle = _blend(angle, np.arctan2(y - sun_y, x - sun_x) + np.pi / 2, np.clip(near * 2, 0, 1))
    hills = 0.40 + 0.05 * np.sin(2 * np.pi * (0.9 * x + rng.uniform())) + 0.02 * canvas.noise(0.15)
    inside = np.clip((y - hills) * 90, 0, 1)
    colour = _mix(colour, _ramp(0.5 + 0.5 * canvas.noise(0.12, 2), "4a56a8 7a68b4 a884b8 5f93b4"), inside)
    shore = 0.52 + 0.01 * canvas.noise(0.2)
    inside = np.clip((y - shore) * 90, 0, 1)
    glitter = np.exp(-(((x - sun_x) / (0.05 + 0.2 * np.clip(y - 0.5, 0, 1))) ** 2))
    water = _ramp(0.5 + 0.45 * canvas.noise(0.05, 2, stretch=6.0), "2a5aa4 3f80c0 62aed0 a6d8d6")
    colour = _mix(colour, _mix(water, _palette("fbe3a0")[0], 0.9 * glitter), inside)
    angle = _blend(angle, 0.06 * wave, inside)
    bank = 0.80 - 0.16 * np.sin(np.pi * (x + rng.uniform(0.0, 0.25))) * (1.1 - x) + 0.02 * canvas.noise(0.12)
    inside = np.clip((y - bank) * 90, 0, 1)
    meadow = _ramp(0.5 + 0.5 * canvas.noise(0.11, 3) - 0.3 * (y - bank), "1f6a56 3f9a4a 86c048 d8d858 f2b84a")
    colour = _mix(colour, meadow, inside)
    angle = _blend(angle, -1.1 + 0.5 * wave, inside)
    for crown_x, crown_y, crown in ((0.13, 0.36, 0.17), (0.30, 0.44, 0.11), (0.03, 0.52, 0.13), (0.93, 0.53, 0.07)):
        crown_x = crown_x + rng.uniform(-0.02, 0.02)
        trunk = np.clip(1.6 - np.abs(x - crown_x - 0.01) / (0.10 * crown), 0, 1) * (y > crown_y) * (y < crown_y + 2.1 * crown)
        colour = _mix(colour, _palette("4a2f5a")[0], trunk)
        angle = _blend(angle, 1.5, trunk)
        edge = np.hypot(x - crown_x, (y - crown_y) / 1.25) / crown + 0.22 * canvas.noise(0.07, 2)
        inside = np.clip((1 - edge) * 9, 0, 1)
        lit = 0.5 + 0.38 * ((x - crown_x) - (y - crown_y)) / crown + 0.22 * canvas.noise(0.06)
        colour = _mix(colour, _ramp(lit, "17405c 1f6a5c 3f9a4a 98c648 f4d45c"), inside)
        angle = _blend(angle, np.arctan2(y - crown_y, x - crown_x) + np.pi / 2, inside)
    everywhere = np.ones_like(x)
    return Composition(
        ground=_mix(colour, _palette("f3e3c0")[0], everywhere * 0.45),
        direction=angle,
        layers=(
            Layer(Pass(13, 26, 1.6, wander=0.2, jitter=0.05), colour, everywhere),
            Layer(Pass(8.5, 15, 1.5, wander=0.15, jitter=0.05, streak=0.04, divide=0.5, thickness=1.3), colour, everywhere),
            Layer(Pass(7, 12, 1.2, wander=0.15, jitter=0.05, streak=0.04, divide=0.6, thickness=1.3), colour, everywhere),
        ),
        palette=palette,
        relief=0.22,
    )


def _ink(canvas: Canvas) -> Composition:
    """Mountains under a sun, hatched with a broad pen: black on warm paper, with one red."""
    palette = _palette("14110f 231c1a 3a2f2b b5321f d9a066 efe0c0")
    x, y, rng = canvas.x, canvas.y, canvas.rng
    paper = _ramp(0.5 + 0.35 * canvas.noise(0.4, 2) + 0.15 * canvas.noise(0.012), "dfc492 ecd9ae f4e6c6")
    sun_x, sun_y, sun = rng.uniform(0.35, 0.65), 0.24, 0.105
    distance = np.hypot(x - sun_x, y - sun_y)
    ray = np.arctan2(y - sun_y, x - sun_x)
    angle, crest_line = ray, np.zeros_like(x)
    rays = 0.5 + 0.5 * np.cos(18 * ray + rng.uniform(0, 6))
    dark = np.clip(1.5 * rays - 0.55 + 0.5 * (distance - 0.3), 0.02, 0.9)
    disc = np.clip((sun - distance) * 90, 0, 1)
    red = np.maximum(disc, 0.5 * np.clip(1 - 2.5 * rays, 0, 1) * np.exp(-(((distance - 0.2) / 0.14) ** 2)))
    dark = dark * np.clip((distance - sun - 0.035) * 90, 0, 1)
    angle = _blend(angle, ray + np.pi / 2, disc)
    for ridge in range(4):
        lift = 0.50 + 0.14 * ridge
        rise = (0.10 - 0.015 * ridge) * _peaks(x * rng.uniform(1.5, 2.4) + rng.uniform()) + 0.012 * canvas.noise(0.09, 2)
        depth = y - lift + rise
        inside = np.clip(depth * 90, 0, 1)
        falling = np.clip(0.5 + 25 * np.gradient(-rise + 0.02 * canvas.noise(0.07), axis=1) * canvas.scale * 8, 0, 1)
        tone = np.clip(0.12 + 0.88 * falling - 2.2 * np.clip(depth - 0.07, 0, 1) + 0.16 * canvas.noise(0.08), 0.15, 1)
        dark = dark * (1 - inside) + inside * tone
        red = red * (1 - inside)
        crest_line = crest_line * (1 - inside) + np.exp(-(((depth - 0.006) / 0.005) ** 2))
        slant = _blend(np.full_like(x, 2.35), 0.95, falling) + 0.25 * canvas.noise(0.2)
        angle = _blend(angle, slant, inside)
        angle = _blend(angle, _along(depth), np.exp(-((depth / 0.016) ** 2)))
    black = _ramp(0.5 + 0.5 * canvas.noise(0.1), "100d0c 1c1715 2c2421")
    rust = _ramp(0.5 + 0.5 * canvas.noise(0.1), "8f2416 b8341f d0502c")
    return Composition(
        ground=paper,
        direction=angle,
        layers=(
            Layer(Pass(9, 36, 3.6, wander=0.05, jitter=0.04, thickness=0.8), rust, red),
            Layer(Pass(6.5, 46, 2.3, wander=0.04, jitter=0.02, streak=0.03, thickness=0.6), black, dark**1.4),
            Layer(
                Pass(4.5, 22, 1.0, turn=0.9, wander=0.05, jitter=0.02, streak=0.03),
                black,
                np.clip(1.6 * dark - 0.7, 0, 1),
            ),
            Layer(Pass(6, 30, 4.0, wander=0.03, jitter=0.02, streak=0.03), black, np.clip(crest_line, 0, 1)),
        ),
        palette=palette,
        relief=0.10,
    )


STYLES: Mapping[str, Callable[[Canvas], Composition]] = {
    "swirls": _swirls,
    "dunes": _dunes,
    "stipple": _stipple,
    "ink": _ink,
}


def _palette(text: str) -> Floats:
    """Hexadecimal sRGB colours, separated by spaces  # (P, 3) in 0..1."""
    return np.array([list(bytes.fromhex(word)) for word in text.split()], np.float32) / 255


def _ramp(position: Floats, text: str) -> Floats:
    """The colour at a position in 0..1 along a row of colours  # (H, W) -> (H, W, 3)."""
    colours = _palette(text)
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(position, stops, colours[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def _mix(under: Floats, over: Floats, share: Floats) -> Floats:
    return under + share[..., None] * (over - under)


def _blend(under: Floats, over: Floats | float, share: Floats) -> Floats:
    """Mix two directions; a direction and its opposite are the same stroke, hence the doubled angles."""
    sine = (1 - share) * np.sin(2 * under) + share * np.sin(2 * np.asarray(over, np.float32))
    cosine = (1 - share) * np.cos(2 * under) + share * np.cos(2 * np.asarray(over, np.float32))
    return np.asarray(np.arctan2(sine, cosine) / 2)


def _along(stream: Floats) -> Floats:
    """The direction of the level lines of a field."""
    down, across = np.gradient(stream)
    return np.asarray(np.arctan2(-across, down))


def _peaks(position: Floats) -> Floats:
    """A triangle wave in -1..1 with period 1."""
    return np.asarray(4 * np.abs(position - np.floor(position + 0.5)) - 1)


def _scatter(canvas: Canvas, radii: tuple[float, ...]) -> list[tuple[float, float, float]]:
    """Places for discs of these radii, far from each other: the best of 40 tries for each."""
    bottom, right = canvas.extent
    placed: list[tuple[float, float, float]] = []
    for radius in radii:
        tries = canvas.rng.uniform((0.04, 0.04), (right - 0.04, bottom - 0.04), (40, 2))
        room = [min((np.hypot(x - a, y - b) - r - radius for a, b, r in placed), default=0.0) for x, y in tries]
        x, y = tries[int(np.argmax(room))]
        placed.append((float(x), float(y), radius))
    return placed


# --- the brush ------------------------------------------------------------------------------------------------------


def _stamps(rng: np.random.Generator) -> Floats:
    """A bank of stroke textures: opacity, tone and height  # (STAMP_COUNT, STAMP_ACROSS * STAMP_ALONG, 3)."""
    v, u = np.meshgrid(np.linspace(-1, 1, STAMP_ACROSS), np.linspace(-1, 1, STAMP_ALONG), indexing="ij")
    bank = []
    for _ in range(STAMP_COUNT):
        bristle = _streaks(rng, 14, 3)
        edge = np.abs(v) + 0.10 * _streaks(rng, 2, 6)
        tail = 0.16 + 0.16 * _streaks(rng, 12, 1)  # each bristle lets go at its own place
        head = 0.10 + 0.06 * _streaks(rng, 9, 1)
        round_head = 0.35 * v**2
        mask = (
            _step((0.92 - edge) / 0.22) * _step((1 - u - tail - 0.2 * v**2) / 0.10) * _step((1 + u - head - round_head) / 0.10)
        )
        dry = _step((1.15 - u + 0.9 * bristle) / 0.5)  # the paint runs out towards the tail
        ridge = np.exp(-(((edge - 0.72) / 0.16) ** 2)) + 0.8 * np.exp(-(((u - 0.72) / 0.10) ** 2))
        opacity = mask * (0.25 + 0.75 * dry)
        height = mask * (0.55 + 0.40 * bristle + 0.45 * ridge)
        opacity[[0, -1], :] = 0
        opacity[:, [0, -1]] = 0
        bank.append(np.stack([opacity, _streaks(rng, 10, 3), height], axis=-1).reshape(-1, 3))
    return np.asarray(bank, np.float32)


def _streaks(rng: np.random.Generator, across: int, along: int) -> Floats:
    lattice = rng.uniform(-1, 1, (across, along)).astype(np.float32)
    return np.asarray(Image.fromarray(lattice).resize((STAMP_ALONG, STAMP_ACROSS), Image.Resampling.BICUBIC))


def _step(value: Floats) -> Floats:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


# --- the strokes ----------------------------------------------------------------------------------------------------


def _lay(paint_layer: Floats, layer: Layer, composition: Composition, stamps: Floats, canvas: Canvas) -> None:
    """Lay one pass of strokes on `paint_layer` (H, W, 4: colour and height), in place.

    A stroke is a piece of parabola, y = curvature * x^2 / 2 in its own axes, so that a pixel's place along and across
    it has a closed form and the stroke's texture is looked up there.
    """
    brush, rng, scale = layer.brush, canvas.rng, canvas.scale
    height, width = canvas.x.shape
    spacing = (brush.width * brush.length / brush.cover) ** 0.5
    rows, columns = (int((512 * side + brush.length) / spacing) + 1 for side in canvas.extent)
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)  # (N, 2): x, y
    count = len(cells)
    place: Floats = ((cells + rng.uniform(0, 1, cells.shape)) * spacing - brush.length / 2) * scale
    place = rng.permutation(place, axis=0)

    def at(field: Floats, where: Floats) -> Floats:
        x = np.clip(where[:, 0], 0, width - 1).astype(np.intp)
        y = np.clip(where[:, 1], 0, height - 1).astype(np.intp)
        return field[y, x]

    wanted = rng.uniform(0, 1, count) < at(layer.where, place)
    angle = at(composition.direction, place)
    ahead = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * (0.25 * brush.length * scale)
    bend = at(composition.direction, place + ahead) - at(composition.direction, place - ahead)
    bend = (bend + np.pi / 2) % np.pi - np.pi / 2
    curvature = np.clip(bend / (0.5 * brush.length * scale), -0.12 / scale, 0.12 / scale)
    half_length = 0.5 * brush.length * scale * rng.uniform(0.7, 1.15, count)
    half_length = np.minimum(half_length, 0.9 / (np.abs(curvature) + 1e-6))
    half_width = 0.5 * brush.width * scale * rng.uniform(0.8, 1.15, count)
    half_length = np.maximum(half_length, half_width)
    backwards = rng.integers(0, 2, count)  # seen from its other end, a stroke bends the other way
    angle = angle + brush.turn + brush.wander * rng.standard_normal(count) + np.pi * backwards
    curvature = curvature * (1 - 2 * backwards)
    colour = _coloured(at(layer.colour, place), brush, composition.palette, rng)
    streak = brush.streak * rng.uniform(0.5, 1.5, (count, 1)) * (1 + 0.5 * rng.standard_normal((count, 3)))
    stamp_of = rng.integers(0, STAMP_COUNT, count)
    thick = brush.thickness * rng.uniform(0.7, 1.3, count)

    across_axis, down_axis = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    for n in np.flatnonzero(wanted):
        cosine, sine, k = float(np.cos(angle[n])), float(np.sin(angle[n])), float(curvature[n])
        long, wide = float(half_length[n]), float(half_width[n])
        sag = wide + abs(k) * long * long / 2
        reach_x, reach_y = abs(cosine) * long + abs(sine) * sag + 1, abs(sine) * long + abs(cosine) * sag + 1
        centre_x, centre_y = float(place[n, 0]), float(place[n, 1])
        left, right = max(int(centre_x - reach_x), 0), min(int(centre_x + reach_x) + 1, width)
        top, bottom = max(int(centre_y - reach_y), 0), min(int(centre_y + reach_y) + 1, height)
        if left >= right or top >= bottom:
            continue
        across, down = across_axis[left:right] - centre_x, (down_axis[top:bottom] - centre_y)[:, None]
        x, y = cosine * across + sine * down, cosine * down - sine * across  # (h, w) in the stroke's own axes
        y = (y - (0.5 * k) * x * x) * (1 / np.sqrt(1 + (k * x) ** 2))
        along = np.clip(x * (0.5 * STAMP_ALONG / long) + STAMP_ALONG / 2, 0, STAMP_ALONG - 1).astype(np.intp)
        aside = np.clip(y * (0.5 * STAMP_ACROSS / wide) + STAMP_ACROSS / 2, 0, STAMP_ACROSS - 1).astype(np.intp)
        texture = stamps[stamp_of[n]].take(aside * STAMP_ALONG + along, axis=0)  # (h, w, 3)
        patch = paint_layer[top:bottom, left:right]
        share = texture[..., :1]
        patch[..., :3] += share * (colour[n] + texture[..., 1:2] * streak[n].astype(np.float32) - patch[..., :3])
        patch[..., 3:] += share * (thick[n].astype(np.float32) * texture[..., 2:] - 0.7 * patch[..., 3:])


def _coloured(colour: Floats, brush: Pass, palette: Floats, rng: np.random.Generator) -> Floats:
    """Spread the strokes' colours; a share of them takes the palette's nearest colour to a wide guess  # (N, 3)."""
    count = len(colour)
    lightness = brush.jitter * rng.standard_normal((count, 1))
    spread = colour + lightness + 0.5 * brush.jitter * rng.standard_normal((count, 3))
    guess = colour + 0.13 * rng.standard_normal((count, 3))
    nearest = palette[((guess[:, None] - palette) ** 2).sum(-1).argmin(1)]
    divided = rng.uniform(0, 1, (count, 1)) < brush.divide
    return np.clip(np.where(divided, 0.8 * nearest + 0.2 * spread, spread), 0.02, 1).astype(np.float32)


def _lit(paint_layer: Floats, strength: float) -> Pixels:
    """Light from the upper left over the paint's height: the relief of thick paint  # (H, W, 4) -> (H, W, 3)."""
    colour, height = paint_layer[..., :3], paint_layer[..., 3]
    down, across = np.gradient(height)
    slope = np.clip(np.asarray(strength * (across + 1.3 * down)), -0.5, 0.5)[..., None]  # rising away from the light is lit
    lit = colour * (1 + 0.9 * slope) + 0.22 * np.clip(slope - 0.06, 0, 1)
    return np.asarray(np.clip(lit, 0, 1) * 255 + 0.5, np.uint8)
