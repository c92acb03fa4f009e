"""Rotary positions of any frame of a video, however long."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2RotaryPosEmbed
from torch import Tensor


class FrameRotary:
    """Complex rotations from the library's frequencies, put together for the frames that are asked for.

    What is held are the axes: a whole table of a long video would grow with frames times tokens per frame.

    Args:
        rope: of the transformer; its table ends at ``max_seq_len``, and one of the same kind takes its place
            in a video that goes on beyond.
        grid: rows and columns of tokens in a frame.
        num_frames: latent frames of the video.
    """

    def __init__(self, rope: SkyReelsV2RotaryPosEmbed, grid: tuple[int, int], num_frames: int) -> None:
        device = rope.freqs_cos.device
        if num_frames > rope.max_seq_len:
            rope = SkyReelsV2RotaryPosEmbed(rope.attention_head_dim, rope.patch_size, num_frames).to(device)
        sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
        axes = zip(rope.freqs_cos.split(sizes, dim=1), rope.freqs_sin.split(sizes, dim=1), strict=True)
        time, rows, columns = (torch.complex(cos[:, 0::2].float(), sin[:, 1::2].float()) for cos, sin in axes)
        height, width = grid
        self._time = time[:num_frames].clone()
        self._place = torch.cat(
            [
                rows[:height].unsqueeze(1).expand(-1, width, -1),
                columns[:width].unsqueeze(0).expand(height, -1, -1),
            ],
            dim=-1,
        ).flatten(0, 1)

    def frames(self, start: int, stop: int) -> Tensor:
        """Rotations of the tokens of frames ``[start, stop)``, ``[tokens, 1, head_dim / 2]``."""
        time, tokens = self._time[start:stop], len(self._place)
        parts = [
            time.unsqueeze(1).expand(-1, tokens, -1),
            self._place.unsqueeze(0).expand(len(time), -1, -1),
        ]
        return torch.cat(parts, dim=-1).flatten(0, 1).unsqueeze(1)
