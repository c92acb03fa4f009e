"""Weights of the original layout in other forms, and files in place of those of a model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from layouts import DIFFUSERS_WEIGHTS, SHARD
from safetensors.torch import load_file, save_file
from torch import Tensor

import flowcache.hub
from flowcache.wan import conversion
from skyreels_v2 import checkpoint
from skyreels_v2.checkpoint import load_components, resolve_model

#: Files of each part's weights in both layouts, and what other programs put before and beside their names.
FILES = {
    "transformer": {"original": [SHARD.format(1), SHARD.format(2)], "diffusers": [DIFFUSERS_WEIGHTS]},
    "vae": {"original": [conversion.VAE_FILE], "diffusers": ["vae/diffusion_pytorch_model.safetensors"]},
    "text_encoder": {"original": [conversion.TEXT_ENCODER_FILE], "diffusers": ["text_encoder/model.safetensors"]},
}
PREFIX = {"transformer": "model.diffusion_model.", "vae": "module.", "text_encoder": ""}
BESIDE = {"text_encoder": {"spiece_model": torch.zeros(9, dtype=torch.uint8)}}


def read(files: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return tensors


@pytest.fixture
def given(folders, tmp_path):
    """Write each part's weights to one file, with the names of a layout."""

    def write(layout: str) -> dict[str, Path]:
        parts = {part: tmp_path / f"{part}.safetensors" for part in FILES}
        for part, path in parts.items():
            tensors = read([folders[layout] / name for name in FILES[part][layout]])
            named = {PREFIX[part] + name: tensor.contiguous().clone() for name, tensor in tensors.items()}
            save_file(named | BESIDE.get(part, {}), path)
        return parts

    return write


def without_weights(folder: Path) -> Path:
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.pth")]:
        path.unlink()
    return folder


def test_original_layout_in_other_forms(copy, folders):
    folder, plain = copy("original"), load_components(resolve_model(str(folders["original"])))
    shards = [folder / name for name in FILES["transformer"]["original"]]
    torch.save({"module": read(shards)}, folder / "mine.pt")
    for name, other in (
        (conversion.VAE_FILE, "Wan2.1_VAE"),
        (conversion.TEXT_ENCODER_FILE, "models_t5_umt5-xxl-enc-fp32"),
    ):
        save_file(read([folder / name]), folder / f"{other}.safetensors")
        (folder / name).write_bytes(b"damaged")
    for path in shards:
        path.unlink()
    found = load_components(resolve_model(str(folder)))
    for part in FILES:
        expected = plain[part].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found[part].state_dict().items())


@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_files_with_the_names_of_either_layout(copy, folders, given, layout, names):
    source = resolve_model(str(without_weights(copy(layout))), parts=given(names))
    found, plain = load_components(source), load_components(resolve_model(str(folders[layout])))
    for part in FILES:
        weights, expected = found[part].state_dict(), plain[part].state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_only_the_other_parts_are_downloaded(copy, reference, given, monkeypatch):
    folder, parts, asked = copy("original"), given("diffusers"), []
    for name in FILES["transformer"]["original"]:
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setitem(conversion.OFFICIAL_CONFIGS, "1.3B", config)

    def download(repository: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append(allow_patterns)
        if local_files_only:
            raise LocalEntryNotFoundError("empty")
        return str(folder)

    files = [*SHARD.format(1), "config.json", conversion.VAE_FILE, conversion.TEXT_ENCODER_FILE]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr(flowcache.hub, "snapshot_download", download)
    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", lambda *_, timeout: info)
    load_components(resolve_model(checkpoint.OFFICIAL[0], parts={"transformer": parts["transformer"]}))
    assert set(filter_repo_objects(files, allow_patterns=asked[-1])) == set(files[-3:])


def test_what_does_not_fit_is_refused(folders, given, tmp_path):
    def refused(model_id: str | Path, message: str, **parts: Path) -> None:
        with pytest.raises(ValueError, match=message) as error:
            resolve_model(str(model_id), "cpu", parts)
        assert "\n" not in str(error.value)

    parts, folder = given("diffusers"), folders["diffusers"]
    file = parts["transformer"]
    refused(file, "^model_id: .*transformer")
    refused(folder, "^transformer: .*none", transformer=tmp_path / "none")
    refused(folder, "^vae: .*tokenizer", vae=folder / "tokenizer")
    refused(folder, f"^transformer: {parts['vae']} holds ", transformer=parts["vae"])
    refused("auto", "^transformer: .*model_id", transformer=file)
    refused(checkpoint.OFFICIAL[0], f"^transformer: {file} holds .*shape", transformer=file)
