"""Contact sheets: videos as rows of frames in one picture."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import replaced_when_done
from .frames import Frames, scale_frames

_MARGIN, _GAP, _TITLE = 8, 3, 24
#: Mean absolute difference, of 255 levels, below which two rows look the same to a reader.
_ALIKE = 12


def contact_sheet(
    videos: Mapping[str, Frames], path: str | Path, columns: int = 8, scale: float = 1.0, differences: bool = False
) -> None:
    """Save a PNG with a row for each video: its label above evenly spaced frames, first and last included.

    Videos are frames ``[frames, height, width, 3]`` of any size; ``columns`` is the most in a row. ``differences``
    adds below each row that looks like the first their difference, scaled as its label says.
    """
    if not videos or any(len(frames) == 0 for frames in videos.values()):
        raise ValueError("A contact sheet needs at least one video, and at least one frame of each.")
    rows, (first_label, first) = [], next(iter(videos.items()))
    for label, frames in videos.items():
        rows.append(_draw_row(label, frames, columns, scale))
        if not differences or frames is first or frames.shape != first.shape:
            continue
        difference = np.abs(frames.astype(np.int16) - first)
        if difference.mean() < _ALIKE:
            high = max(1.0, float(np.percentile(difference, 99.5)))  # few pixels saturate
            factor = 2 ** min(6, int(math.log2(255 / high)))
            label = f"|{label} - {first_label}|" + (f" x {factor}" if difference.any() else ": identical")
            scaled = np.clip(difference * factor, 0, 255).astype(np.uint8)
            rows.append(_draw_row(label, scaled, columns, scale))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for index, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height for above in rows[:index])))
    with replaced_when_done(path) as temporary:
        sheet.save(temporary, format="PNG")


def _draw_row(label: str, frames: Frames, columns: int, scale: float) -> Image.Image:
    shown = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
    pictures = scale_frames(frames[shown], scale)
    width, height = pictures[0].size
    font = ImageFont.load_default(size=15)
    total = max(len(shown) * (width + _GAP) - _GAP, math.ceil(font.getlength(label))) + 2 * _MARGIN
    row = Image.new("RGB", (total, _TITLE + height + _MARGIN), "white")
    ImageDraw.Draw(row).text((_MARGIN, _TITLE - 6), label, fill="black", font=font, anchor="ls")
    for column, picture in enumerate(pictures):
        row.paste(picture, (_MARGIN + column * (width + _GAP), _TITLE))
    return row
