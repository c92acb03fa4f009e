"""Loads the T5 text encoder and its tokenizer, strictly; errors as in ``checkpoint``."""

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from flowcache.model_files import can_map, check_vocabulary, load_tokenizer, read_config, read_tensors
from flowcache.user_files import reading

from .config import MagiConfig

#: The official encoder's folder, inside the one that ``t5_pretrained`` names.
T5_FOLDER = "t5-v1_1-xxl"

#: Of each of these, one file is needed; without a vocabulary, transformers would make a tokenizer that knows no word.
_NEEDED = (("config.json",), ("spiece.model", "tokenizer.json"), ("*.safetensors", "*.bin"))


def check_text_encoder(t5_pretrained: Path, config: MagiConfig) -> None:
    """Refuse a folder without a T5 as wide as the captions and its tokenizer; reads no weights."""
    folder, width = t5_pretrained / T5_FOLDER, config.model_config.caption_channels
    for names in _NEEDED:
        if not any(path for name in names for path in folder.glob(name)):
            raise ValueError(f"t5_pretrained: {folder} lacks {' or '.join(names)}.")
    read_config(folder / "config.json", {"model_type": ""})
    with reading(folder / "config.json", "a configuration"), torch.device("meta"):
        sizes = T5Config.from_pretrained(folder, local_files_only=True)
        known = T5EncoderModel(sizes).state_dict()
    if sizes.d_model != width:
        raise ValueError(
            f"t5_pretrained: expected d_model {width}, as caption_channels, got {sizes.d_model} in {folder}."
        )
    check_vocabulary(load_tokenizer(folder), sizes.vocab_size, folder)
    for path in filter(can_map, [*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        _check_layers(path, read_tensors(path).keys() - known.keys())


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
