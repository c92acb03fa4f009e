"""The table of special tokens."""

from __future__ import annotations

import numpy as np
import pytest


def save_tokens(path, rows=100, channels=16, **changes):
    tables = {"other_tokens": np.ones((rows, channels))}
    tables |= {name: np.ones((1, channels)) for name in ("caption_token", "logo_token")}
    np.savez(path, **(tables | changes))


def test_special_tokens_need_their_table(prepared, front, weights, capsys, monkeypatch):
    asked = ["--config_file", weights, "--model", "official", "--prompt", "a"]
    monkeypatch.setenv("PAD_HQ", "1")
    assert front(*asked) == 2
    assert "SPECIAL_TOKEN_PATH" in capsys.readouterr().err
    save_tokens("t.npz")
    monkeypatch.setenv("SPECIAL_TOKEN_PATH", "t.npz")
    assert prepared().request.special_tokens.others.shape == (100, 16)
    monkeypatch.setenv("PAD_HQ", "maybe")
    assert front(*asked) == 2
    assert "PAD_HQ must be 1 or 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: save_tokens(path, rows=5), "other_tokens must have at least 17 rows"),
        (lambda path: save_tokens(path, channels=8), "the text encoder's 16 channels"),
        (lambda path: save_tokens(path, logo_token=np.ones(16)), "logo_token must have at least 1 rows"),
        (lambda path: save_tokens(path, logo_token=np.array(["x"])), "cannot be used"),
        (lambda path: np.save(path.open("wb"), np.ones((100, 16))), "no npz archive"),
        (lambda path: path.write_text("words"), "no npz archive"),
        (lambda path: path.write_bytes(b""), "cannot be used"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "cannot be used"),
    ],
)
def test_wrong_tables_of_special_tokens_are_refused(
    front, weights, capsys, monkeypatch, tmp_path, save, message
):
    monkeypatch.setenv("PAD_DURATION", "1")
    save(tmp_path / "t.npz")
    asked = ["--model", "official", "--special_tokens", "t.npz"]
    assert front("--config_file", weights, "--prompt", "a", *asked) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
