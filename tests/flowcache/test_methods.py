"""Methods and presets of both models."""

from dataclasses import replace

import pytest

from flowcache import FlowCacheConfig
from flowcache.methods import BEND, check_config
from flowcache.reuse import ChunkwiseReuse, Interval, NoReuse, TeaCache
from magi1.methods import TRAITS
from magi1.methods import method_config as magi
from skyreels_v2 import method_config as skyreels
from skyreels_v2.methods import COEFFICIENTS
from skyreels_v2.methods import TRAITS as SKYREELS

MODELS = {"skyreels": skyreels, "magi": magi}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("preset", "named", "policy", "forecast"),
    [
        ("quality", {}, Interval(scale=0.3), "corrected_velocity"),
        (None, {}, Interval(scale=0.75), "corrected_velocity"),
        ("fast", {"interval": 4}, Interval(4), "corrected_velocity"),
        ("paper-fast", {"interval": 4}, Interval(4), "corrected_velocity"),
        ("fast", {"threshold": 0.0}, ChunkwiseReuse(0.0, 1, together=True), "corrected_velocity"),
        ("fast", {"policy": "none"}, NoReuse(), "hold_velocity"),
        ("fast", {"policy": "fixed_interval", "policy_options": {"interval": "7"}}, Interval(7), None),
        ("paper-slow", {"threshold": 0.3}, ChunkwiseReuse(0.3), None),
        ("fast", {"policy_options": {"scale": 2}, "forecast": "hold_residual"}, Interval(scale=2), None),
    ],
)
def test_flowcache_chooses_its_policy(model, preset, named, policy, forecast):
    config = MODELS[model]("flowcache", preset=preset, **named)
    if model == "magi" and hasattr(policy, "final_steps"):
        policy.final_steps = 0  # the clean pass leaves its keys and values
    if model == "magi" and isinstance(policy, ChunkwiseReuse):
        policy.final_window_steps = 1
    assert config.policy == policy
    assert forecast is None or config.forecast == forecast
    paper = isinstance(policy, ChunkwiseReuse) and not policy.together
    assert config.clean_pass is (model == "magi" and not paper)


@pytest.mark.parametrize(
    ("named", "policy"),
    [
        ({}, Interval(scale=0.75, final_steps=0, bend=BEND)),
        ({"preset": "turbo"}, Interval(scale=1.0, final_steps=0, bend=BEND)),
        ({"interval": 4}, Interval(4, final_steps=0, bend=BEND)),
        ({"threshold": 0.1}, ChunkwiseReuse(0.1, 1, together=True)),
        ({"policy": "none"}, NoReuse()),
        ({"preset": "paper-fast"}, None),
        ({"budget_block": 1}, None),
        ({"kv_bits": 8}, None),
        ({"kvrange": 0}, None),
        ({"causal_attention": True}, None),
    ],
)
def test_chunks_that_move_together_see_each_other_unless_an_option_needs_the_cache(named, policy):
    config = replace(SKYREELS, together=True).configure(**named)
    assert config.whole_window is config.bidirectional is (policy is not None)
    assert config == (skyreels("flowcache", **named) if policy is None else replace(config, policy=policy))
    assert replace(SKYREELS, together=True).configure("vanilla") == skyreels("vanilla")


@pytest.mark.parametrize("model", MODELS)
def test_the_paper_presets_and_teacache(model):
    make, slow, fast = MODELS[model], *((0.1, 0.15) if model == "skyreels" else (0.005, 0.01))
    for preset, threshold in (("paper-slow", slow), ("paper-fast", fast)):
        config = make("flowcache", preset=preset)
        assert (config.policy.threshold, config.policy.warmup_steps) == (threshold, 5)
        assert config.forecast == ("hold_residual" if model == "skyreels" else "hold_displacement")
        config = make("teacache", preset=preset)
        assert (config.policy, config.forecast) == (TeaCache(threshold), "hold_residual")
        assert config.whole_window is config.bidirectional is (model == "skyreels")
    assert make("teacache", preset="turbo").policy.threshold == fast
    assert make("teacache", threshold=0.4).policy.threshold == 0.4


@pytest.mark.parametrize(
    ("model", "method", "named", "error"),
    [
        ("skyreels", "teacache", {"policy": "none"}, "policy"),
        ("magi", "flowcache", {"rel_l1_thresh": 0.1, "policy": "none"}, "threshold and policy"),
        ("magi", "causal", {}, "method"),
        ("magi", "flowcache", {"kv_range": 1}, "clean_range"),
        ("magi", "flowcache", {"preset": "slow"}, "preset"),
        ("skyreels", "flowcache", {"policy_options": {"period": 3}}, "period"),
        ("skyreels", "flowcache", {"warmup_steps": -1}, "warmup_steps"),
    ],
)
def test_options_that_a_method_lacks_are_named(model, method, named, error):
    with pytest.raises(ValueError, match=error):
        MODELS[model](method, **named)


def test_retention_steps_and_fitted_polynomials():
    fitted = COEFFICIENTS["1.3B"]
    for retention, warmup, indicator in ((None, 5, None), (True, 5, None), (False, 1, "timestep_embedding")):
        policy = skyreels("teacache", family="1.3B", use_ret_steps=retention).policy
        expected = (warmup, fitted[retention is not False], indicator)
        assert (policy.warmup_steps, policy.coefficients, policy.indicator) == expected
    policy = skyreels("flowcache", threshold=0.1, family="14B", coefficients=[1, 2]).policy
    assert (policy.warmup_steps, policy.coefficients) == (1, (1, 2))


@pytest.mark.parametrize("preset", ["fast", "paper-fast", "paper-slow"])
def test_the_paper_presets_compress_as_the_original_does(preset):
    config = magi("flowcache", rel_l1_thresh=0.1, warmup_steps=0, compress_kv_cache=True)
    assert (config.policy.threshold, config.policy.warmup_steps) == (0.1, 1)
    assert (config.compression.total, config.compression.query_granularity) == (8, "live")
    paper = preset != "fast"
    options = {"compress_kv_cache": True, "total_cache_chunk_nums": 9}
    configs = [skyreels("flowcache", preset, budget_block=2), magi("flowcache", preset, **options)]
    compressions = [config.compression for config in configs]
    assert [c.trigger == "step" for c in compressions] == [paper, False]
    assert {c.max_queries for c in compressions} == {None if paper else 256}
    named = {(c.as_dict()["scorer"], c.as_dict()["compactor"]) for c in compressions}
    assert named == {("paper", "select") if paper else ("spread", "matched")}
    assert {bool(c.original and c.original.best_first) for c in compressions} == {paper}
    weighted = magi("flowcache", preset=preset, compress=True, score_weighting_method="gaussian").compression
    assert (weighted.original.weighting, weighted.original.best_first) == ("gaussian", paper)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, ("spread", "matched", "live")),
        ({"scorer": "random"}, ("random", "select", "frame")),
        ({"mix_lambda": 0.1}, ("paper", "select", "frame")),
        ({"query_granularity": "token"}, ("paper", "select", "token")),
        ({"compactor": "select"}, ("spread", "select", "frame")),
        ({"compactor": "matched", "scorer": "random"}, ("random", "matched", "live")),
        ({"compactor": "retimed", "scorer": "participative"}, ("participative", "retimed", "frame")),
        ({"compactor": "matched", "query_granularity": "chunk"}, ("spread", "matched", "chunk")),
        ({"preset": "paper-fast"}, ("paper", "select", "frame")),
        ({"preset": "paper-fast", "compactor": "matched"}, ("paper", "matched", "live")),
    ],
)
def test_options_of_the_score_alone_keep_tokens_as_they_are(named, expected):
    values = magi("flowcache", compress=True, **named).compression.as_dict()
    assert tuple(values[name] for name in ("scorer", "compactor", "query_granularity")) == expected


@pytest.mark.parametrize("name", ["whole_window", "refresh_given", "clean_range"])
def test_magi_refuses_configurations_that_it_cannot_run(name):
    check_config(FlowCacheConfig(clean_pass=True), TRAITS)
    with pytest.raises(ValueError, match=name):
        check_config(FlowCacheConfig(**{name: 2 if name == "clean_range" else True}), TRAITS)
