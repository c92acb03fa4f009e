"""Loading checkpoints: strictness, and what is said when a file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from layouts import DIFFUSERS_WEIGHTS, SHARD, change, drop_first
from names import on_meta, shapes, wan_t5_names
from safetensors.torch import load_file
from tiny import tiny_transformer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from skyreels_v2 import conversion
from skyreels_v2.checkpoint import load_components, resolve_model
from skyreels_v2.conversion import text_encoder_key, transformer_key, vae_key
from skyreels_v2.settings import OFFICIAL_DEFAULTS


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
    with pytest.raises(ValueError) as error:
        load_components(resolve_model(str(folder)))
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
    error = load_error(folder)
    assert error.startswith(f"{folder / name}") and f"{key}: expected floating-point numbers" in error


@each_file
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_named(copy, layout, name, rename, kept):
    folder = copy(layout)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    message = load_error(folder)
    assert message.startswith(f"{folder / name} ")


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
