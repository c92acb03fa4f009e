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
from flowcache.reuse import TeaCache
from magi1.model_source import load_pipeline as load_magi
from magi1.model_source import resolve_model as resolve_magi
from magi1.request import VideoRequest
from skyreels_v2 import load_pipeline as load_skyreels
from skyreels_v2 import resolve_model as resolve_skyreels

#: Changes of each field.
CHANGES: dict[str, dict[str, Any]] = {
    "policy": {"policy": TeaCache(indicator="timestep_embedding")},
    "forecast": {"forecast": "hold_residual"},
    "whole_window": {"whole_window": True},
    "bidirectional": {"whole_window": True, "bidirectional": True},
    "refresh_given": {"refresh_given": True},
    "clean_pass": {"clean_pass": True},
    "compression": {"compression": KVCompressionConfig()},
    "clean_range": {"clean_range": 1},
    "storage": {"storage": KVStorageConfig(bits=8)},
}
REFUSED = {
    "skyreels": (),
    "magi": ("policy", "whole_window", "bidirectional", "refresh_given", "clean_range"),
}

COMPRESSION: dict[str, Any] = {
    "budget": 2,
    "total": 6,
    "scorer": "recency",
    "strategy": "frame",
    "query_granularity": "chunk",
    "max_queries": None,
    "mix_lambda": 0.5,
    "original": OriginalCompression(),
}


class Reached(Exception):
    """Carries the loop that a pipeline made."""


@pytest.fixture(scope="module")
def loops():
    """By model: the loop that its pipeline makes of a configuration."""
    skyreels = resolve_skyreels("small")
    magi = resolve_magi(ROOT / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json", model="small")
    pipelines = load_skyreels(skyreels, "cpu"), load_magi(magi, "cpu")
    video = skyreels.video_settings(num_frames=17, inference_steps=8, causal_block_size=1, ar_step=2)

    def reach(self, *_):
        raise Reached(self)

    def loop_of(call) -> Denoiser:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached) as reached:
            patch.setattr(Denoiser, "run", reach)
            call()
        return reached.value.args[0]

    def run_magi(cache):
        return pipelines[1](VideoRequest(prompt="a red circle", config=magi.config, cache=cache))

    return {
        "skyreels": lambda c: loop_of(lambda: pipelines[0]("a red circle", settings=video, cache=c)),
        "magi": lambda c: loop_of(lambda: run_magi(c)),
    }


@pytest.mark.parametrize("model", ["skyreels", "magi"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_field_reaches_the_loop_or_is_refused(loops, model, name):
    assert list(CHANGES) == [field.name for field in fields(FlowCacheConfig)]
    config = FlowCacheConfig(**CHANGES[name])
    if name in REFUSED[model]:
        with pytest.raises(ValueError, match="indicator" if name == "policy" else next(iter(CHANGES[name]))):
            loops[model](config)
        return
    loop = loops[model](config)
    assert loop.config == config
    assert loop.policy == config.policy
    if model == "skyreels":
        assert loop.model.bidirectional is config.bidirectional


def plain(part: Any) -> Any:
    """A part of the cache as nested values that compare by content, without tensors."""
    if isinstance(part, torch.Tensor) or callable(part):
        return None
    if isinstance(part, list | tuple):
        return [plain(item) for item in part]
    if is_dataclass(part) or hasattr(part, "__dict__"):
        return type(part).__name__, {name: plain(value) for name, value in vars(part).items()}
    return part


@pytest.mark.parametrize("name", COMPRESSION)
def test_a_field_of_the_compression_acts(name):
    assert list(COMPRESSION) == [field.name for field in fields(KVCompressionConfig)]

    def made(settings: KVCompressionConfig) -> Any:
        schedule, config = StaircaseSchedule(12, 8, 4), FlowCacheConfig(compression=settings)
        cache = CacheManager(RandomModel(), schedule, [16] * 12, config).cache
        return cache.capacity, plain(settings.make_selector(4, 16))

    base = KVCompressionConfig()
    assert made(base) != made(replace(base, **{name: COMPRESSION[name]}))


def test_fields_of_the_storage_act():
    configs = ({"bits": 8}, {"bits": 4}, {"offload": True}, {"bits": 8, "offload": True})
    layout = RandomModel().cache_layout()
    stores = [plain(KVStorageConfig(**config).make_store(layout, 32, 16)) for config in configs]
    assert all(stores[i] != stores[j] for i in range(4) for j in range(i))
