"""Weights that stay in fp8, and the product that is not rounded."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from magi1 import model_source, quantised
from magi1.checkpoint import load_transformer, new_transformer
from magi1.config import EngineSection, MagiConfig, ModelSection, RuntimeSection
from magi1.conversion import official_shapes
from magi1.layers import Fp32Linear
from magi1.quantised import FP8, PLAIN, SMOOTHED, QuantisedLinear, multiplies_fp8

SIZES = {"num_layers": 3, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2}
SIZES |= {"num_query_groups": 1, "kv_channels": 16, "in_channels": 4, "out_channels": 4}
SIZES |= {"caption_channels": 8, "caption_max_length": 6}
SECTION = ModelSection(**SIZES)


@pytest.fixture
def checkpoint(tmp_path):
    """A quantised checkpoint of random numbers: its configuration and its tensors."""
    torch.manual_seed(0)
    tensors = {}
    for name, shape in official_shapes(new_transformer(SECTION), fp8=True).items():
        if name.endswith("input_scale"):
            tensors[name] = torch.full(shape, 0.01)  # one number for all channels
        elif name.endswith("_scale"):
            tensors[name] = torch.rand(shape) * 0.02 + 0.01
        else:
            tensors[name] = torch.randn(shape).to(FP8 if len(shape) == 3 else torch.bfloat16)
    folder = tmp_path / "inference_weight.fp8.distill"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = MagiConfig(
        model_config=SECTION,
        runtime_config=RuntimeSection(load=str(tmp_path), cfg_number=1),
        engine_config=EngineSection(distill=True, fp8_quant=True),
    )
    return config, tensors


def test_weights_stay_in_fp8(checkpoint, caplog):
    config, tensors = checkpoint
    model = load_transformer(config, keep_fp8=True)
    assert "fp8" not in caplog.text
    for name in (*PLAIN, *SMOOTHED):
        weight = model.blocks[1].get_submodule(name).weight
        assert weight.dtype == torch.uint8
        assert model.blocks[0].get_submodule(name).weight.dtype == torch.bfloat16, "the first is never"
        assert model.blocks[2].get_submodule(name).weight.dtype == torch.bfloat16, "nor the last"
    official = tensors["videodit_blocks.layers.1.mlp.linear_fc2.weight"][0]
    assert torch.equal(model.blocks[1].feed_forward.down.weight, official.view(torch.uint8))
    assert model.dtype == torch.bfloat16, "of what flows between the layers"
    plain = load_transformer(config)
    quantised_bytes, plain_bytes = (
        sum(parameter.nbytes for parameter in part.blocks[1].parameters()) for part in (model, plain)
    )
    assert quantised_bytes < 0.7 * plain_bytes


def test_dequantised_weights_are_announced(checkpoint, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_transformer(checkpoint[0])
    assert "fp8 weights are turned into bfloat16" in caplog.text
    assert model.blocks[1].feed_forward.down.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["attention.to_q", "feed_forward.down"])
def test_products_are_those_of_the_official_layers(checkpoint, name):
    config, tensors = checkpoint
    layer = load_transformer(config, torch.float32, keep_fp8=True).blocks[1].get_submodule(name)
    smoothed = name in SMOOTHED
    stem = "mlp.linear_fc2" if smoothed else "self_attention.linear_qkv.q"
    held = {
        part: tensors[f"videodit_blocks.layers.1.{stem}.{part}"].float()
        for part in ("weight", "weight_scale", "input_scale")
    }
    divisor = held["input_scale"]
    if smoothed:
        divisor = tensors[f"videodit_blocks.layers.1.{stem}.smooth_scale"][0]
    x = torch.randn(5, layer.weight.shape[1])
    x[0] *= 1000  # beyond what fp8 holds
    rounded = (x / divisor).clamp(-448, 448).to(torch.bfloat16).to(FP8)
    expected = rounded.float() @ held["weight"][0].T * held["input_scale"][0] * held["weight_scale"]
    assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    plain = load_transformer(config, torch.float32).blocks[1].get_submodule(name)
    difference = (layer(x[1:]) - plain(x[1:])).norm() / plain(x[1:]).norm()
    assert difference < 0.05, "fp8 keeps three bits behind the leading one"


@pytest.mark.parametrize("keep_fp8", [True, False])
def test_types_outlive_saving_and_reading(checkpoint, tmp_path, keep_fp8):
    model = load_transformer(checkpoint[0], keep_fp8=keep_fp8)
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    for (name, saved), (_, read) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(saved, read) and saved.dtype == read.dtype, name


@pytest.mark.parametrize(("capability", "kept"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_the_device_decides(monkeypatch, capability, kept):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert multiplies_fp8(torch.device("cuda")) is kept
    assert not multiplies_fp8(torch.device("cpu"))
    assert model_source.multiplies_fp8 is quantised.multiplies_fp8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_on_cuda_have_the_right_type(dtype):
    # Tensors without values, which need no such device: PyTorch's own rules for the kernels.
    with FakeTensorMode():
        x = torch.empty(7, 32, device="cuda", dtype=dtype)
        wide = Fp32Linear(32, 48)
        wide.weight = torch.nn.Parameter(torch.empty(48, 32, device="cuda", dtype=dtype))
        assert wide(x).dtype == torch.float32
        narrow = QuantisedLinear(32, 48)
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in narrow.state_dict().items()
        }
        narrow.load_state_dict(state, assign=True)
        assert narrow(x).dtype == dtype


def test_a_product_in_fp32_is_not_rounded():
    torch.manual_seed(0)
    layer = Fp32Linear(32, 16).to(torch.bfloat16)
    x = torch.randn(4, 32).to(torch.bfloat16)
    expected = x.double() @ layer.weight.double().T
    assert torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=1e-6)
