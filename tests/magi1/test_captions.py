"""Captions with special tokens against the original's, and their tables."""

import numpy as np
import pytest
import torch
from cases import magi_case

from magi1.captions import CaptionSwitches, SpecialTokens, make_captions


def test_captions():
    case, keys = magi_case("prompt_special_tokens"), ("other_tokens", "caption_token", "logo_token")
    tensors = case.tensors
    table = SpecialTokens(*(tensors[f"table_{key}"].half().float() for key in keys))
    caption = tensors["caption_embs"][0, 0, : tensors["emb_masks_valid"].item()]
    for entry in case.info["cases"]:
        name, given, total = entry["name"], entry["clean_chunk_num"], entry["infer_chunk_num"]
        switches = CaptionSwitches.from_environment(dict.fromkeys(entry["env"], "1"))
        captions = make_captions(caption, tensors["null_emb"][0], total, given, switches, table)
        expected, mask = tensors[f"{name}_caption"][0], tensors[f"{name}_mask"][0].bool()
        for chunk in range(given, total):
            text = captions.texts[captions.of_chunk[chunk]]
            assert len(text) == entry["mask_sum_per_chunk"][chunk], name
            assert torch.allclose(text, expected[chunk][mask[chunk]], atol=1e-6), name
        null = tensors[f"{name}_null"][0, 0][tensors[f"{name}_null_mask"][0, 0].bool()]
        assert torch.allclose(captions.null, null, atol=1e-6), name


def test_equal_captions_are_one():
    caption, null = torch.randn(4, 8), torch.randn(60, 8)
    empty = make_captions(torch.zeros(0, 8), null, 3)
    assert torch.equal(empty.texts[0], empty.null)
    tokens = SpecialTokens(torch.randn(100, 8), torch.randn(1, 8), torch.randn(1, 8))
    same = make_captions(caption, null, 12, 2, CaptionSwitches(high_quality=True), tokens)
    assert len(same.texts) == 1 and same.of_chunk == [0] * 12
    timed = make_captions(caption, null, 14, 2, CaptionSwitches(duration=True), tokens)
    assert len(timed.texts) == 8
    assert timed.of_chunk == [0] * 7 + list(range(1, 8))
    assert CaptionSwitches(high_quality=True, duration=True, negative=True).num_tokens == 2
    with pytest.raises(ValueError, match="special_tokens"):
        make_captions(caption, null, 3, switches=CaptionSwitches(high_quality=True))


def save_tokens(path, rows=100, **changes):
    tables = {"other_tokens": np.ones((rows, 16)), "caption_token": np.ones((1, 16))}
    np.savez(path, **(tables | {"logo_token": np.ones((1, 16))} | changes))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: save_tokens(path, rows=5), "other_tokens"),
        (lambda path: save_tokens(path, other_tokens=np.ones((100, 8))), r"\[17 or more, 16\]"),
        (lambda path: save_tokens(path, logo_token=np.ones(16)), "logo_token"),
        (lambda path: save_tokens(path, logo_token=np.array(["x"])), "special_tokens"),
        (lambda path: np.save(path.open("wb"), np.ones((100, 16))), "no npz archive"),
        (lambda path: path.write_bytes(b""), "special_tokens"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "special_tokens"),
    ],
)
def test_tables_of_special_tokens(tmp_path, save, message):
    path = tmp_path / "t.npz"
    save(path)
    with pytest.raises(ValueError, match=message) as raised:
        SpecialTokens.from_file(path, 16)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    save_tokens(path)
    assert SpecialTokens.from_file(path, 16).others.shape == (100, 16)
