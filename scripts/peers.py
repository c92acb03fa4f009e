"""SkyReels-V2 in diffusers' own pipeline: plain, under diffusers' caches, and under cache-dit."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline, UniPCMultistepScheduler
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock
from torch import Tensor, nn

from flowcache import Trace
from flowcache.environment import synchronize
from flowcache.video import Frames, to_uint8
from skyreels_v2 import ModelSource, VideoSettings
from skyreels_v2.checkpoint import load_components
from skyreels_v2.codec import VideoCodec
from skyreels_v2.flops import TransformerFlops
from skyreels_v2.windows import plan_windows

#: Seed of the run from which MagCache learns its ratios; none of those that are measured.
CALIBRATION_SEED = 1000
#: Reused steps in a row that MagCache, SeaCache and DBCache may not exceed.
MOST_REUSED = 7


class OriginalGrid(UniPCMultistepScheduler):
    """Diffusers' scheduler on the noise grid of the original, which is also ours.

    Diffusers' own grid begins and ends a thousandth higher, before the shift.
    """

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None
    ) -> None:
        grid = np.linspace(0.999, 0, num_inference_steps + 1)[:-1]
        super().set_timesteps(device=device, sigmas=grid)


class BlockFlops:
    """Adds up what a transformer computes while modules of its blocks may be skipped.

    Args:
        transformer: watched as long as this object is entered.
        text_tokens: length of the padded prompt.
    """

    def __init__(self, transformer: nn.Module, text_tokens: int) -> None:
        self._transformer, self._text_tokens = transformer, text_tokens
        self._sizes = TransformerFlops.of(transformer.config, text_tokens)
        self.total = 0.0

    def __enter__(self) -> BlockFlops:
        watched = [(self._transformer.patch_embedding, self._edges)]
        for block in self._transformer.blocks:
            # caches replace the modules' forward, so that what tells is whether something within them runs
            watched += [(block.attn1.to_q, self._self_attention), (block.attn2.to_q, self._cross_attention)]
            watched.append((block.ffn.net[0], self._feed_forward))
        self._handles = [module.register_forward_hook(count) for module, count in watched]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _edges(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tokens = output[0, 0].numel()
        self.total += self._sizes.embed(tokens) + self._sizes.head(tokens)

    def _self_attention(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tokens, dim = output.shape[-2:]
        self.total += 8 * tokens * dim**2 + 4 * tokens**2 * dim

    def _cross_attention(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tokens, dim = output.shape[-2:]
        self.total += 4 * (tokens + self._text_tokens) * dim**2 + 4 * tokens * self._text_tokens * dim

    def _feed_forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.total += 4 * output[..., 0].numel() * self._sizes.dim * self._sizes.ffn_dim


def load_diffusers_pipeline(
    source: ModelSource, device: torch.device | str, original_grid: bool = True
) -> SkyReelsV2DiffusionForcingPipeline:
    """Diffusers' pipeline with the same weights as ours.

    Args:
        source: the model.
        device: where to run; bf16 on CUDA, fp32 elsewhere.
        original_grid: use the noise grid of the original instead of diffusers' own.
    """
    device = torch.device(device)
    parts = load_components(source, torch.bfloat16 if device.type == "cuda" else torch.float32)
    scheduler = OriginalGrid.from_config(parts.scheduler.config) if original_grid else parts.scheduler
    pipeline = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        transformer=parts.transformer,
        vae=parts.vae,
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@dataclass(frozen=True)
class PeerRun:
    """What a cache may need to know of the runs that it is to speed up.

    Args:
        pipeline: diffusers'.
        settings: the video; with an ``ar_step`` of 0, diffusers denoises frame by frame and attends to the
            whole window, else its attention is block-causal.
        prompt, negative_prompt: what to show and what to avoid.
    """

    pipeline: SkyReelsV2DiffusionForcingPipeline
    settings: VideoSettings
    prompt: str
    negative_prompt: str

    def with_settings(self, **changes: Any) -> PeerRun:
        """The same for another video."""
        return replace(self, settings=replace(self.settings, **changes))

    @cached_property
    def window_steps(self) -> list[int]:
        """Steps of each window."""
        return [len(plan.schedule(self.settings)) for plan in plan_windows(self.settings)]

    @cached_property
    def mag_ratios(self) -> list[float]:
        """MagCache's ratios over the steps of the first window, from a run of another seed."""
        config = MagCacheConfig(calibrate=True, num_inference_steps=self.window_steps[0])
        printed = io.StringIO()
        with self.hooked(config), redirect_stdout(printed):
            self.latents(CALIBRATION_SEED)
        lists = [line for line in printed.getvalue().splitlines() if line.startswith("[") and "," in line]
        return ast.literal_eval(next(line for line in lists if "MagCache" not in line))

    @contextmanager
    def hooked(self, config: Any) -> Iterator[None]:
        """One of diffusers' caches on the transformer for a while."""
        self.pipeline.transformer.enable_cache(config)
        try:
            yield
        finally:
            self.pipeline.transformer.disable_cache()

    def timestep(self) -> float:
        """Mean time of the frames, 0 to 999: the one time that some caches ask a window for."""
        return self.pipeline.current_timestep.float().mean().item()

    def latents(self, seed: int, trace: Trace | None = None) -> Tensor:
        """Denoise a video; ``[channels, frames, height, width]``. Adds the time and FLOPs to the trace."""
        pipeline, settings, trace = self.pipeline, self.settings, trace or Trace()
        text_tokens = min(512, pipeline.tokenizer.model_max_length)
        device = pipeline.device
        embeds, negative_embeds = pipeline.encode_prompt(
            self.prompt, self.negative_prompt, settings.guidance_scale > 1, max_sequence_length=text_tokens
        )
        # Diffusers takes pixels to a latent from the number of levels, which is wrong for a VAE with patches.
        scale = pipeline.vae_scale_factor_spatial / pipeline.vae.config.scale_factor_spatial
        with trace.timer("denoise"), BlockFlops(pipeline.transformer, text_tokens) as flops:
            latents = pipeline(
                prompt=None,
                prompt_embeds=embeds,
                negative_prompt_embeds=negative_embeds,
                height=int(settings.height * scale),
                width=int(settings.width * scale),
                num_frames=settings.num_frames,
                base_num_frames=settings.base_num_frames,
                overlap_history=settings.overlap_history,
                addnoise_condition=settings.addnoise_condition,
                ar_step=settings.ar_step,
                causal_block_size=settings.causal_block_size if settings.ar_step else None,
                num_inference_steps=settings.inference_steps,
                guidance_scale=settings.guidance_scale,
                fps=settings.fps,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
            ).frames
            synchronize(device)
        trace.flops["actual"] = flops.total
        return latents[0]

    @torch.no_grad()
    def video(self, seed: int, trace: Trace) -> Frames:
        """Denoise and decode a video, ``[frames, height, width, 3]``."""
        return to_uint8(VideoCodec(self.pipeline.vae).decode(self.latents(seed, trace)))


#: Switches a cache on for the runs within the context.
Cache = Callable[[PeerRun], AbstractContextManager[None]]


def first_block_cache(threshold: float) -> Cache:
    """FBCache: the first block's change decides; the block must be registered first."""
    return lambda run: run.hooked(FirstBlockCacheConfig(threshold=threshold))


def mag_cache(threshold: float) -> Cache:
    """MagCache, calibrated on a run of another seed."""
    return lambda run: run.hooked(
        MagCacheConfig(
            threshold=threshold,
            max_skip_steps=MOST_REUSED,
            retention_ratio=0.1,
            num_inference_steps=run.window_steps[0],
            mag_ratios=run.mag_ratios,
        )
    )


def taylorseer(interval: float) -> Cache:
    """TaylorSeer in its lite form: no block runs between computed steps, the last projection is forecast.

    Its default patterns name no module of SkyReels-V2, and it then does nothing without a word.
    """
    config = TaylorSeerCacheConfig(
        cache_interval=int(interval), taylor_factors_dtype=torch.float32, use_lite_mode=True
    )
    return lambda run: run.hooked(config)


def pyramid_attention_broadcast(skip_range: float) -> Cache:
    """PAB on self and cross attention."""
    return lambda run: run.hooked(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=int(skip_range),
            cross_attention_block_skip_range=int(skip_range),
            current_timestep_callback=run.timestep,
        )
    )


def faster_cache(skip_range: float) -> Cache:
    """FasterCache as it is, which expects both branches of guidance in one call."""

    @contextmanager
    def enabled(run: PeerRun) -> Iterator[None]:
        with run.hooked(_faster_cache_config(run, skip_range)):
            try:
                yield
            except IndexError as error:
                raise RuntimeError(
                    "it halves the batch of a call into the branches of guidance, but diffusers' pipeline of "
                    "SkyReels-V2 makes a call for each branch."
                ) from error

    return enabled


def faster_cache_attention(skip_range: float) -> Cache:
    """The half of FasterCache that reuses attention: it is told that there is no guidance to split."""
    return lambda run: run.hooked(_faster_cache_config(run, skip_range, is_guidance_distilled=True))


def _faster_cache_config(run: PeerRun, skip_range: float, **changes: Any) -> FasterCacheConfig:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=int(skip_range),
        current_timestep_callback=run.timestep,
        attention_weight_callback=lambda module: 0.5,
        **changes,
    )


def sea_cache(threshold: float) -> Cache:
    """SeaCache; what its filter needs to know, and the pipeline does not say, is added to its context."""

    @contextmanager
    def enabled(run: PeerRun) -> Iterator[None]:
        config = SeaCacheConfig(
            threshold=threshold,
            max_consecutive_cached=MOST_REUSED,
            raw_vision_callback=lambda module, args, kwargs: list(kwargs["hidden_states"].unbind()),
        )
        with run.hooked(config), _StepContext(run):
            yield

    return enabled


class _StepContext:
    """Tells a transformer's hooks the step, their number and the mean noise level at every call."""

    def __init__(self, run: PeerRun) -> None:
        self._transformer = run.pipeline.transformer
        self._num_steps = sum(run.window_steps)
        self._branches = ("cond", "uncond") if run.settings.guidance_scale > 1 else ("cond",)
        self._calls = 0

    def __enter__(self) -> None:
        before = self._transformer.register_forward_pre_hook(self._open, with_kwargs=True)
        self._handles = [before, self._transformer.register_forward_hook(self._close)]

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step, branch = divmod(self._calls, len(self._branches))
        self._context = module.cache_context(
            self._branches[branch],
            step_index=step % self._num_steps,
            num_inference_steps=self._num_steps,
            sigma=kwargs["timestep"].float().mean().item() / 1000,
        )
        self._context.__enter__()
        self._calls += 1

    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._context.__exit__(None, None, None)


def db_cache(threshold: float) -> Cache:
    """cache-dit's DBCache with its adapter for SkyReels-V2, one block computed at every step."""
    return lambda run: _cache_dit(run, threshold, forecasts=False)


def db_cache_taylor(threshold: float) -> Cache:
    """The same with cache-dit's TaylorSeer of first order in the place of the held residual."""
    return lambda run: _cache_dit(run, threshold, forecasts=True)


@contextmanager
def _cache_dit(run: PeerRun, threshold: float, forecasts: bool) -> Iterator[None]:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=3,
        max_continuous_cached_steps=MOST_REUSED,
        residual_diff_threshold=threshold,
    )
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if forecasts else None
    cache_dit.enable_cache(run.pipeline, cache_config=config, calibrator_config=calibrator)
    try:
        yield
    finally:
        cache_dit.disable_cache(run.pipeline)


#: Makes a cache of a number: a threshold, or the steps from one computed one to the next.
CACHES: dict[str, Callable[[float], Cache]] = {
    "fbcache": first_block_cache,
    "magcache": mag_cache,
    "taylorseer": taylorseer,
    "seacache": sea_cache,
    "pab": pyramid_attention_broadcast,
    "fastercache": faster_cache,
    "fastercache_attention": faster_cache_attention,
    "dbcache": db_cache,
    "dbcache_taylor": db_cache_taylor,
}


def parse_cache(way: str) -> Cache:
    """The cache that ``name:number`` stands for; ``diffusers`` alone is none.

    Raises:
        ValueError: unknown name, or no number.
    """
    if way == "diffusers":
        return lambda run: nullcontext()
    name, _, number = way.partition(":")
    if name not in CACHES:
        raise ValueError(f"ways must be one of diffusers, {', '.join(CACHES)} or our own, got {way!r}.")
    try:
        return CACHES[name](float(number))
    except ValueError:
        raise ValueError(f"ways: {name} needs a number, as in {name}:2, got {way!r}.") from None


def register_block() -> None:
    """Tell diffusers' caches what a block of SkyReels-V2 takes and returns, which they do not know."""
    TransformerBlockRegistry.register(
        SkyReelsV2TransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0)
    )
