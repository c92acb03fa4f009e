"""Finding and downloading checkpoints, and what is said when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import SkyReelsV2Transformer3DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from layouts import DIFFUSERS_WEIGHTS, SHARD, change, drop_first
from names import on_meta
from reference import Case, case_names
from safetensors.torch import load_file, save_file

import flowcache.hub
from skyreels_v2 import checkpoint, conversion
from skyreels_v2.checkpoint import load_components, resolve_model


def resolve_error(model_id: str | Path) -> str:
    with pytest.raises(ValueError) as error:
        resolve_model(str(model_id))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_auto_on_cuda():
    source = resolve_model("auto", "cuda")
    assert (source.model_id, source.path, source.layout, source.family) == ("auto", None, "diffusers", "1.3B")
    assert source.location == "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"
    assert "CUDA" in source.reason and source.location in source.reason


@pytest.mark.parametrize("name", ["auto", "small"])
def test_small_on_cpu(folders, monkeypatch, name):
    monkeypatch.setattr(checkpoint, "SMALL", folders["diffusers"])
    source = resolve_model(name, "cpu")
    assert (source.model_id, source.path) == (name, folders["diffusers"])
    assert (source.layout, source.family) == ("diffusers", "small")
    assert "small checkpoint shipped in assets/" in source.reason
    assert resolve_model(str(folders["diffusers"])).family == "small"


@pytest.mark.parametrize("name", ["auto", "small"])
def test_small_absent(tmp_path, monkeypatch, name):
    monkeypatch.setattr(checkpoint, "SMALL", tmp_path / "none")
    assert f"model_id {name} needs the small checkpoint" in resolve_error(name)


def test_small_lies_beside_the_packages():
    root = Path(__file__).resolve().parents[2]
    assert root / "assets" / "skyreels_v2_small" == checkpoint.SMALL


@pytest.mark.parametrize("model_id", checkpoint.OFFICIAL)
@pytest.mark.parametrize(("suffix", "layout"), [("", "original"), ("-Diffusers", "diffusers")])
def test_official_ids(model_id, suffix, layout):
    source = resolve_model(model_id + suffix)
    assert (source.path, source.layout) == (None, layout)
    assert source.family in model_id and source.location == model_id + suffix


@pytest.mark.parametrize(
    "model_id",
    [
        "",
        "bogus",
        "/no/such/folder",
        "Skywork/SkyReels-V2-T2V-14B-540P",
        "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
        "Skywork/SkyReels-V2-I2V-1.3B-540P",
        "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers-Diffusers",
    ],
)
def test_unknown_ids(model_id):
    message = resolve_error(model_id)
    assert message.startswith("model_id must be auto, small, an existing folder, or one of ")
    assert message.endswith(f"got {model_id!r}.")
    assert all(name in message for name in checkpoint.OFFICIAL)


def test_folder_without_layout(tmp_path):
    message = resolve_error(tmp_path)
    assert "model_index.json" in message and "config.json" in message


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("original", conversion.VAE_FILE),
        ("original", conversion.TEXT_ENCODER_FILE),
        ("original", "google/umt5-xxl/tokenizer_config.json"),
        ("original", SHARD.format(2)),
        ("diffusers", DIFFUSERS_WEIGHTS),
        ("diffusers", "text_encoder/config.json"),
        ("diffusers", "tokenizer/tokenizer_config.json"),
        ("diffusers", "scheduler/scheduler_config.json"),
    ],
)
def test_missing_file_is_named(copy, layout, name):
    folder = copy(layout)
    (folder / name).unlink()
    assert resolve_error(folder) == f"The model folder {folder} lacks {name}."


def test_missing_shard_of_an_index_is_named(copy):
    folder = copy("diffusers")
    weights = folder / DIFFUSERS_WEIGHTS
    shards = [weights.with_name(SHARD.format(number)) for number in (1, 2)]
    weights.rename(shards[0])
    keys = sorted(load_file(shards[0]))
    index = {"metadata": {}, "weight_map": {key: shards[key == keys[0]].name for key in keys}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    assert resolve_error(folder) == f"The model folder {folder} lacks transformer/{shards[1].name}."
    save_file({keys[0]: load_file(shards[0])[keys[0]]}, shards[1], metadata={"format": "pt"})
    change(shards[0], drop_first)
    load_components(resolve_model(str(folder)))


@pytest.mark.parametrize("name", case_names("keys_"))
def test_family_of_a_configuration(reference, name):
    config = Case(reference, name).info["original_config"]
    model = on_meta(SkyReelsV2Transformer3DModel, **conversion.transformer_config(config))
    official = {(1536, 30): "1.3B", (5120, 40): "14B"}
    assert checkpoint.find_family(model.config) == official.get((config["dim"], config["num_layers"]))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"model_type": "i2v"}, "i2v"),
        ({"qk_norm": False}, "qk_norm"),
        ({"window_size": [8, 8]}, "window_size"),
    ],
)
def test_original_models_of_another_kind(copy, fields, word):
    folder = copy("original")
    edit_json(folder / "config.json", **fields)
    assert word in resolve_error(folder)


def test_diffusers_models_of_another_kind(copy):
    folder = copy("diffusers")
    edit_json(folder / "model_index.json", _class_name="SkyReelsV2ImageToVideoPipeline")
    assert "SkyReelsV2ImageToVideoPipeline" in resolve_error(folder)
    edit_json(folder / "model_index.json", _class_name="WanPipeline")
    edit_json(folder / "transformer" / "config.json", _class_name="WanTransformer3DModel")
    assert "WanTransformer3DModel" in resolve_error(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_json_is_named(copy, content):
    folder = copy("original")
    (folder / "config.json").write_text(content)
    assert str(folder / "config.json") in resolve_error(folder)


@pytest.fixture
def hub(monkeypatch):
    """What the Hub answers: a folder, or an error that it raises; its cache is empty."""
    answers: dict[str, Any] = {"patterns": []}

    def download(repository: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        answers["patterns"] = allow_patterns
        if local_files_only:
            raise LocalEntryNotFoundError("empty")
        if isinstance(answers[repository], Exception):
            raise answers[repository]
        return str(answers[repository])

    monkeypatch.setattr(flowcache.hub, "snapshot_download", download)
    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", lambda *_, **options: options["timeout"])
    return answers


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_download_asks_for_all_that_is_needed(folders, hub, layout):
    model_id = checkpoint.OFFICIAL[0] + ("-Diffusers" if layout == "diffusers" else "")
    hub[model_id] = folders[layout]
    load_components(resolve_model(model_id))
    files = [str(path.relative_to(folders[layout])) for path in folders[layout].rglob("*") if path.is_file()]
    useless = ["README.md", "assets/logo.gif", "transformer/diffusion_pytorch_model.bin", "other.pth"]
    kept = set(filter_repo_objects([*files, *useless], allow_patterns=hub["patterns"]))
    assert kept == set(files)


def test_failed_download(hub):
    hub[checkpoint.OFFICIAL_DEFAULT] = ConnectionError("first line\nsecond line")
    with pytest.raises(OSError, match="could not be downloaded") as error:
        load_components(resolve_model("auto", "cuda"))
    assert checkpoint.OFFICIAL_DEFAULT in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, ConnectionError)


def test_download_that_is_not_complete(copy, hub):
    folder = copy("diffusers")
    (folder / DIFFUSERS_WEIGHTS).unlink()
    hub[checkpoint.OFFICIAL_DEFAULT] = folder
    with pytest.raises(ValueError, match=DIFFUSERS_WEIGHTS):
        load_components(resolve_model("auto", "cuda"))
