"""Loads the T5 text encoder and its tokenizer, strictly; errors as in ``checkpoint``."""

import zipfile
from collections.abc import Collection
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from flowcache.model_files import check_vocabulary, load_tokenizer, read_config, read_header
from flowcache.user_files import reading

from .config import MagiConfig

#: The official encoder's folder, inside the one that ``t5_pretrained`` names.
T5_FOLDER = "t5-v1_1-xxl"

#: Files with the vocabulary, without which transformers would make a tokenizer that knows no word.
_VOCABULARIES = ("spiece.model", "tokenizer.json")


#: Sizes of the official encoder.
_T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


def new_text_encoder(t5_pretrained: Path | None) -> T5EncoderModel:
    """The text encoder of a folder, or the official one, on the meta device."""
    with torch.device("meta"):
        if t5_pretrained is None:
            return T5EncoderModel(T5Config(**_T5_XXL, feed_forward_proj="gated-gelu"))
        return T5EncoderModel(T5Config.from_pretrained(t5_pretrained / T5_FOLDER, local_files_only=True))


def check_text_encoder(t5_pretrained: Path, config: MagiConfig) -> None:
    """Refuse a folder without a T5 as wide as the captions and its tokenizer; reads no weights."""
    folder, width = t5_pretrained / T5_FOLDER, config.model_config.caption_channels
    if not (folder / "config.json").is_file():
        raise ValueError(f"t5_pretrained names {t5_pretrained}, which has no {T5_FOLDER}/config.json.")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise ValueError(f"t5_pretrained: {folder} lacks the tokenizer, {' or '.join(_VOCABULARIES)}.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ValueError(f"t5_pretrained: {folder} lacks the weights, model.safetensors or pytorch_model.bin.")
    read_config(folder / "config.json", {"model_type": ""})
    with reading(folder / "config.json", "a configuration"):
        encoder = new_text_encoder(t5_pretrained)
    sizes, known = encoder.config, encoder.state_dict()
    if sizes.d_model != width:
        raise ValueError(
            f"t5_pretrained: expected d_model {width}, as caption_channels, got {sizes.d_model} in {folder}."
        )
    check_vocabulary(load_tokenizer(folder), sizes.vocab_size, folder)
    # PyTorch's older format has no header.
    for path in [*folder.glob("*.safetensors"), *filter(zipfile.is_zipfile, folder.glob("*.bin"))]:
        _check_layers(path, read_header(path).keys() - known.keys())


def load_text_encoder(t5_pretrained: Path) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    folder = t5_pretrained / T5_FOLDER
    tokenizer = load_tokenizer(folder)
    with reading(folder, "a text encoder"):
        encoder, report = T5EncoderModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    _check_layers(folder, report["unexpected_keys"])
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"t5_pretrained: {folder} lacks {missing[0]} ({len(missing)} missing in all).")
    return tokenizer, encoder.eval()


def _check_layers(path: Path, unknown: Collection[str]) -> None:
    """Refuse tensors of layers that ``config.json`` leaves out; a decoder's are not needed."""
    if layers := sorted(name for name in unknown if name.startswith("encoder.block.")):
        raise ValueError(f"t5_pretrained: {path} holds {layers[0]}, for which config.json has no layer.")
