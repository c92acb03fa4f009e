"""What the programs of SkyReels-V2 share: flags of the model, the video and the method, and what they say."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from typing import Any

from flowcache import FlowCacheConfig
from flowcache.config import DEFAULT_PRESET, PRESETS
from flowcache.knobs import check_knobs
from flowcache.kv.quantized import BITS
from flowcache.limits import check_limits
from flowcache.reuse.forecast import FORECASTS

from .checkpoint import ModelSource
from .methods import METHODS
from .settings import RESOLUTIONS, VideoSettings, latent_frames

#: Flags that ask for a rule of their own by which steps are skipped, the threshold first.
RULES = ("teacache_thresh", "interval", "tolerance", "plan")
LIMITS = {"teacache_thresh": (0, 1000), "budget_block": (1, 10**6), "kvrange": (0, 10**6)}


def add_video_flags(parser: ArgumentParser) -> None:
    """Flags of model, video and method: the original's first, then ours. None means: what suits the model."""
    add = parser.add_argument
    add("--model_id", default="auto", help="auto, small, a Hub id or a folder (default: auto)")
    add("--resolution", choices=["auto", *RESOLUTIONS], default="auto", help="auto: what suits the model")
    add("--num_frames", type=int, help="frames of the video, 4 k + 1 (default: 97)")
    add("--base_num_frames", type=int, default=97, help="frames of one window (default: 97)")
    add("--overlap_history", type=int, help="frames that windows share; needed for longer videos (17 or 37)")
    add(
        "--streaming",
        action="store_true",
        help="longer videos go on as one staircase, without windows; needs --ar_step, and --use_compress or "
        "--use_kvrange; --overlap_history is then what is taken of a video that is continued",
    )
    add("--ar_step", type=int, default=0, help="steps by which a block lags; 0: all together (default: 0)")
    add("--causal_attention", action="store_true", help="block-causal attention for vanilla and teacache")
    add("--causal_block_size", type=int, help="latent frames of a block (default: 1; small model: 5)")
    add("--inference_steps", type=int, default=30, help="denoising steps (default: 30)")
    add("--guidance_scale", type=float, help="classifier-free guidance; 1 switches it off (default: 6)")
    add("--shift", type=float, help="flow shift (default: 8)")
    add("--fps", type=int, help="frames per second (default: 24, or those of a video that is continued)")
    add(
        "--addnoise_condition",
        type=int,
        default=0,
        help="noise on frames taken over, in thousandths; 20 is usual",
    )
    add("--seed", type=int, default=0)
    add("--negative_prompt", help="what to avoid")
    add("--offload", action="store_true", help="keep what does not work in host memory")
    add("--teacache_thresh", type=float, help="decide by accumulated distance, with this threshold")
    add("--interval", type=int, help="compute every so many steps")
    add("--tolerance", type=float, help="skip while the error that this brings is expected to be below it")
    add("--plan", type=float, help="compute this share of the steps, by a plan that lies beside the model")
    add(
        "--use_ret_steps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="always compute the first 5 steps",
    )
    add(
        "--use_compress",
        action="store_true",
        help="keep only the best tokens of finished blocks; --preset says when and how",
    )
    add("--budget_block", type=int, default=1, help="blocks' worth of tokens kept so (default: 1)")
    add("--use_kvrange", action="store_true", help="let blocks see only the newest finished ones")
    add("--kvrange", type=int, default=0, help="how many finished blocks they see then (default: 0)")
    add("--kv_bits", type=int, choices=BITS, help="keep keys and values of finished blocks in so many bits")
    add("--kv_offload", action="store_true", help="keep keys and values of finished blocks in host memory")
    add("--method", choices=METHODS, default="flowcache", help="(default: flowcache)")
    add("--preset", choices=PRESETS, help=f"which steps are skipped, and how (default: {DEFAULT_PRESET})")
    add("--forecast", choices=FORECASTS, help="overrides the preset's")
    add("--height", type=int, help="pixels, a multiple of 16; overrides --resolution")
    add("--width", type=int, help="pixels, a multiple of 16; overrides --resolution")


def settings_of(args: Namespace, source: ModelSource, **fixed: Any) -> VideoSettings:
    """The video that the flags ask for; ``fixed`` settings go before them.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    given = {**vars(args), **fixed}
    if args.causal_block_size is None:
        window = min(given["num_frames"] or source.defaults["num_frames"], args.base_num_frames)
        given["causal_block_size"] = max(1, min(source.defaults["causal_block_size"], latent_frames(window)))
    return source.video_settings(**given)


def cache_of(args: Namespace, source: ModelSource, video: VideoSettings) -> FlowCacheConfig:
    """The method that the flags ask for, for such a video.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    check_limits(args, LIMITS)
    check_knobs({name: getattr(args, name) for name in RULES}, args.method)
    return source.method_config(
        args.method,
        args.preset or DEFAULT_PRESET,
        threshold=args.teacache_thresh,
        interval=args.interval,
        tolerance=args.tolerance,
        computed_steps=None if args.plan is None else source.planned_steps(video, args.plan),
        use_ret_steps=args.use_ret_steps,
        forecast=args.forecast,
        causal_attention=args.causal_attention,
        budget_block=args.budget_block if args.use_compress else None,
        kvrange=args.kvrange if args.use_kvrange and not args.use_compress else None,
        kv_bits=args.kv_bits,
        kv_offload=args.kv_offload,
    )


def frame_size(args: Namespace, source: ModelSource, upright: bool | None = None) -> tuple[int, int]:
    """Height and width; ``upright`` says how to hold the frame, None leaves that as it suits the model."""
    height, width = source.defaults["height"], source.defaults["width"]
    if args.resolution != "auto":
        height, width = RESOLUTIONS[args.resolution]
    if upright is not None and upright != (height > width) and height != width:
        height, width = width, height
    return height if args.height is None else args.height, width if args.width is None else args.width
