"""Procedural videos of moving shapes, with captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.70, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.98, 0.85, 0.10),
    "purple": (0.60, 0.20, 0.80),
    "orange": (0.98, 0.50, 0.05),
    "cyan": (0.10, 0.80, 0.85),
    "pink": (1.00, 0.50, 0.75),
}
FORMS = ("circle", "square", "triangle", "star")
BACKGROUNDS = {"dark": (0.08, 0.08, 0.10), "light": (0.92, 0.92, 0.90), "grey": (0.45, 0.47, 0.50)}
MOTIONS = (
    "moves right",
    "moves left",
    "moves up",
    "moves down",
    "bounces",
    "turns",
    "grows and shrinks",
)
_DRIFTS = {"moves right": (1, 0), "moves left": (-1, 0), "moves up": (0, -1), "moves down": (0, 1)}


@dataclass(frozen=True)
class Shape:
    """One shape and how it moves; every motion is stationary, so a clip may start at any phase.

    Attributes:
        radius: half extent, in widths of the frame.
        x, y: centre at the start, 0 to 1.
        speed: widths of the frame per frame; for turns and pulses, cycles per frame.
        heading: direction of a bounce, or phase of a turn or pulse, radians.
    """

    colour: str
    form: str
    motion: str
    radius: float
    x: float
    y: float
    speed: float
    heading: float

    @property
    def phrase(self) -> str:
        article = "an" if self.colour == "orange" else "a"
        return f"{article} {self.colour} {self.form} {self.motion}"


@dataclass(frozen=True)
class Scene:
    """Shapes over a background."""

    shapes: tuple[Shape, ...]
    background: str

    @property
    def caption(self) -> str:
        subjects = " and ".join(shape.phrase for shape in self.shapes)
        return f"{subjects} over a {self.background} background"

    @property
    def turned_round(self) -> Scene:
        """The same scene with its shapes named the other way round."""
        return Scene(self.shapes[::-1], self.background)


def draw_scene(rng: np.random.Generator, held_out: frozenset[str] = frozenset()) -> Scene:
    """A random scene whose caption is not in ``held_out``; one shape in 85% of cases, else two."""
    while True:
        count = 1 if rng.random() < 0.85 else 2
        scene = Scene(
            tuple(_draw_shape(rng, count, i) for i in range(count)), str(rng.choice(list(BACKGROUNDS)))
        )
        colours = {shape.colour for shape in scene.shapes}
        if len(colours) == count and not held_out & {scene.caption, scene.turned_round.caption}:
            return scene


def shape_of(
    colour: str,
    form: str,
    motion: str,
    rng: np.random.Generator,
    lane: tuple[float, float] = (0.3, 0.7),
    radius: tuple[float, float] = (0.22, 0.28),
) -> Shape:
    """A shape with random size, place, speed and phase; ``lane`` bounds its centre across its motion."""
    radius = rng.uniform(*radius)
    x, y = rng.uniform(0, 1), rng.uniform(0, 1)
    if motion in ("moves right", "moves left"):
        y = rng.uniform(*lane)
    elif motion in ("moves up", "moves down"):
        x = rng.uniform(*lane)
    elif motion == "bounces":
        x, y = rng.uniform(radius, 1 - radius, 2)
    else:
        x, y = rng.uniform(*lane), rng.uniform(*lane)
    speed = (
        rng.uniform(0.010, 0.018) if motion in _DRIFTS or motion == "bounces" else rng.uniform(0.008, 0.014)
    )
    heading = rng.uniform(0, 2 * math.pi)
    if motion == "bounces":
        quarter = rng.integers(4) * math.pi / 2
        heading = quarter + rng.uniform(0.5, math.pi / 2 - 0.5)
    return Shape(colour, form, motion, radius, x, y, speed, heading)


def _draw_shape(rng: np.random.Generator, count: int, index: int) -> Shape:
    colour, form, motion = (str(rng.choice(options)) for options in (list(COLOURS), FORMS, MOTIONS))
    if form == "circle" and motion == "turns":
        motion = "grows and shrinks"
    if count == 1:
        return shape_of(colour, form, motion, rng)
    lane = ((0.22, 0.32), (0.68, 0.78))[index]
    return shape_of(colour, form, motion, rng, lane, radius=(0.17, 0.21))


def render(scene: Scene, num_frames: int, size: int = 64, start: int = 0) -> Tensor:
    """Video of a scene, ``[3, frames, size, size]`` in [-1, 1], antialiased.

    Args:
        start: first frame, counted from the scene's beginning.
    """
    time = torch.arange(start, start + num_frames, dtype=torch.float32)
    grid = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    video = torch.tensor(BACKGROUNDS[scene.background]).view(3, 1, 1, 1).expand(3, num_frames, size, size)
    for shape in scene.shapes:
        cover = _cover(shape, time, grid)
        video = video + cover * (torch.tensor(COLOURS[shape.colour]).view(3, 1, 1, 1) - video)
    return video * 2 - 1


def _cover(shape: Shape, time: Tensor, grid: Tensor) -> Tensor:
    """Share of each pixel that the shape covers, ``[frames, size, size]``."""
    x, y, radius, angle = _pose(shape, time)
    wraps = shape.motion in _DRIFTS
    dx = grid.view(1, 1, -1) - x.view(-1, 1, 1)
    dy = grid.view(1, -1, 1) - y.view(-1, 1, 1)
    if wraps:
        dx, dy = (torch.remainder(d + 0.5, 1) - 0.5 for d in (dx, dy))
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    distance = _distance(shape.form, dx, dy, radius.view(-1, 1, 1))
    return (0.5 - distance * len(grid)).clamp(0, 1)


def _pose(shape: Shape, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre, radius and angle at each time."""
    still = torch.zeros_like(time)
    x, y, radius, angle = still + shape.x, still + shape.y, still + shape.radius, still
    if shape.motion in _DRIFTS:
        dx, dy = _DRIFTS[shape.motion]
        x, y = x + dx * shape.speed * time, y + dy * shape.speed * time
    elif shape.motion == "bounces":
        x = _reflect(x + math.cos(shape.heading) * 1.3 * shape.speed * time, shape.radius)
        y = _reflect(y + math.sin(shape.heading) * 1.3 * shape.speed * time, shape.radius)
    elif shape.motion == "turns":
        angle = 2 * math.pi * shape.speed * time + shape.heading
    else:
        radius = radius * (1 + 0.35 * torch.sin(2 * math.pi * 2 * shape.speed * time + shape.heading))
    return x, y, radius, angle


def _reflect(position: Tensor, margin: float) -> Tensor:
    """Fold a straight line into ``[margin, 1 - margin]``."""
    span = 1 - 2 * margin
    folded = torch.remainder(position - margin, 2 * span)
    return margin + torch.minimum(folded, 2 * span - folded)


def _distance(form: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside, about equal in area for all forms."""
    if form == "circle":
        return torch.hypot(x, y) - radius
    if form == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if form == "triangle":
        return torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.58 * radius
    angle = torch.remainder(torch.atan2(x, -y) + math.pi / 5, 2 * math.pi / 5) - math.pi / 5
    length = torch.hypot(x, y)
    along, across = length * angle.cos(), length * angle.abs().sin()
    # a spike's flank runs from the tip (1.2 r) to the notch between two spikes (0.53 r)
    tip, notch = 1.2 * radius, 0.53 * radius
    ex, ey = notch * math.cos(math.pi / 5) - tip, notch * math.sin(math.pi / 5)
    return ((along - tip) * ey - across * ex) / torch.hypot(ex, ey)
