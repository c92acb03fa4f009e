"""Read off a clip what its caption says: colour, form, motion and background of a moving shape.

Nothing is trained: the colour is the nearest of the palette, the form that of the rendered shape with the largest
overlap, over sizes and angles, and the motion follows from the path of the shape's centre and from its area.
"""

import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flowcache.video import Frames, to_uint8

from .moving_shapes import BACKGROUNDS, COLOURS, FORMS, Scene, draw_scene, render

#: Difference of levels (0 to 255) from which on a pixel belongs to the shape.
APART = 60
#: Frames whose forms are compared, of a clip.
COMPARED = 32
#: Degrees between the angles of rendered shapes, and after how many each form looks the same.
STEP, PERIODS = 10, {"circle": 10, "ring": 10, "square": 90, "triangle": 120}
RADII = np.arange(0.15, 0.41, 0.01)  # in frame widths
#: Standard deviation of the log of the area from which on a shape grows and shrinks: 0.4 is as rendered.
PULSE = 0.2
#: Pixels a frame below which the centre rests, and share of its path that a straight one is long.
REST, STRAIGHT = 0.25, 0.6


@dataclass(frozen=True)
class Reading:
    """What a clip shows.

    Attributes:
        overlap: largest intersection over union with a rendered shape of each form, mean over frames.
        shape_levels, ground_levels: median colours, 0 to 255.
        speed: of the centre, pixels a frame.
    """

    colour: str
    form: str
    motion: str
    background: str
    overlap: dict[str, float]
    shape_levels: NDArray[np.float64]
    ground_levels: NDArray[np.float64]
    speed: float


#: What a caption says, in its order.
NAMED = tuple(field.name for field in fields(Reading))[:4]


def read_caption(caption: str) -> dict[str, str]:
    """Colour, form, motion and background that a caption names."""
    subject, background = caption.removesuffix(" background").split(" over a ")
    _, colour, form, motion = subject.split(" ", 3)
    return dict(zip(NAMED, (colour, form, motion, background), strict=True))


def check_probe(clips: int, frames: int) -> dict[str, float]:
    """Shares of rendered clips whose words are read right, and mean overlap with their own form."""
    draw, right = np.random.default_rng(0), []
    for _ in tqdm(range(clips), unit="clip", leave=False):
        scene = draw_scene(draw)
        reading = read_clip(to_uint8(render(scene, frames)))
        words = [getattr(reading, name) == getattr(scene, name) for name in NAMED]
        right.append([*words, reading.overlap[scene.form]])
    return dict(zip((*NAMED, "overlap"), np.mean(right, axis=0).tolist(), strict=True))


def read_clip(frames: Frames) -> Reading:
    """Read frames ``[frames, side, side, 3]``, at least about 100 of them, in which a shape is seen."""
    ground = np.median(frames, axis=(0, 1, 2))
    masks = np.abs(frames - ground).max(axis=-1) > APART
    seen = masks.any(axis=(1, 2))
    if not seen.any():
        return Reading(
            "none", "none", "none", _nearest(BACKGROUNDS, ground), dict.fromkeys(FORMS, 0.0), ground, ground, 0
        )
    frames, masks = frames[seen], masks[seen]
    levels = np.median(frames[masks], axis=0)
    centres, areas = find_centres(masks), masks.sum(axis=(1, 2))
    shown = np.linspace(0, len(masks) - 1, COMPARED).round().astype(int)
    overlap = compare_forms(centre_masks(masks[shown], centres[shown]))
    steps, side = np.diff(centres, axis=0), frames.shape[1]
    steps = (steps + side / 2) % side - side / 2  # a shape that leaves comes back on the other side
    speed = float(np.linalg.norm(steps, axis=1).mean())
    return Reading(
        _nearest(COLOURS, levels),
        max(overlap, key=overlap.__getitem__),
        name_motion(steps, speed, float(np.log(areas).std())),
        _nearest(BACKGROUNDS, ground),
        overlap,
        levels,
        ground,
        speed,
    )


def name_motion(steps: NDArray[np.float64], speed: float, pulse: float) -> str:
    """Motion of a centre whose steps ``[frames, 2]`` are right and down, and of an area with that deviation."""
    if pulse > PULSE:
        return "grows and shrinks"
    if speed < REST:
        return "turns"
    right, down = steps.mean(axis=0)
    if math.hypot(right, down) < STRAIGHT * speed:
        return "bounces"
    if abs(right) > abs(down):
        return "moves right" if right > 0 else "moves left"
    return "moves down" if down > 0 else "moves up"


def find_centres(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres (x, y) of the shapes in ``[frames, side, side]``, pixels; opposite sides of a frame meet."""
    side = masks.shape[1]
    turn = np.exp(2j * np.pi * (np.arange(side) + 0.5) / side)
    profiles = np.stack([masks.sum(axis=1), masks.sum(axis=2)], axis=1)
    return np.angle(profiles @ turn) / (2 * np.pi) * side % side


def centre_masks(masks: NDArray[np.bool_], centres: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Move shapes to the middle of their frames."""
    shifts = np.rint(masks.shape[1] / 2 - centres).astype(int)
    moved = [np.roll(mask, (down, right), axis=(0, 1)) for mask, (right, down) in zip(masks, shifts, strict=True)]
    return np.stack(moved)


def compare_forms(masks: NDArray[np.bool_]) -> dict[str, float]:
    """Largest intersection over union of shapes in the middle with rendered ones, by form; means over the frames."""
    own, found = masks.reshape(len(masks), -1).astype(np.float32), {}
    for form in FORMS:
        known = draw_forms(form, masks.shape[1])
        both = own @ known.T
        found[form] = float((both / (own.sum(axis=1)[:, None] + known.sum(axis=1) - both)).max(axis=1).mean())
    return found


@cache
def draw_forms(form: str, side: int) -> NDArray[np.float32]:
    """Masks of a form in the middle of a frame, all radii and angles, ``[shapes, side * side]``."""
    drawn = []
    for radius in RADII:
        scene = Scene("yellow", form, "turns", "dark", radius, 0.5, 0.5, speed=STEP / 360, heading=0)
        frames = to_uint8(render(scene, PERIODS[form] // STEP, side))
        masks = np.abs(frames - np.float64(to_uint8(render(scene, 1, side))[0, 0, 0])).max(axis=-1) > APART
        drawn.append(centre_masks(masks, find_centres(masks)))
    return np.concatenate(drawn).reshape(-1, side * side).astype(np.float32)


def _nearest(palette: dict[str, tuple[float, float, float]], levels: NDArray[np.float64]) -> str:
    return min(palette, key=lambda name: np.linalg.norm(255 * np.array(palette[name]) - levels))
