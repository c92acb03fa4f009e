"""The text encoder's loader, and what it says of folders that are wrong."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi1.text_encoder import T5_FOLDER, check_text_encoder, load_text_encoder

WIDTH = 16
LAYER = "encoder.block.0.layer.0.layer_norm.weight"


@pytest.fixture
def t5(weights, tmp_path):
    """A folder of a text encoder, to be spoilt."""
    shutil.copytree(weights.parent / "t5", tmp_path / "t5")
    return tmp_path / "t5"


def edit(folder, change):
    """Change the tensors of the encoder's file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def as_integers(folder):
    edit(folder, lambda tensors: tensors.update({LAYER: tensors[LAYER].int()}))


def as_bin_of_integers(folder):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors | {LAYER: tensors[LAYER].int()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_tokenizer_and_encoder(t5):
    check_text_encoder(t5, WIDTH)
    tokenizer, encoder = load_text_encoder(t5)
    words = tokenizer("a red circle", return_tensors="pt").input_ids
    assert encoder(words).last_hidden_state.shape[-1] == WIDTH
    assert not encoder.training


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no t5-v1_1-xxl/config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "lacks the tokenizer, spiece.model or"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"d_model": 32})),
            "d_model is 32; this model's caption_channels are 16",
        ),
        (as_integers, f"{LAYER}: expected floating-point numbers"),
        (as_bin_of_integers, f"{LAYER}: expected floating-point numbers"),
    ],
)
def test_wrong_folders_are_refused_before_weights_are_read(t5, spoil, message):
    spoil(t5 / T5_FOLDER)
    with pytest.raises(ValueError, match=message):
        check_text_encoder(t5, WIDTH)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "cannot be read as a text encoder: Error no file",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "t5-v1_1-xxl cannot be read"),
        (
            lambda folder: edit(folder, lambda t: t.pop("encoder.final_layer_norm.weight")),
            "lacks encoder.final",
        ),
        (
            lambda folder: edit(folder, lambda t: t.update({LAYER.replace("0", "1", 1): t[LAYER].clone()})),
            "for which config.json has no layer",
        ),
    ],
)
def test_wrong_weights_are_named(t5, spoil, message):
    spoil(t5 / T5_FOLDER)
    with pytest.raises(ValueError, match=message) as raised:
        load_text_encoder(t5)
    assert "\n" not in str(raised.value)
