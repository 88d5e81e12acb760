"""Seeded scenes: coloured shapes on a noisy background, drawn without any transcendental function.

A scene is a handful of objects, each with a shape, a colour, a radius and a centre.  Drawing uses
only IEEE additions, multiplications, divisions and square roots, all in NumPy, so an image is the
same bit for bit on every machine that has the same NumPy random stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 96
"""Side of a drawn image in pixels."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
"""Shape words; the index is the shape's class."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 46, 46),
    "orange": (224, 128, 44),
    "yellow": (222, 206, 62),
    "green": (62, 158, 72),
    "cyan": (72, 188, 198),
    "blue": (56, 86, 204),
    "purple": (136, 66, 184),
    "pink": (228, 130, 184),
}
"""Colour words and their mean RGB values; the order gives the colour's class."""

COLOR_WORDS = tuple(COLORS)
MAX_OBJECTS = 6
MIN_RADIUS, MAX_RADIUS = 4.5, 11.0
"""Range of nominal radii in pixels (all shapes of one radius have about the same area)."""

_EXTENT = 1.4  # farthest point of any shape from its centre, in radii
_GAP = 2.0  # least free pixels between the extents of two objects
_CELL = 8  # centres lie near the centres of a grid of cells of this many pixels ...
_JITTER = 1.0  # ... up to this many pixels away in each direction
_COLOR_JITTER = 20.0  # each channel of an object's colour moves by up to this much
_GRID = np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)
_TILE = 16  # side of a background tile in pixels


@dataclass(frozen=True)
class SceneObject:
    """One object: class indices, centre and radius in pixels, and a small rotation.

    Attributes
    ----------
    shape, color : int
        Indices into `SHAPES` and `COLOR_WORDS`.
    x, y : float
        Centre in pixels, the origin at the upper left corner.
    radius : float
        Nominal radius in pixels.
    tilt : float
        Tangent of half the rotation angle, so that rotating needs no sine or cosine.
    """

    shape: int
    color: int
    x: float
    y: float
    radius: float
    tilt: float

    @property
    def shape_word(self) -> str:
        """Name of the shape."""
        return SHAPES[self.shape]

    @property
    def color_word(self) -> str:
        """Name of the colour."""
        return COLOR_WORDS[self.color]


def sample_scene(
    rng: np.random.Generator,
    min_objects: int = 1,
    max_objects: int = MAX_OBJECTS,
    min_radius: float = MIN_RADIUS,
) -> tuple[SceneObject, ...]:
    """Place between `min_objects` and `max_objects` objects that do not touch.

    In half of the scenes shapes and colours come from a small palette, so that several objects
    share a shape or a colour and counting is not trivial.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    min_objects, max_objects : int
        Bounds of the uniform number of objects.  Where an object finds no free place after 40
        tries the scene ends with fewer.
    min_radius : float
        Least radius in pixels; a curriculum starts with large objects.

    Returns
    -------
    tuple of SceneObject
        The objects, in no particular order.
    """
    wanted = int(rng.integers(min_objects, max_objects + 1))
    shapes: NDArray[np.int64] = np.arange(len(SHAPES))
    colors: NDArray[np.int64] = np.arange(len(COLOR_WORDS))
    if rng.random() < 0.5:
        shapes = rng.permutation(shapes)[: int(rng.integers(2, 4))]
        colors = rng.permutation(colors)[: int(rng.integers(2, 5))]
    objects: list[SceneObject] = []
    for _ in range(wanted):
        radius = float(rng.uniform(min_radius, MAX_RADIUS))
        reach = _EXTENT * radius
        for _ in range(40):
            column, row = (int(v) for v in rng.integers(0, IMAGE_SIZE // _CELL, 2))
            x, y = _CELL * (column + 0.5), _CELL * (row + 0.5)
            if min(x, y) < reach or max(x, y) > IMAGE_SIZE - reach:
                continue
            clear = (
                (x - o.x) ** 2 + (y - o.y) ** 2 > (reach + _EXTENT * o.radius + _GAP) ** 2
                for o in objects
            )
            if all(clear):
                break
        else:
            break
        shape, color = int(rng.choice(shapes)), int(rng.choice(colors))
        x, y = (v + float(rng.uniform(-_JITTER, _JITTER)) for v in (x, y))
        objects.append(SceneObject(shape, color, x, y, radius, float(rng.uniform(-0.05, 0.05))))
    return tuple(objects)


def _signed_distance(
    obj: SceneObject, x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Approximate signed distance in pixels from an object's outline (negative inside)."""
    scale = 1.0 / (1.0 + obj.tilt * obj.tilt)
    cosine = np.float32((1.0 - obj.tilt * obj.tilt) * scale)
    sine = np.float32(2.0 * obj.tilt * scale)
    dx, dy = x - np.float32(obj.x), y - np.float32(obj.y)
    u, v = cosine * dx + sine * dy, cosine * dy - sine * dx
    au, av = np.abs(u), np.abs(v)
    r = np.float32(obj.radius)
    name = obj.shape_word
    if name == "circle":
        return np.asarray(np.sqrt(u * u + v * v) - r)
    if name == "square":
        return np.asarray(np.maximum(au, av) - np.float32(0.886) * r)
    if name == "triangle":
        sides = np.float32(0.8660254) * au - np.float32(0.5) * v
        return np.asarray(np.maximum(v, sides) - np.float32(0.69) * r)
    if name == "diamond":
        return np.asarray((au + av - np.float32(1.25) * r) * np.float32(0.70710678))
    if name == "cross":
        long, short = np.float32(1.15) * r, np.float32(0.38) * r
        return np.asarray(
            np.minimum(np.maximum(au - long, av - short), np.maximum(au - short, av - long))
        )
    distance = np.sqrt(u * u + v * v)
    return np.asarray(np.abs(distance - np.float32(0.78) * r) - np.float32(0.24) * r)


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    """Greyish background: a tint, a linear gradient and faint square tiles, shape (96, 96, 3)."""
    tint = rng.uniform(70, 185) + rng.uniform(-14, 14, 3)
    slope = rng.uniform(-28, 28, 2).astype(np.float32)
    ramp = _GRID / np.float32(IMAGE_SIZE) - np.float32(0.5)
    cells = IMAGE_SIZE // _TILE + 1
    tiles = rng.uniform(-13, 13, (cells, cells)).astype(np.float32)
    top, left = (int(v) for v in rng.integers(0, _TILE, 2))
    texture = tiles.repeat(_TILE, axis=0).repeat(_TILE, axis=1)
    texture = texture[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    grey = texture + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    return np.asarray(grey[:, :, None] + tint.astype(np.float32))


def draw_scene(
    objects: tuple[SceneObject, ...], rng: np.random.Generator, noise_level: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw objects over a noisy background.

    Parameters
    ----------
    objects : tuple of SceneObject
        What to draw.
    rng : numpy.random.Generator
        Source of the background, the colour jitter and the pixel noise.
    noise_level : float
        Factor of the pixel noise; a curriculum starts with little.

    Returns
    -------
    image : ndarray of uint8, shape (96, 96, 3)
        RGB pixels.
    coverage : ndarray of float32, shape (objects, 96, 96)
        How much of each pixel each object covers, between 0 and 1 (for auxiliary labels).
    """
    canvas = _background(rng)
    coverage = np.zeros((len(objects), IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for index, obj in enumerate(objects):
        reach = _EXTENT * obj.radius + 1.0
        rows = slice(max(int(obj.y - reach), 0), min(int(obj.y + reach) + 1, IMAGE_SIZE))
        columns = slice(max(int(obj.x - reach), 0), min(int(obj.x + reach) + 1, IMAGE_SIZE))
        distance = _signed_distance(obj, _GRID[None, columns], _GRID[rows, None])
        alpha = np.clip(np.float32(0.5) - distance, 0.0, 1.0)
        coverage[index, rows, columns] = alpha
        paint = np.asarray(COLORS[obj.color_word]) + rng.uniform(-_COLOR_JITTER, _COLOR_JITTER, 3)
        patch = canvas[rows, columns]
        patch += alpha[:, :, None] * (paint.astype(np.float32) - patch)
    amplitude = np.float32(noise_level * rng.uniform(0.07, 0.16))  # 9 to 21 grey levels RMS
    bits = rng.integers(0, 256, (3, *canvas.shape), dtype=np.uint8)
    noise = bits.astype(np.float32).sum(axis=0) - np.float32(382.5)
    image = np.clip(canvas + amplitude * noise, 0.0, 255.0)
    return np.rint(image).astype(np.uint8), coverage
