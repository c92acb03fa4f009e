"""Finding and downloading checkpoints, and errors that name what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from layouts import DIFFUSERS_WEIGHTS, SHARD, change, drop_first
from reference import ROOT
from safetensors.torch import load_file, save_file

import flowcache.hub
from skyreels_v2 import checkpoint, conversion
from skyreels_v2.checkpoint import load_components, resolve_model


def resolve_error(model_id: str | Path) -> str:
    with pytest.raises(ValueError) as error:
        resolve_model(str(model_id))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["auto", "small"])
def test_small_on_cpu(folders, monkeypatch, tmp_path, name):
    assert ROOT / "assets" / "skyreels_v2_small" == checkpoint.SMALL
    monkeypatch.setattr(checkpoint, "SMALL", folders["diffusers"])
    source = resolve_model(name, "cpu")
    assert (source.path, source.layout, source.family) == (folders["diffusers"], "diffusers", "small")
    assert source.is_substitute == (name == "auto")
    assert resolve_model(str(folders["diffusers"])).family == "small"
    monkeypatch.setattr(checkpoint, "SMALL", tmp_path / "none")
    assert f"model_id {name}" in resolve_error(name)


@pytest.mark.parametrize("model_id", checkpoint.OFFICIAL)
@pytest.mark.parametrize(("suffix", "layout"), [("", "original"), ("-Diffusers", "diffusers")])
def test_official_ids(model_id, suffix, layout):
    source = resolve_model(model_id + suffix)
    assert (source.path, source.layout, source.location) == (None, layout, model_id + suffix)
    assert source.family in model_id
    assert source.defaults["height"] == (720 if "720P" in model_id else 544)
    auto = resolve_model("auto", "cuda")
    assert (auto.location, auto.family) == (checkpoint.OFFICIAL_DEFAULT, "1.3B")


def test_unknown_ids(tmp_path):
    names = [f"Skywork/SkyReels-V2-{name}" for name in ("T2V-14B-540P", "I2V-1.3B-540P-Diffusers")]
    for model_id in ("", "bogus", "/no/such/folder", f"{checkpoint.OFFICIAL_DEFAULT}-Diffusers", *names):
        message = resolve_error(model_id)
        assert message.startswith("model_id") and message.endswith(f"got {model_id!r}.")
        assert all(name in message for name in checkpoint.OFFICIAL)
    message = resolve_error(tmp_path)
    assert "model_index.json" in message and "config.json" in message


MISSING = {
    conversion.VAE_FILE: "original",
    "google/umt5-xxl/tokenizer_config.json": "original",
    SHARD.format(1): "original",
    SHARD.format(2): "original",
    DIFFUSERS_WEIGHTS: "diffusers",
    "text_encoder/config.json": "diffusers",
    "scheduler/scheduler_config.json": "diffusers",
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_file_is_named(copy, name):
    folder = copy(MISSING[name])
    (folder / name).unlink()
    assert resolve_error(folder) == f"The model folder {folder} lacks {name}."


def test_missing_shard_of_an_index_is_named(copy):
    folder = copy("diffusers")
    weights = folder / DIFFUSERS_WEIGHTS
    shards = [weights.with_name(SHARD.format(number)) for number in (1, 2)]
    weights.rename(shards[0])
    first, *rest = sorted(load_file(shards[0]))
    index = {"weight_map": dict.fromkeys(rest, shards[0].name) | {first: shards[1].name}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    assert f"lacks transformer/{shards[1].name}." in resolve_error(folder)
    save_file({first: load_file(shards[0])[first]}, shards[1], metadata={"format": "pt"})
    change(shards[0], drop_first)
    load_components(resolve_model(str(folder)))


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "i2v"), ("qk_norm", False), ("window_size", [8, 8]), ("num_heads", 0)]
)
def test_models_of_another_kind(copy, key, value):
    path = copy("original") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    message = resolve_error(path.parent)
    assert str(value) in message or key in message


@pytest.fixture
def hub(monkeypatch):
    """Answers of the Hub: a folder, or an error that it raises; its cache is empty."""
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
    assert set(filter_repo_objects([*files, *useless], allow_patterns=hub["patterns"])) == set(files)


def test_failed_and_incomplete_downloads(copy, hub):
    hub[checkpoint.OFFICIAL_DEFAULT] = ConnectionError("first line\nsecond line")
    with pytest.raises(OSError, match=checkpoint.OFFICIAL_DEFAULT) as error:
        load_components(resolve_model("auto", "cuda"))
    assert "\n" not in str(error.value) and isinstance(error.value.__cause__, ConnectionError)
    hub[checkpoint.OFFICIAL_DEFAULT] = copy("diffusers")
    (hub[checkpoint.OFFICIAL_DEFAULT] / DIFFUSERS_WEIGHTS).unlink()
    with pytest.raises(ValueError, match=DIFFUSERS_WEIGHTS):
        load_components(resolve_model("auto", "cuda"))
