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
        """Convert the frames to tensors.

        Raises:
            TypeError: frames are of an unknown type; the argument is named.
            ValueError: they do not fit; the argument is named.
        """
        prefix, last = (
            None if frames is None else as_frames(f"condition.{name}", frames, height, width)
            for name, frames in vars(self).items()
        )
        if prefix is not None and prefix.shape[1] % TEMPORAL_STRIDE != 1:
            raise ValueError(f"condition.prefix must have 4 k + 1 frames, got {prefix.shape[1]}.")
        if last is not None and last.shape[1] != 1:
            raise ValueError(f"condition.last must be one frame, got {last.shape[1]}.")
        return Condition(prefix, last)


def make_condition(
    settings: VideoSettings,
    image: GivenFrames | None = None,
    last_image: GivenFrames | None = None,
    video: GivenFrames | None = None,
) -> Condition:
    """Condition of a first frame, a last frame, or frames to continue.

    Raises:
        TypeError, ValueError: frames do not fit; the argument is named.
    """
    if image is not None and video is not None:
        raise ValueError("image: expected no video beside it; the video starts with one of them.")
    size = (settings.height, settings.width)
    first, last, prefix = (
        None if frames is None else as_frames(name, frames, *size)
        for name, frames in (("image", image), ("last_image", last_image), ("video", video))
    )
    if prefix is not None:
        count = settings.overlap_history or pixel_frames(latent_frames(prefix.shape[1]))
        if prefix.shape[1] < count:
            raise ValueError(
                f"video: expected at least overlap_history ({count}) frames, got {prefix.shape[1]}."
            )
        first = prefix[:, -count:]
    return Condition(first, last)


def check_prompts(prompt: str, negative_prompt: str | None) -> None:
    """Refuse prompts of which the cleaning of captions leaves nothing.

    Raises:
        TypeError: a prompt is no text; it is named.
        ValueError: one sentence that names the argument.
    """
    check_prompt("prompt", prompt, prompt_clean)
    if negative_prompt is not None:
        check_prompt("negative_prompt", negative_prompt, prompt_clean)
