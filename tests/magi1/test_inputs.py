"""Inputs of the programs: damaged folders, weights that are not finite, prompts, the original's variables."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import Program
from reference import ROOT
from safetensors.torch import load_file, save
from tiny import with_nan

from flowcache.trace import Trace
from magi1 import model_source
from magi1.checkpoint import T5_FOLDER

VAE, TEXT = "vae/config.json", f"t5/{T5_FOLDER}/config.json"
TOKENIZER, TOKENIZER_CONFIG = f"t5/{T5_FOLDER}/tokenizer.json", f"t5/{T5_FOLDER}/tokenizer_config.json"
TEXT_WEIGHTS = f"t5/{T5_FOLDER}/model.safetensors"
WEIGHTS = "magi/inference_weight.distill/model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

#: A file and its content (None: missing), new values of its keys, or a change of its tensors.
DAMAGE = [
    *((name, b"") for name in (TOKENIZER, VAE, INDEX, WEIGHTS)),
    (TOKENIZER_CONFIG, b"[" * 10**5),
    (WEIGHTS, b"\xff" * 64),
    *((name, None) for name in (VAE, TEXT, TOKENIZER, WEIGHTS, TEXT_WEIGHTS)),
    *((name, torch.Tensor.int) for name in ("vae/diffusion_pytorch_model.safetensors", TEXT_WEIGHTS)),
    *((VAE, {"depth": size}) for size in (10**9, 1e300)),
    *((VAE, {key: value}) for key, value in (("embed_dim", 2**62), ("num_heads", "two"))),
    (VAE, {"ddconfig": {"depth": 10**9}}),
    *((TEXT, {key: value}) for key, value in (("d_model", 32), ("dense_act_fn", "x"), ("vocab_size", 3))),
    (TOKENIZER_CONFIG, {"model_max_length": -5}),
    (TOKENIZER_CONFIG, {"auto_map": {"AutoTokenizer": ["a.B", None]}, "tokenizer_class": None}),
    (INDEX, {"weight_map": {"rope.bands": 5}}),
]


@pytest.fixture
def refusal(front, monkeypatch, capsys):
    """Run the program on folders; returns the one line in which it refuses them."""
    monkeypatch.setattr("magi1.checkpoint.load_transformer", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))

    def run(config, *words) -> str:
        started = time.monotonic()
        assert front("--config_file", config, *words) == 2
        assert time.monotonic() - started < 10
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


@pytest.mark.parametrize(("name", "change"), DAMAGE, ids=[f"{name}-{str(c)[:30]}" for name, c in DAMAGE])
def test_a_damaged_file_is_named(weights, tmp_path, refusal, name, change):
    folder = shutil.copytree(weights.parent, tmp_path / "model")
    path = folder / name
    if isinstance(change, dict):
        content = json.loads(path.read_text()) if path.exists() else {}
        content = {key: value for key, value in {**content, **change}.items() if value is not None}
        change = json.dumps(content).encode()
    if callable(change):
        change = save({name: change(tensor) for name, tensor in load_file(path).items()})
    path.write_bytes(change or b"")
    if change is None:
        path.unlink()
    words = ["--load", folder / "magi", "--vae_pretrained", folder / "vae", "--t5_pretrained", folder / "t5"]
    assert str(folder) in refusal(folder / "config.json", *words)


@pytest.mark.parametrize("prompt", ["一只猫在跑。", "https://example.com/a.png", "a." * 10_000])
def test_other_wrong_inputs_are_named(weights, refusal, prompt):
    assert "prompt: " in refusal(weights, "--model", "official", "--prompt", prompt)
    assert str(weights) in refusal(weights, "--load", weights, "--prompt", "a"), "a file instead of a folder"


FLAGS = ["--prompt", "a red circle", "--model", "official", "--output_path", "a.mp4", "--num_frames", 16]
IMAGE = ["--mode", "i2v", "--image_path", "a.png"]

#: Key of the folder, tensor, the part that is named, what is noticed where weights are not checked, flags.
NAN = [
    ("load", "layers.1.mlp.linear_fc1.weight", "transformer: ", "latents of chunk 0 after its step 0", []),
    ("t5_pretrained", "encoder.final_layer_norm.weight", "text_encoder: ", "text embeddings", []),
    ("vae_pretrained", "decoder.proj_in.weight", "vae: ", "frames from the VAE", []),
    ("vae_pretrained", "encoder.patch_embed.proj.weight", "vae: ", "latents of the given frames", IMAGE),
]


@pytest.mark.parametrize(("key", "tensor", "part", "noticed", "flags"), NAN)
def test_damaged_weights_are_named(front, weights, tmp_path, monkeypatch, capsys, key, tensor, part, noticed, flags):
    folder = Path(json.loads(weights.read_text())["runtime_config"][key])
    copy = with_nan(folder, tmp_path / "copy", tensor)
    Image.new("RGB", (32, 32), "red").save("a.png")

    def check(expected: str, *more) -> None:
        assert front("--config_file", weights, *FLAGS, f"--{key}", copy, *flags, *more) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and expected in error
        assert all(path.stem.endswith(".part") for path in Path.cwd().glob("*.mp4"))

    check(part)
    monkeypatch.setattr(model_source, "check_finite_weights", lambda components: None)
    check(noticed)
    check(noticed, "--resume")


LOGGER = "flowcache.prompts"


def test_a_benchmark_warns_once_of_a_kind(weights, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    program = Program(ROOT / "FlowCache4MAGI-1" / "sample_video.py", monkeypatch)
    (tmp_path / "scene.txt").write_text("a zebra\na lion\n")
    yaml = ROOT / "FlowCache4MAGI-1" / "yaml_config" / "sample" / "flowcache_vbench.yaml"
    flags = ["--config_file", weights, "--model", "official", "--gpus", "cpu", "--num_frames", 4]
    flags += ["--yaml_config", yaml, "--vbench_prompt_dir", tmp_path, "--dimension", "scene", "--samples", 1]
    assert program(*flags, "--base_save_path", "out", "--method", "vanilla") == 0
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert "zebra" in record.message
    traces = [Trace.load(path).settings["prompt_losses"] for path in sorted(tmp_path.glob("out/traces/*"))]
    assert traces == [{"prompt": {"unknown": ["lion"]}}, {"prompt": {"unknown": ["zebra"]}}]


QUICK = ["--num_frames", 16, "--method", "flowcache", "--preset", "turbo"]


@pytest.fixture
def quick(front, weights):
    """The program for a short video of the tiny checkpoint."""
    first = ["--config_file", weights, "--model", "official", "--prompt", "a", *QUICK]
    return lambda *words: front(*first, *words)


@pytest.fixture
def table(tmp_path):
    """The table of special tokens in its place in the official code, seen from the working folder."""
    path = tmp_path / "example" / "assets" / "special_tokens.npz"
    path.parent.mkdir(parents=True)
    rows = {"other_tokens": 100, "caption_token": 1, "logo_token": 1}
    np.savez(path, **{name: np.ones((count, 16)) for name, count in rows.items()})
    return path


def test_switches_need_no_value(front, quick, caplog):
    given = front.read("--log", "--print_peak_memory", "--log", "false")
    assert given.pick(("log", "print_peak_memory")) == {"log": False, "print_peak_memory": True}
    caplog.set_level("INFO")
    assert quick("--output_path", "a.mp4") == 0
    assert "special tokens: none" in caplog.text and "--special_tokens" in caplog.text


@pytest.mark.parametrize("how", ["flag", "variable", "official code"])
def test_the_usual_special_tokens_are_on_with_their_table(quick, table, monkeypatch, how):
    monkeypatch.setenv("PAD_STATIC", "y")
    words = ["--special_tokens", table.rename("t.npz")] if how == "flag" else []
    if how == "variable":
        monkeypatch.setenv("SPECIAL_TOKEN_PATH", str(table.rename("t.npz")))
    assert quick(*words, "--output_path", "a.mp4") == 0
    assert Trace.load("a.trace.json").settings["special_tokens"] == "static, high_quality, duration"


@pytest.mark.parametrize(
    ("words", "variables", "named"),
    [
        ([], {"RANK": "1", "WORLD_SIZE": "2"}, "WORLD_SIZE"),
        ([], {"PAD_HQ": "1"}, "SPECIAL_TOKEN_PATH"),
        (["--model", "small", "--special_tokens", "example/assets/special_tokens.npz"], {}, "special_tokens"),
    ],
)
def test_refusals(quick, table, monkeypatch, capsys, words, variables, named):
    monkeypatch.setattr("magi1.checkpoint.load_transformer", lambda *_: pytest.fail("weights were read"))
    if not words:
        table.unlink()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert quick(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
