"""Calls of what Python users import, with arguments of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowcache import FlowCacheConfig, StaircaseSchedule
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.tuning import Target
from magi1.config import UNUSED, EngineSection, FlowCacheOptions, MagiConfig, ModelSection, RuntimeSection
from magi1.methods import METHODS as MAGI_METHODS
from magi1.methods import method_config as magi_method
from magi1.request import VideoRequest
from skyreels_v2 import Condition, VideoSettings
from skyreels_v2.methods import METHODS, method_config

from .oracle import PACKAGES, Fault, number_fault
from .programs import innermost
from .sandbox import Sandbox
from .values import PLAIN_VALUES

#: Classes whose fields are checked when they are made; arguments without a default follow.
CLASSES: Mapping[type, Mapping[str, Any]] = {
    VideoSettings: {},
    FlowCacheConfig: {},
    KVCompressionConfig: {},
    KVStorageConfig: {"bits": 8},
    StaircaseSchedule: {"num_chunks": 3, "num_steps": 8, "stride": 2},
    Target: {"speedup": 2.0},
    ModelSection: {},
    RuntimeSection: {},
    EngineSection: {},
    FlowCacheOptions: {},
    MagiConfig: {"engine_config": EngineSection(distill=True)},
}

#: Documented ways to refuse; a TypeError is Python's own for an argument of another kind.
DOCUMENTED = (ValueError, TypeError, OSError)
#: Those of settings that are asked for what an object of another kind lacks.
DUCKS = (*DOCUMENTED, AttributeError)

ODD_OBJECTS = (
    object(),
    1 + 2j,
    b"a",
    Fraction(1, 3),
    Path("a"),
    np.float32("nan"),
    torch.tensor(2),
    int,
    ...,
)


@dataclass(frozen=True)
class Call:
    """A call with one to three odd arguments.

    Attributes:
        name: what is called.
        arguments: by name, all of them.
        odd: names of those that few would give.
        make: does it; given the sandbox.
        judge: nonsense in what it returned.
        documented: exceptions that it may raise.
    """

    name: str
    arguments: Mapping[str, Any]
    odd: tuple[str, ...]
    make: Callable[[Sandbox], Any]
    judge: Callable[[Any], list[Fault]] = lambda _: []
    documented: tuple[type[Exception], ...] = DOCUMENTED
    kind: str = "Python"

    def describe(self) -> str:
        shown = ", ".join(f"{name}={_short(value)}" for name, value in self.arguments.items())
        return f"{self.name}({shown})"

    def run(self, sandbox: Sandbox) -> list[Fault]:
        with sandbox.case():
            try:
                made = self.make(sandbox)
            except Exception as error:
                if isinstance(error, self.documented) or type(error).__module__.startswith(PACKAGES):
                    return self._judge_refusal(error)
                key = f"{type(error).__name__} at {innermost(error)}"
                return [Fault("exception", key, f"{type(error).__name__}: {str(error)[:300]}")]
        return self.judge(made)

    def _judge_refusal(self, error: Exception) -> list[Fault]:
        if isinstance(error, (TypeError, AttributeError)):
            return []
        message = str(error)
        if not message.strip() or "\n" in message.strip():
            return [Fault("message", f"{self.name}: not one sentence", message[:300])]
        words = {word for name in (*self.arguments, *self.odd) for word in (name, *name.split("_"))}
        if "kvrange" in self.arguments:
            words.add("clean_range")  # the field that it becomes
        if not any(word in message for word in words if len(word) > 2):
            return [Fault("message", f"{self.name}: names no argument: {message[:40]}", message[:300])]
        return []


def _short(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__}{list(value.shape)} of {value.dtype}"
    if is_dataclass(value) and not isinstance(value, type):
        changed = [f for f in fields(value) if getattr(value, f.name) is not f.default]
        shown = ", ".join(f"{f.name}={_short(getattr(value, f.name))}" for f in changed)
        return f"{type(value).__name__}({shown})"
    return repr(value)[:60]


def odd_value(rng: Random) -> Any:
    """A value of any kind."""
    return rng.choice(PLAIN_VALUES if rng.random() < 0.85 else ODD_OBJECTS)


def draw_class(rng: Random) -> Call:
    """A class with one to three odd fields."""
    kind = rng.choice(list(CLASSES))
    names = [field.name for field in fields(kind) if field.init]
    odd = tuple(rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2, 3)))))
    arguments = {**CLASSES[kind], **{name: odd_value(rng) for name in odd}}
    kinds = {field.name: str(field.type) for field in fields(kind)}

    def judge(made: Any) -> list[Fault]:
        return [
            Fault("nonsense", f"{kind.__name__}.{name}: {reason}", _short(arguments[name]))
            for name in odd
            if (reason := _misfit(name, arguments[name], kinds[name]))
        ]

    return Call(kind.__name__, arguments, odd, lambda _: kind(**arguments), judge, DUCKS)


def _misfit(name: str, value: Any, kind: str) -> str | None:
    """Why a value is none of its field of numbers; None: it may be."""
    plain = kind.removesuffix(" | None")
    if name in UNUSED or name.startswith("distributed"):
        return None
    if plain not in ("int", "float") or (value is None and kind != plain) or isinstance(value, bool):
        return None
    if value is None or isinstance(value, (str, list, dict)):
        return f"{type(value).__name__} for {plain}"
    if not isinstance(value, (int, float, np.number)):
        return None  # what counts like a number may be one
    if plain == "int" and math.isfinite(value) and value != int(value):
        return "not whole"
    return number_fault(name, value)


def draw_method(rng: Random) -> Call:
    """One of the functions that turn a method into settings of the cache."""
    names = [
        "threshold",
        "interval",
        "tolerance",
        "computed_steps",
        "use_ret_steps",
        "coefficients",
        "forecast",
    ]
    names += ["family", "budget_block", "kvrange", "kv_bits", "kv_offload", "preset", "causal_attention"]
    function, methods = method_config, METHODS
    if rng.random() < 0.4:
        names, function, methods = (
            ["options", "preset", "forecast", "computed_steps"],
            magi_method,
            MAGI_METHODS,
        )
    odd = tuple(rng.sample(names, rng.choice((1, 1, 2))))
    arguments = {name: odd_value(rng) for name in odd}
    arguments["method"] = rng.choice((*methods, *methods, "", None, "Vanilla"))
    return Call("method_config", arguments, odd, lambda _: function(**arguments), documented=DUCKS)


def odd_pixels(rng: Random) -> Any:
    """What could stand for a condition or prefix."""
    frames = rng.choice((1, 4, 5, 3, 400))
    random = torch.Generator().manual_seed(rng.randrange(2**32))
    good = torch.rand(3, frames, 32, 32, generator=random) * 2 - 1
    return rng.choice(
        (
            *(
                good,
                good[:, :1],
                good.half(),
                good.double(),
                good.numpy(),
                (good * 127 + 128).to(torch.uint8),
            ),
            *(
                good * 127 + 128,
                good.unsqueeze(0),
                good[:2],
                good[..., :16],
                torch.full((3, 1, 32, 32), torch.nan),
            ),
            *(good.to(torch.complex64), good[0, 0], [good], None, "image.png", Image.new("RGB", (32, 32)), 3),
            *(
                torch.zeros(3, 1, 32, 32, dtype=torch.int64),
                torch.full((3, 1, 32, 32), torch.inf),
                [],
                good[:, :0],
            ),
        )
    )


def odd_prompt(rng: Random) -> Any:
    """What could stand for a prompt."""
    return rng.choice(
        ("a", "a", "a red circle", "", " ", None, ["a"], ["a", "a circle"], 3, b"a", "中文", "a" * 9000)
    )


_SMALL = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "inference_steps": 2,
    "ar_step": 1,
    "causal_block_size": 2,
}


def draw_skyreels(rng: Random) -> Call:
    """A call of SkyReels-V2's pipeline on the tiny model."""
    arguments = {
        "prompt": odd_prompt(rng),
        "negative_prompt": rng.choice((None, None, "a", "", 3, ["a"])),
        "settings": rng.choice((VideoSettings(**_SMALL),) * 6 + (3, _SMALL)),
        "cache": rng.choice((FlowCacheConfig(),) * 4 + (None, None, "fast", {})),
    }

    def make(sandbox: Sandbox) -> Any:
        from skyreels_v2.checkpoint import load_pipeline, resolve_model

        pipeline = load_pipeline(resolve_model(str(sandbox.good / "skyreels"), "cpu"), "cpu")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(*arguments.values())

    if rng.random() < 0.6:
        name = rng.choice(("prefix", "last"))
        pixels = odd_pixels(rng)
        plain = make
        arguments["condition"] = f"Condition({name}={_short(pixels)})"

        def make(sandbox: Sandbox) -> Any:
            arguments["condition"] = Condition(**{name: pixels})
            return plain(sandbox)

    names = ("prefix", "last", "frames")
    return Call("FlowCacheSkyReelsV2Pipeline", arguments, names, make, judge_video, _documented(arguments))


def draw_magi(rng: Random) -> Call:
    """A call of MAGI-1's pipeline on the tiny model."""
    prompt, prefix = odd_prompt(rng), odd_pixels(rng) if rng.random() < 0.6 else None
    more = {"previous_weight": odd_value(rng)} if rng.random() < 0.2 else {}
    if rng.random() < 0.2:
        more["cache"] = rng.choice(
            (None, "fast", FlowCacheConfig(whole_window=True), FlowCacheConfig(policy="none"))
        )
    arguments = {"prompt": prompt, "prefix": prefix, **more}

    def make(sandbox: Sandbox) -> Any:
        from magi1.model_source import load_pipeline, resolve_model

        source = resolve_model(sandbox.good / "magi1" / "config.json", model="official", device="cpu")
        pipeline = load_pipeline(source, "cpu")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(VideoRequest(config=source.config, **arguments))

    names = ("prev_chunks_scale", "frames")
    return Call("MagiPipeline", arguments, names, make, judge_video, _documented(arguments))


def _documented(arguments: Mapping[str, Any]) -> tuple[type[Exception], ...]:
    """Settings may be asked for what they lack; prompts and pixels may not."""
    kinds = {"settings": VideoSettings, "cache": FlowCacheConfig}
    fit = all(isinstance(arguments.get(name) or kind(), kind) for name, kind in kinds.items())
    return DOCUMENTED if fit and arguments.get("cache", ...) is not None else DUCKS


def judge_video(made: Any) -> list[Fault]:
    """Frames that are no numbers."""
    frames = made.frames
    if isinstance(frames, torch.Tensor) and not torch.isfinite(frames.float()).all():
        return [Fault("nonsense", "frames are not finite", "")]
    return []


def draw_python_input(rng: Random, sandbox: Sandbox) -> Call:
    """A class, a function, or a run of a tiny model."""
    draw = rng.choices((draw_class, draw_method, draw_skyreels, draw_magi), (70, 15, 8, 7))[0]
    return draw(rng)
