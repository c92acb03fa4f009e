"""Arguments of the pipelines as Python callers give them, checked before any work starts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .prompt_schedule import PromptSchedule
from .prompts import check_prompt
from .video import Frames, resize_and_crop, to_float, to_pixels

#: Frames of a condition: pixels in [-1, 1], ``[3, frames, height, width]``; or images or uint8 arrays.
GivenFrames = Tensor | Image.Image | Frames | Sequence[Image.Image | Frames]

TOLERANCE = 1e-3  # rounding of values in [-1, 1]


def check_type(name: str, value: Any, kind: type, hint: str = "") -> None:
    """Raise TypeError for a value of another type; the sentence ends in ``hint``."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}{hint}.")


def as_frames(name: str, given: GivenFrames, height: int, width: int) -> Tensor:
    """Convert the frames of the condition ``name`` to ``[3, frames, height, width]`` in [-1, 1].

    ``given`` is such a tensor, or pixels from 0 to 255, which are scaled and cropped to the size: an image,
    uint8 arrays ``[height, width, 3]`` or ``[frames, height, width, 3]``, or a list of these. Raises
    TypeError or ValueError for others.
    """
    if isinstance(given, Tensor):
        if not given.is_floating_point():
            remedy = "divide pixels by 127.5 and subtract 1"
            raise TypeError(f"{name}: expected a float tensor in [-1, 1], got {given.dtype}; {remedy}.")
        if given.ndim != 4 or given.shape[0] != 3 or given.shape[2:] != (height, width) or not given.shape[1]:
            raise ValueError(f"{name}: expected [3, frames, {height}, {width}], got {list(given.shape)}.")
        low, high = torch.stack(given.aminmax()).tolist()
        if not (low >= -1 - TOLERANCE and high <= 1 + TOLERANCE):  # true of NaN as well
            span = f"got {low:g} to {high:g}; scale or clamp them"
            raise ValueError(f"{name}: expected values in [-1, 1], {span}.")
        return given
    items = given if isinstance(given, list | tuple) else [given]
    frames = [frame for item in items for frame in _read_pixels(name, item)]
    if not frames:
        raise ValueError(f"{name}: expected at least one frame, got none.")
    return to_float(np.concatenate([resize_and_crop(frame[None], height, width) for frame in frames]))


def _read_pixels(name: str, item: Any) -> Sequence[Frames]:
    """Pixels ``[height, width, 3]`` of an image or array; transparent parts over black."""
    if isinstance(item, Image.Image):
        try:
            return [to_pixels(item, name)]
        except ValueError as error:
            raise ValueError(f"{name}: {error}.") from error
    if not isinstance(item, np.ndarray):
        form = "a float tensor in [-1, 1], images or uint8 arrays"
        raise TypeError(f"{name}: expected {form}, got {type(item).__name__}.")
    if item.dtype != np.uint8 or item.ndim not in (3, 4) or item.shape[-1] != 3 or not item.size:
        form = "arrays of uint8, [frames, height, width, 3]"
        raise ValueError(f"{name}: expected {form}, got {item.dtype} {list(item.shape)}.")
    return item.reshape(-1, *item.shape[-3:])


def split_prompts(
    clean: Callable[[str], str], **texts: str | list | PromptSchedule | Tensor | None
) -> list[dict[str, Any]]:
    """Split ``prompt``, ``negative_prompt`` and their ``_embeds``, checked, into arguments for one prompt each.

    A single negative prompt or embedding holds for all prompts.
    """
    given = {name: value for name, value in texts.items() if value is not None}
    if ("prompt" in given) == ("prompt_embeds" in given):
        raise ValueError("prompt: expected either prompt or prompt_embeds; give one of them.")
    for name, value in given.items():
        if name.endswith("_embeds"):
            check_type(name, value, Tensor)
            if value.ndim != 3:
                raise ValueError(f"{name}: expected [prompts, tokens, width], got {list(value.shape)}.")
        else:
            given[name] = value if isinstance(value, list) else [value]
            for text in given[name]:
                if name != "prompt" or not isinstance(text, PromptSchedule):  # which a stream checks
                    check_prompt(name, text, clean)
    count = max(1, len(given.get("prompt", given.get("prompt_embeds"))))
    for name, values in given.items():
        if len(values) not in (1, count):
            raise ValueError(f"{name}: expected one for each of {count} prompts, got {len(values)}.")
    return [{name: values[i % len(values)] for name, values in given.items()} for i in range(count)]
