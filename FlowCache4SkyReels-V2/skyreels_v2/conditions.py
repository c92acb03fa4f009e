"""What a video is made from: prompts and given frames, checked."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing import prompt_clean

from flowcache.arguments import GivenFrames, as_frames
from flowcache.prompts import check_prompt

from .settings import TEMPORAL_STRIDE


@dataclass(frozen=True)
class Condition:
    """Given frames of a video: pixels in [-1, 1], or images or uint8 arrays (``as_frames``).

    Attributes:
        prefix: first frames, ``[3, frames, height, width]``: one for image-to-video, ``4 k + 1`` to extend.
        last: frame to arrive at, ``[3, 1, height, width]``.
    """

    prefix: GivenFrames | None = None
    last: GivenFrames | None = None

    def converted(self, height: int, width: int) -> Condition:
        """Convert the frames to tensors; TypeError or ValueError names an argument that does not fit."""
        prefix, last = (
            None if frames is None else as_frames(f"condition.{name}", frames, height, width)
            for name, frames in vars(self).items()
        )
        if prefix is not None and prefix.shape[1] % TEMPORAL_STRIDE != 1:
            raise ValueError(f"condition.prefix must have 4 k + 1 frames, got {prefix.shape[1]}.")
        if last is not None and last.shape[1] != 1:
            raise ValueError(f"condition.last must be one frame, got {last.shape[1]}.")
        return Condition(prefix, last)


def check_prompts(prompt: str, negative_prompt: str | None) -> None:
    """Raise TypeError or ValueError for a prompt of which the cleaning of captions leaves nothing."""
    check_prompt("prompt", prompt, prompt_clean)
    if negative_prompt is not None:
        check_prompt("negative_prompt", negative_prompt, prompt_clean)
