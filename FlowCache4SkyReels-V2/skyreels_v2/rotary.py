"""Rotary positions of any frame of a video, however long."""

import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2RotaryPosEmbed
from torch import Tensor


class FrameRotary:
    """Complex rotations of the tokens of any frames, from diffusers' frequencies.

    It holds the axes: a whole table would grow with frames times tokens per frame.

    Args:
        rope: of the transformer; a longer one replaces it in videos beyond its ``max_seq_len`` frames.
        grid: rows and columns of tokens in a frame.
        num_frames: latent frames of the video.
    """

    def __init__(self, rope: SkyReelsV2RotaryPosEmbed, grid: tuple[int, int], num_frames: int) -> None:
        device, (height, width) = rope.freqs_cos.device, grid
        if num_frames > rope.max_seq_len:
            rope = SkyReelsV2RotaryPosEmbed(rope.attention_head_dim, rope.patch_size, num_frames).to(device)
        sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
        axes = zip(rope.freqs_cos.split(sizes, dim=1), rope.freqs_sin.split(sizes, dim=1), strict=True)
        time, rows, columns = (torch.complex(cos[:, 0::2].float(), sin[:, 1::2].float()) for cos, sin in axes)
        self._time = time[:num_frames].clone()
        place = rows[:height].repeat_interleave(width, dim=0), columns[:width].repeat(height, 1)
        self._place = torch.cat(place, dim=-1)

    def frames(self, start: int, stop: int) -> Tensor:
        """Rotations of frames ``[start, stop)``, ``[tokens, 1, head_dim / 2]``."""
        time = self._time[start:stop]
        parts = time.repeat_interleave(len(self._place), dim=0), self._place.repeat(len(time), 1)
        return torch.cat(parts, dim=-1).unsqueeze(1)
