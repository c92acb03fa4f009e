"""Checkpoints of SkyReels-V2: names and shapes, finding, downloading and loading; errors name what is wrong."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from layouts import DIFFUSERS_WEIGHTS, SHARD, change, on_meta, random_text_encoder, shapes, wan_t5_names
from reference import Case, case_names
from safetensors.torch import load_file
from tiny import tiny_transformer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

import flowcache.hub
from flowcache.wan import conversion
from flowcache.wan.conversion import text_encoder_key, transformer_config, transformer_key, vae_key
from flowcache.wan.model_folder import find_family
from skyreels_v2 import checkpoint
from skyreels_v2.checkpoint import load_components, resolve_model
from skyreels_v2.settings import OFFICIAL_DEFAULTS


def load_error(folder: Path) -> str:
    """The line in which a folder or an identifier is refused."""
    with pytest.raises(ValueError) as error:
        load_components(resolve_model(str(folder)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", case_names("keys_"))
def test_transformer_names_and_shapes(reference, name):
    info = Case(reference, name).info
    original = info["original_config"]
    model = on_meta(SkyReelsV2Transformer3DModel, **transformer_config(original))
    expected = {key: list(shape) for key, shape in shapes(model).items()}
    assert {transformer_key(key): shape for key, shape in info["original"].items()} == expected
    assert len(info["original"]) == len(expected) and info["diffusers"] == expected
    for field, value in info["diffusers_config"].items():
        actual = model.config[field]
        assert (list(actual) if isinstance(actual, tuple) else actual) == value, field
    official = {(1536, 30): "1.3B", (5120, 40): "14B"}
    assert find_family(model.config) == official.get((original["dim"], original["num_layers"]))


def test_converted_weights(reference):
    table = Case(reference, "mapping_original_to_diffusers").info["table"]
    assert {key: transformer_key(key) for key in table} == table
    original, expected = Case(reference, "weights").tensors, Case(reference, "weights_diffusers").tensors
    converted = {transformer_key(key): tensor for key, tensor in original.items()}
    assert converted.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in converted.items())


def test_text_encoder_and_vae_names():
    expected = shapes(on_meta(UMT5EncoderModel, UMT5Config(**conversion.UMT5_XXL)))
    expected.pop("encoder.embed_tokens.weight")  # the same as shared.weight
    assert sorted(map(text_encoder_key, wan_t5_names(24))) == sorted(expected)
    assert expected[text_encoder_key("token_embedding.weight")] == (256384, 4096)
    assert expected[text_encoder_key("blocks.23.ffn.gate.0.weight")] == (10240, 4096)
    assert vae_key("conv1.weight") == "quant_conv.weight"
    assert vae_key("decoder.upsamples.4.residual.2.bias") == "decoder.up_blocks.1.resnets.0.conv1.bias"


@pytest.mark.parametrize("rename", [transformer_key, text_encoder_key, vae_key])
def test_unknown_names_stay(rename):
    for key in ("bogus.weight", "blocks.x.norm1.weight", "blocks.0.bogus.weight", "norm.gamma", ""):
        assert rename(key) == key


MODELS = ("transformer", "text_encoder", "vae")


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    a, b = actual.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype, key


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_loads(folders, reference, layout):
    source = resolve_model(str(folders[layout]))
    assert (source.path, source.layout, source.family) == (folders[layout], layout, None)
    assert layout in source.reason and source.location == str(folders[layout])
    assert source.defaults == {**OFFICIAL_DEFAULTS, "height": 64, "width": 960}
    parts, expected = load_components(source), tiny_transformer(reference)
    assert_same_weights(parts["transformer"], expected)
    assert torch.equal(parts["transformer"].rope.freqs_cos, expected.rope.freqs_cos)
    assert torch.equal(parts["transformer"].rope.freqs_sin, expected.rope.freqs_sin)
    for module in (parts[name] for name in MODELS):
        assert not module.training
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert parts["text_encoder"].encoder.embed_tokens.weight is parts["text_encoder"].shared.weight
    assert parts["tokenizer"]("circle").input_ids == [5, 1]
    config = parts["scheduler"].config
    assert (config.prediction_type, config.flow_shift) == ("flow_prediction", 8.0)


def test_layouts_agree_with_diffusers_in_bf16(folders):
    ours, theirs = (load_components(resolve_model(str(folders[x])), torch.bfloat16) for x in folders)
    for name in MODELS:
        assert_same_weights(ours[name], theirs[name])
    for name in MODELS[:2]:
        library = type(theirs[name]).from_pretrained(folders["diffusers"] / name, torch_dtype=torch.bfloat16)
        assert_same_weights(theirs[name], library)
    assert ours["vae"].dtype == ours["transformer"].scale_shift_table.dtype == torch.float32
    assert ours["transformer"].proj_out.weight.dtype == torch.bfloat16


EDITS = {
    "lacks {renamed}": lambda t: t.pop(min(t)),
    "{path} holds bogus.weight": lambda t: t.update({"bogus.weight": torch.zeros(2)}),
    "{path} holds {first} with shape (3, 1, 3)": lambda t: t.update({min(t): torch.zeros(3, 1, 3)}),
    "{first}: expected floating-point": lambda t: t.update({min(t): t[min(t)].to(torch.int32)}),
}
FILES = [
    ("original", SHARD.format(1), transformer_key),
    ("original", conversion.TEXT_ENCODER_FILE, text_encoder_key),
    ("original", conversion.VAE_FILE, str),  # of PyTorch's older format
    ("diffusers", DIFFUSERS_WEIGHTS, str),
    ("diffusers", "text_encoder/model.safetensors", str),
]


@pytest.mark.parametrize(("layout", "name", "rename"), FILES, ids=[f"{x[0]}-{x[1][:12]}" for x in FILES])
def test_a_wrong_tensor_is_named(copy, layout, name, rename):
    folder = copy(layout)
    path, content = folder / name, (folder / name).read_bytes()
    for words, edit in EDITS.items():
        first = change(path, edit)
        message = load_error(folder)
        assert words.format(path=path, first=first, renamed=rename(first)) in message
        assert str(folder) in message
        path.write_bytes(content)
    for kept in (0.0, 0.5, 0.99):
        path.write_bytes(content[: int(kept * len(content))])
        assert load_error(folder).startswith(f"{path} ")


def test_mapped_pth_file_and_a_tensor_in_two_shards(copy):
    folder = copy("original")
    before = torch.load(folder / conversion.VAE_FILE, weights_only=True)
    torch.save(before, folder / conversion.VAE_FILE)
    loaded = load_components(resolve_model(str(folder)))["vae"].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())
    key = change(folder / SHARD.format(1), lambda tensors: None)
    twice = load_file(folder / SHARD.format(1))[key]
    change(folder / SHARD.format(2), lambda tensors: tensors.update({key: twice}))
    assert f"holds {key}, which {SHARD.format(1)} holds, too" in load_error(folder)


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_tied_embedding_under_either_name(copy, kept):
    folder, names = copy("diffusers"), ("shared.weight", "encoder.embed_tokens.weight")

    def store(tensors: dict[str, Tensor]) -> None:
        tensors[kept] = next(tensors.pop(name) for name in names if name in tensors)

    plain = load_components(resolve_model(str(folder)))["text_encoder"]
    change(folder / "text_encoder/model.safetensors", store)
    assert_same_weights(load_components(resolve_model(str(folder)))["text_encoder"], plain)


def test_parts_must_fit(copy, monkeypatch):
    folder, sizes = copy("original"), conversion.UMT5_XXL
    monkeypatch.setattr(conversion, "UMT5_XXL", {**sizes, "d_model": sizes["d_model"] + 1})
    torch.save(random_text_encoder(), folder / conversion.TEXT_ENCODER_FILE)
    assert "text_dim" in load_error(folder)


@pytest.mark.parametrize(("name", "level"), [("auto", "WARNING"), ("small", "INFO")])
def test_small_on_cpu(folders, monkeypatch, caplog, tmp_path, name, level):
    caplog.set_level("INFO")
    monkeypatch.setattr(checkpoint, "SMALL", folders["diffusers"])
    source = resolve_model(name, "cpu")
    assert (source.path, source.layout, source.family) == (folders["diffusers"], "diffusers", "small")
    load_components(source)
    assert caplog.records[0].levelname == level and "small checkpoint" in caplog.text
    assert resolve_model(str(folders["diffusers"])).family == "small"
    monkeypatch.setattr(checkpoint, "SMALL", tmp_path / "none")
    assert f"model_id {name}" in load_error(name)


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
        message = load_error(model_id)
        assert message.startswith("model_id") and message.endswith(f"got {model_id!r}.")
        assert all(name in message for name in checkpoint.OFFICIAL)
    message = load_error(tmp_path)
    assert "model_index.json" in message and "config.json" in message


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("original", "google/umt5-xxl/tokenizer_config.json"),
        ("diffusers", "text_encoder/config.json"),
        ("diffusers", "scheduler/scheduler_config.json"),
        *(file[:2] for file in FILES),
    ],
)
def test_missing_file_is_named(copy, layout, name):
    folder = copy(layout)
    (folder / name).unlink()
    assert load_error(folder) == f"The model folder {folder} lacks {name}."


def test_missing_shard_of_an_index_is_named(copy):
    folder = copy("diffusers")
    transformer = load_components(resolve_model(str(folder)))["transformer"]
    (folder / DIFFUSERS_WEIGHTS).unlink()
    transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    assert_same_weights(load_components(resolve_model(str(folder)))["transformer"], transformer)
    *_, shard = sorted(folder.glob("transformer/*.safetensors"))
    shard.unlink()
    assert f"lacks transformer/{shard.name}." in load_error(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "i2v"), ("qk_norm", False), ("window_size", [8, 8]), ("num_heads", 0)]
)
def test_models_of_another_kind(copy, key, value):
    path = copy("original") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    message = load_error(path.parent)
    assert str(value) in message or key in message


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_all_that_is_needed_is_downloaded_and_checked(copy, monkeypatch, layout):
    """The Hub's cache is empty."""
    folder, asked = copy(layout), []
    model_id = checkpoint.OFFICIAL[0] + ("-Diffusers" if layout == "diffusers" else "")

    def download(repository: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((repository, allow_patterns))
        if local_files_only:
            raise LocalEntryNotFoundError("empty")
        return str(folder)

    monkeypatch.setattr(flowcache.hub, "snapshot_download", download)
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    other_forms = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"]
    within = "transformer/" if layout == "diffusers" else ""
    useless = ["README.md", "logo.gif", "other.pth", "model.bin", *(within + name for name in other_forms)]
    siblings = [SimpleNamespace(rfilename=name) for name in [*files, *useless]]
    info = SimpleNamespace(siblings=siblings)
    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", lambda *_, **options: options["timeout"] and info)
    load_components(resolve_model(model_id))
    repository, patterns = asked[-1]
    assert repository == model_id
    assert set(filter_repo_objects([*files, *useless], allow_patterns=patterns)) == set(files)
    missing = {"original": conversion.VAE_FILE, "diffusers": DIFFUSERS_WEIGHTS}[layout]
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        load_components(resolve_model(model_id))
    error = ConnectionError("first line\nsecond line")
    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", Mock(side_effect=error))
    with pytest.raises(OSError, match=r"^model_id: .*ConnectionError") as raised:
        load_components(resolve_model(model_id))
    assert "\n" not in str(raised.value) and raised.value.__cause__ is error
