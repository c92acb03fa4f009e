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


@pytest.mark.parametrize("name", case_names("keys_"))
def test_transformer_names_and_shapes(reference, name):
    info = Case(reference, name).info
    model = on_meta(SkyReelsV2Transformer3DModel, **transformer_config(info["original_config"]))
    expected = {key: list(shape) for key, shape in shapes(model).items()}
    assert {transformer_key(key): shape for key, shape in info["original"].items()} == expected
    assert len(info["original"]) == len(expected) and info["diffusers"] == expected
    for field, value in info["diffusers_config"].items():
        actual = model.config[field]
        assert (list(actual) if isinstance(actual, tuple) else actual) == value, field


def test_converted_weights(reference):
    table = Case(reference, "mapping_original_to_diffusers").info["table"]
    assert {key: transformer_key(key) for key in table} == table
    original, expected = Case(reference, "weights").tensors, Case(reference, "weights_diffusers").tensors
    converted = {transformer_key(key): tensor for key, tensor in original.items()}
    assert converted.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in converted.items())


def test_text_encoder_and_vae_names():
    model = on_meta(UMT5EncoderModel, UMT5Config(**conversion.UMT5_XXL))
    expected = shapes(model)
    expected.pop("encoder.embed_tokens.weight")  # the same as shared.weight
    assert sorted(map(text_encoder_key, wan_t5_names(24))) == sorted(expected)
    for name, shape in (
        ("token_embedding", (256384, 4096)),
        ("blocks.3.pos_embedding.embedding", (32, 64)),
        ("blocks.23.ffn.gate.0", (10240, 4096)),
        ("blocks.23.ffn.fc2", (4096, 10240)),
    ):
        assert expected[text_encoder_key(f"{name}.weight")] == shape
    assert model.config.dense_act_fn == "gelu_new"
    vae = shapes(on_meta(AutoencoderKLWan, **conversion.WAN_VAE))
    assert sorted(map(vae_key, wan_vae_names())) == sorted(vae)
    assert vae["encoder.conv_in.weight"] == (96, 3, 3, 3, 3)


@pytest.mark.parametrize("rename", [transformer_key, text_encoder_key])
def test_unknown_names_stay(rename):
    for key in ("bogus.weight", "blocks.x.norm1.weight", "blocks.0.bogus.weight", "norm.gamma", ""):
        assert rename(key) == key
