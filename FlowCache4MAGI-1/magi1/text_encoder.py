"""Loads the T5 text encoder and its tokenizer, strictly."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from flowcache.weights import check_float_folder

from .config_files import read_file

#: Where, inside the folder that ``t5_pretrained`` names, the official one lies.
T5_FOLDER = "t5-v1_1-xxl"

#: Either tells the words; without one, a tokenizer would be made that knows none.
_VOCABULARIES = ("spiece.model", "tokenizer.json")


def check_text_encoder(t5_pretrained: str | Path, width: int) -> None:
    """See that a folder holds a T5 of the wanted width and its tokenizer; reads no weights.

    Args:
        t5_pretrained: the folder around the encoder's.
        width: channels of a caption token.

    Raises:
        ValueError: a file is missing, or the encoder is another one.
    """
    folder = Path(t5_pretrained).expanduser() / T5_FOLDER
    if not (folder / "config.json").is_file():
        raise ValueError(f"t5_pretrained names {t5_pretrained}, which has no {T5_FOLDER}/config.json.")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise ValueError(f"t5_pretrained: {folder} lacks the tokenizer, {' or '.join(_VOCABULARIES)}.")
    found = read_file(folder / "config.json", json.loads, "JSON").get("d_model")
    if found != width:
        raise ValueError(
            f"t5_pretrained names a text encoder whose d_model is {found}; this model's caption_channels are "
            f"{width}."
        )


def load_text_encoder(t5_pretrained: str | Path) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    """Tokenizer and encoder, in fp32.

    Raises:
        ValueError: a file is missing or corrupt, or a tensor is missing, misshapen or of integers.
    """
    folder = Path(t5_pretrained).expanduser() / T5_FOLDER
    try:
        check_float_folder(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder, report = T5EncoderModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many kinds: the libraries' and those of the formats
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ValueError(f"t5_pretrained: {folder} cannot be read: {reason}.") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"t5_pretrained: {folder} lacks {missing[0]} ({len(missing)} missing in all).")
    return tokenizer, encoder.eval()
