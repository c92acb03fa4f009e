"""Videos of both models by one process and by several."""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from torch import distributed as dist

from flowcache import Trace
from flowcache.finite import FiniteWatch, NotFiniteError
from flowcache.parallel import Group
from flowcache.pipeline import FlowCachePipeline
from flowcache.reuse import Decision, ReusePolicy
from flowcache.state import on_host
from magi1.config import EngineSection, MagiConfig, RuntimeSection
from magi1.methods import method_config as magi_config
from magi1.pipeline import MagiPipeline
from magi1.transformer import MagiTransformer3DModel
from magi1.vae import AutoencoderKLMagi
from skyreels_v2 import VideoSettings
from skyreels_v2 import method_config as skyreels_config
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

PROCESSES = 4
#: Three heads, and 40 or 56 tokens a frame: shares differ in size. Sizes avoid what depends on the number of rows or
#: heads in PyTorch's CPU kernels: products with fewer than four rows (also the last ones of attention's blocks of 32
#: queries), and sums over tokens with fewer than 64 channels of a head.
SKYREELS = {"num_attention_heads": 3, "attention_head_dim": 64, "in_channels": 4, "out_channels": 4, "text_dim": 16}
SKYREELS |= {"freq_dim": 32, "ffn_dim": 96, "num_layers": 2}
MAGI = {"num_layers": 2, "hidden_size": 96, "ffn_hidden_size": 96, "num_attention_heads": 6, "num_query_groups": 3}
MAGI |= {"kv_channels": 64, "in_channels": 4, "out_channels": 4, "caption_channels": 16, "caption_max_length": 20}
SETTINGS = {"height": 80, "width": 128, "inference_steps": 8, "ar_step": 2, "causal_block_size": 2, "num_frames": 45}
SETTINGS |= {"base_num_frames": 45}
RUNTIME = {"video_size_h": 112, "video_size_w": 128, "num_frames": 56, "num_steps": 8, "chunk_width": 2}
THREE_WAY = {"cfg_number": 3, "cfg_t_range": (0.0, 0.2), "prev_chunk_scales": (1.5, 1.0), "text_scales": (7.5, 0.0)}


@dataclass
class Case:
    """A video: its method, and settings that differ; it stops behind part ``resumes``, and starts again there."""

    model: str
    method: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    prefix: int = 0  # frames
    last: bool = False
    resumes: int | None = None


def sky(video: dict[str, Any] | None = None, **method: Any) -> Case:
    named = ("prefix", "last", "resumes")
    return Case("skyreels_v2", video=video or {}, **{n: method.pop(n) for n in named if n in method}, method=method)


def magi(video: dict[str, Any] | None = None, **method: Any) -> Case:
    named = ("prefix", "resumes")
    return Case("magi1", video=video or {}, **{n: method.pop(n) for n in named if n in method}, method=method)


PAPER = {"preset": "paper-fast", "warmup_steps": 1, "threshold": 1.0}
MAGI_PAPER = PAPER | {"threshold": 0.1}
COMPRESSED = {"compress": True, "budget": 1}
CASES = {
    "vanilla": sky(method="vanilla"),
    "causal": sky({"width": 80}, method="causal"),
    "unguided": sky({"guidance_scale": 1.0}, method="causal"),
    "teacache": sky(method="teacache", threshold=0.5, warmup_steps=1),
    "fast": sky(),
    "together": sky({"ar_step": 0}),
    "residual": sky(forecast="linear_residual", threshold=1.0, warmup_steps=1),
    "paper": sky(**PAPER),
    "paper_within_step": sky(**PAPER, **COMPRESSED, kv_bits=8),
    "spread": sky(**COMPRESSED),
    "spread_8_bits": sky(**COMPRESSED, kv_bits=8, resumes=1),
    "select_4_bits": sky(**COMPRESSED, scorer="paper", compactor="select", kv_bits=4, kv_offload=True),
    "random": sky(**COMPRESSED, scorer="random", query_granularity="frame"),
    "sink_window": sky(**COMPRESSED, scorer="sink_window", strategy="frame"),
    "streaming": sky({"streaming": True, "base_num_frames": 9, "num_frames": 45}, **COMPRESSED, resumes=2),
    "image": sky({"addnoise_condition": 20}, **COMPRESSED, prefix=1, last=True),
    "windows": sky(
        {"num_frames": 29, "base_num_frames": 17, "overlap_history": 9, "addnoise_condition": 20}, prefix=9
    ),
    "magi_vanilla": magi(method="vanilla"),
    "magi_teacache": magi(method="teacache", threshold=0.5, warmup_steps=1),
    "magi_fast": magi(),
    "magi_paper": magi(**MAGI_PAPER),
    "magi_paper_full": magi(**MAGI_PAPER, compress=True, total=5, kv_bits=4),
    "magi_spread": magi(compress=True, total=6, kv_bits=8, resumes=2),
    "magi_random": magi(compress=True, total=6, scorer="random", kv_bits=4),
    "magi_three_way": magi(THREE_WAY, compress=True, total=6),
    "magi_three_way_paper": magi(THREE_WAY, **MAGI_PAPER),
    "magi_residual": magi(forecast="hold_residual", threshold=0.1, warmup_steps=1),
    "magi_image": magi(compress=True, total=6, prefix=1),
    "magi_video": magi({"noise2clean_kvrange": (3, 2), "clean_chunk_kvrange": 1}, prefix=16),
}
#: Also by three processes, and by two for guidance x two for tokens.
BY_THREE = ("spread_8_bits", "image", "magi_paper_full")
BY_FOUR = ("paper_within_step", "spread_8_bits", "streaming")


def make_pipelines() -> dict[str, FlowCachePipeline]:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    transformers = SkyReelsV2Transformer3DModel(**SKYREELS), MagiTransformer3DModel(**MAGI)
    for transformer in transformers:
        for weight in transformer.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    skyreels = FlowCacheSkyReelsV2Pipeline(None, None, transformers[0], vae, scheduler)
    vae = AutoencoderKLMagi(video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1)
    made = {"skyreels_v2": skyreels, "magi1": MagiPipeline(None, None, transformers[1], vae)}
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.transformer, pipeline.vae):
            part.requires_grad_(False).eval()
    return made


def stream(
    pipeline: FlowCachePipeline, case: Case, trace: Trace, state: Any = None, policy: ReusePolicy | None = None
) -> Iterator:
    draw = torch.Generator().manual_seed(1)
    given, texts = {}, [torch.randn(tokens, 16, generator=draw) for tokens in (8, 8)]
    if case.model == "skyreels_v2":
        settings = VideoSettings(**SETTINGS | case.video)
        config = skyreels_config(**case.method)
        embeds = {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1]}
        size = settings.height, settings.width
        given["last"] = torch.rand(3, 1, *size, generator=draw) * 2 - 1 if case.last else None
        options = {"settings": settings, **embeds}
    else:
        runtime = RuntimeSection(**RUNTIME | case.video)
        size = runtime.video_size_h, runtime.video_size_w
        distilled = runtime.cfg_number == 1
        section = MagiConfig(runtime_config=runtime, engine_config=EngineSection(distill=distilled))
        config = magi_config(**case.method)
        options = {"config": section, "prompt_embeds": texts[0]}
    if policy is not None:
        config = replace(config, policy=policy)
    if case.prefix:
        given["prefix"] = torch.rand(3, case.prefix, *size, generator=draw) * 2 - 1
    return pipeline.stream(cache=config, **given, trace=trace, state=state, decode=False, **options)


def make_video(pipeline: FlowCachePipeline, case: Case, group: Group) -> dict[str, Any]:
    """Latents of a case and its trace."""
    pipeline.parallelize(group)
    trace, latents, state = Trace(), [], None
    for index, part in enumerate(stream(pipeline, case, trace)):
        latents.append(part.latents.clone())
        if index == case.resumes:
            # What a file keeps of it.
            state = copy.deepcopy(on_host(part.state())), copy.deepcopy(trace.state_dict()), trace.step_lines()
            break
    if state is not None:
        trace = Trace()
        trace.load_state_dict(*state[1:])
        latents += [part.latents for part in stream(pipeline, case, trace, state[0])]
    return {"latents": torch.cat(latents, dim=1), "trace": json.dumps(asdict(trace)), "traffic": asdict(group.traffic)}


def check_group(group: Group) -> None:
    """What several processes exchange, and what one of them sees that ends all."""
    index, size = group.index, group.size
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool):
        parts = [torch.full((2, rank + 1), 10 * index + rank).to(dtype) for rank in range(size)]
        received = group.exchange(parts, [(2, index + 1)] * size)
        for rank, part in enumerate(received):
            assert torch.equal(part, torch.full((2, index + 1), 10 * rank + index).to(dtype)), dtype
    own = torch.full((2, index + 1), index)
    assert group.gather(own, 1, range(1, size + 1))[1].tolist() == [n for n in range(size) for _ in range(n + 1)]
    small = 10.0 ** -torch.arange(3) * (index + 1)
    assert torch.equal(group.sum(small), sum(10.0 ** -torch.arange(3) * (n + 1) for n in range(size)))
    assert torch.equal(group.max(small), 10.0 ** -torch.arange(3) * size)
    sent = torch.arange(3, dtype=torch.bfloat16) if group.is_first else None
    assert group.broadcast(sent, "cpu").tolist() == [0, 1, 2]
    assert group.broadcast_object(index) == 0 and group.gather_objects(index) == list(range(size))
    watch = FiniteWatch(group)
    watch.observe("what the last process saw", torch.tensor(float("nan") if index == size - 1 else 0.0))
    try:
        watch.check()
    except NotFiniteError as error:
        assert "the last process" in str(error)
    else:
        raise AssertionError("not a number was not seen")


@dataclass
class Disagree(ReusePolicy):
    """A policy by which processes decide differently."""

    def decide(self, step, num_steps, live, indicators):
        return {chunk: Decision(bool((step + chunk + dist.get_rank()) % 2)) for chunk in live}


def check_decisions(pipeline: FlowCachePipeline, group: Group) -> None:
    """The first process decides for all."""
    pipeline.parallelize(group)
    trace = Trace()
    for _ in stream(pipeline, CASES["causal"], trace, policy=Disagree()):
        pass
    decided = [[event.reused for event in step.events] for step in trace.steps]
    assert group.gather_objects(decided) == [decided] * group.size
    assert any(map(any, decided))


def check_seeds(pipeline: FlowCachePipeline, group: Group) -> None:
    """The first process's seed is that of all."""
    pipeline.parallelize(group)
    embeds = {name: torch.ones(1, 8, 16) for name in ("prompt_embeds", "negative_prompt_embeds")}
    drawn = torch.Generator().manual_seed(group.index)
    video = pipeline(**embeds, **SETTINGS | {"num_frames": 9}, generator=drawn, output_type="latent")
    assert all(torch.equal(latents, video.latents) for latents in group.gather_objects(video.latents))


def make_all(group: Group, folder: Path) -> None:
    """Make the videos of all cases in four processes; a file holds one process's latents, and the trace of its run."""
    rank, pipelines, names = group.index, make_pipelines(), list(CASES)

    def make(members: Group, chosen: list[str]) -> None:
        for name in chosen:
            made = make_video(pipelines[CASES[name].model], CASES[name], members)
            torch.save(made, folder / f"{name}.{members.size}.{members.index}.pt")

    with torch.inference_mode():
        check_group(group)
        make(Group(), names[rank::PROCESSES])
        make(group.split(2)[1], names[rank // 2 :: 2])
        make(group, list(BY_FOUR))
        check_decisions(pipelines["skyreels_v2"], group)
        check_seeds(pipelines["skyreels_v2"], group)
        if rank < 3:
            three = dist.new_group(range(3), use_local_synchronization=True)
            make(Group(rank, 3, three), list(BY_THREE))
