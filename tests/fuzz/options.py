"""Everything that a program takes, as its own parser and configuration say it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from random import Random
from typing import Any

from . import values

INPUTS = ("image.png", "tall.jpg", "clear.png", "grey.png", "in.mp4", "tall.mp4", "notes.txt", "empty")
INPUTS += ("skyreels", "magi1/config.json", "options.yaml", "vbench.yaml", "prompts", "full_info", "physics")
INPUTS += (
    "physics/descriptions.csv",
    "run",
    "traces",
    "original",
    "generated",
    "original/a.mp4",
    "continued",
)
INPUTS += ("generated/a.mp4", "full_info/VBench_full_info.json", "physics/split-videos/testing/8FPS")

#: Usual values by name; names that are not here get some by their type. ``@`` stands for the good files.
USUAL: Mapping[str, tuple[str, ...]] = {
    "additional_config": ("@/options.yaml",),
    "addnoise_condition": ("0", "20", "999"),
    "base_num_frames": ("5", "9", "17", "97"),
    "base_save_path": ("out", "new/out"),
    "benchmark": ("vbench", "physicsiq"),
    "causal_block_size": ("1", "2", "3"),
    "cfg_number": ("1", "3"),
    "chunk_width": ("1", "2", "6"),
    "clean_chunk_kvrange": ("-1", "1", "2"),
    "clean_t": ("0.9999", "1.0"),
    "compress_strategy": ("token", "frame", "chunk"),
    "config_file": ("@/magi1/config.json",),
    "descriptions_file": ("@/physics/descriptions.csv",),
    "device": ("cpu",),
    "dimension": ("all", "scene"),
    "end_image": ("@/image.png", "@/tall.jpg"),
    "environment": ("new_environment",),
    "expname": ("b", "c/d"),
    "fps": ("4", "8", "24"),
    "full_info": ("@/full_info/VBench_full_info.json",),
    "generated_video": ("@/generated", "@/generated/a.mp4"),
    "generated_videos": ("@/continued", "@/vbench_videos"),
    "gpus": ("cpu",),
    "guidance_scale": ("1", "1.5", "6"),
    "image": ("@/image.png", "@/tall.jpg", "@/clear.png", "@/grey.png"),
    "image_path": ("@/image.png", "@/tall.jpg", "@/clear.png"),
    "interval": ("1", "2", "3"),
    "kv_bits": ("4", "8"),
    "load": ("@/magi1/magi",),
    "mix_lambda": ("0", "0.07", "1"),
    "model": ("official", "small", "auto"),
    "model_id": ("@/skyreels", "small"),
    "noise2clean_kvrange": ("[]", "[4, 3]", "[1]"),
    "num_frames": ("5", "9", "17", "32"),
    "num_steps": ("4", "8", "12"),
    "original_video": ("@/original", "@/original/a.mp4"),
    "output": ("scores", "new/scores"),
    "output_path": ("a.mp4", "new/a.mp4", "a"),
    "outdir": ("out", "new/out"),
    "overlap_history": ("1", "5"),
    "physicsiq_data_dir": ("@/physics",),
    "plan": ("0.3", "0.5"),
    "prefix_video_path": ("@/in.mp4", "@/tall.mp4"),
    "profile": ("profile.json", "new/profile.json"),
    "prompt": ("a", "a red circle"),
    "python": ("/usr/bin/python3",),
    "query_granularity": ("token", "frame", "chunk"),
    "reference_videos": ("@/physics/split-videos/testing/8FPS",),
    "run_dir": ("@/run", "@/traces"),
    "score_weighting_method": ("no_weight", "linear_ascending"),
    "seed": ("0", "1", "9223372036854775807"),
    "shift": ("1", "5", "8"),
    "special_tokens": ("@/tokens.npz",),
    "t5_device": ("cpu", "cuda"),
    "t5_pretrained": ("@/magi1/t5",),
    "target_psnr": ("1", "30"),
    "target_speedup": ("1.1", "1.5"),
    "total_cache_chunk_nums": ("5", "8"),
    "vae_pretrained": ("@/magi1/vae",),
    "vbench_prompt_dir": ("@/prompts", "@/full_info"),
    "video_path": ("@/in.mp4", "@/tall.mp4"),
    "video_size_h": ("16", "32", "64"),
    "video_size_w": ("16", "32", "64"),
    "width": ("16", "32", "64"),
    "height": ("16", "32", "64"),
    "window_size": ("1", "2", "4"),
    "ways": ("vanilla", "teacache:paper-slow", "flowcache:fast"),
    "yaml_config": ("@/vbench.yaml", "@/physicsiq.yaml"),
}


@dataclass(frozen=True)
class Option:
    """One argument of a program.

    Attributes:
        name: without dashes.
        kind: ``switch``, ``int``, ``float``, ``path`` or ``text``.
        choices: words that it takes; empty: any.
        default: as text; None: it has none.
        positional: stands without its name.
        many: takes several words.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()
    default: str | None = None
    positional: bool = False
    many: bool = False

    @property
    def flag(self) -> list[str]:
        """The words before its value."""
        return [] if self.positional else [f"--{self.name}"]

    @property
    def known(self) -> tuple[str, ...]:
        """Words that most would take for it."""
        by_kind = {"int": ("1", "2", "3"), "float": ("0.1", "0.5", "1.0"), "bool": ("true", "false")}
        by_kind["switch"] = ()
        found = self.choices or USUAL.get(self.name)
        return found or by_kind.get(self.kind, (self.default or "a",))

    def usual(self, rng: Random) -> list[str]:
        """Words of a value that most would take."""
        if self.kind == "switch":
            return []
        return [rng.choice(self.known) for _ in range(rng.choice((1, 2, 3)) if self.many else 1)]

    def hostile(self, rng: Random, bad_paths: list[str]) -> list[str]:
        """Words of a value that few would take."""
        drawn = {
            "number": lambda: values.number(rng),
            "text": lambda: values.text(rng),
            "missing": lambda: rng.choice(values.MISSING_PATHS),
            "bad": lambda: rng.choice(bad_paths),
            "other": lambda: f"@/{rng.choice(INPUTS)}",
        }
        likely = {"int": ["number"] * 6, "float": ["number"] * 6, "path": ["missing", "bad", "other"] * 2}
        kinds = [*likely.get(self.kind, ()), *drawn]
        if self.kind == "switch":
            return []
        return [drawn[rng.choice(kinds)]() for _ in range(rng.choice((0, 1, 3)) if self.many else 1)]


def options_of_parser(parser: argparse.ArgumentParser) -> dict[str, Option]:
    """The options of a parser; of a sub-command, those of its own parser."""
    found = [_of_action(action) for action in parser._actions if action.dest not in ("help", "command")]
    return {option.name: option for option in found}


def _of_action(action: argparse.Action) -> Option:
    positional, switch = not action.option_strings, action.nargs == 0
    name = (
        action.dest
        if positional
        else action.option_strings[-1 if switch and len(action.option_strings) > 1 else 0]
    )
    names = {int: "int", float: "float", None: "text", str: "text"}
    kind = "switch" if switch else names.get(action.type, "path")
    choices = tuple(map(str, action.choices or ()))
    default = None if action.default is None else str(action.default)
    return Option(name.lstrip("-"), kind, choices, default, positional, action.nargs in ("+", "*"))


def options_of_fields(*kinds: type) -> dict[str, Option]:
    """Options for the fields of configurations that the command line can set."""
    found = [_of_field(field) for kind in kinds for field in fields(kind)]
    return {option.name: option for option in found}


def _of_field(field: Field[Any]) -> Option:
    kind = str(field.type).removesuffix(" | None")
    default = None if field.default in (MISSING, None) else str(field.default)
    if kind.startswith("tuple"):
        default = str(list(field.default))
    return Option(field.name, kind if kind in ("int", "float", "bool") else "text", (), default)
