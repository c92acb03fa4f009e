"""Finding and loading checkpoints: strictness, and what is said when something is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from huggingface_hub.utils import filter_repo_objects
from names import on_meta, shapes, wan_t5_names, wan_vae_names
from reference import Case, case_names
from safetensors.torch import load_file, save_file
from tiny import tiny_transformer
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from skyreels_v2 import checkpoint, conversion
from skyreels_v2.checkpoint import load_components, load_pipeline, resolve_model
from skyreels_v2.conversion import text_encoder_key, transformer_key, vae_key
from skyreels_v2.settings import OFFICIAL_DEFAULTS

SHARD = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
DIFFUSERS_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


# --- A whole tiny folder in either layout ------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "circle": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_original(folder: Path, weights: Case) -> None:
    """The original layout with the reference transformer in two shards, and a random encoder and VAE."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(weights.info["config"]))
    items = sorted(weights.tensors.items())
    for number, part in ((1, items[::2]), (2, items[1::2])):
        save_file(dict(part), folder / SHARD.format(number))
    text = shapes(on_meta(UMT5EncoderModel, UMT5Config(**conversion.UMT5_XXL)))
    vae = shapes(on_meta(AutoencoderKLWan, **conversion.WAN_VAE))
    layers = conversion.UMT5_XXL["num_layers"]
    torch.manual_seed(0)
    t5 = {name: torch.randn(text[text_encoder_key(name)]).bfloat16() for name in wan_t5_names(layers)}
    torch.save(t5, folder / conversion.TEXT_ENCODER_FILE)
    wan = {name: torch.randn(vae[vae_key(name)]) for name in wan_vae_names()}
    torch.save(wan, folder / conversion.VAE_FILE, _use_new_zipfile_serialization=False)
    write_tokenizer(folder / "google" / "umt5-xxl")
    (folder / "defaults.json").write_text('{"height": 64}')


@pytest.fixture(scope="module")
def folders(reference, tmp_path_factory) -> Iterator[dict[str, Path]]:
    """The same tiny model in both layouts; the sizes of encoder and VAE fit the reference transformer."""
    weights = Case(reference, "weights")
    config = weights.info["config"]
    text = {
        "vocab_size": 8,
        "d_model": config["text_dim"],
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 2,
        "num_heads": 2,
    }
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "UMT5_XXL", {**conversion.UMT5_XXL, **text})
        patch.setattr(conversion, "WAN_VAE", {"base_dim": 4, "z_dim": config["in_dim"]})
        write_original(root / "original", weights)
        load_pipeline(str(root / "original"), "cpu").save_pretrained(root / "diffusers")
        (root / "diffusers" / "defaults.json").write_text('{"height": 64}')
        yield {name: root / name for name in ("original", "diffusers")}


@pytest.fixture
def copy(folders, tmp_path) -> Callable[[str], Path]:
    """A copy of one layout to damage."""
    return lambda layout: shutil.copytree(folders[layout], tmp_path / layout)


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    a, b = actual.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
        assert a[key].dtype == b[key].dtype, key


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_loads(folders, reference, layout):
    source = resolve_model(str(folders[layout]))
    assert (source.path, source.layout, source.family) == (folders[layout], layout, None)
    assert layout in source.reason and source.location == str(folders[layout])
    parts = load_components(source)
    expected = tiny_transformer(reference)
    assert_same_weights(parts.transformer, expected)
    assert torch.equal(parts.transformer.rope.freqs_cos, expected.rope.freqs_cos)
    assert torch.equal(parts.transformer.rope.freqs_sin, expected.rope.freqs_sin)
    for module in (parts.transformer, parts.text_encoder, parts.vae):
        assert not module.training
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert parts.text_encoder.encoder.embed_tokens.weight is parts.text_encoder.shared.weight
    assert parts.tokenizer("circle").input_ids == [3]
    assert parts.scheduler.config.prediction_type == "flow_prediction"
    assert parts.scheduler.config.use_flow_sigmas and parts.scheduler.config.flow_shift == 8.0
    assert source.defaults == {**OFFICIAL_DEFAULTS, "height": 64, "width": 960}


def test_layouts_agree_in_bf16(folders):
    ours, theirs = (load_components(resolve_model(str(folders[x])), torch.bfloat16) for x in folders)
    for name in ("transformer", "text_encoder", "vae"):
        assert_same_weights(getattr(ours, name), getattr(theirs, name))
    assert ours.transformer.scale_shift_table.dtype == torch.float32
    assert ours.transformer.proj_out.weight.dtype == torch.bfloat16
    assert ours.text_encoder.shared.weight.dtype == torch.bfloat16
    assert ours.vae.dtype == torch.float32


def test_mapped_pth_file(copy):
    folder = copy("original")
    path = folder / conversion.VAE_FILE
    before = torch.load(path, weights_only=True)
    torch.save(before, path)
    loaded = load_components(resolve_model(str(folder))).vae
    for name, tensor in before.items():
        assert torch.equal(loaded.state_dict()[vae_key(name)], tensor)


# --- What is wrong is named --------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Tensor]], None]) -> str:
    """Edit the tensors of a file; returns the name of its first tensor as it was."""
    safe = path.suffix == ".safetensors"
    tensors = load_file(path) if safe else torch.load(path, weights_only=True)
    first = min(tensors)
    edit(tensors)
    if safe:
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
    return first


def drop_first(tensors: dict[str, Tensor]) -> None:
    del tensors[min(tensors)]


def add_one(tensors: dict[str, Tensor]) -> None:
    tensors["bogus.weight"] = torch.zeros(2)


def misshape_first(tensors: dict[str, Tensor]) -> None:
    tensors[min(tensors)] = torch.zeros(3, 1, 3)


def make_first_integer(tensors: dict[str, Tensor]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)].to(torch.int32)


FILES = [
    ("original", SHARD.format(1), transformer_key),
    ("original", conversion.TEXT_ENCODER_FILE, text_encoder_key),
    ("original", conversion.VAE_FILE, vae_key),
    ("diffusers", DIFFUSERS_WEIGHTS, str),
    ("diffusers", "vae/diffusion_pytorch_model.safetensors", str),
    ("diffusers", "text_encoder/model.safetensors", str),
]
each_file = pytest.mark.parametrize(
    ("layout", "name", "rename"), FILES, ids=[f"{x[0]}-{x[1][:12]}" for x in FILES]
)


def load_error(folder: Path) -> str:
    source = resolve_model(str(folder))
    with pytest.raises(ValueError) as error:
        load_components(source)
    message = str(error.value)
    assert "\n" not in message
    return message


@each_file
def test_missing_tensor_is_named(copy, layout, name, rename):
    folder = copy(layout)
    key = rename(change(folder / name, drop_first))
    message = load_error(folder)
    assert "lacks" in message and str(folder) in message
    assert key in message


@each_file
def test_extra_tensor_is_named(copy, layout, name, rename):
    folder = copy(layout)
    change(folder / name, add_one)
    assert load_error(folder) == f"{folder / name} holds bogus.weight, which the model does not have."


@each_file
def test_wrong_shape_is_named(copy, layout, name, rename):
    folder = copy(layout)
    key = change(folder / name, misshape_first)
    assert load_error(folder).startswith(f"{folder / name} holds {key} with shape (3, 1, 3), not (")


@each_file
def test_integers_are_refused(copy, layout, name, rename):
    folder = copy(layout)
    key = change(folder / name, make_first_integer)
    assert load_error(folder).startswith(f"{folder / name}: {key} must hold floating-point numbers")


@each_file
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_named(copy, layout, name, rename, kept):
    folder = copy(layout)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    message = load_error(folder)
    assert message.startswith(f"{folder / name} is corrupt")


def test_tensor_in_two_shards(copy):
    folder = copy("original")
    key = change(folder / SHARD.format(1), lambda tensors: None)
    twice = load_file(folder / SHARD.format(1))[key]
    change(folder / SHARD.format(2), lambda tensors: tensors.update({key: twice}))
    assert f"holds {key}, which {SHARD.format(1)} holds, too" in load_error(folder)


def test_tied_embedding_under_either_name(copy):
    folder = copy("diffusers")

    def store_under_other_name(tensors: dict[str, Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()

    change(folder / "text_encoder/model.safetensors", store_under_other_name)
    load_components(resolve_model(str(folder)))


def test_parts_must_fit(copy, monkeypatch):
    folder = copy("original")
    config = conversion.UMT5_XXL
    monkeypatch.setattr(conversion, "UMT5_XXL", {**config, "d_model": config["d_model"] + 1})
    text = shapes(on_meta(UMT5EncoderModel, UMT5Config(**conversion.UMT5_XXL)))
    names = wan_t5_names(config["num_layers"])
    torch.save(
        {name: torch.zeros(text[text_encoder_key(name)]) for name in names},
        folder / conversion.TEXT_ENCODER_FILE,
    )
    assert "text_dim" in load_error(folder)


# --- Finding a model ---------------------------------------------------------------------------------------


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
def test_family_of_a_folder(copy, reference, name):
    config = Case(reference, name).info["original_config"]
    folder = copy("original")
    (folder / "config.json").write_text(json.dumps(config))
    official = {(1536, 30): "1.3B", (5120, 40): "14B"}
    assert resolve_model(str(folder)).family == official.get((config["dim"], config["num_layers"]))


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


# --- Download ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_download_asks_for_all_that_is_needed(folders, monkeypatch, layout):
    asked = {}

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        return str(folders[layout])

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    model_id = checkpoint.OFFICIAL[0] + ("-Diffusers" if layout == "diffusers" else "")
    load_components(resolve_model(model_id))
    assert asked["repository"] == model_id
    files = [str(path.relative_to(folders[layout])) for path in folders[layout].rglob("*") if path.is_file()]
    useless = ["README.md", "assets/logo.gif", "transformer/diffusion_pytorch_model.bin", "other.pth"]
    kept = set(filter_repo_objects([*files, *useless], allow_patterns=asked["patterns"]))
    assert kept == set(files)


def test_failed_download(monkeypatch):
    def download(*args: Any, **options: Any) -> str:
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    with pytest.raises(OSError, match="could not be downloaded") as error:
        load_components(resolve_model("auto", "cuda"))
    assert checkpoint.OFFICIAL_DEFAULT in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, ConnectionError)


def test_download_that_is_not_complete(copy, monkeypatch):
    folder = copy("diffusers")
    (folder / DIFFUSERS_WEIGHTS).unlink()
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda *args, **options: str(folder))
    with pytest.raises(ValueError, match=DIFFUSERS_WEIGHTS):
        load_components(resolve_model("auto", "cuda"))
