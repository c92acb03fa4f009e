"""The official configuration files: what is read, refused and warned of."""

from __future__ import annotations

import json
import logging

import pytest
from cases import magi_case
from reference import case_names

from magi1.config import FlowCacheOptions, MagiConfig


@pytest.fixture
def write(tmp_path):
    def write(content, name="config.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("name", case_names("keys_", "magi1"))
def test_official_files_are_read_as_they_are(name, write):
    info = magi_case(name).info
    content = info.get("config", {})
    if "model_config" not in content:
        pytest.skip(f"{name} lists no configuration file")
    config = MagiConfig.from_file(write(content))
    assert config.model_config.num_layers == content["model_config"]["num_layers"]
    assert list(config.runtime_config.noise2clean_kvrange) == content["runtime_config"]["noise2clean_kvrange"]
    assert config.engine_config.distill == content["engine_config"]["distill"]


def test_keys_of_any_section_can_be_overridden(write):
    path = write({"runtime_config": {"cfg_number": 3}})
    config = MagiConfig.from_file(path, {"num_steps": 16, "hidden_size": 64, "kv_offload": True})
    assert (config.runtime_config.num_steps, config.model_config.hidden_size) == (16, 64)
    assert config.engine_config.kv_offload


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"runtime_config": {"num_step": 16}}, "there is no num_step; did you mean num_steps?"),
        ({"runtime": {}}, "there is no runtime; did you mean runtime_config?"),
        ({"runtime_config": {"num_steps": "many"}}, "num_steps must be a whole number, got 'many'"),
        ({"runtime_config": {"cfg_number": 1}}, "cfg_number must be 3 for a base model"),
        ({"runtime_config": {"cfg_number": 3, "num_steps": 10}}, "num_steps must be a multiple of 4"),
        ({"runtime_config": {"cfg_number": 3, "window_size": 3}}, "window_size must divide num_steps"),
        ({"runtime_config": {"cfg_number": 3, "text_scales": [1]}}, "of one length"),
        ({"runtime_config": 3}, "must hold named values"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_wrong_files_are_refused_by_the_key(write, content, message):
    with pytest.raises(ValueError) as error:
        MagiConfig.from_file(write(content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model_config", "num_query_groups", 5, "a divisor of num_attention_heads (24)"),
        ("model_config", "kv_channels", 20, "kv_channels must be a multiple of 8"),
        ("model_config", "caption_max_length", 1, "caption_max_length must be at least 2"),
        ("runtime_config", "seed", 1e400, "seed must be a whole number"),
        ("runtime_config", "noise2clean_kvrange", [[1]], "noise2clean_kvrange must be a whole number"),
        ("engine_config", "distill_nearly_clean_chunk_threshold", float("nan"), "distill_nearly"),
    ],
)
def test_values_out_of_range_are_refused_by_the_key(write, section, key, value, message):
    content = {"runtime_config": {"cfg_number": 3}}
    content.setdefault(section, {})[key] = value
    with pytest.raises(ValueError) as error:
        MagiConfig.from_file(write(content))
    assert message in str(error.value)


def test_keys_without_effect_are_told(write):
    engine = {"enable_cuda_graph": True, "ulysses_overlap_degree": 2, "cp_size": 2}
    content = {"runtime_config": {"cfg_number": 3}, "engine_config": engine}
    assert MagiConfig.from_file(write(content)).engine_config.unused == [
        "cp_size",
        "ulysses_overlap_degree",
        "enable_cuda_graph",
    ]


def test_numbers_may_be_spelt_as_yaml_takes_for_text(write):
    assert FlowCacheOptions.from_file(write("rel_l1_thresh: 1e-2", "a.yaml")).rel_l1_thresh == 0.01
    assert FlowCacheOptions.from_file(write("", "a.yaml")).rel_l1_thresh is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json cannot be read"):
        MagiConfig.from_file(tmp_path / "nothing.json")


def test_options_warn_of_keys_that_nobody_reads(write, caplog):
    text = "rel_l1_thresh: 0.02\nreuse_strategy: chunkwise\nbudget_cache_chunk_nums: 1\npower: 3\n"
    with caplog.at_level(logging.WARNING):
        options = FlowCacheOptions.from_file(write(text, "a.yaml"))
    assert options.rel_l1_thresh == 0.02
    assert [record.getMessage().split(": ")[1].split()[0] for record in caplog.records] == [
        "budget_cache_chunk_nums",
        "reuse_strategy",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rel_l1_tresh: 0.1", "did you mean rel_l1_thresh?"),
        ("rel_l1_thresh: -1", "at least 0"),
        ("rel_l1_thresh: .nan", "rel_l1_thresh must be"),
        ("compress_strategy: tokens", "token, frame or chunk"),
        ("mix_lambda: 2", "mix_lambda must be at most 1"),
        ("log: maybe", "log must be true or false"),
        ("a: [", "cannot be read as YAML"),
        ("[1, 2]", "must hold named values, got list"),
        ("7", "must hold named values, got int"),
        ("score_weighting_method: nonsense", "score_weighting_method must be one of no_weight"),
    ],
)
def test_wrong_options_are_refused_by_the_key(write, text, message):
    with pytest.raises(ValueError) as error:
        FlowCacheOptions.from_file(write(text, "a.yaml"))
    assert message in str(error.value)
