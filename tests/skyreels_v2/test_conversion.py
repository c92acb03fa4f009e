"""Names and shapes of the real models: ours from the original's, all of them and no others."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel
from names import on_meta, shapes, wan_t5_names, wan_vae_names
from reference import Case, case_names
from transformers import UMT5Config, UMT5EncoderModel

from skyreels_v2 import conversion
from skyreels_v2.conversion import text_encoder_key, transformer_config, transformer_key, vae_key


def tuples(listed: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in listed.items()}


@pytest.mark.parametrize("name", case_names("keys_"))
def test_transformer_names_and_shapes(reference, name):
    info = Case(reference, name).info
    model = on_meta(SkyReelsV2Transformer3DModel, **transformer_config(info["original_config"]))
    original = tuples(info["original"])
    assert {transformer_key(key): shape for key, shape in original.items()} == shapes(model)
    assert len(original) == len(shapes(model))
    assert tuples(info["diffusers"]) == shapes(model)
    for field, value in info["diffusers_config"].items():
        actual = model.config[field]
        assert (list(actual) if isinstance(actual, tuple) else actual) == value, field


def test_transformer_mapping(reference):
    table = Case(reference, "mapping_original_to_diffusers").info["table"]
    assert {key: transformer_key(key) for key in table} == table


def test_converted_weights(reference):
    original, expected = Case(reference, "weights").tensors, Case(reference, "weights_diffusers").tensors
    converted = {transformer_key(key): tensor for key, tensor in original.items()}
    assert converted.keys() == expected.keys()
    for key, tensor in converted.items():
        assert torch.equal(tensor, expected[key]), key


def test_text_encoder_names():
    sizes = conversion.UMT5_XXL
    assert sizes["d_model"] == 4096
    model = on_meta(UMT5EncoderModel, UMT5Config(**sizes))
    expected = shapes(model)
    expected.pop("encoder.embed_tokens.weight")  # the same as shared.weight
    names = list(wan_t5_names(24))
    assert sorted(map(text_encoder_key, names)) == sorted(expected)
    assert expected[text_encoder_key("token_embedding.weight")] == (256384, 4096)
    assert expected[text_encoder_key("blocks.3.attn.q.weight")] == (64 * 64, 4096)
    assert expected[text_encoder_key("blocks.3.pos_embedding.embedding.weight")] == (32, 64)
    assert expected[text_encoder_key("blocks.23.ffn.gate.0.weight")] == (10240, 4096)
    assert expected[text_encoder_key("blocks.23.ffn.fc2.weight")] == (4096, 10240)
    assert model.config.dense_act_fn == "gelu_new"


def test_vae_names():
    model = on_meta(AutoencoderKLWan, **conversion.WAN_VAE)
    assert sorted(map(vae_key, wan_vae_names())) == sorted(shapes(model))
    assert shapes(model)["encoder.conv_in.weight"] == (96, 3, 3, 3, 3)


@pytest.mark.parametrize("rename", [transformer_key, text_encoder_key])
@pytest.mark.parametrize(
    "key", ["bogus.weight", "blocks.x.norm1.weight", "blocks.0.bogus.weight", "norm.gamma", ""]
)
def test_unknown_names_have_no_counterpart(rename, key):
    assert rename(key) is None
