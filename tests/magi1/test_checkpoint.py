"""Checkpoints of MAGI-1: names, shapes, types, fp8, finding and downloading; errors name what is wrong."""

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import SIZES, magi_case
from huggingface_hub import constants, save_torch_state_dict
from huggingface_hub.errors import RepositoryNotFoundError
from reference import case_names
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import flowcache.hub
from magi1 import load_pipeline, model_source
from magi1.checkpoint import T5_FOLDER, load_text_encoder, load_transformer, load_vae, new_transformer
from magi1.config import EngineSection, MagiConfig, ModelSection
from magi1.conversion import dequantise, official_key, official_shapes
from magi1.layers import Fp32Linear
from magi1.model_source import parse_hub_folder, resolve_model
from magi1.quantised import FP8, PLAIN, SMOOTHED, QuantisedLinear, multiplies_fp8

CONFIG = MagiConfig(model_config=ModelSection(**{**SIZES, "num_layers": 3}), engine_config=EngineSection(distill=True))
FP8_CONFIG = replace(CONFIG, engine_config=EngineSection(distill=True, fp8_quant=True))
SINGLE = "model.safetensors"


def random_tensors(fp8: bool = False) -> dict[str, Tensor]:
    """Tensors of a transformer under their official names."""
    torch.manual_seed(0)
    tensors = {}
    for name, shape in official_shapes(new_transformer(CONFIG.model_config), fp8).items():
        if name.endswith("input_scale"):
            tensors[name] = torch.full(shape, 0.01)  # one number for all channels
        elif name.endswith("_scale"):
            tensors[name] = torch.rand(shape) * 0.02 + 0.01
        else:
            tensors[name] = torch.randn(shape).to(FP8 if fp8 and len(shape) == 3 else torch.bfloat16)
    return tensors


@pytest.fixture
def official(tmp_path):
    """A checkpoint folder in shards, as the official ones are, and its tensors."""
    folder, tensors = tmp_path / "inference_weight.distill", random_tensors()
    folder.mkdir()
    save_torch_state_dict(tensors, folder, max_shard_size="50KB")
    return folder, tensors


@pytest.fixture
def quantised(tmp_path):
    """The folder of a quantised checkpoint, and its tensors."""
    folder, tensors = tmp_path / "inference_weight.fp8.distill", random_tensors(fp8=True)
    folder.mkdir()
    save_file(tensors, folder / SINGLE)
    return tmp_path, tensors


@pytest.mark.parametrize("name", [name for name in case_names("keys_", "magi1") if "vae" not in name])
def test_configurations_names_shapes_and_types_of_the_official_models(name, tmp_path):
    info = magi_case(name).info
    path, content = tmp_path / "config.json", info["config"]
    path.write_text(json.dumps(content))
    config = MagiConfig.from_file(path)
    assert list(config.runtime_config.noise2clean_kvrange) == content["runtime_config"]["noise2clean_kvrange"]
    assert config.engine_config.distill == content["engine_config"]["distill"]
    model = new_transformer(config.model_config)
    shapes = official_shapes(model, config.engine_config.fp8_quant)
    assert shapes == {key: tuple(tensor["shape"]) for key, tensor in info["tensors"].items()}
    promoted = {k for k, t in info["tensors"].items() if t["dtype_after_promoter"] == "float32"}
    kept = {official_key(k) for k in model.state_dict() if model.keeps_fp32(k)}
    assert kept == {key for key in promoted if not key.endswith("_scale")}


def test_every_tensor_is_loaded_in_its_type(official):
    folder, tensors = official
    model = load_transformer(folder.parent, CONFIG)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), tensors[official_key(name)].float()), name
    attention = model.blocks[0].attention
    assert attention.to_q.weight.dtype == attention.norm_q_cross.weight.dtype == torch.bfloat16
    assert attention.norm_q.weight.dtype == model.patch_embed.weight.dtype == torch.float32


WRONG = {
    r"lacks rope\.bands": lambda t: t.pop("rope.bands"),
    "holds extra": lambda t: t.update(extra=torch.zeros(1)),
    r"rope.bands .*\(3,\).*\(2,\)": lambda t: t.update({"rope.bands": torch.zeros(3)}),
    "rope.bands: .*int32": lambda t: t.update({"rope.bands": torch.zeros(2, dtype=torch.int32)}),
}


def test_wrong_tensors_and_files_are_named(official):
    folder, tensors = official
    *others, shard = sorted(folder.glob("*.safetensors"))
    assert others

    def refused(message, config=CONFIG):
        with pytest.raises(ValueError, match=message):
            load_transformer(folder.parent, config)

    shard.unlink()
    refused(f"lacks {shard.name}.")
    shard.with_name(f"{shard.name}.zst").touch()
    refused("zstd -d")
    refused(r"inference_weight\.fp8\.distill", FP8_CONFIG)
    for path in folder.iterdir():
        path.unlink()
    for message, change in WRONG.items():
        changed = tensors.copy()
        change(changed)
        save_file(changed, folder / SINGLE)
        refused(message)


def test_weights_stay_in_fp8(quantised, tmp_path, caplog):
    root, tensors = quantised
    model = load_transformer(root, FP8_CONFIG, keep_fp8=True)
    assert "fp8" not in caplog.text
    for name in (*PLAIN, *SMOOTHED):
        types = [block.get_submodule(name).weight.dtype for block in model.blocks]
        assert types == [torch.bfloat16, torch.uint8, torch.bfloat16], "not in the first and the last block"
    official = tensors["videodit_blocks.layers.1.mlp.linear_fc2.weight"][0]
    assert torch.equal(model.blocks[1].feed_forward.down.weight, official.view(torch.uint8))
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    for (name, saved), (_, read) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(saved, read) and saved.dtype == read.dtype, name


def test_quantised_weights_become_plain_ones_with_a_warning(quantised, caplog):
    root, tensors = quantised
    with caplog.at_level(logging.WARNING):
        model = load_transformer(root, FP8_CONFIG)
    assert "fp8 weights are turned into bfloat16" in caplog.text
    assert model.blocks[1].feed_forward.down.weight.dtype == torch.bfloat16
    exact = load_transformer(root, FP8_CONFIG, torch.float32)
    for layer in (0, 1):
        plain = dequantise(tensors, f"videodit_blocks.layers.{layer}.mlp.linear_fc2.weight")
        assert torch.equal(exact.blocks[layer].feed_forward.down.weight, plain.float())


@pytest.mark.parametrize("name", ["attention.to_q", "feed_forward.down"])
def test_products_are_those_of_the_official_layers(quantised, name):
    root, tensors = quantised
    layer, plain = (
        load_transformer(root, FP8_CONFIG, torch.float32, keep_fp8=keep).blocks[1].get_submodule(name)
        for keep in (True, False)
    )
    stem = "mlp.linear_fc2" if name in SMOOTHED else "self_attention.linear_qkv.q"
    weight, weight_scale, input_scale = (
        tensors[f"videodit_blocks.layers.1.{stem}.{part}"].float()
        for part in ("weight", "weight_scale", "input_scale")
    )
    divisor = tensors[f"videodit_blocks.layers.1.{stem}.smooth_scale"][0] if name in SMOOTHED else input_scale
    x = torch.randn(5, layer.weight.shape[1])
    x[0] *= 1000  # more than fp8 holds
    rounded = (x / divisor).clamp(-448, 448).to(torch.bfloat16).to(FP8)
    expected = rounded.float() @ weight[0].T * input_scale[0] * weight_scale
    assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    expected = plain(x[1:])
    assert (layer(x[1:]) - expected).norm() / expected.norm() < 0.05, "fp8 keeps three bits"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_of_products(monkeypatch, dtype):
    for capability in ((8, 0), (8, 9), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, found=capability: found)
        assert multiplies_fp8(torch.device("cuda")) is (capability >= (8, 9))
    layer, x = Fp32Linear(32, 16).to(dtype), torch.randn(4, 32).to(dtype)
    expected = x.double() @ layer.weight.double().T
    assert torch.allclose(layer(x).double(), expected, rtol=1e-5, atol=1e-6), "not rounded"
    # Tensors without values, which need no such device: PyTorch's own rules for the kernels.
    with FakeTensorMode():
        x = torch.empty(7, 32, device="cuda", dtype=dtype)
        wide = Fp32Linear(32, 48)
        wide.weight = torch.nn.Parameter(torch.empty(48, 32, device="cuda", dtype=dtype))
        assert wide(x).dtype == torch.float32
        narrow = QuantisedLinear(32, 48)
        held = {n: torch.empty_like(t, device="cuda") for n, t in narrow.state_dict().items()}
        narrow.load_state_dict(held, assign=True)
        assert narrow(x).dtype == dtype


def test_vae(tmp_path):
    case, config = magi_case("vae_encode_decode"), tmp_path / "config.json"
    weights = load_file(case.folder / case.info["weights"])
    config.write_text(json.dumps(magi_case("vae_config").info))
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_vae(tmp_path).state_dict().items())
    for named, described in (("embed_dim", {"embed_dim": 0}), ("use_rope", {"use_rope": True}), ("dd", [1])):
        config.write_text(json.dumps({"_class_name": "ViTVAE", "ddconfig": described}))
        with pytest.raises(ValueError, match=named):
            load_vae(tmp_path)
    config.write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(ValueError, match="not a ViTVAE"):
        load_vae(tmp_path)


def test_wrong_weights_of_the_text_encoder_are_named(weights, tmp_path):
    t5 = shutil.copytree(weights.parent / "t5", tmp_path / "t5")
    tokenizer, encoder = load_text_encoder(t5)
    assert encoder(tokenizer("a red circle", return_tensors="pt").input_ids).last_hidden_state.shape[-1] == 16
    path = t5 / T5_FOLDER / SINGLE
    plain, last = load_file(path), "encoder.final_layer_norm.weight"
    another = {"encoder.block.1.layer.0.layer_norm.weight": plain[last].clone()}
    for changed, message in (({k: plain[k] for k in plain if k != last}, "lacks"), (plain | another, "layer")):
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(ValueError, match=message) as raised:
            load_text_encoder(t5)
        assert "\n" not in str(raised.value)


REPOSITORY = "sand-ai/MAGI-1"
LOAD = f"{REPOSITORY}/ckpt/magi/4.5B_distill"


@pytest.fixture
def snapshot(weights, tmp_path, monkeypatch):
    """The official repository in the Hub's cache, with tiny weights; there is no connection."""

    def repo_info(*_, timeout):
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", repo_info)
    folder = tmp_path / "hub" / "models--sand-ai--MAGI-1"
    snapshot = folder / "snapshots" / ("0" * 40)
    for inside, part in (("ckpt/magi/4.5B_distill", "magi"), ("ckpt/vae", "vae"), ("ckpt/t5", "t5")):
        shutil.copytree(weights.parent / part, snapshot / inside)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


@pytest.fixture
def configure(weights, tmp_path):
    """Write a configuration with other folders; by default none of them exists."""

    def configure(**folders) -> Path:
        content = json.loads(weights.read_text())
        absent = {name: f"./{name}" for name in ("load", "vae_pretrained", "t5_pretrained")}
        content["runtime_config"] |= absent | folders
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path / "config.json"

    return configure


def test_names_of_folders_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert parse_hub_folder(LOAD) == (REPOSITORY, "ckpt/magi/4.5B_distill")
    assert parse_hub_folder("someone/fine_tuned.v2/x/") == ("someone/fine_tuned.v2", "x")
    for name in ("", "a/b", "./a/b/c", "/a/b/c", "~/a/b/c", "a/../b/c", "https://hf.co/a/b/c", "here/b/c"):
        assert parse_hub_folder(name) is None


def test_folders_that_are_not_named_are_the_repositorys(configure):
    config = configure(vae_pretrained="", t5_pretrained="")
    runtime = resolve_model(config, {"load": LOAD}, "official", "cpu").config.runtime_config
    folders = (runtime.vae_pretrained, runtime.t5_pretrained)
    assert folders == (f"{REPOSITORY}/ckpt/vae", f"{REPOSITORY}/ckpt/t5")
    with pytest.raises(ValueError, match="vae_pretrained must name a folder"):
        resolve_model(config, {"load": LOAD, "vae_pretrained": ""}, "official", "cpu")


def test_only_what_is_needed_is_downloaded(snapshot, configure, monkeypatch):
    source = resolve_model(configure(), {"load": LOAD}, "official", "cpu")
    assert LOAD in source.reason
    assert load_pipeline(source, "cpu").transformer.config.num_layers == 2
    wanted = []

    def download(repository, allow_patterns, **_):
        wanted.append((repository, *allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(flowcache.hub, "snapshot_download", download)
    load_pipeline(source, "cpu")
    assert wanted == [
        (REPOSITORY, "ckpt/magi/4.5B_distill/inference_weight.distill/*"),
        (REPOSITORY, "ckpt/vae/*"),
        (REPOSITORY, "ckpt/t5/t5-v1_1-xxl/*"),
    ]


def test_what_the_hub_lacks_is_named(snapshot, configure, weights, monkeypatch):
    def refused(message, load=LOAD):
        source = resolve_model(configure(load=load), model="official", device="cpu")
        with pytest.raises(OSError, match=f"load: .*{message}") as raised:
            load_pipeline(source, "cpu")
        assert "\n" not in str(raised.value)

    refused("folder ckpt/magi/5B/inference_weight.distill", f"{REPOSITORY}/ckpt/magi/5B")
    for name in ("vae", "t5"):
        shutil.rmtree(snapshot / "ckpt" / name)
    load_pipeline(resolve_model(weights, {"load": LOAD}, device="cpu"), "cpu")  # whose other parts are local
    (snapshot / "ckpt/magi/4.5B_distill/inference_weight.distill/model.safetensors").unlink()
    refused("ConnectionError.*lacks model.safetensors")
    shutil.rmtree(snapshot.parents[1])
    refused("ConnectionError")

    def repo_info(*_, timeout):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(flowcache.hub.HfApi, "repo_info", repo_info)
    refused("no repository sand-ai/MAGI-1")


@pytest.mark.parametrize("load", ["downloads/none", "", REPOSITORY])
def test_on_cuda_a_missing_folder_is_refused_with_the_command_that_gets_it(configure, load):
    with pytest.raises(ValueError, match=r"load.*sand-ai/MAGI-1/ckpt/magi/4\.5B_distill") as raised:
        resolve_model(configure(load=load), device="cuda")
    assert not load or f"hf download {REPOSITORY} " in str(raised.value)
    assert resolve_model(configure(load=LOAD), device="cuda").config.runtime_config.load == LOAD


def test_auto_takes_the_official_weights_only_where_they_fit(weights, monkeypatch, caplog, tmp_path):
    caplog.set_level("INFO")
    for model in ("auto", "small"):
        load_pipeline(resolve_model(weights, model=model, device="cpu"), "cpu")
    levels = [record.levelname for record in caplog.records if "small checkpoint" in record.message]
    assert levels == ["WARNING", "INFO"]
    monkeypatch.setattr(model_source, "SMALL", tmp_path / "small")
    with pytest.raises(ValueError, match="no folder"):
        resolve_model(weights, model="small")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(weights.read_text())
    load = json.loads(weights.read_text())["runtime_config"]["load"]
    assert "no CUDA device" in resolve_model(weights, device="cpu").reason
    assert "CUDA device: using the official" in resolve_model(weights, device="cuda").reason
    assert "load was given" in resolve_model(weights, {"load": load}, device="cpu").reason
    for model, name in (("auto", "vae_pretrained"), ("small", "t5_pretrained"), ("small", "load")):
        with pytest.raises(ValueError, match=f"^{name}: .*small checkpoint"):
            resolve_model(weights, {name: "mine"}, model, "cpu")


@pytest.mark.parametrize(("device", "expected"), [("cpu", "cpu"), ("cuda", "meta")])
def test_the_text_encoder_has_a_device_of_its_own(weights, device, expected, caplog):
    # the meta device stands for the one that the rest runs on
    keys = {"t5_device": device, "clean_chunk_kvrange": 1}
    pipeline = load_pipeline(resolve_model(weights, keys, "official"), "meta")
    assert pipeline.transformer.device.type == pipeline.vae.device.type == "meta"
    assert pipeline._execution_device.type == "meta"
    assert pipeline.text_encoder.device.type == expected
    assert "clean_chunk_kvrange 1" in caplog.text, "ignored without ranges of noisy chunks"


def test_blocks_are_compiled_on_request(weights, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)  # that there is a compiler is checked, but none runs here
    for wanted in (False, True):
        block = load_pipeline(resolve_model(weights, model="official"), "meta", compile=wanted).transformer.blocks[0]
        assert [block.attention._compiled_call_impl is not None, "update" in vars(block)] == [wanted, wanted]
