"""The cached, chunk by chunk forward against diffusers' own block-causal one."""

from __future__ import annotations

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel

from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache
from skyreels_v2.chunk_model import SkyReelsV2ChunkModel

SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
FRAMES, HEIGHT, WIDTH = 6, 4, 6


def new_transformer(knows_fps: bool) -> SkyReelsV2Transformer3DModel:
    torch.manual_seed(0)
    return SkyReelsV2Transformer3DModel(
        **SIZES, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=3, inject_sample_info=knows_fps
    ).eval()


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("knows_fps", [False, True])
@pytest.mark.parametrize("calls", ["one call", "a call for each block"])
def test_causal_through_the_cache_equals_diffusers(block, knows_fps, calls):
    torch.manual_seed(1)
    latents, text = torch.randn(1, 4, FRAMES, HEIGHT, WIDTH), torch.randn(1, 8, 16)
    times = [float(100 * (1 + start)) for start in range(0, FRAMES, block) for _ in range(block)]
    theirs = new_transformer(knows_fps)
    theirs._set_ar_attention(block)
    fps = {"fps": [1]} if knows_fps else {}
    expected = theirs(latents, torch.tensor([times]), text, enable_diffusion_forcing=True, **fps).sample[0]

    ours = SkyReelsV2ChunkModel(new_transformer(knows_fps), text, (HEIGHT, WIDTH), FRAMES, fps=24)
    inputs = [
        ChunkInput(i, start, latents[0, :, start : start + block], tuple(times[start : start + block]))
        for i, start in enumerate(range(0, FRAMES, block))
    ]
    cache = ChunkKVCache(ours.cache_layout(), ours.num_tokens(FRAMES))
    velocities = []
    for batch in [inputs] if calls == "one call" else [[item] for item in inputs]:
        for item in batch:
            cache.enter(item.chunk, ours.num_tokens(block))
        velocities += ours.head(batch, ours.blocks(batch, ours.embed(batch), cache))
    assert torch.allclose(torch.cat(velocities, dim=1), expected, atol=1e-5, rtol=1e-4)
