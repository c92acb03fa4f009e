"""The rule that a knob asks for."""

import pytest

from flowcache.config import FlowCacheConfig, rule_of
from magi1.config import FlowCacheOptions
from magi1.methods import method_config as magi
from skyreels_v2 import method_config as skyreels

RULES = [
    ({"interval": 4}, "fixed_interval"),
    ({"tolerance": 0.02}, "error_controlled"),
    ({"computed_steps": (0, 3)}, "planned"),
]


def test_no_knob_asks_for_no_rule():
    assert rule_of(threshold=None, interval=None) == {}


def test_a_threshold_of_zero_is_a_knob():
    assert FlowCacheConfig(**rule_of(threshold=0.0, interval=None)).policy == "chunkwise"


@pytest.mark.parametrize(("knob", "policy"), RULES)
@pytest.mark.parametrize("preset", ["fast", "paper-fast"])
def test_a_knob_asks_for_its_rule_with_every_preset(knob, policy, preset):
    steps = knob.get("computed_steps")
    options = FlowCacheOptions(**{name: value for name, value in knob.items() if name != "computed_steps"})
    configs = [skyreels("flowcache", preset, **knob)]
    configs.append(magi("flowcache", options, preset=preset, computed_steps=steps))
    for config in configs:
        assert config.policy == policy
        assert config.forecast == "linear_velocity"
        assert config.together is (policy != "chunkwise" or preset == "fast"), "the paper's chunks go alone"
        assert all(getattr(config, name) == value for name, value in knob.items())


@pytest.mark.parametrize(("knob", "_"), RULES)
def test_a_method_without_reuse_takes_no_knob(knob, _):
    (name,) = knob
    steps = knob.get("computed_steps")
    options = FlowCacheOptions(**({} if steps else knob))
    for method in ("vanilla", "causal"):
        with pytest.raises(ValueError, match=f"{name} is for flowcache; {method} computes every step"):
            skyreels(method, **knob)
    with pytest.raises(ValueError, match=f"{name} is for flowcache; vanilla computes every step"):
        magi("vanilla", options, computed_steps=steps)


@pytest.mark.parametrize(("knob", "_"), RULES)
def test_teacache_takes_a_threshold_only(knob, _):
    (name,) = knob
    with pytest.raises(ValueError, match=f"{name} is for flowcache; teacache takes threshold"):
        skyreels("teacache", **knob)


def test_several_knobs_exclude_each_other_by_the_names_they_were_given():
    with pytest.raises(ValueError, match="threshold and computed_steps exclude each other"):
        skyreels("flowcache", threshold=0.1, computed_steps=(0, 3))
    with pytest.raises(ValueError, match="rel_l1_thresh and computed_steps exclude each other"):
        magi("flowcache", FlowCacheOptions(rel_l1_thresh=0.1), computed_steps=(0, 3))


def test_the_originals_files_may_name_a_threshold_beside_vanilla():
    assert magi("vanilla", FlowCacheOptions(rel_l1_thresh=0.1)).policy == "none"


@pytest.mark.parametrize("preset", ["fast", "paper-fast", "paper-slow"])
def test_the_presets_of_the_paper_compress_as_the_original_does(preset):
    paper = preset != "fast"
    options = FlowCacheOptions(compress_kv_cache=True, total_cache_chunk_nums=9)
    configs = [skyreels("flowcache", preset, budget_block=2), magi("flowcache", options, preset=preset)]
    compressions = [config.compression for config in configs]
    assert [c.within_step for c in compressions] == [paper, False]
    assert {c.max_queries for c in compressions} == {None if paper else 256}
    assert {bool(c.original and c.original.best_first) for c in compressions} == {paper}
