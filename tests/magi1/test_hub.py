"""Weights that lie on the Hub; nothing here opens a connection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

import flowcache.hub
from magi1.hub import HubFolder
from magi1.model_source import load_pipeline, resolve_model

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
def hub_cache(offline, weights, tmp_path):
    """The Hub's own cache on the disk, with the official repository's layout and tiny weights."""
    folder = tmp_path / "hub" / "models--sand-ai--MAGI-1"
    snapshot = folder / "snapshots" / ("0" * 40)
    for inside, part in (("ckpt/magi/4.5B_distill", "magi"), ("ckpt/vae", "vae"), ("ckpt/t5", "t5")):
        shutil.copytree(weights.parent / part, snapshot / inside)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return tmp_path / "hub"


@pytest.fixture
def config(weights, tmp_path):
    """A configuration that names folders which are not here, as the shipped ones do at first."""
    content = json.loads(weights.read_text())
    absent = ("load", "vae_pretrained", "t5_pretrained")
    content["runtime_config"] |= {name: f"./downloads/{name}" for name in absent}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "repository", "folder"),
    [
        (LOAD, REPOSITORY, "ckpt/magi/4.5B_distill"),
        (f"{REPOSITORY}/ckpt/vae/", REPOSITORY, "ckpt/vae"),
        ("someone/fine_tuned.v2/x", "someone/fine_tuned.v2", "x"),
    ],
)
def test_names(name, repository, folder):
    assert HubFolder.parse(name) == HubFolder(repository, folder)
    assert str(HubFolder.parse(name)) == f"{repository}/{folder}"


@pytest.mark.parametrize(
    "name",
    ["", "a", "a/b", "./a/b/c", "/a/b/c", "~/a/b/c", "a/../b/c", "https://huggingface.co/a/b/c", "here/b/c"],
)
def test_local_paths_are_no_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert HubFolder.parse(name) is None


def test_folders_that_are_not_named_are_the_repositorys(config):
    content = json.loads(config.read_text())
    content["runtime_config"] |= {"vae_pretrained": "", "t5_pretrained": ""}
    config.write_text(json.dumps(content))
    runtime = resolve_model(config, {"load": LOAD}, "official", "cpu").config.runtime_config
    assert (runtime.vae_pretrained, runtime.t5_pretrained) == (
        f"{REPOSITORY}/ckpt/vae",
        f"{REPOSITORY}/ckpt/t5",
    )
    with pytest.raises(ValueError, match="vae_pretrained must name a folder"):
        resolve_model(config, {"load": LOAD, "vae_pretrained": ""}, "official", "cpu")


def test_the_folders_of_the_official_repository_are_loaded(hub_cache, config):
    source = resolve_model(config, {"load": LOAD}, "official", "cpu")
    assert LOAD in source.reason
    assert source.config.runtime_config.t5_pretrained == f"{REPOSITORY}/ckpt/t5", "not here, so from there"
    assert load_pipeline(source, "cpu").transformer.config.num_layers == 2


def test_only_what_is_needed_is_downloaded(hub_cache, config, monkeypatch):
    wanted = []

    def download(repository, allow_patterns, **_):
        wanted.append((repository, *allow_patterns))
        return str(next(hub_cache.glob("*/snapshots/*")))

    monkeypatch.setattr(flowcache.hub, "snapshot_download", download)
    load_pipeline(resolve_model(config, {"load": LOAD}, "official", "cpu"), "cpu")
    assert wanted == [
        (REPOSITORY, "ckpt/magi/4.5B_distill/inference_weight.distill/*"),
        (REPOSITORY, "ckpt/vae/*"),
        (REPOSITORY, "ckpt/t5/t5-v1_1-xxl/*"),
    ]


def test_local_parts_are_not_downloaded(hub_cache, weights):
    for name in ("vae", "t5"):
        shutil.rmtree(next(hub_cache.glob("*/snapshots/*")) / "ckpt" / name)
    load_pipeline(resolve_model(weights, {"load": LOAD}, device="cpu"), "cpu")


def test_on_cuda_a_configuration_may_name_the_hub(weights, tmp_path):
    content = json.loads(weights.read_text())
    content["runtime_config"]["load"] = LOAD
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert (
        f"CUDA device: using the official weights in {LOAD}"
        in resolve_model(tmp_path / "config.json", device="cuda").reason
    )


def test_an_unknown_repository_is_named(offline, config, monkeypatch):
    def repo_info(*_, timeout):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", repo_info)
    source = resolve_model(config, {"load": LOAD}, "official", "cpu")
    with pytest.raises(OSError, match="load: the Hub has no repository sand-ai/MAGI-1"):
        load_pipeline(source, "cpu")


def test_a_folder_that_the_repository_lacks_is_named(hub_cache, config):
    source = resolve_model(config, {"load": f"{REPOSITORY}/ckpt/magi/5B"}, "official", "cpu")
    with pytest.raises(OSError, match=r"has no folder ckpt/magi/5B/inference_weight.distill"):
        load_pipeline(source, "cpu")


def test_an_unfinished_download_is_not_taken_for_whole(hub_cache, config):
    (
        next(hub_cache.glob("*/snapshots/*"))
        / "ckpt/magi/4.5B_distill/inference_weight.distill/model.safetensors"
    ).unlink()
    source = resolve_model(config, {"load": LOAD}, "official", "cpu")
    with pytest.raises(
        OSError, match=r"load: .* \(ConnectionError\); in the cache, .* lacks model.safetensors"
    ):
        load_pipeline(source, "cpu")


def test_an_empty_cache_and_no_connection(offline, config):
    source = resolve_model(config, {"load": LOAD}, "official", "cpu")
    with pytest.raises(OSError, match=r"could not be downloaded .* \(ConnectionError\)") as raised:
        load_pipeline(source, "cpu")
    assert "\n" not in str(raised.value)


def test_a_repository_without_a_folder_is_refused(config):
    with pytest.raises(ValueError, match=r"set load to sand-ai/MAGI-1/ckpt/magi/4.5B_distill"):
        resolve_model(config, {"load": REPOSITORY}, "official", "cpu")
