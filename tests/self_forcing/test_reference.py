"""Network, cache, steps and sampling against tensors of the original Self-Forcing and Causal-Forcing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel
from random_model import denoised
from reference import Case, case_names, present, reference_dir
from torch import Tensor

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, cut_window
from flowcache.chunk_model import ChunkInput
from flowcache.kv.manager import CacheManager
from flowcache.wan.attention import rotate
from flowcache.wan.chunk_model import WanChunkModel
from flowcache.wan.conversion import transformer_config, transformer_key
from flowcache.wan.solver import ChunkUniPC, noise_grid
from self_forcing.solver import FewStepSolver, noise_table, step_times
from self_forcing.windows import rolling_window

PART = "self_forcing"

#: Loops that the project does not have, by the beginnings of the names of their cases.
ABSENT = {
    "rolling_forcing_": "several chunks of different times see each other in one call, later ones too",
    "multi_step_cfg_dpm": "no configuration of the originals reaches DPM++",
}


@pytest.fixture(scope="session")
def folder() -> Path:
    return present(reference_dir() / PART)


def names(prefix: str) -> list[str]:
    found = case_names(prefix, PART)
    return [name for name in found if not name.startswith(tuple(ABSENT))] or [f"{prefix}absent"]


def assert_close(actual: Tensor, expected: Tensor, relative: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < relative, f"relative error {error:.2e}"


def new_model(folder: Path, branches: tuple[str, ...] = ("cond",), **options: Any) -> WanChunkModel:
    weights = Case(folder, "weights")
    config = transformer_config(weights.info["config"] | {"inject_sample_info": False})
    transformer = SkyReelsV2Transformer3DModel(**config)
    transformer.load_state_dict({transformer_key(key): tensor for key, tensor in weights.tensors.items()})
    texts, latent = Case(folder, "prompt_embeds").tensors, weights.info["latent"]
    embeds = torch.cat([texts[branch] for branch in branches])
    return WanChunkModel(transformer.eval(), embeds, (latent["height"], latent["width"]), 600, **options)


def cuts(frames: int, block: int, independent: bool) -> list[slice]:
    """Frames of the chunks of a video."""
    starts = [0, *range(1, frames, block)] if independent else list(range(0, frames, block))
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], frames], strict=True)]


class Calls:
    """Calls of the model one chunk at a time against a cache, as the original's."""

    def __init__(self, model: WanChunkModel, chunks: list[slice], window: int = -1, sink: int = 0) -> None:
        lengths = [model.num_tokens(chunk.stop - chunk.start) for chunk in chunks]
        schedule = StaircaseSchedule(len(chunks), 1, stride=1)
        frames = max(chunk.stop - chunk.start for chunk in chunks)
        # A window over all frames keeps the keys and values of every layer, as the original does.
        compression = rolling_window(chunks[-1].stop if window < 0 else window, sink, frames)
        config = FlowCacheConfig(policy="none", clean_pass=True, compression=compression)
        self.model, self.chunks, self.manager = model, chunks, CacheManager(model, schedule, lengths, config)

    def run(self, chunk: int, latents: Tensor, times: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Velocity of a chunk, and keys and values of each layer after the call."""
        manager, cache = self.manager, self.manager.cache
        if not manager.fits([chunk]):
            manager.make_room([chunk], chunk)
        manager.enter([chunk], chunk, chunk + 1)
        inputs = [ChunkInput(chunk, self.chunks[chunk].start, latents, tuple(times.tolist()))]
        outputs = self.model.blocks(inputs, self.model.embed(inputs), cache)
        cache.end_call()
        held = [cache.read(layer) for layer in range(cache.layout.num_layers)]
        return self.model.head(inputs, outputs)[0], [tuple(x.clone() for x in each) for each in held]


def frames_first(latents: Tensor) -> Tensor:
    """``[1, frames, channels, ...]`` of the references to ``[channels, frames, ...]`` and back."""
    return latents[0].transpose(0, 1) if latents.ndim == 5 else latents.transpose(0, 1).unsqueeze(0)


@pytest.mark.parametrize("name", names("forward_nocache"))
def test_whole_clip(folder, name):
    """Masks, local attention and teacher forcing equal calls one after another against the cache."""
    case = Case(folder, name)
    info, tensors = case.info, case.tensors
    chunks = cuts(info["frames"], info["num_frame_per_block"], info["independent_first_frame"])
    calls = Calls(new_model(folder, (info["prompt"],)), chunks, info["local_attn_size"])
    x, flow = frames_first(tensors["x"]), frames_first(tensors["flow"])
    for index, chunk in enumerate(chunks):
        velocity, _ = calls.run(index, x[:, chunk], tensors["timestep"][0, chunk])
        assert_close(velocity, flow[:, chunk])
        if info["teacher_forcing"]:
            aug = tensors["aug_t"][0] if "aug_t" in tensors else torch.zeros(info["frames"])
            calls.run(index, frames_first(tensors["clean_x"])[:, chunk], aug[chunk])


@pytest.mark.parametrize("name", [*names("forward_cache"), *names("rolling_b")])
def test_cache(folder, name):
    """Velocity of every call, and the keys and values that it leaves, also of a rolling window with a sink."""
    case = Case(folder, name)
    info, tensors = case.info, case.tensors
    spans = {call["chunk"]: slice(call["start_frame"], call["start_frame"] + call["frames"]) for call in info["calls"]}
    window = (info.get("local_attn_size", -1), info.get("sink_size", 0))
    calls = Calls(new_model(folder, (info["prompt"],)), list(spans.values()), *window)
    passes = {}
    for call in info["calls"]:
        chunk = call["chunk"]
        passes[chunk] = number = passes.get(chunk, -1) + 1
        place = f"chunk{chunk}.pass{number}"
        x = frames_first(tensors[f"{place}.x"])
        velocity, held = calls.run(chunk, x, torch.full((x.shape[1],), call["timestep"]))
        assert_close(velocity, frames_first(tensors[f"{place}.flow"]))
        for layer, pair in enumerate(held):
            for key, rows in zip("kv", pair, strict=True):
                if (expected := tensors.get(f"{place}.layer{layer}.{key}")) is not None:
                    assert_close(rows, expected)


class Replay(FewStepSolver):
    """Steps with the renoise of a case, and the noise level of each call."""

    def __init__(self, case: Case, first_chunk: int) -> None:
        info = case.info
        lists = [info["denoising_step_list"], info.get("denoising_step_list_first_chunk")]
        shift, warp = info["timestep_shift"], info["warp_denoising_step"]
        times, first = (None if steps is None else step_times(steps, shift, warp) for steps in lists)
        super().__init__(times, shift, torch.Generator(), first_times=first, first_chunk=first_chunk)
        self.draws = iter(sorted(key for key in case.tensors if key.startswith("renoise.")))
        self.tensors = case.tensors

    def draw(self, shape):
        return self.tensors[next(self.draws)].reshape(shape)


def sample(case: Case, model: WanChunkModel, config: FlowCacheConfig, clean_time: float = 0.0) -> Tensor:
    """Latents of a video of a case, given ones included."""
    info, tensors = case.info, case.tensors
    noise, given = frames_first(tensors["noise"]), None
    if "initial_latent" in tensors:
        given = frames_first(tensors["initial_latent"])
        noise = torch.cat([torch.full_like(given, torch.nan), noise], dim=1)
    first = 1 if info["independent_first_frame"] else None
    window = cut_window(noise, info["num_frame_per_block"], given, first_frames=first)
    if "denoising_step_list" in info:
        solver, num_steps = (replay := Replay(case, window.num_given)), len(replay.times) - 1
        skipped = solver.skipped
    else:
        num_steps, skipped = info["sampling_steps"], 0
        solver = ChunkUniPC(num_steps, info["timestep_shift"], first_correction_as_original=False)
    schedule = StaircaseSchedule(len(window.chunks), num_steps, num_steps - skipped, window.num_given, skipped)
    latents = denoised(Denoiser(model, config, clean_time=clean_time), window, schedule, solver)
    assert next(getattr(solver, "draws", iter(())), None) is None, "renoise is left"
    return latents


@pytest.mark.parametrize("name", [*names("few_step_"), *names("causal_forcing_")])
def test_few_step_sampling(folder, name):
    case = Case(folder, name)
    info, compression = case.info, None
    if info["local_attn_size"] != -1:
        compression = rolling_window(info["local_attn_size"], info["sink_size"], info["num_frame_per_block"])
    config = FlowCacheConfig(policy="none", clean_pass=True, compression=compression)
    latents = sample(case, new_model(folder), config, float(info["context_noise"]))
    assert_close(latents, frames_first(case.tensors["latents"]))


@pytest.mark.parametrize("name", names("multi_step_cfg_"))
def test_multi_step_sampling(folder, name):
    case = Case(folder, name)
    model = new_model(folder, ("cond", "uncond"), guidance_scale=case.info["guidance_scale"])
    latents = sample(case, model, FlowCacheConfig(policy="none", clean_pass=True))
    assert_close(latents, frames_first(case.tensors["latents"]))


def test_scheduler(folder):
    case = Case(folder, "scheduler")
    shift, tensors = case.info["shift"], case.tensors
    table = noise_table(shift)
    torch.testing.assert_close(table, tensors["sigmas"])
    torch.testing.assert_close(1000 * table, tensors["timesteps"])
    for steps, times in case.info["warped"].items():
        assert step_times(list(map(int, steps.split(","))), shift, warp=True) == pytest.approx(times, abs=1e-4)
    for i, time in enumerate(tensors["timestep"].tolist()):
        # One step to the clean latents, and one that ends at this time with the noise of the case.
        to_clean = FewStepSolver([time], shift, torch.Generator())
        assert_close(to_clean.step(0, 0, tensors["noised"][i], tensors["flow"][i]), tensors["flow_to_x0"][i])
        renoised = FewStepSolver([1000.0, time], shift, torch.Generator())
        renoised.draw = lambda shape, i=i: tensors["noise"][i].reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        x0 = tensors["x0"][i].unsqueeze(1)
        assert_close(renoised.step(0, 0, x0, torch.zeros_like(x0)).squeeze(1), tensors["noised"][i])


def test_multi_step_tables(folder):
    for steps, table in Case(folder, "multi_step_tables").info["tables"].items():
        solver = ChunkUniPC(int(steps), 5.0)
        assert [solver.timestep(i) for i in range(int(steps))] == table["unipc_timesteps"]
        assert noise_grid(int(steps), 5.0) == pytest.approx(table["unipc_sigmas"], abs=1e-7)


def test_rotary(folder):
    tensors, tokens = Case(folder, "rope").tensors, Case(folder, "weights").info["latent"]["tokens_per_frame"]
    rotary = new_model(folder)._rotary
    for name in (name for name in tensors if name.endswith(".x")):
        start = int(name.removeprefix("start").removesuffix(".x"))
        x, frames = tensors[name].clone(), tensors[name].shape[1] // tokens
        rotated = rotate(x.unflatten(1, (frames, tokens)), rotary.frames(start, start + frames)[None, :, :, None])
        assert_close(rotated.flatten(1, 2), tensors[name.replace(".x", ".roped")])
