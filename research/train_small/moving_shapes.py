"""Procedural videos of moving shapes, with captions."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Shipped checkpoints, whose configurations new ones take over.
ASSETS = Path(__file__).resolve().parents[2] / "assets"

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
FORMS = ("circle", "square", "triangle", "ring")
BACKGROUNDS = {"dark": (0.08, 0.08, 0.10), "light": (0.92, 0.92, 0.90), "grey": (0.45, 0.47, 0.50)}
DRIFTS = {"moves right": (1, 0), "moves left": (-1, 0), "moves up": (0, -1), "moves down": (0, 1)}
MOTIONS = (*DRIFTS, "bounces", "turns", "grows and shrinks")


def read_held_out() -> list[str]:
    """Captions that training never shows."""
    return json.loads(Path(__file__).with_name("held_out.json").read_text())


@dataclass(frozen=True)
class Scene:
    """A moving shape over a background; every motion is stationary, so that a clip may start anywhere."""

    colour: str
    form: str
    motion: str
    background: str
    radius: float  # half extent, in frame widths
    x: float  # centre at the start, 0 to 1
    y: float
    speed: float  # frame widths per frame; for turns and pulses, cycles per frame
    heading: float  # direction of a bounce, or phase of a turn or pulse, radians

    @property
    def caption(self) -> str:
        article = "an" if self.colour == "orange" else "a"
        return f"{article} {self.colour} {self.form} {self.motion} over a {self.background} background"


def draw_scene(rng: np.random.Generator, held_out: frozenset[str] = frozenset()) -> Scene:
    """Draw a scene whose caption is not in ``held_out``; round forms do not turn."""
    while True:
        choices = (COLOURS, FORMS, MOTIONS, BACKGROUNDS)
        colour, form, motion, background = (str(rng.choice(list(words))) for words in choices)
        radius = rng.uniform(0.24, 0.29)
        x, y = rng.uniform(0, 1, 2)
        if motion == "bounces":
            x, y = rng.uniform(radius, 1 - radius, 2)
        if motion not in ("moves right", "moves left", "bounces"):
            x = rng.uniform(0.35, 0.65)
        if motion not in ("moves up", "moves down", "bounces"):
            y = rng.uniform(0.35, 0.65)
        if motion == "turns":  # so that one number, the angle, says how it looks
            x = y = 0.5
        speed = rng.uniform(*((0.010, 0.018) if motion in (*DRIFTS, "bounces") else (0.008, 0.014)))
        heading = rng.uniform(0, 2 * math.pi)
        if motion == "bounces":
            heading = rng.integers(4) * math.pi / 2 + rng.uniform(0.5, math.pi / 2 - 0.5)
        scene = Scene(colour, form, motion, background, radius, x, y, speed, heading)
        if scene.caption not in held_out and not (motion == "turns" and form in ("circle", "ring")):
            return scene


def render(scene: Scene, num_frames: int, size: int = 64, start: int = 0) -> Tensor:
    """Render frames ``start`` and later of a scene, ``[3, frames, size, size]`` in [-1, 1], antialiased."""
    time = torch.arange(start, start + num_frames, dtype=torch.float32).view(-1, 1, 1)
    far, grid = scene.speed * time, (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x, y, radius, angle = scene.x, scene.y, scene.radius, torch.zeros_like(time)
    if scene.motion in DRIFTS:
        x, y = (place + way * far for place, way in zip((x, y), DRIFTS[scene.motion], strict=True))
    elif scene.motion == "bounces":
        x = _reflect(x + math.cos(scene.heading) * 1.3 * far, radius)
        y = _reflect(y + math.sin(scene.heading) * 1.3 * far, radius)
    elif scene.motion == "turns":
        angle = 2 * math.pi * far + scene.heading
    else:
        radius = radius * (1 + 0.3 * torch.sin(2 * math.pi * 2 * far + scene.heading))
    dx, dy = grid.view(1, 1, -1) - x, grid.view(1, -1, 1) - y
    if scene.motion in DRIFTS:  # leaves on one side, comes back on the other
        dx, dy = (torch.remainder(d + 0.5, 1) - 0.5 for d in (dx, dy))
    cos, sin = angle.cos(), angle.sin()
    distance = _distance(scene.form, cos * dx + sin * dy, cos * dy - sin * dx, radius)
    cover = (0.5 - distance * size).clamp(0, 1)
    colour = torch.tensor(COLOURS[scene.colour]).view(3, 1, 1, 1)
    ground = torch.tensor(BACKGROUNDS[scene.background]).view(3, 1, 1, 1)
    return (ground + cover * (colour - ground)) * 2 - 1


def _reflect(position: Tensor, margin: float) -> Tensor:
    """Fold a straight line into ``[margin, 1 - margin]``."""
    span = 1 - 2 * margin
    folded = torch.remainder(position - margin, 2 * span)
    return margin + torch.minimum(folded, 2 * span - folded)


def _distance(form: str, x: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance to the outline, negative inside."""
    if form == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if form == "triangle":
        return torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.58 * radius
    outer = torch.hypot(x, y) - radius
    return outer if form == "circle" else torch.maximum(outer, -outer - 0.45 * radius)
