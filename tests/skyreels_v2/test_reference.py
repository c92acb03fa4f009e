"""The transformer, the solver, sampling and FlowCache against tensors of the original code and against diffusers."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2RotaryPosEmbed
from layouts import run_blocks
from random_model import denoised
from reference import Case, case_names, reference_dir
from tiny import SIZES, tiny_transformer
from torch import Tensor

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, Trace, cut_window
from flowcache.config import KVCompressionConfig
from flowcache.kv.original import OriginalCompression
from flowcache.reuse import ChunkwiseReuse, NoReuse, TeaCache
from flowcache.wan.chunk_model import FrameRotary, WanChunkModel
from flowcache.wan.solver import ChunkUniPC, noise_grid

RELATIVE = 1e-4


def assert_close(actual: Tensor, expected: Tensor) -> None:
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < RELATIVE, f"relative error {error:.2e}"


def prompt_embeds(folder: Path, guidance_scale: float) -> Tensor:
    embeds = Case(folder, "prompt_embeds").tensors
    return torch.cat([embeds["pos"], embeds["neg"]]) if guidance_scale > 1 else embeds["pos"]


def forward_cases() -> list[str]:
    """Every output that the forward reference lists."""
    path = reference_dir() / "skyreels_v2" / "forward.json"
    tensors = Case(path.parent, "forward").info["tensors"] if path.is_file() else {"out_absent": None}
    return sorted(name.removeprefix("out_") for name in tensors if name.startswith("out_"))


@pytest.mark.parametrize("name", forward_cases())
def test_forward(reference, name):
    tensors = Case(reference, "forward").tensors
    kind, fps = name.split("_")
    latents = tensors["x"][0]
    frames = latents.shape[1]
    times = [tensors["t_scalar"].item()] * frames
    times = times if kind == "scalar" else tensors["t_frames"][0].tolist()
    block = int(kind[6:]) if kind.startswith("causal") else 3
    model = WanChunkModel(
        tiny_transformer(reference, knows_fps=fps != "nofps"),
        tensors["context"],
        latents.shape[2:],
        frames,
        fps=16 if fps == "fps0" else 24,
        bidirectional=not kind.startswith("causal"),
    )
    assert_close(run_blocks(model, latents, times, block), tensors[f"out_{name}"][0])


def run_window(case: Case, index: int, **method: Any) -> tuple[Tensor, Trace]:
    """Denoise one window of a case from its stored noise, prefix and condition noise; its latents."""
    call, tensors = case.info["call"], case.tensors
    config = FlowCacheConfig(forecast="hold_residual", **method)
    draws, noise = tensors.get(f"addnoise_w{index}"), tensors[f"noise_w{index}"]
    overlap = case.info.get("overlap_latent", 0)
    prefix = tensors[f"latents_w{index - 1}"][:, -overlap:] if index else None
    window = cut_window(noise, call["causal_block_size"], prefix)
    model = WanChunkModel(
        tiny_transformer(case.folder),
        prompt_embeds(case.folder, call["guidance_scale"]),
        noise.shape[2:],
        noise.shape[1],
        guidance_scale=call["guidance_scale"],
        fps=call["fps"],
        bidirectional=config.bidirectional,
        indicator=config.policy.indicator,
    )
    steps = call["num_inference_steps"]
    schedule = StaircaseSchedule(len(window.chunks), steps, call["ar_step"], window.num_given)
    denoiser = Denoiser(
        model,
        config,
        condition_noise=call["addnoise_condition"] / 1000,
        draw_noise=lambda step, shape: draws[step].reshape(shape),
    )
    return denoised(denoiser, window, schedule, ChunkUniPC(steps, call["shift"])), denoiser.trace


@dataclass
class PeriodicTeaCache(TeaCache):
    """The original's: forced first and last steps recur with every chunk's worth of steps."""

    def decide(self, step, num_steps, live, indicators):
        place = self.period - 1 if step == num_steps - 1 else step % self.period
        return super().decide(place, self.period, live, indicators)


def kv_options(case: Case) -> dict[str, Any]:
    """How a case limits what blocks see of clean ones; compression wins over a range."""
    args = case.info["args"]
    if args["use_compress"]:
        settings = {"budget": args["budget_block"], "scorer": "paper", "compactor": "select"}
        settings |= {"query_granularity": "chunk", "max_queries": None}
        original = OriginalCompression(trigger="step")
        return {"compression": KVCompressionConfig(**settings, original=original)}
    return {"clean_range": args["kvrange"]} if args["use_kvrange"] else {}


def num_windows(case: Case) -> int:
    return sum(name.startswith("noise_w") for name in case.tensors)


@pytest.mark.parametrize("name", case_names("sample_"))
def test_vanilla_sampling(reference, name):
    case = Case(reference, name)
    for index in range(num_windows(case)):
        full = case.info["attention"].startswith("full")
        latents, _ = run_window(case, index, policy=NoReuse(), whole_window=True, bidirectional=full)
        assert_close(latents, case.tensors[f"latents_w{index}"])


@pytest.mark.parametrize("name", case_names("tea_"))
def test_teacache_sampling(reference, name):
    case = Case(reference, name)
    threshold = float(re.search(r"thresh ([\d.]+)", case.info["meaning"])[1])
    policy = PeriodicTeaCache(threshold, warmup_steps=1, indicator="timestep_embedding")
    policy.period = case.info["call"]["num_inference_steps"]
    latents, trace = run_window(case, 0, policy=policy, whole_window=True, bidirectional=True)
    assert [not step.events[0].reused for step in trace.steps] == case.info["computed_cond"]
    assert_close(latents, case.tensors["latents_w0"])


@pytest.mark.parametrize("name", case_names("flow_"))
def test_flowcache_sampling(reference, name):
    case = Case(reference, name)
    tea, call = case.info["teacache"], case.info["call"]
    for index in range(num_windows(case)):
        policy = NoReuse()
        if tea["enabled"]:
            warmup = max(1, tea["ret_steps"])
            policy = ChunkwiseReuse(tea["thresh"], warmup, coefficients=tuple(tea["coefficients"]))
        # The original runs a prefix once only if blocks are staggered and caching is on.
        refresh = call["ar_step"] == 0 or not tea["enabled"]
        latents, trace = run_window(case, index, policy=policy, refresh_given=refresh, **kv_options(case))
        assert_decisions(trace, case.info["skip_tables"][f"w{index}"])
        assert_close(latents, case.tensors[f"latents_w{index}"])


def assert_decisions(trace: Trace, tables: dict) -> None:
    """Every chunk is computed at exactly the steps of the original, in both branches."""
    events = [(record.step, event) for record in trace.steps for event in record.events]
    for chunk, table in (item for branch in tables.values() for item in branch.items()):
        steps, own = zip(*((step, event) for step, event in events if event.chunk == int(chunk)), strict=True)
        assert list(steps) == table["rows"]
        assert [not event.reused for event in own] == table["computed"]
        for event, accumulated in zip(own, table["acc_before_reset"], strict=True):
            assert accumulated is None or event.accumulated == pytest.approx(accumulated, rel=1e-4)


@pytest.fixture(scope="module")
def tables(reference):
    return Case(reference, "schedule").info


def test_noise_grid(tables):
    prefix = "unipc_flow_shift"
    for name in (name for name in tables if name.startswith(prefix)):
        shift = float(name.removeprefix(prefix))
        for steps, table in tables[name].items():
            solver = ChunkUniPC(int(steps), shift)
            assert [solver.timestep(i) for i in range(int(steps))] == table["timesteps"]
            assert noise_grid(int(steps), shift) == pytest.approx(table["sigmas"], abs=1e-7)


def test_staircase(tables):
    for case in tables["cases"]:
        blocks = case["num_latent_frames"] // case["causal_block_size"]
        prefix = case["num_pre_ready"] // case["causal_block_size"]
        # a block starts at the latest when the one before it is finished
        stride = min(case["ar_step"], case["steps"])
        schedule = StaircaseSchedule(blocks, case["steps"], stride, prefix)
        if "error" in case:
            base = case["base"] // case["causal_block_size"]
            assert schedule.max_live > base, "too many live blocks for the window, as the original says"
            continue
        assert len(schedule) == case["rows"]
        for live, row, mask in zip(schedule, case["step_index_per_block"], case["update_mask_per_block"], strict=True):
            assert sorted(live) == [block for block, moves in enumerate(mask) if moves]
            assert all(row[block] == local_step + 1 for block, local_step in live.items())


FRAMES, HEIGHT, WIDTH = 6, 4, 6


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize(("knows_fps", "at_once"), [(False, True), (True, True), (True, False)])
def test_causal_through_the_cache_equals_diffusers(block, knows_fps, at_once):
    torch.manual_seed(0)
    theirs = SkyReelsV2Transformer3DModel(**{**SIZES, "num_layers": 3}, inject_sample_info=knows_fps).eval()
    latents, text = torch.randn(1, 4, FRAMES, HEIGHT, WIDTH), torch.randn(1, 8, 16)
    times = [float(100 * (1 + start)) for start in range(0, FRAMES, block) for _ in range(block)]
    theirs._set_ar_attention(block)
    fps = {"fps": [1]} if knows_fps else {}
    expected = theirs(latents, torch.tensor([times]), text, enable_diffusion_forcing=True, **fps).sample[0]
    ours = WanChunkModel(theirs, text, (HEIGHT, WIDTH), FRAMES, fps=24)
    assert torch.allclose(run_blocks(ours, latents[0], times, block, at_once), expected, atol=1e-5, rtol=1e-4)


def test_bf16_is_closer_to_fp32_than_diffusers():
    """Hidden states are rounded where a block ends, as in the original, and not after each of its parts."""
    torch.manual_seed(0)
    model = SkyReelsV2Transformer3DModel(**{**SIZES, "num_layers": 12}).eval()
    fp32 = tuple(model._keep_in_fp32_modules)
    for name, weight in model.named_parameters():
        weight.data = weight.data if any(part in name for part in fp32) else weight.data.bfloat16()
    latents, text, times = torch.randn(4, FRAMES, HEIGHT, WIDTH), torch.randn(1, 8, 16).bfloat16(), [500.0] * FRAMES

    def ours(transformer: SkyReelsV2Transformer3DModel, text: Tensor) -> Tensor:
        own = WanChunkModel(transformer, text, (HEIGHT, WIDTH), FRAMES, bidirectional=True)
        return run_blocks(own, latents, times, FRAMES)

    theirs = model(latents.unsqueeze(0).bfloat16(), torch.tensor([500.0]), text).sample[0]
    exact = ours(copy.deepcopy(model).float(), text.float())
    errors = [(each.float() - exact).square().mean().sqrt() for each in (ours(model, text), theirs)]
    assert errors[0] < 0.75 * errors[1]


@pytest.mark.parametrize("longest", [40, 6])
def test_rotary_positions_are_those_of_the_whole_table(longest):
    """Also where the model's own table, of ``longest`` frames, has ended."""
    tokens = HEIGHT * WIDTH
    cos, sin = SkyReelsV2RotaryPosEmbed(24, (1, 1, 1), 40)(torch.empty(1, 1, 20, HEIGHT, WIDTH))
    whole = torch.stack((cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]), dim=-1).float().unflatten(0, (20, tokens))
    rotary = FrameRotary(SkyReelsV2RotaryPosEmbed(24, (1, 1, 1), longest), (HEIGHT, WIDTH), 20)
    for start, stop in ((0, 5), (5, 7), (19, 20)):
        assert torch.equal(rotary.frames(start, stop), whole[start:stop])


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
