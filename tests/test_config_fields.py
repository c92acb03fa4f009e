"""Every field of the method's configuration reaches the loop of both models, or is refused."""

from dataclasses import fields

import pytest
from reference import ROOT

from flowcache import Denoiser, FlowCacheConfig
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.reuse import TeaCache
from magi1.model_source import load_pipeline as load_magi
from magi1.model_source import resolve_model as resolve_magi
from magi1.request import VideoRequest
from skyreels_v2 import load_pipeline as load_skyreels
from skyreels_v2 import resolve_model as resolve_skyreels

#: Changes of each field; what MAGI-1 refuses is named.
CHANGES = {
    "policy": ({"policy": TeaCache(indicator="timestep_embedding")}, "indicator"),
    "forecast": ({"forecast": "hold_residual"}, None),
    "whole_window": ({"whole_window": True}, "whole_window"),
    "bidirectional": ({"whole_window": True, "bidirectional": True}, "whole_window"),
    "refresh_given": ({"refresh_given": True}, "refresh_given"),
    "clean_pass": ({"clean_pass": True}, None),
    "compression": ({"compression": KVCompressionConfig()}, None),
    "clean_range": ({"clean_range": 1}, "clean_range"),
    "storage": ({"storage": KVStorageConfig(bits=8)}, None),
}


class Reached(Exception):
    """Carries the loop that a pipeline made."""


@pytest.fixture(scope="module")
def run():
    """By model: run its pipeline with a configuration."""
    skyreels = resolve_skyreels("small")
    magi = resolve_magi(ROOT / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json", model="small")
    pipelines = load_skyreels(skyreels, "cpu"), load_magi(magi, "cpu")
    video = skyreels.video_settings(num_frames=17, inference_steps=8, causal_block_size=1, ar_step=2)
    return {
        "skyreels": lambda c: pipelines[0]("a red circle", settings=video, cache=c),
        "magi": lambda c: pipelines[1](VideoRequest(prompt="a red circle", config=magi.config, cache=c)),
    }


@pytest.mark.parametrize("model", ["skyreels", "magi"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_field_reaches_the_loop_or_is_refused(run, model, name, monkeypatch):
    def reach(denoiser, *_):
        raise Reached(denoiser)

    monkeypatch.setattr(Denoiser, "run", reach)
    assert list(CHANGES) == [field.name for field in fields(FlowCacheConfig)]
    changes, refused = CHANGES[name]
    config = FlowCacheConfig(**changes)
    if model == "magi" and refused:
        with pytest.raises(ValueError, match=refused):
            run[model](config)
        return
    with pytest.raises(Reached) as reached:
        run[model](config)
    loop = reached.value.args[0]
    assert (loop.config, loop.policy) == (config, config.policy)
    assert loop.model.bidirectional is config.bidirectional
