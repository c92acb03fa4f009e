"""Compare FlowCache with other projects' caches on the same SkyReels-V2: time, FLOPs, PSNR and SSIM.

    python -m research.peers --repeats 3

Others run in diffusers' own pipeline with the same weights, noise and noise grid. A method is one of ours
(``METHOD:PRESET``), ``diffusers`` (its pipeline, plain) or a cache with a number, ``NAME:NUMBER``: a threshold, or
for taylorseer the interval between computed steps. A speed-up is over the plain run of the same pipeline.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline as DiffusersPipeline
from diffusers import UniPCMultistepScheduler, hooks
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock
from torch import Tensor, nn

from flowcache import Trace
from flowcache.environment import require, synchronize
from flowcache.video import Frames, to_uint8
from skyreels_v2 import METHODS as OURS
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline, VideoSettings
from skyreels_v2.codec import VideoCodec
from skyreels_v2.settings import latent_frames
from skyreels_v2.windows import plan_windows

from .compare import compare, main, speed_table, write_results
from .methods import configure, make_parser
from .runs import find_model

METHODS = (
    *("vanilla", "causal", "teacache", "flowcache:fast", "flowcache:balanced", "diffusers"),
    *("fbcache:0.1", "fbcache:0.4", "seacache:0.2", "seacache:0.6"),
    *("taylorseer:5", "taylorseer:8", "dbcache:0.1", "dbcache:0.4", "dbcache_taylor:0.1", "dbcache_taylor:0.4"),
)
#: Runs without reuse, with which the others are compared.
PLAIN = ("vanilla", "causal", "diffusers")
#: Maximum number of steps that SeaCache and DBCache reuse in a row.
MOST_REUSED = 7


class ProcessorTrace(Trace):
    """A trace whose seconds are process time, which other programs hardly change."""

    @contextmanager
    def timer(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.add_seconds(stage, time.process_time() - start)


class OriginalGrid(UniPCMultistepScheduler):
    """Diffusers' scheduler on the original's noise grid; diffusers' own grid is a thousandth higher."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        grid = np.linspace(0.999, 0, num_inference_steps + 1)[:-1]
        super().set_timesteps(device=device, sigmas=grid)


@contextmanager
def count_flops(transformer: nn.Module, text_tokens: int, trace: Trace) -> Iterator[None]:
    """Add a transformer's FLOPs to the trace where modules of its blocks may be skipped."""
    trace.flops.setdefault("actual", 0.0)

    def project(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        trace.flops["actual"] += 2 * layer.weight[0].numel() * output.numel()

    def attend(keys: int | None, layer: nn.Module, inputs: tuple[Tensor, ...], query: Tensor) -> None:
        tokens, dim = query.shape[-2:]
        trace.flops["actual"] += 4 * tokens * (keys or tokens) * dim

    # caches replace the modules' forward, so that only a layer inside shows whether it runs
    layers = [module for module in transformer.blocks.modules() if isinstance(module, nn.Linear)]
    with ExitStack() as stack:
        for layer in (transformer.patch_embedding, transformer.proj_out, *layers):
            stack.enter_context(layer.register_forward_hook(project))
        for block in transformer.blocks:
            for attention, keys in ((block.attn1, None), (block.attn2, text_tokens)):
                stack.enter_context(attention.to_q.register_forward_hook(partial(attend, keys)))
        yield


def make_pipeline(ours: FlowCacheSkyReelsV2Pipeline, original_grid: bool) -> DiffusersPipeline:
    """Diffusers' pipeline with the same weights as ours; ``original_grid``: and the original's noise grid."""
    parts = dict(ours.components)
    parts["transformer"] = deepcopy(ours.transformer).eval()
    if original_grid:
        parts["scheduler"] = OriginalGrid.from_config(parts["scheduler"].config)
    pipeline = DiffusersPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class PeerRun:
    """A video in diffusers' pipeline; attention is block-causal except with an ``ar_step`` of 0."""

    pipeline: DiffusersPipeline
    settings: VideoSettings
    prompt: str
    negative_prompt: str

    def denoise(self, seed: int, trace: Trace) -> Tensor:
        """Denoise a video, ``[channels, frames, height, width]``; adds time and FLOPs to the trace."""
        pipeline, settings = self.pipeline, self.settings
        text_tokens = min(512, pipeline.tokenizer.model_max_length)
        embeds, negative_embeds = pipeline.encode_prompt(
            self.prompt, self.negative_prompt, settings.guidance_scale > 1, max_sequence_length=text_tokens
        )
        # diffusers takes pixels per latent from the number of levels, which is wrong for a VAE with patches
        scale = pipeline.vae_scale_factor_spatial / pipeline.vae.config.scale_factor_spatial
        same = ("num_frames", "base_num_frames", "overlap_history", "addnoise_condition", "ar_step", "fps")
        with trace.timer("denoise"), count_flops(pipeline.transformer, text_tokens, trace):
            latents = pipeline(
                prompt=None,
                prompt_embeds=embeds,
                negative_prompt_embeds=negative_embeds,
                height=int(settings.height * scale),
                width=int(settings.width * scale),
                causal_block_size=settings.causal_block_size if settings.ar_step else None,
                num_inference_steps=settings.inference_steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                **{name: getattr(settings, name) for name in (*same, "guidance_scale")},
            ).frames
            synchronize(pipeline.device)
        return latents[0]

    @torch.no_grad()
    def video(self, seed: int, trace: Trace) -> tuple[Frames, Trace]:
        """Denoise and decode a video, ``[frames, height, width, 3]``."""
        return to_uint8(VideoCodec(self.pipeline.vae).decode(self.denoise(seed, trace))), trace


#: Configurations of diffusers' caches by a threshold, or by the interval between computed steps.
CONFIGS: dict[str, Callable[[float], Any]] = {
    "fbcache": lambda threshold: hooks.FirstBlockCacheConfig(threshold=threshold),
    # the lite form, which forecasts the last projection: TaylorSeer's patterns match no module here
    "taylorseer": lambda interval: hooks.TaylorSeerCacheConfig(
        cache_interval=int(interval), taylor_factors_dtype=torch.float32, use_lite_mode=True
    ),
    "seacache": lambda threshold: hooks.SeaCacheConfig(
        threshold=threshold,
        max_consecutive_cached=MOST_REUSED,
        raw_vision_callback=lambda module, args, kwargs: list(kwargs["hidden_states"].unbind()),
    ),
}
CACHES = (*CONFIGS, "dbcache", "dbcache_taylor")


@contextmanager
def enable_cache(run: PeerRun, text: str) -> Iterator[None]:
    """Enable the cache ``NAME:NUMBER``; none for ``diffusers``."""
    name, number = parse_cache(text)
    with ExitStack() as stack:
        if name in CONFIGS:
            run.pipeline.transformer.enable_cache(CONFIGS[name](number))
            stack.callback(run.pipeline.transformer.disable_cache)
        if name == "seacache":
            stack.enter_context(pass_places(run))
        if name.startswith("dbcache"):
            cache_dit = require("cache_dit", name, "bench")
            # one block is computed at every step
            limits = {"max_warmup_steps": 3, "max_continuous_cached_steps": MOST_REUSED}
            config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=number, **limits)
            seer = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if name == "dbcache_taylor" else None
            cache_dit.enable_cache(run.pipeline, cache_config=config, calibrator_config=seer)
            stack.callback(cache_dit.disable_cache, run.pipeline)
        yield


@contextmanager
def pass_places(run: PeerRun) -> Iterator[None]:
    """Pass SeaCache step, number of steps and mean noise level, which the pipeline does not."""
    transformer, settings = run.pipeline.transformer, run.settings
    num_steps = sum(len(plan.schedule(settings)) for plan in plan_windows(settings))
    branches = ("cond", "uncond") if settings.guidance_scale > 1 else ("cond",)
    calls, contexts = count(), ExitStack()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step, branch = divmod(next(calls), len(branches))
        sigma = kwargs["timestep"].float().mean().item() / 1000
        place = {"step_index": step % num_steps, "num_inference_steps": num_steps, "sigma": sigma}
        contexts.enter_context(module.cache_context(branches[branch], **place))

    before = transformer.register_forward_pre_hook(enter, with_kwargs=True)
    with before, transformer.register_forward_hook(lambda *_: contexts.close()):
        yield


def parse_cache(text: str) -> tuple[str, float]:
    """Name and number of ``NAME:NUMBER``; ``diffusers`` has none. ValueError for other words."""
    name, _, number = text.partition(":")
    if text != "diffusers" and name not in CACHES:
        raise ValueError(f"methods: expected diffusers, {', '.join(CACHES)} or one of ours, got {text!r}.")
    if name.startswith("dbcache"):
        require("cache_dit", name, "bench")
    try:
        return name, 0.0 if text == "diffusers" else float(number)
    except ValueError:
        raise ValueError(f"methods: expected a number behind {name}, as in {name}:2, got {text!r}.") from None


def register_block() -> None:
    metadata = TransformerBlockMetadata(return_hidden_states_index=0)
    TransformerBlockRegistry.register(SkyReelsV2TransformerBlock, metadata)


def find_base(method: str) -> str:
    return "vanilla" if method.partition(":")[0] in OURS else "diffusers"


def bench(args: argparse.Namespace) -> str:
    if args.model != "skyreels":
        raise ValueError(f"model: expected skyreels, which diffusers has, got {args.model}.")
    model = find_model(args, ar_step=args.ar_step)
    settings, prompt = model.adapter.video, args.prompt or model.adapter.default_prompt
    if args.ar_step and latent_frames(settings.num_frames) % settings.causal_block_size:
        raise ValueError(
            f"num_frames: expected blocks of {settings.causal_block_size} latent frames, as diffusers leaves the rest "
            f"noise, got {settings.num_frames}; try 97 or 177."
        )
    ours = {method: configure(model, method) for method in args.methods if find_base(method) == "vanilla"}
    for method in args.methods:
        if method not in ours:
            parse_cache(method)
    register_block()
    pipeline = make_pipeline(model.pipeline, args.grid == "original")
    peers = PeerRun(pipeline, settings, prompt, model.pipeline.default_negative_prompt)

    def make(method: str, seed: int) -> tuple[Frames, Trace]:
        trace = (ProcessorTrace if args.clock == "processor" else Trace)(method=method)
        if method in ours:
            return model.video(prompt, seed, ours[method], trace)
        with enable_cache(peers, method):
            return peers.video(seed, trace)

    seeds = range(args.seed, args.seed + args.repeats)
    runs = compare(make, args.methods, seeds, PLAIN, args.outdir, shown=args.methods)
    return write_results(args, "bench", speed_table(runs, PLAIN, find_base), runs)


if __name__ == "__main__":
    parser = make_parser(__doc__, "peers", "97", list(METHODS))
    add = parser.add_argument
    lag = "steps by which blocks lag; 0: all together, attention to the whole window (default: 5)"
    add("--ar_step", type=int, default=5, help=lag)
    add("--grid", choices=("original", "diffusers"), default="original", help="noise grid of diffusers' runs")
    clock = "wall time, or processor time of all threads: for one thread on a busy CPU (default: wall)"
    add("--clock", choices=("wall", "processor"), default="wall", help=clock)
    main(parser, bench)
