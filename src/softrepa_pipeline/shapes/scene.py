"""Scenes of the embedded world: coloured shapes on a plain or graded grey background, and their rendering."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "validation", "test"]

IMAGE_SIZE = 32
SHAPES = ("circle", "square", "triangle")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (36, 160, 64),
    "blue": (48, 84, 220),
    "yellow": (240, 200, 32),
}
# Extents in pixels, far enough apart that a third size never has to be named.
SIZES: dict[str, tuple[float, float]] = {"small": (8.0, 9.5), "large": (12.5, 14.5)}
BACKGROUNDS: dict[str, tuple[int, int]] = {"dark": (8, 44), "gray": (112, 144), "light": (216, 248)}
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
# Offset of two centres along an axis, in pixels, from which a relation holds.
RELATION_MARGIN = 4.0

_GAP = 2.5
_SUPERSAMPLING = 8
_MAX_PLACEMENTS = 400


@dataclass(frozen=True)
class Thing:
    """One object: what it is, its centre and its extent, both in pixels."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    extent: float

    @property
    def kind(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows; the ground truth that captions are judged by."""

    things: tuple[Thing, ...]
    background: str
    shade: int
    gradient: int

    @property
    def combination(self) -> str:
        """The multiset of kinds shown, as text; the unit that is held out of training."""
        return combination_key([thing.kind for thing in self.things])


def combination_key(kinds: list[str]) -> str:
    return " + ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def split_of(key: str) -> Split:
    """Share a key out by its hash: 20 % test, 10 % validation, 70 % train."""
    bucket = hashlib.sha256(f"shapes-203/{key}".encode()).digest()[0] % 10
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether `first` (x, y) stands in `relation` to `second`; both may hold on a diagonal, as in GenEval."""
    dx, dy = RELATIONS[relation]
    offset = dx * (first[0] - second[0]) + dy * (first[1] - second[1])
    return offset >= RELATION_MARGIN


def _corners(shape: str, x: float, y: float, extent: float) -> list[tuple[float, float]]:
    half = extent / 2
    if shape == "triangle":
        return [(x, y - half), (x - half, y + half), (x + half, y + half)]
    return [(x - half, y - half), (x + half, y + half)]


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, box_center: tuple[float, float], extent: float, fill: int | tuple[int, ...]
) -> None:
    corners = _corners(shape, *box_center, extent)
    if shape == "circle":
        draw.ellipse(corners, fill=fill)
    elif shape == "square":
        draw.rectangle(corners, fill=fill)
    else:
        draw.polygon(corners, fill=fill)


def render(scene: Scene) -> np.ndarray:
    """Draw a scene with anti-aliased edges; returns uint8 (32, 32, 3)."""
    colors, coverage = objects_of(scene)
    return over(colors, coverage, ground_of(scene))


def objects_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The objects alone: their colours (32, 32, 3) in [0, 255], and how much of each pixel they cover (32, 32, 1)."""
    scale, side = _SUPERSAMPLING, IMAGE_SIZE * _SUPERSAMPLING
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        center = (thing.x * scale, thing.y * scale)
        draw_shape(draw, thing.shape, center, thing.extent * scale, (*COLORS[thing.color], 255))
    layer = np.asarray(canvas.reduce(scale), dtype=np.float32)
    # Pillow's reduce averages premultiplied RGBA and divides again, so the colours are straight.
    return layer[..., :3], layer[..., 3:] / 255


def ground_of(scene: Scene) -> np.ndarray:
    """The background's grey (32, 1, 1), lighter or darker towards the bottom."""
    rows = np.linspace(-0.5, 0.5, IMAGE_SIZE, dtype=np.float32)[:, None, None]
    return np.clip(scene.shade + scene.gradient * rows, 0, 255)


def over(colors: np.ndarray, coverage: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Objects on their background, uint8 (32, 32, 3)."""
    return np.clip(np.rint(colors * coverage + ground * (1 - coverage)), 0, 255).astype(np.uint8)


def place(
    specs: list[tuple[str, str, str]],
    relation: str | None,
    background: str,
    rng: np.random.Generator,
) -> Scene:
    """Place (shape, color, size) objects without contact; the first stands in `relation` to the second.

    Raises:
        ValueError: the objects do not fit the canvas.
    """
    for _ in range(_MAX_PLACEMENTS):
        things = _try_placement(specs, rng)
        if things is None:
            continue
        if relation and not holds(relation, (things[0].x, things[0].y), (things[1].x, things[1].y)):
            continue
        low, high = BACKGROUNDS[background]
        return Scene(things, background, int(rng.integers(low, high + 1)), int(rng.integers(-24, 25)))
    raise ValueError(f"could not place {specs} ({relation or 'no relation'}) on {IMAGE_SIZE} pixels")


def _try_placement(specs: list[tuple[str, str, str]], rng: np.random.Generator) -> tuple[Thing, ...] | None:
    things: list[Thing] = []
    for shape, color, size in specs:
        extent = float(rng.uniform(*SIZES[size]))
        low, high = extent / 2 + 1, IMAGE_SIZE - extent / 2 - 1
        x, y = (float(value) for value in rng.uniform(low, high, size=2))
        if any(_touch(x, y, extent, other) for other in things):
            return None
        things.append(Thing(shape, color, size, x, y, extent))
    return tuple(things)


def _touch(x: float, y: float, extent: float, other: Thing) -> bool:
    reach = (extent + other.extent) / 2 + _GAP
    return max(math.fabs(x - other.x), math.fabs(y - other.y)) < reach
