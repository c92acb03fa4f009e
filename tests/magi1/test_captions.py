"""Captions with special tokens against the original's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cases import magi_case

from magi1.captions import CaptionSwitches, SpecialTokens, make_captions


def listed() -> list[dict]:
    case = magi_case("prompt_special_tokens")
    path = case.folder / "prompt_special_tokens.json"
    return json.loads(path.read_text())["cases"] if path.is_file() else [{"name": "absent"}]


@pytest.mark.parametrize("entry", listed(), ids=lambda entry: entry["name"])
def test_captions(entry):
    tensors, name = magi_case("prompt_special_tokens").tensors, entry["name"]
    table = SpecialTokens(
        *(tensors[f"table_{key}"].half().float() for key in ("other_tokens", "caption_token", "logo_token"))
    )
    switches = CaptionSwitches.from_environment(dict.fromkeys(entry["env"], "1"))
    given, total = entry["clean_chunk_num"], entry["infer_chunk_num"]
    caption = tensors["caption_embs"][0, 0, : tensors["emb_masks_valid"].item()]
    captions = make_captions(caption, tensors["null_emb"][0], total, given, switches, table)
    expected, mask = tensors[f"{name}_caption"][0], tensors[f"{name}_mask"][0].bool()
    for chunk in range(given, total):
        text = captions.texts[captions.of_chunk[chunk]]
        assert len(text) == entry["mask_sum_per_chunk"][chunk]
        assert torch.allclose(text, expected[chunk][mask[chunk]], atol=1e-6)
    null = tensors[f"{name}_null"][0, 0][tensors[f"{name}_null_mask"][0, 0].bool()]
    assert torch.allclose(captions.null, null, atol=1e-6)


def test_an_empty_caption_is_the_null_caption():
    null = torch.randn(60, 8)
    captions = make_captions(torch.zeros(0, 8), null, 3)
    assert torch.equal(captions.texts[0], captions.null)


def test_the_table_is_needed_only_when_a_token_is_asked_for(tmp_path):
    caption, null = torch.randn(4, 8), torch.randn(60, 8)
    make_captions(caption, null, 3)
    with pytest.raises(ValueError, match="no table of them"):
        make_captions(caption, null, 3, switches=CaptionSwitches(high_quality=True))
    with pytest.raises(ValueError, match=r"tokens\.npz cannot be used: .* No such file"):
        SpecialTokens.from_file(tmp_path / "tokens.npz")
    tables = {
        "other_tokens": np.ones((100, 8)),
        "caption_token": np.ones((1, 8)),
        "logo_token": np.ones((1, 8)),
    }
    np.savez(tmp_path / "tokens.npz", **tables)
    assert SpecialTokens.from_file(tmp_path / "tokens.npz").others.shape == (100, 8)


def test_equal_captions_are_one():
    caption, null = torch.randn(4, 8), torch.randn(60, 8)
    tokens = SpecialTokens(torch.randn(100, 8), torch.randn(1, 8), torch.randn(1, 8))
    same = make_captions(caption, null, 12, 2, CaptionSwitches(high_quality=True), tokens)
    assert len(same.texts) == 1 and same.of_chunk == [0] * 12
    timed = make_captions(caption, null, 14, 2, CaptionSwitches(duration=True), tokens)
    assert len(timed.texts) == 8
    assert timed.of_chunk == [0] * 7 + list(range(1, 8))
