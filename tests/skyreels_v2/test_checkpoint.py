"""Loading checkpoints: strictness, and errors that name the file."""

from pathlib import Path

import pytest
import torch
from layouts import DIFFUSERS_WEIGHTS, SHARD, change, drop_first, random_text_encoder
from safetensors.torch import load_file
from tiny import tiny_transformer
from torch import Tensor, nn

from skyreels_v2 import conversion
from skyreels_v2.checkpoint import load_components, resolve_model
from skyreels_v2.conversion import text_encoder_key, transformer_key
from skyreels_v2.settings import OFFICIAL_DEFAULTS

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


def load_error(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_components(resolve_model(str(folder)))
    assert "\n" not in str(error.value)
    return str(error.value)


EDITS = {
    "lacks {renamed}": drop_first,
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
