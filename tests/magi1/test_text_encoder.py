"""The text encoder's loader, and its errors for wrong folders."""

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
    return shutil.copytree(weights.parent / "t5", tmp_path / "t5")


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


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
        (lambda folder: (folder / "tokenizer.json").unlink(), "lacks the tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks the weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"d_model": 32})), "16.*got 32"),
        (lambda folder: edit(folder, lambda t: t.update({LAYER: t[LAYER].int()})), f"{LAYER}: expected"),
        (as_bin_of_integers, f"{LAYER}: expected"),
    ],
)
def test_wrong_folders_are_refused_before_weights_are_read(t5, spoil, message):
    spoil(t5 / T5_FOLDER)
    with pytest.raises(ValueError, match=message):
        check_text_encoder(t5, WIDTH)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read as a text encoder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "t5-v1_1-xxl cannot be read"),
        (lambda folder: edit(folder, lambda t: t.pop("encoder.final_layer_norm.weight")), "lacks encoder.fi"),
        (
            lambda folder: edit(folder, lambda t: t.update({LAYER.replace("0", "1", 1): t[LAYER].clone()})),
            "config.json has no layer",
        ),
    ],
)
def test_wrong_weights_are_named(t5, spoil, message):
    spoil(t5 / T5_FOLDER)
    with pytest.raises(ValueError, match=message) as raised:
        load_text_encoder(t5)
    assert "\n" not in str(raised.value)
