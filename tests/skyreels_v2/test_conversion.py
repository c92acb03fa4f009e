"""Names and shapes of the real models: ours from the original's, all of them and no others."""

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel
from layouts import on_meta, shapes, wan_t5_names
from reference import Case, case_names
from transformers import UMT5Config, UMT5EncoderModel

from skyreels_v2 import conversion
from skyreels_v2.conversion import text_encoder_key, transformer_config, transformer_key, vae_key
from skyreels_v2.model_folder import find_family


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
