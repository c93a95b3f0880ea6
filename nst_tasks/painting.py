"""Pictures painted by code: style pictures that need no network and owe nobody a licence.

Each style below is a composition, what is where: an underpainting (colours), a direction for the brush at each point, and
layers of strokes; `strokes` carries it out. Lengths are fractions of a 512-pixel square, so that one seed gives one
painting at any size, and all chance comes from the seed. The compositions imitate no artwork.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nst_tasks.errors import SettingsError
from nst_tasks.strokes import Canvas, Composition, Floats, Layer, Pass, Pixels, carry_out, stretch_canvas

MIN_SIDE, MAX_SIDE = 64, 4096
"""Bounds of a painting's sides, in pixels."""


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
