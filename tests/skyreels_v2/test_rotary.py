"""Rotary positions of any frame."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2RotaryPosEmbed

from skyreels_v2.rotary import FrameRotary

HEIGHT, WIDTH, TOKENS = 3, 4, 12


def library_table(rope, num_frames):
    cos, sin = rope(torch.empty(1, 1, num_frames, HEIGHT, WIDTH))
    return torch.complex(cos[0, ..., 0::2].float(), sin[0, ..., 1::2].float())


@pytest.mark.parametrize("most", [40, 6])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (5, 7), (19, 20)])
def test_any_frames_are_those_of_the_whole_table(most, start, stop):
    """Also where the model's own table, of ``most`` frames, has ended."""
    whole = library_table(SkyReelsV2RotaryPosEmbed(24, (1, 1, 1), 40), 20)
    rotary = FrameRotary(SkyReelsV2RotaryPosEmbed(24, (1, 1, 1), most), (HEIGHT, WIDTH), 20)
    assert torch.equal(rotary.frames(start, stop), whole[start * TOKENS : stop * TOKENS])
