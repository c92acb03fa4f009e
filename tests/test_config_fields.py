"""Every field of the method's configuration acts on both models, or is refused."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from random_model import RandomModel
from reference import ROOT

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.kv.manager import CacheManager
from flowcache.kv.original import OriginalCompression
from magi1.model_source import load_pipeline as load_magi
from magi1.model_source import resolve_model as resolve_magi
from magi1.request import VideoRequest
from skyreels_v2 import load_pipeline as load_skyreels
from skyreels_v2 import resolve_model as resolve_skyreels

DISTANCE, ERRORS = {}, {"policy": "error_controlled"}
INTERVAL, PLANNED = {"policy": "fixed_interval"}, {"policy": "planned", "computed_steps": (0,)}

#: A configuration in which a field acts, and another value of it.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "policy": (DISTANCE, "none"),
    "threshold": (DISTANCE, 0.5),
    "warmup_steps": (DISTANCE, 2),
    "final_steps": (DISTANCE, 2),
    "coefficients": (DISTANCE, (1.0, 0.5)),
    "indicator": (DISTANCE, "filtered_latent"),
    "tolerance": (ERRORS, 0.5),
    "interval": (INTERVAL, 3),
    "pace": (INTERVAL, 2.0),
    "computed_steps": (PLANNED, (0, 3)),
    "max_reuses": (ERRORS, 2),
    "forecast": (DISTANCE, "hold_residual"),
    "whole_window": (DISTANCE, True),
    "bidirectional": ({"whole_window": True}, True),
    "refresh_given": (DISTANCE, True),
    "clean_pass": (DISTANCE, True),
    "final_window_steps": (DISTANCE, 2),
    "together": (DISTANCE, True),
    "compression": (DISTANCE, KVCompressionConfig()),
    "clean_range": (DISTANCE, 1),
    "storage": (DISTANCE, KVStorageConfig(bits=8)),
}
REFUSED = {"skyreels": set(), "magi": {"whole_window", "bidirectional", "refresh_given", "clean_range"}}

COMPRESSION: dict[str, tuple[dict[str, Any], Any]] = {
    "budget": ({}, 2),
    "total": ({}, 6),
    "scorer": ({}, "recency"),
    "strategy": ({}, "frame"),
    "query_granularity": ({}, "chunk"),
    "max_queries": ({}, None),
    "mix_lambda": ({}, 0.5),
    "original": ({}, OriginalCompression(within_step=True)),
}
STORAGE: dict[str, tuple[dict[str, Any], Any]] = {
    "bits": ({"offload": True}, 8),
}


class Reached(Exception):
    """Carries the loop that a pipeline made."""


@pytest.fixture(scope="module")
def loops():
    """By model: the loop that its pipeline makes of a configuration."""
    skyreels, magi = (
        resolve_skyreels("small"),
        resolve_magi(
            ROOT / "FlowCache4MAGI-1" / "config" / "single_run" / "4.5B_distill.json", model="small"
        ),
    )
    pipelines = load_skyreels(skyreels, "cpu"), load_magi(magi, "cpu")
    video = skyreels.video_settings(num_frames=17, inference_steps=8, causal_block_size=1, ar_step=2)

    def reach(self, *_):
        raise Reached(self)

    def loop_of(call) -> Denoiser:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached) as reached:
            patch.setattr(Denoiser, "run", reach)
            call()
        return reached.value.args[0]

    return {
        "skyreels": lambda cache: loop_of(lambda: pipelines[0]("a red circle", None, video, cache)),
        "magi": lambda cache: loop_of(
            lambda: pipelines[1](VideoRequest(prompt="a red circle", config=magi.config, cache=cache))
        ),
    }


def plain(part: Any) -> Any:
    """A part of the loop as nested values that compare by content; tensors and modules are left out."""
    if isinstance(part, (torch.Tensor, torch.nn.Module)) or callable(part):
        return None
    if isinstance(part, (list, tuple)):
        return [plain(item) for item in part]
    if is_dataclass(part) or hasattr(part, "__dict__"):
        return type(part).__name__, {name: plain(value) for name, value in vars(part).items()}
    return part


def described(loop: Denoiser) -> list[Any]:
    """All of a loop that a configuration may decide."""
    flags = {name: value for name, value in vars(loop.model).items() if isinstance(value, (bool, int, str))}
    return [plain(loop.policy), plain(loop.forecast), plain(loop.options), flags]


def test_the_tables_name_every_field():
    for kind, table in ((FlowCacheConfig, CHANGES), (KVCompressionConfig, COMPRESSION)):
        assert list(table) == [field.name for field in fields(kind)]
    assert [*STORAGE, "offload"] == [field.name for field in fields(KVStorageConfig)]


@pytest.mark.parametrize("model", ["skyreels", "magi"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_field_reaches_the_loop_or_is_refused(loops, model, name):
    given, value = CHANGES[name]
    base = FlowCacheConfig(**given)
    if name in REFUSED[model]:
        with pytest.raises(ValueError, match=next(iter(given), name)):
            loops[model](replace(base, **{name: value}))
    else:
        assert described(loops[model](replace(base, **{name: value}))) != described(loops[model](base))


def compressed(settings: KVCompressionConfig) -> Any:
    """What a window's cache makes of settings of the compression."""
    schedule, model = StaircaseSchedule(12, 8, 4), RandomModel()
    cache = CacheManager(model, schedule, [16] * 12, FlowCacheConfig(compression=settings)).cache
    return cache.capacity, plain(settings.make_selector(4, 16))


@pytest.mark.parametrize("name", COMPRESSION)
def test_a_field_of_the_compression_acts(name):
    given, value = COMPRESSION[name]
    base = KVCompressionConfig(**given)
    assert compressed(base) != compressed(replace(base, **{name: value}))


@pytest.mark.parametrize("name", STORAGE)
def test_a_field_of_the_storage_acts(name):
    given, value = STORAGE[name]
    stores = [
        plain(config.make_store(RandomModel().cache_layout(), 32, 16))
        for config in (KVStorageConfig(**given), KVStorageConfig(**given, **{name: value}))
    ]
    assert stores[0] != stores[1]
