"""Fixtures of the Self-Forcing tests: a tiny base model of Wan, and checkpoints of the originals for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from layouts import write_original
from reference import Case, present, reference_dir

from flowcache.wan import conversion


@pytest.fixture(scope="session")
def folder() -> Path:
    return present(reference_dir() / "self_forcing")


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory) -> Iterator[Path]:
    """Folder of a tiny base model in the original layout."""
    weights = Case(folder, "weights")
    config, root = weights.info["config"], tmp_path_factory.mktemp("models")
    text = {"vocab_size": 6, "d_model": config["text_dim"], "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    width = config["in_dim"]
    vae = {"base_dim": 4, "z_dim": width, "latents_mean": [0.0] * width, "latents_std": [1.0] * width}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "UMT5_XXL", {**conversion.UMT5_XXL, **text})
        patch.setattr(conversion, "WAN_VAE", vae | {"num_res_blocks": 1})
        write_original(root / "base", weights)
        (root / "base" / "defaults.json").unlink()
        yield root / "base"


@pytest.fixture(scope="module")
def trained(folder, base) -> Path:
    """A checkpoint of the originals for it; the moving average has twice the weights."""
    tensors = Case(folder, "weights").tensors
    path = base.parent / "mine.pt"
    content = {"generator": tensors, "generator_ema": {key: 2 * tensor for key, tensor in tensors.items()}}
    prefixes = {"generator": "model.", "generator_ema": "model._fsdp_wrapped_module."}
    torch.save({k: {prefixes[k] + name: t for name, t in v.items()} for k, v in content.items()}, path)
    return path
