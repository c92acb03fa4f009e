"""What the programs of SkyReels-V2 share: flags of the model, the video and the method, and what they say."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from typing import Any

from flowcache import FlowCacheConfig
from flowcache.command_line import Refuse, override_default
from flowcache.knobs import check_knobs, unread_knobs
from flowcache.kv.quantized import BITS
from flowcache.limits import check_limits
from flowcache.methods import DEFAULT_PRESET, PRESETS
from flowcache.rates import parse_rate
from flowcache.reuse.forecast import FORECASTS
from flowcache.unread import UnreadFlags

from .checkpoint import ModelSource
from .methods import METHODS
from .settings import RESOLUTIONS, VideoSettings, latent_frames

#: Flags that ask for a rule of their own by which steps are skipped, the threshold first.
RULES = ("teacache_thresh", "interval")
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
    add(
        "--fps",
        type=parse_rate,
        help="frames per second, such as 24, 23.976 or 24000/1001 (default: 24, or those of a video that is "
        "continued)",
    )
    add(
        "--addnoise_condition",
        type=int,
        default=0,
        help="noise on frames taken over, in thousandths; 20 is usual",
    )
    add("--seed", type=int, default=0, help="of the noise; -1 draws one for a single video (default: 0)")
    add("--negative_prompt", help="what to avoid")
    add("--offload", action="store_true", help="keep what does not work in host memory")
    add("--teacache_thresh", type=float, help="decide by accumulated distance, with this threshold")
    add("--interval", type=int, help="compute every so many steps")
    add(
        "--use_ret_steps",
        action=argparse.BooleanOptionalAction,
        help="always compute the first 5 steps where distance decides (default: as the paper's presets)",
    )
    # None where a flag is not given, so that it can be refused where nothing reads it
    flag = {"action": "store_true", "default": None}
    add("--use_compress", **flag, help="keep only the best tokens of clean blocks, as --preset says")
    add("--budget_block", type=int, help="blocks' worth of tokens kept with --use_compress (default: 1)")
    add("--use_kvrange", **flag, help="let blocks see only the newest clean ones")
    add("--kvrange", type=int, help="how many clean blocks they see with --use_kvrange (default: 0)")
    add("--kv_bits", type=int, choices=BITS, help="keep keys and values of finished blocks in so many bits")
    add("--kv_offload", **flag, help="keep keys and values of finished blocks in host memory")
    add("--method", choices=METHODS, default="flowcache", help="(default: flowcache)")
    add("--teacache", action="store_true", help="the original's flag for --method teacache")
    add("--preset", choices=PRESETS, help=f"which steps are skipped, and how (default: {DEFAULT_PRESET})")
    add("--forecast", choices=FORECASTS, help="overrides the preset's")
    add("--height", type=int, help="pixels, a multiple of 16; overrides --resolution")
    add("--width", type=int, help="pixels, a multiple of 16; overrides --resolution")
    add(
        "--use_usp",
        action=Refuse,
        const="one process makes one video so far; leave it out, or run sample_video.py on many GPUs",
    )
    add(
        "--prompt_enhancer",
        "--prompt_enhance",
        action=Refuse,
        const="no enhancer is included; leave it out and write a longer prompt",
    )


def settle_flags(args: Namespace) -> None:
    """Let ``--teacache`` name the method, and drop settings of a script that do not go with what was typed.

    Raises:
        ValueError: ``--teacache`` is typed beside another method.
    """
    if args.teacache:
        if "method" in args.typed and args.method != "teacache":
            raise ValueError(f"teacache and method {args.method} exclude each other: leave one of them out.")
        args.method, args.typed = "teacache", args.typed | {"method"}
    dropped: dict[str, Any] = {}
    if args.method in ("vanilla", "teacache"):
        dropped["streaming"] = False
    if (args.overlap_history or 0) >= args.base_num_frames:
        dropped["overlap_history"] = None
    for name, value in dropped.items():
        if name not in args.typed:
            override_default(args, name, value)


def drop_unread(args: Namespace) -> dict[str, str]:
    """Set to None the flags that the method, or the other flags, leave without effect.

    Returns:
        The reasons, by flag, for those that the user typed.

    Raises:
        ValueError: two flags exclude each other.
    """
    flags, method = UnreadFlags(args), args.method
    if method in ("vanilla", "teacache"):
        for name in ("use_compress", "use_kvrange", "kv_bits", "kv_offload"):
            flags.drop(name, f"{method} has no KV cache")
    flags.exclude("use_compress", "use_kvrange")
    for name, needed in (("budget_block", "use_compress"), ("kvrange", "use_kvrange")):
        if getattr(args, needed) is None:
            flags.drop(name, f"it needs {needed}")
    for name, reason in unread_knobs(method, {name: getattr(args, name) for name in RULES}).items():
        flags.drop(name, reason)
    chosen = [name for name in RULES if getattr(args, name) is not None]
    by_distance, paper = "teacache_thresh" in chosen, (args.preset or "").startswith("paper")
    # with a policy from elsewhere, a preset only says whether to do as the paper does
    reads_preset = paper and args.use_compress is not None
    if method in ("vanilla", "causal"):
        for name in ("forecast", "use_ret_steps"):
            flags.drop(name, f"{method} computes every step")
        if not reads_preset:
            flags.drop("preset", f"{method} computes every step")
    elif method == "teacache":
        if by_distance or not paper:
            flags.drop("preset", "teacache reads teacache_thresh, or else paper-slow or paper-fast")
    else:
        if not by_distance and (chosen or not paper):
            flags.drop("use_ret_steps", "it needs teacache_thresh, paper-slow, paper-fast or method teacache")
        if chosen and not (reads_preset or (paper and by_distance)):
            flags.drop("preset", f"{chosen[0]} chooses the steps")
    return flags.reasons


def settings_of(args: Namespace, source: ModelSource, **fixed: Any) -> VideoSettings:
    """The video that the flags ask for; ``fixed`` settings go before them.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    given = {**vars(args), **fixed}
    if "causal_block_size" not in args.typed:
        block = args.causal_block_size or source.defaults["causal_block_size"]
        window = min(given["num_frames"] or source.defaults["num_frames"], args.base_num_frames)
        given["causal_block_size"] = max(1, min(block, latent_frames(window)))
    return source.video_settings(**given)


def cache_of(args: Namespace, source: ModelSource, video: VideoSettings) -> FlowCacheConfig:
    """The method that the flags ask for, for such a video.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    check_limits(args, LIMITS)
    budget = 1 if args.budget_block is None else args.budget_block
    kvrange = args.kvrange or 0
    check_knobs({name: getattr(args, name) for name in RULES}, args.method)
    return source.method_config(
        args.method,
        args.preset or DEFAULT_PRESET,
        threshold=args.teacache_thresh,
        interval=args.interval,
        use_ret_steps=args.use_ret_steps,
        forecast=args.forecast,
        causal_attention=args.causal_attention,
        budget_block=budget if args.use_compress else None,
        kvrange=kvrange if args.use_kvrange else None,
        kv_bits=args.kv_bits,
        kv_offload=bool(args.kv_offload),
    )


def frame_size(args: Namespace, source: ModelSource, upright: bool | None = None) -> tuple[int, int]:
    """Height and width; ``upright`` says how to hold the frame, None leaves that as it suits the model."""
    height, width = source.defaults["height"], source.defaults["width"]
    if args.resolution != "auto":
        height, width = RESOLUTIONS[args.resolution]
    if upright is not None and upright != (height > width) and height != width:
        height, width = width, height
    return height if args.height is None else args.height, width if args.width is None else args.width
