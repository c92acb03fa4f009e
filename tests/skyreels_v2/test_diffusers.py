"""The forward through the cache, rotary positions and the solver against diffusers'."""

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2RotaryPosEmbed
from layouts import run_blocks

from skyreels_v2.chunk_model import FrameRotary, SkyReelsV2ChunkModel
from skyreels_v2.solver import ChunkUniPC

SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
SIZES |= {"text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 3}
FRAMES, HEIGHT, WIDTH = 6, 4, 6


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize(("knows_fps", "at_once"), [(False, True), (True, True), (True, False)])
def test_causal_through_the_cache_equals_diffusers(block, knows_fps, at_once):
    torch.manual_seed(0)
    theirs = SkyReelsV2Transformer3DModel(**SIZES, inject_sample_info=knows_fps).eval()
    latents, text = torch.randn(1, 4, FRAMES, HEIGHT, WIDTH), torch.randn(1, 8, 16)
    times = [float(100 * (1 + start)) for start in range(0, FRAMES, block) for _ in range(block)]
    theirs._set_ar_attention(block)
    fps = {"fps": [1]} if knows_fps else {}
    expected = theirs(latents, torch.tensor([times]), text, enable_diffusion_forcing=True, **fps).sample[0]
    ours = SkyReelsV2ChunkModel(theirs, text, (HEIGHT, WIDTH), FRAMES, fps=24)
    assert torch.allclose(run_blocks(ours, latents[0], times, block, at_once), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("longest", [40, 6])
def test_rotary_positions_are_those_of_the_whole_table(longest):
    """Also where the model's own table, of ``longest`` frames, has ended."""
    tokens = HEIGHT * WIDTH
    cos, sin = SkyReelsV2RotaryPosEmbed(24, (1, 1, 1), 40)(torch.empty(1, 1, 20, HEIGHT, WIDTH))
    whole = torch.complex(cos[0, ..., 0::2].float(), sin[0, ..., 1::2].float())
    rotary = FrameRotary(SkyReelsV2RotaryPosEmbed(24, (1, 1, 1), longest), (HEIGHT, WIDTH), 20)
    for start, stop in ((0, 5), (5, 7), (19, 20)):
        assert torch.equal(rotary.frames(start, stop), whole[start * tokens : stop * tokens])


@pytest.mark.parametrize("steps, shift", [(1, 8.0), (2, 8.0), (3, 3.0), (8, 5.0), (50, 8.0)])
def test_solver_equals_diffusers(steps, shift):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
    solver = ChunkUniPC(steps, shift, first_correction_as_original=False)
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=generator) / 2
    theirs = torch.randn(1, 4, 3, 8, 8, generator=generator)
    ours = theirs[0].clone()
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = torch.einsum("ij,bj...->bi...", mix, theirs).sin()
        theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
        ours = solver.step(0, step, ours, torch.einsum("ij,j...->i...", mix, ours).sin())
    torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-5)
