"""Damaged files of a model folder are named by the program before any weight is read."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from programs import Program
from reference import ROOT
from safetensors.torch import load_file, save_file

from skyreels_v2 import adapter

VAE, TEXT, TRANSFORMER = "vae/config.json", "text_encoder/config.json", "transformer/config.json"
TOKENIZER, SCHEDULER = "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"
TOKENIZER_CONFIG, DEFAULTS = "tokenizer/tokenizer_config.json", "defaults.json"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"

CONTENTS = [
    *((name, b"") for name in (TOKENIZER, TOKENIZER_CONFIG, VAE, TEXT, TRANSFORMER, SCHEDULER, DEFAULTS)),
    (TOKENIZER, b"{}"),
    (TOKENIZER_CONFIG, b"[]"),
    ("model_index.json", b"5"),
    (DEFAULTS, b"[" * 10**5),
    (VAE, b"\xff\xfe"),
    ("text_encoder/model.safetensors", b"\xff" * 64),
]

#: Wrong values by file and key; `damage` puts each into a folder that is whole otherwise.
VALUES = [
    (VAE, "base_dim", 10**12),
    (VAE, "dim_mult", [10**9]),
    (VAE, "num_res_blocks", 10**9),
    (VAE, "z_dim", "16"),
    (VAE, "latents_mean", [0.0]),
    (VAE, "latents_std", ["one"] * 4),
    (VAE, "scale_factor_spatial", 0),
    (VAE, "in_channels", 5),
    (VAE, "patch_size", 0),
    (TRANSFORMER, "num_layers", 10**9),
    (TRANSFORMER, "num_attention_heads", -1),
    (TRANSFORMER, "eps", float("nan")),
    (TRANSFORMER, "eps", -1),
    (TRANSFORMER, "patch_size", [2, 2, 2]),
    (TRANSFORMER, "cross_attn_norm", "yes"),
    (TEXT, "num_layers", 10**9),
    (TEXT, "num_hidden_layers", 10**9),
    (TEXT, "vocab_size", 3),
    (TEXT, "d_model", [16]),
    (TEXT, "model_type", [1]),
    (SCHEDULER, "num_train_timesteps", 10**15),
    (SCHEDULER, "flow_shift", "8"),
    ("model_index.json", "_class_name", ["SkyReelsV2Pipeline"]),
    (TOKENIZER_CONFIG, "model_max_length", "long"),
    (TOKENIZER_CONFIG, "auto_map", {"AutoTokenizer": ["a.B", None]}),
    (TOKENIZER_CONFIG, "tokenizer_class", 5),
    (DEFAULTS, "prompt", 5),
    (DEFAULTS, "fps", "24"),
    (DEFAULTS, "height", 33),
    (DEFAULTS, "reuse_coefficients", "steep"),
    (INDEX, "weight_map", {"proj_out.weight": 5}),
    (INDEX, "weight_map", [5]),
]


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A copy of a whole model folder."""
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    (copy / DEFAULTS).write_text("{}")
    return copy


@pytest.fixture
def refusal(folder, monkeypatch, tmp_path, capsys):
    """Run the program on the folder; returns the one line in which it refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    program = Program(ROOT / "FlowCache4SkyReels-V2" / "generate_video_df.py", monkeypatch)

    def run() -> str:
        started = time.monotonic()
        assert program("--model_id", folder, "--height", 32, "--width", 32, "--prompt", "a") == 2
        assert time.monotonic() - started < 10
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


@pytest.mark.parametrize(("name", "content"), CONTENTS, ids=[f"{name}-{c[:2]}" for name, c in CONTENTS])
def test_a_damaged_file_is_named(folder, refusal, name, content):
    (folder / name).write_bytes(content)
    assert str(folder / name) in refusal()


@pytest.mark.parametrize(("name", "key", "value"), VALUES, ids=[f"{n}-{k}-{v!s:.9}" for n, k, v in VALUES])
def test_a_wrong_value_is_named(folder, refusal, name, key, value):
    path, weights = folder / name, folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if name == INDEX:
        weights.rename(weights.with_name("a.safetensors"))
    content = json.loads(path.read_text()) if path.exists() else {}
    if key == "auto_map":
        del content["tokenizer_class"]  # one that the library knows would be taken in its place
    path.write_text(json.dumps({**content, key: value}))
    assert str(folder) in refusal()


def test_a_tokenizer_model_that_is_damaged_is_named(folder, refusal):
    (folder / TOKENIZER).unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"no model")
    (folder / TOKENIZER_CONFIG).write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    assert "spiece.model" in refusal()


def test_integers_are_no_weights(folder, refusal):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.to(torch.int32) for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    assert str(path) in refusal()
