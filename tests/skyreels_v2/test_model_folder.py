"""Damaged files of a model folder are named before any weight is read."""

import json
import shutil
from pathlib import Path

import pytest

from skyreels_v2.checkpoint import resolve_model

VAE, TEXT, TRANSFORMER = "vae/config.json", "text_encoder/config.json", "transformer/config.json"
TOKENIZER, SCHEDULER = "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"
TOKENIZER_CONFIG, DEFAULTS = "tokenizer/tokenizer_config.json", "defaults.json"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"

CONTENTS = [
    *((name, b"") for name in (TOKENIZER, VAE, TEXT, SCHEDULER)),
    (TOKENIZER, b"{}"),
    (TOKENIZER_CONFIG, b"[]"),
    ("model_index.json", b"5"),
    (DEFAULTS, b"[" * 10**5),
    (VAE, b"\xff\xfe"),
    ("text_encoder/model.safetensors", b"\xff" * 64),
]

#: Wrong values by file and key; each is put into a folder that is whole otherwise.
VALUES = [
    (VAE, "dim_mult", [10**9]),
    (VAE, "z_dim", "16"),
    (VAE, "patch_size", 0),
    (TRANSFORMER, "_class_name", "WanTransformer3DModel"),
    (TRANSFORMER, "eps", float("nan")),
    (TRANSFORMER, "patch_size", [2, 2, 2]),
    (TEXT, "vocab_size", 3),
    (SCHEDULER, "num_train_timesteps", 10**15),
    ("model_index.json", "_class_name", "SkyReelsV2ImageToVideoPipeline"),
    (TOKENIZER_CONFIG, "auto_map", {"AutoTokenizer": ["a.B", None]}),
    (DEFAULTS, "height", 33),
    (DEFAULTS, "reuse_coefficients", "steep"),
    (INDEX, "weight_map", {"proj_out.weight": 5}),
]


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    return shutil.copytree(checkpoint, tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        resolve_model(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "content"), CONTENTS, ids=[f"{name}-{c[:2]}" for name, c in CONTENTS])
def test_a_damaged_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize(("name", "key", "value"), VALUES, ids=[f"{n}-{k}-{v!s:.9}" for n, k, v in VALUES])
def test_a_wrong_value_is_named(folder, name, key, value):
    path, weights = folder / name, folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if name == INDEX:
        weights.rename(weights.with_name("a.safetensors"))
    content = json.loads(path.read_text()) if path.exists() else {}
    if key == "auto_map":
        del content["tokenizer_class"]  # one that the library knows would be taken in its place
    path.write_text(json.dumps({**content, key: value}))
    assert str(folder) in refusal(folder)


def test_a_damaged_tokenizer_model_is_named(folder):
    (folder / TOKENIZER).unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"no model")
    (folder / TOKENIZER_CONFIG).write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    assert "spiece.model" in refusal(folder)
