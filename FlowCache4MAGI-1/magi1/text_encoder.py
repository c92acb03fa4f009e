"""Loads the T5 text encoder and its tokenizer, strictly."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from flowcache.model_files import check_vocabulary, load_tokenizer, read_config, read_header
from flowcache.user_files import reading

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
        ValueError: a file is missing or damaged, or the encoder is another one.
    """
    folder = Path(t5_pretrained).expanduser() / T5_FOLDER
    if not (folder / "config.json").is_file():
        raise ValueError(f"t5_pretrained names {t5_pretrained}, which has no {T5_FOLDER}/config.json.")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise ValueError(f"t5_pretrained: {folder} lacks the tokenizer, {' or '.join(_VOCABULARIES)}.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ValueError(
            f"t5_pretrained: {folder} lacks the weights, model.safetensors or pytorch_model.bin."
        )
    read_config(folder / "config.json", {"model_type": ""})
    with reading(folder / "config.json", "a configuration"), torch.device("meta"):
        config = T5Config.from_pretrained(folder, local_files_only=True)
        known = T5EncoderModel(config).state_dict()
    if config.d_model != width:
        raise ValueError(
            f"t5_pretrained names a text encoder whose d_model is {config.d_model}; this model's "
            f"caption_channels are {width}."
        )
    check_vocabulary(load_tokenizer(folder), config.vocab_size, folder)
    # PyTorch's older format has no header.
    for path in [*folder.glob("*.safetensors"), *filter(zipfile.is_zipfile, folder.glob("*.bin"))]:
        _check_layers(path, read_header(path).keys() - known.keys())


def load_text_encoder(t5_pretrained: str | Path) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    """Tokenizer and encoder, in fp32.

    Raises:
        ValueError: a file is missing or corrupt, or a tensor is missing or misshapen.
    """
    folder = Path(t5_pretrained).expanduser() / T5_FOLDER
    tokenizer = load_tokenizer(folder)
    with reading(folder, "a text encoder"):
        encoder, report = T5EncoderModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    missing = sorted(report["missing_keys"])
    _check_layers(folder, report["unexpected_keys"])
    if missing:
        raise ValueError(f"t5_pretrained: {folder} lacks {missing[0]} ({len(missing)} missing in all).")
    return tokenizer, encoder.eval()


def _check_layers(path: Path, unknown: Collection[str]) -> None:
    """Refuse tensors of layers that the configuration leaves out; those of a decoder are not needed."""
    layers = sorted(name for name in unknown if name.startswith("encoder.block."))
    if layers:
        raise ValueError(f"t5_pretrained: {path} holds {layers[0]}, for which config.json has no layer.")
