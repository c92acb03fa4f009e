"""SkyReels-V2 in diffusers' own pipeline: plain, with diffusers' caches, and with cache-dit."""

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
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
from flowcache.environment import synchronize
from flowcache.video import Frames, to_uint8
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline, VideoSettings
from skyreels_v2.chunk_model import transformer_flops
from skyreels_v2.codec import VideoCodec
from skyreels_v2.windows import plan_windows

#: Seed of the run from which MagCache learns its ratios; none of the measured ones.
CALIBRATION_SEED = 1000
#: Maximum number of steps that MagCache, SeaCache and DBCache reuse in a row.
MOST_REUSED = 7


class OriginalGrid(UniPCMultistepScheduler):
    """Diffusers' scheduler on the original's noise grid; diffusers' own grid is a thousandth higher."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        grid = np.linspace(0.999, 0, num_inference_steps + 1)[:-1]
        super().set_timesteps(device=device, sigmas=grid)


@contextmanager
def count_flops(transformer: nn.Module, text_tokens: int, trace: Trace) -> Iterator[None]:
    """Add a transformer's FLOPs to the trace where modules of its blocks may be skipped."""
    sizes = transformer_flops(transformer.config)
    trace.flops.setdefault("actual", 0.0)

    def edges(out: Tensor) -> float:
        tokens = out[0, 0].numel()
        return sizes.embed(tokens) + sizes.head(tokens)

    def attention(out: Tensor, keys: int | None = None) -> float:
        tokens, dim = out.shape[-2:]
        keys = keys or tokens
        return 4 * (tokens + keys) * dim**2 + 4 * tokens * keys * dim

    def feed_forward(out: Tensor) -> float:
        return 2 * sizes.dim * sizes.ffn_dim * out[..., 0].numel()

    with ExitStack() as stack:

        def watch(module: nn.Module, count: Callable[[Tensor], float]) -> None:
            def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                trace.flops["actual"] += count(output)

            stack.enter_context(module.register_forward_hook(add))

        watch(transformer.patch_embedding, edges)
        for block in transformer.blocks:
            # caches replace the modules' forward, so that only a module inside shows whether it runs
            watch(block.attn1.to_q, attention)
            watch(block.attn2.to_q, partial(attention, keys=text_tokens))
            watch(block.ffn.net[0], feed_forward)
        yield


def make_pipeline(ours: FlowCacheSkyReelsV2Pipeline, original_grid: bool) -> DiffusersPipeline:
    """Diffusers' pipeline with the same weights as ours; ``original_grid``: and the original's noise grid."""
    parts = dict(ours.components)
    transformer = type(parts["transformer"]).from_config(parts["transformer"].config)
    transformer.load_state_dict(parts["transformer"].state_dict())
    parts["transformer"] = transformer.to(ours.device, ours.transformer.dtype).eval()
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

    @cached_property
    def window_steps(self) -> list[int]:
        return [len(plan.schedule(self.settings)) for plan in plan_windows(self.settings)]

    @cached_property
    def mag_ratios(self) -> list[float]:
        """MagCache's ratios over the steps of the first window, from a run of another seed."""
        config = hooks.MagCacheConfig(calibrate=True, num_inference_steps=self.window_steps[0])
        printed = io.StringIO()
        with self.hook(config), redirect_stdout(printed):
            self.denoise(CALIBRATION_SEED, Trace())
        lists = [line for line in printed.getvalue().splitlines() if line.startswith("[") and "," in line]
        return ast.literal_eval(next(line for line in lists if "MagCache" not in line))

    @contextmanager
    def hook(self, config: Any) -> Iterator[None]:
        self.pipeline.transformer.enable_cache(config)
        try:
            yield
        finally:
            self.pipeline.transformer.disable_cache()

    def mean_timestep(self) -> float:
        """Mean time of the frames, 0 to 999, for caches that expect one time per window."""
        return self.pipeline.current_timestep.float().mean().item()

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
    def video(self, seed: int, trace: Trace) -> Frames:
        """Denoise and decode a video, ``[frames, height, width, 3]``."""
        return to_uint8(VideoCodec(self.pipeline.vae).decode(self.denoise(seed, trace)))


def faster_cache(run: PeerRun, skip_range: float, **changes: Any) -> hooks.FasterCacheConfig:
    """FasterCache; as it comes, it expects both branches of guidance in one call, and fails."""
    return hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=int(skip_range),
        current_timestep_callback=run.mean_timestep,
        attention_weight_callback=lambda module: 0.5,
        **changes,
    )


#: Configurations of diffusers' caches by a threshold, or by the interval between computed steps.
CONFIGS: dict[str, Callable[[PeerRun, float], Any]] = {
    "fbcache": lambda run, threshold: hooks.FirstBlockCacheConfig(threshold=threshold),
    "magcache": lambda run, threshold: hooks.MagCacheConfig(
        threshold=threshold,
        max_skip_steps=MOST_REUSED,
        retention_ratio=0.1,
        num_inference_steps=run.window_steps[0],
        mag_ratios=run.mag_ratios,
    ),
    # the lite form, which forecasts the last projection: TaylorSeer's patterns match no module here
    "taylorseer": lambda run, interval: hooks.TaylorSeerCacheConfig(
        cache_interval=int(interval), taylor_factors_dtype=torch.float32, use_lite_mode=True
    ),
    "seacache": lambda run, threshold: hooks.SeaCacheConfig(
        threshold=threshold,
        max_consecutive_cached=MOST_REUSED,
        raw_vision_callback=lambda module, args, kwargs: list(kwargs["hidden_states"].unbind()),
    ),
    "pab": lambda run, skip_range: hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=int(skip_range),
        cross_attention_block_skip_range=int(skip_range),
        current_timestep_callback=run.mean_timestep,
    ),
    "fastercache": faster_cache,
    # only attention is reused: it expects no guidance to split
    "fastercache_attention": partial(faster_cache, is_guidance_distilled=True),
}
CACHES = (*CONFIGS, "dbcache", "dbcache_taylor")


@contextmanager
def enable_cache(run: PeerRun, text: str) -> Iterator[None]:
    """Enable the cache ``NAME:NUMBER``; none for ``diffusers``."""
    name, number = parse_cache(text)
    with ExitStack() as stack:
        if name in CONFIGS:
            stack.enter_context(run.hook(CONFIGS[name](run, number)))
        if name == "seacache":
            stack.enter_context(pass_places(run))
        if name.startswith("dbcache"):
            stack.enter_context(db_cache(run, number, forecasts=name == "dbcache_taylor"))
        yield


@contextmanager
def pass_places(run: PeerRun) -> Iterator[None]:
    """Pass SeaCache step, number of steps and mean noise level, which the pipeline does not."""
    transformer, num_steps = run.pipeline.transformer, sum(run.window_steps)
    branches = ("cond", "uncond") if run.settings.guidance_scale > 1 else ("cond",)
    calls, contexts = count(), ExitStack()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step, branch = divmod(next(calls), len(branches))
        sigma = kwargs["timestep"].float().mean().item() / 1000
        place = {"step_index": step % num_steps, "num_inference_steps": num_steps, "sigma": sigma}
        contexts.enter_context(module.cache_context(branches[branch], **place))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        contexts.close()

    before = transformer.register_forward_pre_hook(enter, with_kwargs=True)
    with before, transformer.register_forward_hook(leave):
        yield


@contextmanager
def db_cache(run: PeerRun, threshold: float, forecasts: bool) -> Iterator[None]:
    """cache-dit's DBCache, one block computed at every step; ``forecasts``: with its TaylorSeer."""
    import cache_dit

    limits = {"max_warmup_steps": 3, "max_continuous_cached_steps": MOST_REUSED}
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=threshold, **limits)
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if forecasts else None
    cache_dit.enable_cache(run.pipeline, cache_config=config, calibrator_config=calibrator)
    try:
        yield
    finally:
        cache_dit.disable_cache(run.pipeline)


def parse_cache(text: str) -> tuple[str, float]:
    """Name and number of ``NAME:NUMBER``; ``diffusers`` has none. ValueError for other words."""
    name, _, number = text.partition(":")
    if text != "diffusers" and name not in CACHES:
        raise ValueError(f"methods: expected diffusers, {', '.join(CACHES)} or one of ours, got {text!r}.")
    try:
        return name, 0.0 if text == "diffusers" else float(number)
    except ValueError:
        raise ValueError(f"methods: expected a number behind {name}, as in {name}:2, got {text!r}.") from None


def register_block() -> None:
    metadata = TransformerBlockMetadata(return_hidden_states_index=0)
    TransformerBlockRegistry.register(SkyReelsV2TransformerBlock, metadata)
