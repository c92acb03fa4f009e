"""Damaged files of MAGI-1's folders are named by the program before any weight is read."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from programs import Program
from reference import ROOT

from magi1 import adapter
from magi1.text_encoder import T5_FOLDER

VAE, TEXT = "vae/config.json", f"t5/{T5_FOLDER}/config.json"
TOKENIZER, TOKENIZER_CONFIG = f"t5/{T5_FOLDER}/tokenizer.json", f"t5/{T5_FOLDER}/tokenizer_config.json"
WEIGHTS = "magi/inference_weight.distill/model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

CONTENTS = [
    *((name, b"") for name in (TOKENIZER, TOKENIZER_CONFIG, VAE, TEXT, INDEX, WEIGHTS)),
    (TOKENIZER, b"{}"),
    (TOKENIZER_CONFIG, b"[" * 10**5),
    (WEIGHTS, b"\xff" * 64),
    ("vae/diffusion_pytorch_model.safetensors", b"short"),
    (f"t5/{T5_FOLDER}/model.safetensors", b"short"),
]

VALUES = [
    (VAE, "depth", 10**9),
    (VAE, "depth", 1e300),
    (VAE, "embed_dim", 2**62),
    (VAE, "video_size", 10**9),
    (VAE, "mlp_ratio", 1e300),
    (VAE, "num_heads", "two"),
    (VAE, "ddconfig", {"depth": 10**9}),
    (TEXT, "num_layers", 10**9),
    (TEXT, "num_layers", 0),
    (TEXT, "dense_act_fn", "x"),
    (TEXT, "relative_attention_max_distance", 0),
    (TEXT, "vocab_size", 3),
    (TEXT, "d_model", "16"),
    (TOKENIZER_CONFIG, "model_max_length", -5),
    (TOKENIZER_CONFIG, "auto_map", {"AutoTokenizer": ["a.B", None]}),
    (INDEX, "weight_map", {"rope.bands": 5}),
]


@pytest.fixture
def folder(weights, tmp_path):
    """A copy of the folders of weights."""
    return shutil.copytree(weights.parent, tmp_path / "model")


@pytest.fixture
def program(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    return Program(ROOT / "FlowCache4MAGI-1" / "generate_video.py", monkeypatch)


@pytest.fixture
def refusal(folder, program, capsys):
    """Run the program on the folders; returns the one line in which it refuses."""

    def run() -> str:
        started = time.monotonic()
        flags = ["--load", folder / "magi", "--vae_pretrained", folder / "vae"]
        flags += ["--t5_pretrained", folder / "t5", "--prompt", "a"]
        assert program("--config_file", folder / "config.json", *flags) == 2
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
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    if key == "auto_map":
        del content["tokenizer_class"]  # one that the library knows would be taken in its place
    path.write_text(json.dumps({**content, key: value}))
    assert str(folder) in refusal()


def test_a_file_in_the_place_of_a_folder_is_named(weights, program, capsys):
    assert program("--config_file", weights, "--load", weights, "--prompt", "a") == 2
    assert str(weights) in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["一只猫", "一只猫在跑。", "https://example.com/a.png"])
def test_a_prompt_that_the_cleaning_removes_is_refused(program, weights, capsys, prompt):
    assert program("--config_file", weights, "--model", "official", "--prompt", prompt) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "prompt: " in line and prompt in line
