"""The official configuration files: values, refusals and keys without effect."""

import json

import pytest
from cases import magi_case
from reference import case_names

from magi1.config import MagiConfig

BASE = {"cfg_number": 3}


@pytest.fixture
def read(tmp_path):
    def read(content, overrides=None) -> MagiConfig:
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return MagiConfig.from_file(path, overrides)

    return read


@pytest.mark.parametrize("name", case_names("keys_", "magi1"))
def test_official_files_are_read_as_they_are(name, read):
    content = magi_case(name).info.get("config", {})
    if "model_config" not in content:
        pytest.skip(f"{name} lists no configuration file")
    config = read(content)
    assert config.model_config.num_layers == content["model_config"]["num_layers"]
    assert list(config.runtime_config.noise2clean_kvrange) == content["runtime_config"]["noise2clean_kvrange"]
    assert config.engine_config.distill == content["engine_config"]["distill"]


def test_keys_of_any_section_can_be_overridden(read):
    overrides = {"num_steps": 16, "hidden_size": 64, "kv_offload": True, "clean_t": "1e-2"}
    config = read({"runtime_config": BASE}, overrides)
    runtime = config.runtime_config
    assert (runtime.num_steps, config.model_config.hidden_size, runtime.clean_t) == (16, 64, 0.01)
    assert config.engine_config.kv_offload


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"runtime_config": {"num_step": 16}}, "no num_step; did you mean num_steps?"),
        ({"runtime": {}}, "no runtime; did you mean runtime_config?"),
        ({"runtime_config": {"num_steps": "many"}}, "num_steps must be a whole number"),
        ({"runtime_config": {"cfg_number": 1}}, "cfg_number must be 3"),
        ({"runtime_config": {**BASE, "num_steps": 10}}, "num_steps must be a multiple of 4"),
        ({"runtime_config": {**BASE, "window_size": 3}}, "window_size"),
        ({"runtime_config": {**BASE, "noise2clean_kvrange": [1, 2, 3]}}, "noise2clean_kvrange"),
        ({"runtime_config": {**BASE, "noise2clean_kvrange": [[1]]}}, "noise2clean_kvrange"),
        ({"runtime_config": {**BASE, "text_scales": [1]}}, "text_scales"),
        ({"runtime_config": {**BASE, "seed": 1e400}}, "seed"),
        ({"runtime_config": {**BASE, "clean_chunk_kvrange": 0}}, "clean_chunk_kvrange"),
        ({"runtime_config": {**BASE, "t5_device": "tpu"}}, "t5_device must be cuda or cpu"),
        ({"runtime_config": 3}, "must hold named values"),
        ({"runtime_config": BASE, "model_config": {"num_query_groups": 5}}, "num_query_groups"),
        ({"runtime_config": BASE, "model_config": {"kv_channels": 20}}, "kv_channels"),
        ({"runtime_config": BASE, "model_config": {"caption_max_length": 1}}, "caption_max_length"),
        ({"runtime_config": BASE, "model_config": {"hidden_size": 1}}, "hidden_size"),
        ({"runtime_config": BASE, "engine_config": {"distill_nearly_clean_chunk_threshold": 1e4}}, "distill"),
        ([1], "must hold named values"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_wrong_files_are_refused_by_the_key(read, content, message):
    with pytest.raises(ValueError) as error:
        read(content)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_keys_without_effect(read):
    engine = {"enable_cuda_graph": True, "ulysses_overlap_degree": 2, "cp_size": 2, "cp_strategy": "x"}
    unused = read({"runtime_config": BASE, "engine_config": engine}).engine_config.unused
    assert unused == ["cp_size", "ulysses_overlap_degree", "enable_cuda_graph"]
