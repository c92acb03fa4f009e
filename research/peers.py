"""Compare FlowCache with other projects' caches on the same SkyReels-V2: time, FLOPs, PSNR and SSIM.

    python -m research.peers
    python -m research.peers --ar_step 0 --outdir outputs/peers_together

Others run in diffusers' own pipeline with the same weights, noise and noise grid. A method is one of ours
(``METHOD:PRESET``), ``diffusers`` (its pipeline, plain) or a cache with a number, ``NAME:NUMBER``: a threshold, or
for taylorseer the interval between computed steps. Ratios are to the plain run of the same pipeline. Caption and
seed of a video have the same number; an interrupted measurement continues.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline as DiffusersPipeline
from diffusers import UniPCMultistepScheduler, hooks
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock
from numpy.typing import ArrayLike
from torch import Tensor, nn

from flowcache import Trace
from flowcache.environment import describe_environment, require, synchronize
from flowcache.files import markdown_table
from flowcache.video import Frames, to_uint8
from flowcache.wan.codec import VideoCodec
from skyreels_v2 import METHODS as OURS
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline, VideoSettings
from skyreels_v2.settings import latent_frames
from skyreels_v2.windows import plan_windows

from .compare import Run, compare, draw_panels, main, positive, speed_table, write_results
from .methods import configure
from .runs import find_model, new_parser
from .train_small.moving_shapes import read_held_out

OWN = (
    *("vanilla", "causal", "teacache:paper-fast:0.05", "teacache:paper-fast:0.1", "teacache:paper-fast:0.25"),
    *("flowcache:quality", "flowcache:balanced", "flowcache:fast", "flowcache:turbo"),
)
PEERS = (
    *("diffusers", "seacache:0.2", "seacache:0.4", "seacache:0.6", "seacache:1"),
    *("taylorseer:3", "taylorseer:4", "taylorseer:5", "taylorseer:8", "fbcache:0.05", "fbcache:0.1", "fbcache:0.4"),
    *("dbcache:0.1", "dbcache:0.4", "dbcache_taylor:0.05", "dbcache_taylor:0.1", "dbcache_taylor:0.4"),
)
#: Runs without reuse, with which the others are compared.
PLAIN = ("vanilla", "causal", "diffusers")
#: FLOPs ratios between which curves are averaged, evenly in their logarithm, and those shown.
SPAN, SHOWN = (3.0, 5.0), (3, 4, 5, 6)
#: Maximum number of steps that SeaCache and DBCache reuse in a row.
MOST_REUSED = 7


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


@dataclass(frozen=True)
class Curve:
    """Medians over videos of a method's settings, by rising FLOPs ratio; PSNR and SSIM are to a plain run."""

    name: str
    ratios: Sequence[float]
    psnr: Sequence[float]
    ssim: Sequence[float]

    @classmethod
    def measure(cls, name: str, method: str, plain: str, runs: Sequence[Run]) -> Self:
        """``method``: the part of its runs' names before the colon."""
        full = {run.seed: run.flops["actual"] for run in runs if run.method == find_base(method)}
        points: dict[str, list[tuple[float, float, float]]] = {}
        for run in runs:
            if run.method.partition(":")[0] == method and plain in run.psnr:
                point = (full[run.seed] / run.flops["actual"], run.psnr[plain], run.ssim[plain])
                points.setdefault(run.method, []).append(point)
        medians = sorted(np.median(each, axis=0).tolist() for each in points.values())
        return cls(name, *zip(*medians, strict=True))

    def at(self, ratios: ArrayLike, values: Sequence[float]) -> np.ndarray:
        """Values at FLOPs ratios, between the measured ones; NaN beyond them."""
        return np.interp(np.log(ratios), np.log(self.ratios), values, left=np.nan, right=np.nan)

    @property
    def area(self) -> float:
        """Mean PSNR over ``SPAN``; NaN if the curve does not cover it."""
        return float(np.mean(self.at(np.geomspace(*SPAN, 101), self.psnr)))


def list_curves(runs: Sequence[Run]) -> list[Curve]:
    """A curve for each method, to the plain run of its pipeline; for ours, also to those that attend as it does."""
    names, present = dict.fromkeys(run.method.partition(":")[0] for run in runs), {run.method for run in runs}
    curves = []
    for name in names.keys() - set(PLAIN):
        if name == "flowcache" and "causal" in present:  # which attends to the past, as diffusers does there
            plains = {f"{name}, to {plain}": plain for plain in ("causal", "diffusers") if plain in present}
        else:
            plains = {name: find_base(name)}
        curves += [Curve.measure(title, name, plain, runs) for title, plain in plains.items()]
    return sorted(curves, key=lambda curve: (-np.nan_to_num(curve.area), -max(curve.psnr)))


def area_table(curves: Sequence[Curve]) -> str:
    titles = ["method", "mean dB, {:g}x to {:g}x".format(*SPAN), *(f"dB, SSIM at {ratio}x" for ratio in SHOWN)]
    titles.append("settings: FLOPs ratio, dB, SSIM")
    rows = []
    for curve in curves:
        cells = ["" if np.isnan(curve.area) else f"{curve.area:.1f}"]
        for psnr, ssim in zip(curve.at(SHOWN, curve.psnr), curve.at(SHOWN, curve.ssim), strict=True):
            cells.append("" if np.isnan(psnr) else f"{psnr:.1f}, {ssim:.3f}")
        points = zip(curve.ratios, curve.psnr, curve.ssim, strict=True)
        rows.append([curve.name, *cells, "; ".join("{:.2f}x, {:.1f}, {:.3f}".format(*point) for point in points)])
    return markdown_table(titles, rows)


def draw(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Save a PNG of PSNR and SSIM against the FLOPs ratio; ours are drawn thicker."""
    with draw_panels(path, 11, count=2) as axes:
        for axis, name in zip(axes, ("psnr", "ssim"), strict=True):
            for curve in curves:
                width = 2.4 if curve.name.startswith("flowcache") else 1.2
                style = "--" if curve.name.endswith("causal") else "-"
                axis.plot(curve.ratios, getattr(curve, name), style, label=curve.name, marker="o", ms=4, lw=width)
            axis.set_xscale("log", base=2)
            axis.set_xticks([2, 3, 4, 5, 6, 8], [f"{ratio}x" for ratio in (2, 3, 4, 5, 6, 8)])
            axis.set(xlabel="FLOPs of the plain run / FLOPs", ylabel=f"{name.upper()} to the plain run")
            axis.set_title(title, fontsize=10)


def bench(args: argparse.Namespace) -> str:
    if args.model != "skyreels":
        raise ValueError(f"model: expected skyreels, which diffusers has, got {args.model}.")
    model = find_model(args, ar_step=args.ar_step)
    settings, prompts = model.adapter.video, read_held_out()
    captions = range(args.skip, min(args.skip + args.captions, len(prompts)))
    # without a lag, causal differs from vanilla by attention alone
    own = [method for method in OWN if args.ar_step or method != "causal"]
    args.methods = args.methods or [*own, *PEERS]
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
    negative_prompt = model.pipeline.default_negative_prompt

    def make(method: str, seed: int) -> tuple[Frames, Trace]:
        trace = Trace(method=method, environment=describe_environment(args.device))
        if method in ours:
            return model.video(prompts[seed], seed, ours[method], trace)
        run = PeerRun(pipeline, settings, prompts[seed], negative_prompt)
        with enable_cache(run, method):
            return run.video(seed, trace)

    video = {"video": str(settings), "grid": args.grid}
    named = {
        method: {**video, "cache": ours[method].as_dict(args.steps)} if method in ours else video
        for method in args.methods
    }
    runs = compare(make, args.methods, captions, PLAIN, args.outdir, named, shown=args.methods, name="caption")
    curves = list_curves(runs)
    draw(curves, args.outdir / "curves.png", f"small SkyReels-V2, ar_step {args.ar_step}")
    tables = [f"Curves are medians over {len(captions)} captions.", area_table(curves)]
    tables += ["Means over the captions; speed-ups are medians.", speed_table(runs, PLAIN, find_base)]
    return write_results(args, "bench", "\n\n".join(tables), runs)


if __name__ == "__main__":
    parser = new_parser(__doc__, "peers", "97")
    add = parser.add_argument
    add("--methods", "--ways", nargs="+", help="default: all, each with several settings")
    add("--captions", type=positive, default=4, help="number of held-out captions (default: 4)")
    add("--skip", type=int, default=0, help="held-out captions to skip (default: 0)")
    lag = "steps by which blocks lag; 0: all together, attention to the whole window (default: 5)"
    add("--ar_step", type=int, default=5, help=lag)
    add("--grid", choices=("original", "diffusers"), default="original", help="noise grid of diffusers' runs")
    main(parser, bench)
