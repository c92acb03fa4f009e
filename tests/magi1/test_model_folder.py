"""Damaged files of MAGI-1's folders are named by the program before any weight is read."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save

from magi1 import model_source
from magi1.text_encoder import T5_FOLDER

VAE, TEXT = "vae/config.json", f"t5/{T5_FOLDER}/config.json"
TOKENIZER, TOKENIZER_CONFIG = f"t5/{T5_FOLDER}/tokenizer.json", f"t5/{T5_FOLDER}/tokenizer_config.json"
WEIGHTS = "magi/inference_weight.distill/model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

#: A file and its content (None: missing), new values of its keys, or a change of its tensors.
DAMAGE = [
    *((name, b"") for name in (TOKENIZER, TOKENIZER_CONFIG, VAE, TEXT, INDEX, WEIGHTS)),
    (TOKENIZER, b"{}"),
    (TOKENIZER_CONFIG, b"[" * 10**5),
    (WEIGHTS, b"\xff" * 64),
    ("vae/diffusion_pytorch_model.safetensors", b"short"),
    (f"t5/{T5_FOLDER}/model.safetensors", b"short"),
    *((name, None) for name in (VAE, TEXT, TOKENIZER, WEIGHTS, f"t5/{T5_FOLDER}/model.safetensors")),
    ("vae/diffusion_pytorch_model.safetensors", torch.Tensor.int),
    (f"t5/{T5_FOLDER}/model.safetensors", torch.Tensor.int),
    (TEXT, {"d_model": 32}),
    *((VAE, {"depth": size}) for size in (10**9, 1e300)),
    (VAE, {"embed_dim": 2**62}),
    (VAE, {"video_size": 10**9}),
    (VAE, {"num_heads": "two"}),
    (VAE, {"ddconfig": {"depth": 10**9}}),
    *((TEXT, {"num_layers": count}) for count in (10**9, 0)),
    (TEXT, {"dense_act_fn": "x"}),
    (TEXT, {"relative_attention_max_distance": 0}),
    (TEXT, {"vocab_size": 3}),
    (TOKENIZER_CONFIG, {"model_max_length": -5}),
    (TOKENIZER_CONFIG, {"auto_map": {"AutoTokenizer": ["a.B", None]}, "tokenizer_class": None}),
    (INDEX, {"weight_map": {"rope.bands": 5}}),
]


@pytest.fixture
def refusal(front, monkeypatch, capsys):
    """Run the program on folders; returns the one line in which it refuses them."""
    monkeypatch.setattr(model_source, "load_transformer", lambda *_: pytest.fail("weights were read"))
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


def test_a_file_in_the_place_of_a_folder_is_named(weights, refusal):
    assert str(weights) in refusal(weights, "--load", weights, "--prompt", "a")


@pytest.mark.parametrize("prompt", ["一只猫在跑。", "https://example.com/a.png"])
def test_a_prompt_that_the_cleaning_removes_is_refused(weights, refusal, prompt):
    line = refusal(weights, "--model", "official", "--prompt", prompt)
    assert "prompt: " in line and prompt in line
