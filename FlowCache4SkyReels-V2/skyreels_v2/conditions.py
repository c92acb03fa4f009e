"""What a video is made from: prompts and given frames, checked."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing import prompt_clean

from flowcache.arguments import GivenFrames, as_frames
from flowcache.prompts import check_prompt

from .settings import TEMPORAL_STRIDE, VideoSettings, latent_frames, pixel_frames


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


def make_condition(settings: VideoSettings, **given: GivenFrames | None) -> Condition:
    """Make a condition of ``image``, ``last_image`` and ``video``, the frames to continue."""
    frames = {
        name: as_frames(name, value, settings.height, settings.width)
        for name, value in given.items()
        if value is not None
    }
    first, video = frames.get("image"), frames.get("video")
    if video is not None:
        if first is not None:
            raise ValueError("image: expected no video beside it; the video starts with one of them.")
        count = settings.overlap_history or pixel_frames(latent_frames(video.shape[1]))
        if video.shape[1] < count:
            raise ValueError(f"video: expected overlap_history ({count}) frames, got {video.shape[1]}.")
        first = video[:, -count:]
    return Condition(first, frames.get("last_image"))


def check_prompts(prompt: str, negative_prompt: str | None) -> None:
    """Raise TypeError or ValueError for a prompt of which the cleaning of captions leaves nothing."""
    check_prompt("prompt", prompt, prompt_clean)
    if negative_prompt is not None:
        check_prompt("negative_prompt", negative_prompt, prompt_clean)
