"""Scenes: a structured record of what is where, and the picture drawn from it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from edgespec_export.family.emoji import Drawings
from edgespec_export.family.objects import COLOURS, objects

SIDE = 112
"""Side of a scene in pixels."""

_ANCHORS: tuple[tuple[int, int, int], ...] = (
    (243, 243, 240), (140, 142, 146), (32, 32, 36), (196, 62, 58), (240, 150, 60),
    (244, 224, 110), (120, 186, 110), (108, 164, 222), (136, 92, 176), (244, 172, 196),
)  # fmt: skip
"""RGB of the background colours, in the order of `COLOURS`."""


@dataclass(frozen=True)
class Placed:
    """One object in a scene. `x`, `y` are its centre and `size` its side, in pixels."""

    kind: int
    cell: int
    x: float
    y: float
    size: float

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


@dataclass(frozen=True)
class Scene:
    """What a picture shows: background colour and objects in reading order of their cells."""

    colour: int
    objects: tuple[Placed, ...]

    @property
    def kinds(self) -> tuple[int, ...]:
        """The distinct kinds in reading order."""
        return tuple(dict.fromkeys(placed.kind for placed in self.objects))

    def count(self, kind: int) -> int:
        """How many objects of this kind there are."""
        return sum(placed.kind == kind for placed in self.objects)

    def at(self, cell: int) -> Placed | None:
        """The object in a cell, or None."""
        return next((placed for placed in self.objects if placed.cell == cell), None)


def _too_close(placed: list[Placed]) -> bool:
    """Whether two boxes overlap by more than a sixth of the smaller one."""
    for i, one in enumerate(placed):
        for other in placed[:i]:
            reach = (one.size + other.size) / 2
            width = reach - abs(one.x - other.x)
            height = reach - abs(one.y - other.y)
            if width > 0 and height > 0 and width * height * 6 > min(one.size, other.size) ** 2:
                return True
    return False


def _place(rng: Generator, kinds: list[int]) -> list[Placed]:
    """Give every kind its own cell, a size and a jittered centre without much overlap."""
    cells = sorted(int(cell) for cell in rng.choice(9, len(kinds), replace=False))
    largest = {1: 56.0, 2: 52.0, 3: 48.0}.get(len(kinds), 42.0)
    placed: list[Placed] = []
    for attempt in range(8):
        top = largest if attempt < 4 else 36.0
        placed = []
        for kind, cell in zip(kinds, cells, strict=True):
            size = float(rng.uniform(30.0, top))
            centre = [SIDE * (cell % 3 * 2 + 1) / 6, SIDE * (cell // 3 * 2 + 1) / 6]
            x, y = (
                float(np.clip(c + rng.uniform(-4, 4), size / 2 - 2, SIDE - size / 2 + 2))
                for c in centre
            )
            placed.append(Placed(kind, cell, x, y, size))
        if not _too_close(placed):
            break
    return placed


def sample_scene(rng: Generator, *, dense: bool = False) -> Scene:
    """Draw a scene: 1-4 kinds, sometimes with copies; `dense` puts 5-8 objects (tower training)."""
    total = len(objects())
    if dense:
        kinds = [int(kind) for kind in rng.choice(total, int(rng.integers(5, 9)), replace=False)]
    else:
        distinct = int(rng.choice(4, p=(0.15, 0.30, 0.30, 0.25))) + 1
        kinds = [int(kind) for kind in rng.choice(total, distinct, replace=False)]
        if rng.random() < 0.35:
            kinds += [kinds[0]] * int(rng.integers(1, 4 if distinct < 4 else 3))
        rng.shuffle(kinds)
    return Scene(int(rng.integers(len(COLOURS))), tuple(_place(rng, kinds)))


class SpriteBank:
    """Augmented cut-outs of every drawing, made once so that composing a scene is only pasting.

    Variant k of a drawing has its own size (30 to 56 pixels over the variants), rotation, flip,
    hue, contrast and light. `scale` multiplies all sizes (for pictures larger than `SIDE`).
    """

    def __init__(
        self,
        drawings: Drawings,
        *,
        seed: int,
        variants: int = 32,
        strength: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        rng = np.random.default_rng([seed, 7])
        self.variants = variants
        self.scale = scale
        self.styles = sorted(drawings)
        self._sprites = [
            [
                [_augment(rng, drawing, self.size(k) * scale, strength) for k in range(variants)]
                for drawing in drawings[style]
            ]
            for style in self.styles
        ]

    def size(self, variant: int) -> float:
        """Side in pixels of a variant before scaling."""
        return 30.0 + 26.0 * variant / max(1, self.variants - 1)

    def pick(self, style: int, kind: int, size: float, rng: Generator) -> Image.Image:
        """A sprite of about the wanted size."""
        exact = (size - 30.0) / 26.0 * (self.variants - 1)
        variant = int(np.clip(round(exact + rng.uniform(-1, 1)), 0, self.variants - 1))
        return self._sprites[style][kind][variant]


def _augment(
    rng: Generator, drawing: NDArray[np.uint8], size: float, strength: float
) -> Image.Image:
    """One cut-out: rotated, flipped, resized, recoloured and lit from one side."""
    image = Image.fromarray(drawing)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-15, 15) * strength, Image.Resampling.BILINEAR)
    side = max(4, round(size))
    stretch = 1 + rng.uniform(-0.1, 0.1) * strength
    image = image.resize((side, max(4, round(side * stretch))), Image.Resampling.BOX)
    if rng.random() < 0.3 * strength:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    pixels = np.asarray(image).astype(np.float32)
    rgb = pixels[..., :3]
    grey = rgb.mean(-1, keepdims=True)
    rgb = grey + (rgb - grey) * (1 + rng.uniform(-0.45, 0.35) * strength)
    mix = np.eye(3, dtype=np.float32) + rng.uniform(-0.12, 0.12, (3, 3)) * strength
    rgb = rgb @ mix.astype(np.float32)
    rgb = (rgb - 128) * (1 + rng.uniform(-0.3, 0.2) * strength) + 128
    rgb = rgb + rng.uniform(-28, 28) * strength
    # A light from one side: rendered 3D drawings differ from flat ones mostly in their shading.
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : rgb.shape[0] * 1j, -1 : 1 : rgb.shape[1] * 1j]
    light = np.cos(angle) * rows + np.sin(angle) * columns
    rgb = rgb * (1 + light[..., None] * rng.uniform(0, 0.3) * strength)
    pixels[..., :3] = rgb
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _background(rng: Generator, colour: int, side: int) -> Image.Image:
    """A coloured ground with a soft gradient and a little noise."""
    base = np.asarray(_ANCHORS[colour], np.float32) + rng.uniform(-9, 9, 3)
    steps = np.linspace(-1, 1, side, dtype=np.float32)
    slope = rng.uniform(-14, 14, 2)
    ground = base + (slope[0] * steps[:, None] + slope[1] * steps[None, :])[..., None]
    if rng.random() < 0.5:
        ground = ground + rng.normal(0, rng.uniform(0, 7), (side, side, 1))
    return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))


def render(
    scene: Scene, bank: SpriteBank, rng: Generator, *, style: int | None = None, jpeg: bool = True
) -> NDArray[np.uint8]:
    """Draw a scene as [side, side, 3] RGB; every object in one style, or each in a random one."""
    image = _background(rng, scene.colour, round(SIDE * bank.scale))
    one = int(rng.integers(len(bank.styles))) if rng.random() < 0.5 else None
    for placed in scene.objects:
        chosen = style if style is not None else one
        if chosen is None:
            chosen = int(rng.integers(len(bank.styles)))
        sprite = bank.pick(chosen, placed.kind, placed.size, rng)
        left = round(placed.x * bank.scale - sprite.width / 2)
        top = round(placed.y * bank.scale - sprite.height / 2)
        image.paste(sprite, (left, top), sprite)
    if jpeg and rng.random() < 0.3:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(60, 95)))
        image = Image.open(buffer)
    return np.asarray(image)


def patch_labels(scene: Scene, *, grid: int = 8) -> NDArray[np.int64]:
    """What every patch shows and where that is, as [2, grid * grid].

    First an object's kind, or objects + background colour; then the cell of that object, or the
    cell the patch lies in. A patch belongs to the last drawn object whose ellipse covers it.
    """
    centres = (np.arange(grid) + 0.5) * SIDE / grid
    labels = np.full((grid, grid), len(objects()) + scene.colour, np.int64)
    third = (centres * 3 / SIDE).astype(np.int64)
    cells = third[:, None] * 3 + third[None, :]
    for placed in scene.objects:
        rows = ((centres - placed.y) / (placed.size * 0.5)) ** 2
        columns = ((centres - placed.x) / (placed.size * 0.5)) ** 2
        inside = rows[:, None] + columns[None, :] < 1.0
        labels[inside] = placed.kind
        cells[inside] = placed.cell
    return np.stack([labels.reshape(-1), cells.reshape(-1)])
