"""What the programs of MAGI-1 share: their flags, and the sampler that these come to."""

from __future__ import annotations

import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from flowcache.knobs import unread_knobs
from flowcache.limits import check_number
from flowcache.methods import DEFAULT_PRESET, PRESETS
from flowcache.reuse.forecast import FORECASTS

from .captions import CaptionSwitches, SpecialTokens
from .config import COMPRESSION, RULES, FlowCacheOptions, MagiConfig
from .config_files import COMMAND_LINE, check_keys, parse_overrides, without_unread
from .guidance import PREVIOUS_WEIGHT
from .methods import METHODS, method_config
from .model_source import SMALL, ModelSource
from .sampler import MagiSampler

logger = logging.getLogger(__name__)

#: Where the table of special tokens is in the official code.
SPECIAL_TOKENS = Path("example/assets/special_tokens.npz")


def add_method_flags(parser: ArgumentParser, method: str | None = "flowcache") -> None:
    """Flags for the way to run and the model; ``method`` is the default."""
    add = parser.add_argument
    add("--method", choices=METHODS, default=method, help="(default: flowcache)")
    add("--preset", choices=PRESETS, help=f"which steps are skipped, and how (default: {DEFAULT_PRESET})")
    add("--forecast", choices=FORECASTS, help="overrides the preset's")
    add("--model", choices=["auto", "official", "small"], default="auto", help="(default: auto)")
    add(
        "--special_tokens",
        type=Path,
        help="special_tokens.npz of the official code, which switches PAD_HQ and PAD_DURATION on unless they "
        f"are set to 0 (default: SPECIAL_TOKEN_PATH, or {SPECIAL_TOKENS} if it exists)",
    )


def split_overrides(rest: list[str], flags: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of the configuration and of FlowCache's options, with their values.

    Args:
        rest: words of the command line that are no flags.
        flags: names that are known, but are no keys.

    Raises:
        ValueError: a word is no known key, or its value is missing or cannot be read; it is named.
    """
    options = {option.name: option.type for option in fields(FlowCacheOptions)}
    kinds = {**MagiConfig.keys(), **options}
    overrides = parse_overrides(rest, [key for key, kind in kinds.items() if kind == "bool"])
    overrides = without_unread(overrides, COMMAND_LINE)
    check_keys(overrides, [*kinds, *flags], COMMAND_LINE)
    for_options = {key: value for key, value in overrides.items() if key in options}
    return {key: value for key, value in overrides.items() if key not in options}, for_options


def unread_options(args: Namespace, options: FlowCacheOptions, config: MagiConfig) -> dict[str, str]:
    """Why a flag or key that the user typed has no effect, by name.

    Keys of files are left alone: the original's set them beside any method.

    Args:
        args: the flags.
        options: those of the file with the command line's over them.
        config: the configuration with the command line's keys over it.
    """
    method, rules = args.method, {name: getattr(options, name) for name in RULES}
    unread = unread_knobs(method, rules)
    chosen = [name for name, value in rules.items() if value is not None and name not in unread]
    if method == "vanilla":
        unread |= dict.fromkeys(("warmup_steps", "forecast"), "vanilla computes every step")
    if not options.compress_kv_cache:
        unread |= dict.fromkeys(COMPRESSION, "it needs compress_kv_cache")
    elif options.compress_strategy != "token":
        unread |= dict.fromkeys(COMPRESSION[-2:], "it needs compress_strategy token")
    elif "polynomial" not in options.score_weighting_method:
        unread["power"] = "it needs a polynomial score_weighting_method"
    if not (options.compress_kv_cache and (args.preset or "").startswith("paper")):
        unread |= _unread_preset(args, chosen)
    if config.runtime_config.cfg_number == 1:
        unread |= dict.fromkeys(("cfg_t_range", "prev_chunk_scales", "text_scales"), "it needs cfg_number 3")
    else:
        needed = ("discard_nearly_clean_chunk", "distill_nearly_clean_chunk_threshold")
        unread |= dict.fromkeys(needed, "it needs cfg_number 1")
    if options.discard_nearly_clean_chunk:
        unread["distill_nearly_clean_chunk_threshold"] = "discard_nearly_clean_chunk is true"
    if config.runtime_config.num_steps != 12:
        unread["shortcut_mode"] = "it needs num_steps 12"
    return {name: reason for name, reason in unread.items() if name in args.typed}


def _unread_preset(args: Namespace, chosen: Sequence[str]) -> dict[str, str]:
    """Why nothing reads the preset, unless it says to compress the cache as the paper does."""
    paper = (args.preset or "").startswith("paper")
    if args.method == "vanilla":
        return {"preset": "vanilla computes every step"}
    if args.method == "teacache" and (chosen or not paper):
        return {"preset": "teacache reads rel_l1_thresh, or else paper-slow or paper-fast"}
    if chosen and not (paper and chosen[0] == "rel_l1_thresh"):
        return {"preset": f"{chosen[0]} chooses the steps"}
    return {}


def make_sampler(args: Namespace, source: ModelSource, options: FlowCacheOptions, device: str) -> MagiSampler:
    """What makes the videos that the flags and the environment ask for; no weight is read yet.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    offload = source.config.engine_config.kv_offload
    cache = method_config(
        args.method,
        options,
        preset=args.preset or DEFAULT_PRESET,
        forecast=args.forecast,
        kv_offload=offload,
    )
    _check_cache_size(options, source)
    switches, tokens = _read_special_tokens(args, source)
    return MagiSampler(
        source=source,
        cache=cache,
        method=args.method,
        device=device,
        switches=switches,
        special_tokens=tokens,
        discard_nearly_clean=options.discard_nearly_clean_chunk,
        previous_weight=_previous_weight(os.environ),
    )


def _check_cache_size(options: FlowCacheOptions, source: ModelSource) -> None:
    live = source.config.runtime_config.window_size
    if options.compress_kv_cache and options.total_cache_chunk_nums <= live:
        raise ValueError(
            f"total_cache_chunk_nums must be above window_size ({live}), as so many chunks are live at once, "
            f"got {options.total_cache_chunk_nums}."
        )


def _read_special_tokens(
    args: Namespace, source: ModelSource
) -> tuple[CaptionSwitches, SpecialTokens | None]:
    path = args.special_tokens or os.environ.get("SPECIAL_TOKEN_PATH")
    if not path and SPECIAL_TOKENS.is_file():
        path = SPECIAL_TOKENS
    is_small = source.config.runtime_config.load == str(SMALL)
    switches = CaptionSwitches.from_environment(usual=bool(args.special_tokens or (path and not is_small)))
    if not switches.any:
        if not path and not is_small:
            logger.info("special tokens: none, their table was not found; --special_tokens names it")
        return switches, None
    if not path:
        raise ValueError(
            "special tokens are asked for by the environment (PAD_HQ and such), but their table is not: give "
            "special_tokens, or set SPECIAL_TOKEN_PATH, to special_tokens.npz of the official code."
        )
    logger.info("special tokens: %s, from %s", switches, path)
    path = Path(path).expanduser()
    return switches, SpecialTokens.from_file(path, source.config.model_config.caption_channels)


def _previous_weight(environment: Mapping[str, str]) -> float:
    """As the original's variable says."""
    text = environment.get("prev_chunks_scale", "").strip()
    try:
        weight = float(text) if text else PREVIOUS_WEIGHT
    except ValueError as error:
        raise ValueError(f"the environment's prev_chunks_scale must be a number, got {text!r}.") from error
    check_number("the environment's prev_chunks_scale", weight, -1000, 1000)
    return weight
