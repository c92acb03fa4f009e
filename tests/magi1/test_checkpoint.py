"""The loader of official checkpoints: names, shapes, types, and what it says of files that are wrong."""

from __future__ import annotations

import json

import pytest
import torch
from cases import load_transformer as reference_transformer
from cases import magi_case
from damaged import damaged
from reference import case_names
from safetensors.torch import load_file, save_file

from magi1.checkpoint import load_transformer, load_vae, new_transformer
from magi1.config import EngineSection, MagiConfig, ModelSection, RuntimeSection
from magi1.conversion import dequantise, official_key, official_shapes, transformer_key
from magi1.vae import AutoencoderKLMagi

TINY = ModelSection(
    num_layers=3,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=2,
    num_query_groups=1,
    kv_channels=16,
    caption_channels=8,
    caption_max_length=6,
    in_channels=4,
    out_channels=4,
)


def tiny_config(folder, fp8=False, **section) -> MagiConfig:
    return MagiConfig(
        model_config=ModelSection(**{**TINY.__dict__, **section}),
        runtime_config=RuntimeSection(load=str(folder), cfg_number=1),
        engine_config=EngineSection(distill=True, fp8_quant=fp8),
    )


@pytest.fixture
def official(tmp_path):
    """A checkpoint folder in two shards, as the official ones are, and its tensors."""
    torch.manual_seed(0)
    shapes = official_shapes(new_transformer(TINY))
    tensors = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}
    folder = tmp_path / "inference_weight.distill"
    folder.mkdir()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path, folder, tensors


@pytest.mark.parametrize("name", [name for name in case_names("keys_", "magi1") if "vae" not in name])
def test_names_and_shapes_of_the_official_models(name):
    info = magi_case(name).info
    known = ModelSection.__dataclass_fields__
    section = ModelSection(**{k: v for k, v in info["config"]["model_config"].items() if k in known})
    model = new_transformer(section)
    shapes = official_shapes(model, info["config"]["engine_config"]["fp8_quant"])
    assert shapes == {key: tuple(tensor["shape"]) for key, tensor in info["tensors"].items()}
    promoted = {k for k, t in info["tensors"].items() if t["dtype_after_promoter"] == "float32"}
    kept = {
        official_key(k)
        for k in model.state_dict()
        if any(part in model._keep_in_fp32_modules for part in k.split("."))
    }
    assert kept == {key for key in promoted if not key.endswith("_scale")}


def test_names_go_both_ways():
    for name in official_shapes(new_transformer(TINY)):
        assert official_key(transformer_key(name)) == name


def test_loads_every_tensor_in_its_type(official):
    root, _, tensors = official
    model = load_transformer(tiny_config(root))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), tensors[official_key(name)].float()), name
    assert model.blocks[0].attention.to_q.weight.dtype == torch.bfloat16
    assert model.blocks[0].attention.norm_q.weight.dtype == torch.float32
    assert model.blocks[0].attention.norm_q_cross.weight.dtype == torch.bfloat16
    assert model.patch_embed.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("rope.bands"), "lacks rope.bands"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds extra, which the model does not know"),
        (
            lambda t: t.update({"rope.bands": torch.zeros(3)}),
            r"rope.bands must have shape \(2,\), has \(3,\)",
        ),
        (lambda t: t.update({"rope.bands": torch.zeros(2, dtype=torch.int32)}), "rope.bands: .* I32"),
    ],
)
def test_wrong_tensors_are_named(official, change, message):
    root, folder, tensors = official
    (folder / "model.safetensors.index.json").unlink()
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_transformer(tiny_config(root))


def test_wrong_files_are_named(official):
    root, folder, _ = official
    content = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"b\.safetensors cannot be read as a safetensors file"):
        load_transformer(tiny_config(root))
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks b\.safetensors\."):
        load_transformer(tiny_config(root))
    (folder / "b.safetensors.zst").touch()
    with pytest.raises(ValueError, match="unpack it first: zstd -d"):
        load_transformer(tiny_config(root))
    with pytest.raises(ValueError, match=r"has no folder inference_weight\.fp8\.distill"):
        load_transformer(tiny_config(root, fp8=True))


def test_quantised_weights_become_plain_ones(tmp_path):
    torch.manual_seed(0)
    model = new_transformer(TINY)
    tensors, plain = {}, {}
    for name, shape in official_shapes(model, fp8=True).items():
        if name.endswith("_scale"):
            tensors[name] = torch.rand(shape) + 0.5
        else:
            fp8 = len(shape) == 3
            tensors[name] = torch.randn(shape).to(torch.float8_e4m3fn if fp8 else torch.bfloat16)
    folder = tmp_path / "inference_weight.fp8.distill"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    loaded = load_transformer(tiny_config(tmp_path, fp8=True)).state_dict()
    stem = "videodit_blocks.layers.1.mlp.linear_fc2."
    x = torch.randn(5, 48, dtype=torch.float64)
    smooth, scale = tensors[f"{stem}smooth_scale"], tensors[f"{stem}input_scale"]
    weight = tensors[f"{stem}weight"][0].double()
    expected = (x / smooth) @ weight.T * scale * tensors[f"{stem}weight_scale"]
    actual = x @ loaded["blocks.1.feed_forward.down.weight"].double().T
    # a bf16 weight errs by at most 1/256 of itself, and so does each product
    bound = (x / smooth).abs() @ weight.abs().T * scale * tensors[f"{stem}weight_scale"] / 256
    assert ((actual - expected).abs() <= bound).all()
    plain = dequantise(tensors, "videodit_blocks.layers.0.mlp.linear_fc2.weight")
    assert torch.equal(loaded["blocks.0.feed_forward.down.weight"], plain)
    exact = load_transformer(tiny_config(tmp_path, fp8=True), torch.float32).state_dict()
    plain = dequantise(tensors, f"{stem}weight")
    assert torch.equal(exact["blocks.1.feed_forward.down.weight"], plain), "not rounded on the way to fp32"


def test_vae(tmp_path):
    case = magi_case("vae_encode_decode")
    weights = load_file(case.folder / case.info["weights"])
    (tmp_path / "config.json").write_text(json.dumps(magi_case("vae_config").info))
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    vae = load_vae(tmp_path)
    assert isinstance(vae, AutoencoderKLMagi)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in vae.state_dict().items())
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(ValueError, match="not a ViTVAE"):
        load_vae(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"config\.json cannot be read"),
        ({"_class_name": "ViTVAE", "ddconfig": [1]}, "ddconfig must hold named values, got list"),
        ({"_class_name": "ViTVAE", "ddconfig": {"embed_dim": "wide"}}, "embed_dim must be a whole number"),
        ({"_class_name": "ViTVAE", "ddconfig": {"embed_dim": 0}}, "embed_dim must be at least 1"),
        ({"_class_name": "ViTVAE", "ddconfig": {"use_rope": True}}, "use_rope must be false, got true"),
    ],
)
def test_wrong_descriptions_of_the_vae_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_vae(tmp_path)


@pytest.mark.parametrize("content", [[1], {"weight_map": [1]}, "text"])
def test_a_wrong_index_is_refused(official, content):
    root, folder, _ = official
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index\.json cannot be read"):
        load_transformer(tiny_config(root))


def test_reference_weights_are_official_ones():
    model = reference_transformer(magi_case("dit_forward_a_3chunks"))
    case = magi_case("weights").info["tensors"]
    assert official_shapes(model) == {name: tuple(tensor["shape"]) for name, tensor in case.items()}


def test_an_autoencoder_of_integers_is_refused(weights, tmp_path):
    copy = damaged(weights.parent / "vae", tmp_path / "copy", "encoder.pos_embed", torch.Tensor.int)
    with pytest.raises(ValueError, match=r"encoder\.pos_embed: expected floating-point numbers"):
        load_vae(copy)
