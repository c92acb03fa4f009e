"""Quantised weights and LoRA on both models, by the programs and in Python; each needs an optional package."""

import os
import subprocess
import sys
from functools import cache
from statistics import median

import pytest
import torch
from diffusers import PipelineQuantizationConfig, SkyReelsV2DiffusionForcingPipeline, SkyReelsV2Transformer3DModel
from programs import assert_refused
from safetensors.torch import save_file
from torch import nn

import flowcache
from flowcache.fingerprint import differences
from flowcache.finite import NotFiniteError, check_finite_weights
from flowcache.memory import estimate
from flowcache.metrics.similarity import psnr
from flowcache.quantize import FORMATS, plain_parts
from flowcache.wan.conversion import transformer_key
from magi1.pipeline import MagiPipeline
from skyreels_v2.checkpoint import load_pipeline
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline
from skyreels_v2.settings import SMALL

MODELS = ("magi1", "skyreels_v2")
PIPELINES = {"magi1": MagiPipeline, "skyreels_v2": FlowCacheSkyReelsV2Pipeline}
VIDEO = {"height": 64, "width": 64, "num_frames": 33, "num_inference_steps": 4, "output_type": "pt"}
#: Layers of the tiny transformers: ours, and the original's names.
LAYERS = {
    "magi1": {
        "blocks.0.attention.to_q": "videodit_blocks.layers.0.self_attention.linear_qkv.q",
        "blocks.1.feed_forward.up": "videodit_blocks.layers.1.mlp.linear_fc1",
    },
    "skyreels_v2": {
        "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
        "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
    },
}
#: Prefix and names of both factors, as trainers write them, and whether layers have the original's names.
TRAINERS = {
    "diffusers": ("transformer.", "lora_A", "lora_B", False),
    "peft": ("base_model.model.", "lora_A", "lora_B", False),
    "original": ("diffusion_model.", "lora_down", "lora_up", True),
    "diffsynth": ("", "lora_A.default", "lora_B.default", True),
}


def make_video(pipeline, seed=1):
    """A video that computes every step, so that nothing but the weights makes a difference."""
    flowcache.enable(pipeline, method="vanilla" if isinstance(pipeline, MagiPipeline) else "causal")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a red circle grows", seed=seed, **VIDEO).frames[0].permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def plain():
    """Video of a small checkpoint in fp32."""

    @cache
    def video(model, seed=1):
        return make_video(PIPELINES[model].from_pretrained("small"), seed)

    return video


def count_bytes(module: nn.Module) -> int:
    held = (*module.parameters(), *module.buffers())
    return sum(part.nbytes for weight in held for part in plain_parts(weight))


@pytest.mark.parametrize(("kind", "least", "share"), [("int8", 45, 0.4), ("fp8", 40, 0.4), ("int4", 30, 0.3)])
@pytest.mark.parametrize("model", MODELS)
def test_quantised_weights(program, plain, model, kind, least, share):
    pytest.importorskip("torchao")
    job = program(model).prepare("--weights", "small", "--output_path", "x.mp4", "--quantize", kind)
    pipeline, whole = job.sampler.model.load("cpu"), PIPELINES[model].from_pretrained("small")
    for name in ("transformer", "text_encoder"):
        layers, plain_layers = (
            {n: m for n, m in getattr(p, name).named_modules() if isinstance(m, nn.Linear)} for p in (pipeline, whole)
        )
        for place, layer in layers.items():
            is_inside = ".block." in place or place.startswith("blocks.")
            assert (plain_parts(layer.weight)[0] is not layer.weight) == is_inside, place
            if is_inside:
                assert 4 * share * 1.1 > count_bytes(layer) / plain_layers[place].weight.numel()
    videos = {seed: make_video(pipeline, seed) for seed in (1, 2, 3)}
    # the distance depends on the video: with int4, 27 to 40 dB
    assert median(psnr(video, plain(model, seed))[0] for seed, video in videos.items()) > least
    # Offload copies quantised weights as a whole; the estimate counts them.
    pipeline.enable_stage_offload("cpu:0")
    assert torch.equal(make_video(pipeline), videos[1])
    needed = estimate(job.sampler.model, job.sampler.config, job.start, "cpu").weights
    assert needed["transformer"] == pytest.approx(count_bytes(pipeline.transformer), rel=0.01)


def test_weights_that_are_not_finite_are_found_quantised():
    pytest.importorskip("torchao")
    from flowcache.quantize import quantize_weights

    for kind in FORMATS:
        module = nn.Module()
        module.blocks = nn.ModuleList([nn.Linear(64, 8)])
        module.blocks[0].weight.data[3, 5] = float("nan")
        quantize_weights(module, kind)
        with pytest.raises(NotFiniteError, match=r"transformer: blocks\.0\.weight"):
            check_finite_weights({"transformer": module})


@pytest.mark.parametrize("model", MODELS)
def test_options_of_weights_are_refused_before_any_is_read(
    program, pipelines, unread, monkeypatch, capsys, tmp_path, model
):
    generate, file, sizes = program(model), tmp_path / "a.safetensors", ("--output_path", "x.mp4")
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert_refused(generate(*sizes, "--quantize", "int8"), "quantize torchao pip [quant]", capsys)
    assert_refused(generate(*sizes, "--lora", file), f"lora file {file}", capsys)
    pytest.importorskip("peft")
    layer, scale = next(iter(LAYERS[model])), {"alpha": torch.ones(1)}
    rows, columns = pipelines[model].transformer.get_submodule(layer).weight.shape
    down, up = {"lora_A.weight": torch.zeros(2, columns)}, {"lora_B.weight": torch.zeros(rows, 2)}
    for tensors, named in (
        (up | {"lora_A.weight": torch.zeros(2, 999)}, "lora_A expected 999"),
        (up | {"lora_A.weight": torch.zeros(columns)}, f"lora_A expected {columns}"),
        (up | {"lora_A.weight": torch.zeros(2, columns, dtype=torch.int32)}, "lora_A int32"),
        (down | {"lora_B.weight": torch.zeros(rows, 3)}, "lora_B expected 2 3"),
        (down, "lora_B"),
        (up, "lora_A"),
        (scale, "lora_B"),
        (down | up | {"dora_scale": torch.ones(rows)}, "DoRA"),
        ({"lora_mid.weight": torch.zeros(2)}, "lora_A lora_B"),
        ({"weight": torch.zeros(2)}, "weight layer"),
    ):
        save_file({f"{layer}.{name}": tensor for name, tensor in tensors.items()}, file)
        assert_refused(generate(*sizes, "--lora", f"{file}:0.5"), f"{file} {named}", capsys)
    save_file({"blocks.77.attn.lora_A.weight": torch.zeros(2)}, file)
    assert_refused(generate(*sizes, "--lora", file), f"{file} blocks.77.attn layer", capsys)
    assert_refused(generate(*sizes, "--lora", f"{file}:much"), "lora SCALE", capsys)
    assert_refused(generate(*sizes, "--lora", f"{file}:1e9"), "lora scale 100", capsys)
    file.write_bytes(b"no weights")
    assert_refused(generate(*sizes, "--lora", file), f"{file} LoRA", capsys)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert_refused(generate(*sizes, "--lora", file), "lora peft pip [lora]", capsys)


def test_imports_are_silent():
    pytest.importorskip("torchao")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"import {', '.join(MODELS)}, research.gpu.kernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_fp8_checkpoints_are_not_quantised_again(magi, capsys):
    pytest.importorskip("torchao")
    name, words = "4.5B_distill_quant", ("--output_path", "x.mp4", "--quantize", "int8")
    words += ("--config_file", f"config/single_run/{name}.json", "--load", f"sand-ai/MAGI-1/ckpt/magi/{name}")
    assert_refused(magi(*words), "quantize plain fp8_quant", capsys)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("model", MODELS)
def test_lora_is_fused(program, tmp_path, model, trainer):
    pytest.importorskip("peft")
    load = lambda *words: program(model).prepare("--output_path", "x.mp4", *words).sampler.model  # noqa: E731
    (prefix, down, up, is_original), tensors, added = TRAINERS[trainer], {}, {}
    before, rank = load().load("cpu").transformer.state_dict(), 4
    for layer, original in LAYERS[model].items():
        rows, columns = before[f"{layer}.weight"].shape
        name = prefix + (original if is_original else layer)
        factors = torch.randn(rank, columns), torch.randn(rows, rank)
        tensors |= {f"{name}.{down}.weight": factors[0], f"{name}.{up}.weight": factors[1]}
        if trainer == "original":
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
        added[f"{layer}.weight"] = factors[1] @ factors[0] * (0.5 if trainer == "original" else 1)
    for file in ("a.safetensors", "b.safetensors"):
        save_file(tensors, tmp_path / file)
    words = "--lora", tmp_path / "a.safetensors", "--lora", f"{tmp_path / 'b.safetensors'}:-0.25"
    adapter = load(*words)
    after = adapter.load("cpu").transformer.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight + 0.75 * added[name] if name in added else weight)
    # A run with other LoRA weights is another video.
    others = load(*words[:2]).settings(), load(*words[:3], f"{tmp_path / 'b.safetensors'}:-0.5").settings()
    assert all("lora was" in differences(adapter.settings(), other)[0] for other in others)
    assert "--lora" not in str(adapter.settings())


@pytest.mark.parametrize("model", MODELS)
def test_an_active_lora_runs(model, plain):
    pytest.importorskip("peft")
    pipeline = PIPELINES[model].from_pretrained("small")
    layer = next(iter(LAYERS[model]))
    size = pipeline.transformer.get_submodule(layer).weight.shape
    factors = {f"{layer}.lora_A.weight": torch.randn(2, size[1]), f"{layer}.lora_B.weight": torch.randn(size[0], 2)}
    pipeline.transformer.load_lora_adapter(factors, prefix=None, adapter_name="own")
    active = make_video(pipeline)
    pipeline.transformer.fuse_lora()
    pipeline.transformer.unload_lora()
    assert psnr(make_video(pipeline), active)[0] > 60 > psnr(active, plain(model))[0]


def test_options_of_loading_in_python(weights, checkpoint):
    pytest.importorskip("torchao")
    magi = MagiPipeline.from_config_file(weights, "cpu", quantize="int8").transformer.blocks[0]
    skyreels = load_pipeline(str(checkpoint), "cpu", quantize="int8").transformer.blocks[0]
    assert all(plain_parts(layer.weight)[1:] for layer in (magi.attention.to_q, skyreels.attn1.to_q))
    with pytest.raises(ValueError, match="quantize"):
        load_pipeline(str(checkpoint), quantize="int3")


@pytest.mark.parametrize("model", MODELS)
def test_layerwise_casting(model, plain):
    pipeline = PIPELINES[model].from_pretrained("small")
    size = count_bytes(pipeline.transformer)
    pipeline.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert count_bytes(pipeline.transformer) < 0.4 * size
    video = make_video(pipeline)
    assert psnr(video, plain(model))[0] > 30
    pipeline.enable_stage_offload("cpu:0")
    assert torch.equal(make_video(pipeline), video)


@pytest.mark.parametrize("model", MODELS)
def test_quantization_config_of_diffusers(model, plain, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    PIPELINES[model].from_pretrained("small").save_pretrained(tmp_path)
    config = PipelineQuantizationConfig(
        quant_mapping={"transformer": TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2))}
    )
    pipeline = PIPELINES[model].from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    first = pipeline.transformer.blocks[0]
    assert plain_parts((first.attn1 if model == "skyreels_v2" else first.attention).to_q.weight)[1:]
    assert psnr(make_video(pipeline), plain(model))[0] > 40


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_layers_of_bitsandbytes(model, kind, plain):
    """Diffusers loads such checkpoints on a GPU only; the layers themselves run on a CPU."""
    bnb = pytest.importorskip("bitsandbytes")
    pipeline = PIPELINES[model].from_pretrained("small")
    for name, layer in list(pipeline.transformer.blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            sizes, held = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data
            if kind == "nf4":
                made = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32)
                made.weight = bnb.nn.Params4bit(held, requires_grad=False, quant_type="nf4")
            else:
                made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
                made.weight = bnb.nn.Int8Params(held, requires_grad=False, has_fp16_weights=False)
            made.bias = layer.bias
            pipeline.transformer.blocks.set_submodule(name, made.to("cpu"))
    with pytest.raises(ValueError, match=r"transformer.*bitsandbytes"):
        pipeline.enable_stage_offload("cpu:0")
    assert psnr(make_video(pipeline), plain(model))[0] > (20 if kind == "nf4" else 40)


def test_gguf(plain, tmp_path):
    gguf = pytest.importorskip("gguf")
    from diffusers import GGUFQuantizationConfig

    path, q8 = tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0
    names = {name: transformer_key(name) for name in original_names()}
    writer = gguf.GGUFWriter(path, "wan")
    weights = FlowCacheSkyReelsV2Pipeline.from_pretrained("small").transformer.state_dict()
    for original, name in names.items():
        numbers = weights[name].numpy()
        if name.startswith("blocks.") and numbers.ndim == 2:
            writer.add_tensor(original, gguf.quants.quantize(numbers, q8), raw_dtype=q8)
        else:
            writer.add_tensor(original, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    options = {"quantization_config": GGUFQuantizationConfig(torch.float32), "dtype": torch.float32}
    transformer = SkyReelsV2Transformer3DModel.from_single_file(
        str(path), config=str(SMALL / "transformer"), **options
    )
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.uint8
    other = SkyReelsV2DiffusionForcingPipeline.from_pretrained(SMALL, transformer=transformer, dtype=torch.float32)
    pipeline = FlowCacheSkyReelsV2Pipeline.from_pipe(other)
    video = make_video(pipeline)
    assert psnr(video, plain("skyreels_v2"))[0] > 45
    pipeline.enable_stage_offload("cpu:0")
    assert torch.equal(make_video(pipeline), video)


def original_names() -> list[str]:
    """Names of the small transformer's weights in the original layout."""
    layers = ["self_attn.{}", "cross_attn.{}"]
    layers = [layer.format(part) for layer in layers for part in ("q", "k", "v", "o", "norm_q", "norm_k")]
    layers += ["ffn.0", "ffn.2", "norm3"]
    outer = ["patch_embedding", "head.head", "time_projection.1"]
    outer += [f"{part}_embedding.{place}" for part in ("text", "time") for place in (0, 2)]
    names = [f"{layer}.{kind}" for layer in outer for kind in ("weight", "bias")] + ["head.modulation"]
    for block in range(6):
        names.append(f"blocks.{block}.modulation")
        for layer in layers:
            kinds = ("weight",) if "norm_" in layer else ("weight", "bias")
            names += [f"blocks.{block}.{layer}.{kind}" for kind in kinds]
    return names
