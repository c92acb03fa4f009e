"""Contact sheets: videos as rows of frames in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import replaced_when_done
from .frames import Frames


def contact_sheet(
    videos: Mapping[str, Frames], path: str | Path, columns: int = 8, scale: float | None = None
) -> None:
    """Save a PNG with a row for each video: its label above evenly spaced frames, first and last included.

    Args:
        videos: label to frames ``[frames, height, width, 3]``; sizes and lengths may differ.
        path: of the picture; an earlier one stays if this fails.
        columns: the most frames in a row; a shorter video shows each frame once.
        scale: enlargement of a frame; default: the widest comes to about 240 pixels.

    Raises:
        ValueError: there is no video, or one without a frame.
    """
    if not videos or any(len(frames) == 0 for frames in videos.values()):
        raise ValueError("A contact sheet needs at least one video, and at least one frame of each.")
    if scale is None:
        scale = 240 / max(frames.shape[2] for frames in videos.values())
    rows = [_sheet_row(label, frames, columns, scale) for label, frames in videos.items()]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with replaced_when_done(path) as temporary:
        sheet.save(temporary, format="PNG")


def _sheet_row(label: str, frames: Frames, columns: int, scale: float) -> Image.Image:
    """One video of a contact sheet."""
    height, width = (max(1, round(scale * side)) for side in frames.shape[1:3])
    margin, gap, title = 8, 3, 24
    shown = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
    font = ImageFont.load_default(size=15)
    total_width = max(len(shown) * (width + gap) - gap, math.ceil(font.getlength(label))) + 2 * margin
    row = Image.new("RGB", (total_width, title + height + margin), "white")
    ImageDraw.Draw(row).text((margin, title - 6), label, fill="black", font=font, anchor="ls")
    # Whole pixels when enlarged, so that the picture shows what is there and nothing in between.
    filtering = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for column, index in enumerate(shown):
        picture = Image.fromarray(frames[index]).resize((width, height), filtering)
        row.paste(picture, (margin + column * (width + gap), title))
    return row
