"""What the programs of MAGI-1 share: their flags, and the sampler that these come to."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flowcache.config import DEFAULT_PRESET, PRESETS
from flowcache.knobs import check_knobs
from flowcache.limits import check_number
from flowcache.reuse.forecast import FORECASTS

from .captions import CaptionSwitches, SpecialTokens
from .config import RULES, FlowCacheOptions, MagiConfig
from .config_files import COMMAND_LINE, check_keys, without_unread
from .guidance import PREVIOUS_WEIGHT
from .methods import METHODS, method_config
from .model_source import ModelSource
from .sampler import MagiSampler


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
        help="special_tokens.npz of the official code, for PAD_HQ=1 and such (default: SPECIAL_TOKEN_PATH)",
    )


def split_overrides(
    overrides: Mapping[str, Any], flags: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those that belong to the configuration, and those to FlowCache's options; ``flags`` are neither."""
    overrides = without_unread(overrides, COMMAND_LINE)
    options = list(FlowCacheOptions.__dataclass_fields__)
    check_keys(overrides, [*MagiConfig.keys(), *options, *flags], COMMAND_LINE)
    for_options = {key: value for key, value in overrides.items() if key in options}
    return {key: value for key, value in overrides.items() if key not in options}, for_options


def check_rules(options: FlowCacheOptions, typed: Collection[str], *methods: str) -> None:
    """Refuse an option that asks for a rule which none of the methods has.

    Args:
        options: those of the file with the command line's over them.
        typed: names of the command line's.
        methods: those that are to run.

    Raises:
        ValueError: one sentence that names the option.
    """
    knobs = {name: getattr(options, name) for name in RULES}
    if "rel_l1_thresh" not in typed:
        knobs["rel_l1_thresh"] = None  # the original's files name one beside any method
    check_knobs(knobs, *methods)


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
        computed_steps=None if options.plan is None else source.planned_steps(options.plan),
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
    switches = CaptionSwitches.from_environment()
    if not switches.any:
        return switches, None
    path = args.special_tokens or os.environ.get("SPECIAL_TOKEN_PATH")
    if not path:
        raise ValueError(
            "special tokens are asked for by the environment (PAD_HQ and such), but their table is not: give "
            "special_tokens, or set SPECIAL_TOKEN_PATH, to special_tokens.npz of the official code."
        )
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
