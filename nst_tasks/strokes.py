"""Lay paint on a canvas, stroke by stroke, and light it. Pure NumPy and Pillow.

brush     a bank of stroke textures: ragged ends, bristle streaks, ridges of paint at the edges
passes    strokes from broad to fine, each bent along the direction field and coloured by the underpainting
relief    light from the upper left over the thickness of the paint
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]
Pixels = NDArray[np.uint8]

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
        mask = step((0.92 - edge) / 0.22) * step((1 - u - tail - 0.2 * v**2) / 0.10) * step((1 + u - head - round_head) / 0.10)
        dry = step((1.15 - u + 0.9 * bristle) / 0.5)  # the paint runs out towards the tail
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


def step(value: Floats) -> Floats:
    """A smooth step from 0 at 0 to 1 at 1."""
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
