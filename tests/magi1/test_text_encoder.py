"""The text encoder's loader."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

from magi1.text_encoder import T5_FOLDER, load_text_encoder

LAYER = "encoder.block.1.layer.0.layer_norm.weight"


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot be read as a text encoder"),
        (lambda path: path.write_bytes(b"short"), "t5-v1_1-xxl cannot be read"),
        (lambda path: edit(path, lambda t: t.pop("encoder.final_layer_norm.weight")), "lacks encoder.fi"),
        (
            lambda path: edit(path, lambda t: t.update({LAYER: t[LAYER.replace("1", "0", 1)].clone()})),
            "layer",
        ),
    ],
)
def test_wrong_weights_are_named(weights, tmp_path, spoil, message):
    t5 = shutil.copytree(weights.parent / "t5", tmp_path / "t5")
    tokenizer, encoder = load_text_encoder(t5)
    assert encoder(tokenizer("a red circle", return_tensors="pt").input_ids).last_hidden_state.shape[-1] == 16
    spoil(t5 / T5_FOLDER / "model.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        load_text_encoder(t5)
    assert "\n" not in str(raised.value)
