"""A whole tiny model folder in the original layout, and changes of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from names import on_meta, shapes, wan_t5_names, wan_vae_names
from reference import Case
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from skyreels_v2 import conversion
from skyreels_v2.conversion import text_encoder_key, vae_key

SHARD = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
DIFFUSERS_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def write_tokenizer(folder: Path) -> None:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "circle": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_original(folder: Path, weights: Case) -> None:
    """The original layout with the reference transformer in two shards, and a random encoder and VAE."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(weights.info["config"]))
    items = sorted(weights.tensors.items())
    for number, part in ((1, items[::2]), (2, items[1::2])):
        save_file(dict(part), folder / SHARD.format(number))
    text = shapes(on_meta(UMT5EncoderModel, UMT5Config(**conversion.UMT5_XXL)))
    vae = shapes(on_meta(AutoencoderKLWan, **conversion.WAN_VAE))
    layers = conversion.UMT5_XXL["num_layers"]
    torch.manual_seed(0)
    t5 = {name: torch.randn(text[text_encoder_key(name)]).bfloat16() for name in wan_t5_names(layers)}
    torch.save(t5, folder / conversion.TEXT_ENCODER_FILE)
    wan = {name: torch.randn(vae[vae_key(name)]) for name in wan_vae_names()}
    torch.save(wan, folder / conversion.VAE_FILE, _use_new_zipfile_serialization=False)
    write_tokenizer(folder / "google" / "umt5-xxl")
    (folder / "defaults.json").write_text('{"height": 64}')


def change(path: Path, edit: Callable[[dict[str, Tensor]], None]) -> str:
    """Edit the tensors of a file; returns the name of its first tensor as it was."""
    safe = path.suffix == ".safetensors"
    tensors = load_file(path) if safe else torch.load(path, weights_only=True)
    first = min(tensors)
    edit(tensors)
    if safe:
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
    return first


def drop_first(tensors: dict[str, Tensor]) -> None:
    del tensors[min(tensors)]
