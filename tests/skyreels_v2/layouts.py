"""A whole tiny model folder in the original layout, and changes of its files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from reference import Case
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache
from flowcache.wan import conversion
from flowcache.wan.conversion import text_encoder_key

SHARD = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
DIFFUSERS_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def on_meta(kind: type[nn.Module], *args: Any, **sizes: Any) -> nn.Module:
    with torch.device("meta"):
        return kind(*args, **sizes)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def wan_t5_names(layers: int) -> Iterator[str]:
    """Names in Wan's file of the umT5 encoder, all ``.weight``."""
    yield from ("token_embedding.weight", "norm.weight")
    inner = ("norm1", "norm2", "pos_embedding.embedding", "ffn.gate.0", "ffn.fc1", "ffn.fc2")
    for block in range(layers):
        yield from (f"blocks.{block}.{part}.weight" for part in (*inner, *(f"attn.{p}" for p in "qkvo")))


def random_text_encoder() -> dict[str, Tensor]:
    """Weights of the text encoder under Wan's names."""
    text = shapes(on_meta(UMT5EncoderModel, UMT5Config(**conversion.UMT5_XXL)))
    names = wan_t5_names(conversion.UMT5_XXL["num_layers"])
    return {name: torch.randn(text[text_encoder_key(name)]).bfloat16() for name in names}


def write_original(folder: Path, weights: Case) -> None:
    """The original layout with the reference transformer in two shards, and a random encoder and VAE."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(weights.info["config"]))
    items = sorted(weights.tensors.items())
    for number, part in ((1, items[::2]), (2, items[1::2])):
        save_file(dict(part), folder / SHARD.format(number))
    torch.manual_seed(0)
    torch.save(random_text_encoder(), folder / conversion.TEXT_ENCODER_FILE)
    vae = AutoencoderKLWan(**conversion.WAN_VAE).state_dict()
    torch.save(dict(vae), folder / conversion.VAE_FILE, _use_new_zipfile_serialization=False)
    tiny_tokenizer().save_pretrained(folder / "google" / "umt5-xxl")
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


def run_blocks(model, latents: Tensor, times: list[float], block: int, at_once: bool = True) -> Tensor:
    """Velocity of latents cut into blocks, which run in one call or one after another through a cache."""
    inputs = [
        ChunkInput(i, start, latents[:, start : start + block], tuple(times[start : start + block]))
        for i, start in enumerate(range(0, latents.shape[1], block))
    ]
    cache, velocities = ChunkKVCache(model.cache_layout(), model.num_tokens(latents.shape[1])), []
    for batch in [inputs] if at_once else [[item] for item in inputs]:
        for item in batch:
            cache.enter(item.chunk, model.num_tokens(len(item.timesteps)))
        velocities += model.head(batch, model.blocks(batch, model.embed(batch), cache))
    return torch.cat(velocities, dim=1)
