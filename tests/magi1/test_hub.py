"""Local folders, folders on the Hub, and the small checkpoint; nothing here opens a connection."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

import flowcache.hub
from magi1 import load_pipeline, model_source
from magi1.model_source import parse_hub_folder, resolve_model

REPOSITORY = "sand-ai/MAGI-1"
LOAD = f"{REPOSITORY}/ckpt/magi/4.5B_distill"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No connection, and an empty cache."""

    def repo_info(*_, timeout):
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", repo_info)


@pytest.fixture
def snapshot(offline, weights, tmp_path):
    """The official repository in the Hub's cache, with tiny weights."""
    folder = tmp_path / "hub" / "models--sand-ai--MAGI-1"
    snapshot = folder / "snapshots" / ("0" * 40)
    for inside, part in (("ckpt/magi/4.5B_distill", "magi"), ("ckpt/vae", "vae"), ("ckpt/t5", "t5")):
        shutil.copytree(weights.parent / part, snapshot / inside)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


@pytest.fixture
def configure(weights, tmp_path):
    """Write a configuration with other folders; by default none of them exists."""

    def configure(**folders) -> Path:
        content = json.loads(weights.read_text())
        absent = {name: f"./{name}" for name in ("load", "vae_pretrained", "t5_pretrained")}
        content["runtime_config"] |= absent | folders
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path / "config.json"

    return configure


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert parse_hub_folder(LOAD) == (REPOSITORY, "ckpt/magi/4.5B_distill")
    assert parse_hub_folder("someone/fine_tuned.v2/x/") == ("someone/fine_tuned.v2", "x")
    for name in ("", "a/b", "./a/b/c", "/a/b/c", "~/a/b/c", "a/../b/c", "https://hf.co/a/b/c", "here/b/c"):
        assert parse_hub_folder(name) is None


def test_folders_that_are_not_named_are_the_repositorys(configure):
    config = configure(vae_pretrained="", t5_pretrained="")
    runtime = resolve_model(config, {"load": LOAD}, "official", "cpu").config.runtime_config
    folders = (runtime.vae_pretrained, runtime.t5_pretrained)
    assert folders == (f"{REPOSITORY}/ckpt/vae", f"{REPOSITORY}/ckpt/t5")
    with pytest.raises(ValueError, match="vae_pretrained must name a folder"):
        resolve_model(config, {"load": LOAD, "vae_pretrained": ""}, "official", "cpu")


def test_only_what_is_needed_is_downloaded(snapshot, configure, monkeypatch):
    source = resolve_model(configure(), {"load": LOAD}, "official", "cpu")
    assert LOAD in source.reason
    assert load_pipeline(source, "cpu").transformer.config.num_layers == 2
    wanted = []

    def download(repository, allow_patterns, **_):
        wanted.append((repository, *allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(flowcache.hub, "snapshot_download", download)
    load_pipeline(source, "cpu")
    assert wanted == [
        (REPOSITORY, "ckpt/magi/4.5B_distill/inference_weight.distill/*"),
        (REPOSITORY, "ckpt/vae/*"),
        (REPOSITORY, "ckpt/t5/t5-v1_1-xxl/*"),
    ]


def test_what_the_hub_lacks_is_named(snapshot, configure, weights, monkeypatch):
    def refused(message, load=LOAD):
        source = resolve_model(configure(load=load), model="official", device="cpu")
        with pytest.raises(OSError, match=f"load: .*{message}") as raised:
            load_pipeline(source, "cpu")
        assert "\n" not in str(raised.value)

    refused("folder ckpt/magi/5B/inference_weight.distill", f"{REPOSITORY}/ckpt/magi/5B")
    for name in ("vae", "t5"):
        shutil.rmtree(snapshot / "ckpt" / name)
    load_pipeline(resolve_model(weights, {"load": LOAD}, device="cpu"), "cpu")  # whose other parts are local
    (snapshot / "ckpt/magi/4.5B_distill/inference_weight.distill/model.safetensors").unlink()
    refused("ConnectionError.*lacks model.safetensors")
    shutil.rmtree(snapshot.parents[1])
    refused("ConnectionError")

    def repo_info(*_, timeout):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", repo_info)
    refused("no repository sand-ai/MAGI-1")


@pytest.mark.parametrize("load", ["downloads/none", "", REPOSITORY])
def test_on_cuda_a_missing_folder_is_refused_with_the_command_that_gets_it(configure, load):
    with pytest.raises(ValueError, match=r"load.*sand-ai/MAGI-1/ckpt/magi/4\.5B_distill") as raised:
        resolve_model(configure(load=load), device="cuda")
    assert not load or f"hf download {REPOSITORY} " in str(raised.value)
    assert resolve_model(configure(load=LOAD), device="cuda").config.runtime_config.load == LOAD


def test_auto_takes_the_official_weights_only_where_they_fit(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(model_source, "SMALL", tmp_path / "small")
    with pytest.raises(ValueError, match="no folder"):
        resolve_model(weights, model="small")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(weights.read_text())
    load = json.loads(weights.read_text())["runtime_config"]["load"]
    assert "no CUDA device" in resolve_model(weights, device="cpu").reason
    assert "CUDA device: using the official" in resolve_model(weights, device="cuda").reason
    assert "load was given" in resolve_model(weights, {"load": load}, device="cpu").reason
    for model, name in (("auto", "vae_pretrained"), ("small", "t5_pretrained"), ("small", "load")):
        with pytest.raises(ValueError, match=f"^{name}: .*small checkpoint"):
            resolve_model(weights, {name: "mine"}, model, "cpu")


@pytest.mark.parametrize(("device", "expected"), [("cpu", "cpu"), ("cuda", "meta")])
def test_the_text_encoder_has_a_device_of_its_own(weights, device, expected, caplog):
    # the meta device stands for the one that the rest runs on
    keys = {"t5_device": device, "clean_chunk_kvrange": 1}
    pipeline = load_pipeline(resolve_model(weights, keys, "official"), "meta")
    assert pipeline.transformer.device.type == pipeline.vae.device.type == "meta"
    assert pipeline.text_encoder.device.type == expected
    assert "clean_chunk_kvrange 1" in caplog.text, "ignored without ranges of noisy chunks"
