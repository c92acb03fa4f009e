"""Names and shapes of weights, as files of the original layout hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


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


def wan_vae_names() -> Iterator[str]:
    """Names in ``Wan2.1_VAE.pth``: encoder, decoder, and the two convolutions between them."""

    def conv(*stems: str) -> list[str]:
        return [f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")]

    def residual(stem: str, shortcut: bool = False) -> list[str]:
        norms = [f"{stem}.residual.{i}.gamma" for i in (0, 3)]
        return [
            *norms,
            *conv(f"{stem}.residual.2", f"{stem}.residual.6"),
            *conv(*[f"{stem}.shortcut"] * shortcut),
        ]

    def coder(
        name: str, body: str, residuals: set[int], shortcuts: set[int], timed: set[int]
    ) -> Iterator[str]:
        yield from conv(f"{name}.conv1", f"{name}.head.2", f"{name}.middle.1.to_qkv", f"{name}.middle.1.proj")
        yield from (f"{name}.head.0.gamma", f"{name}.middle.1.norm.gamma")
        yield from (*residual(f"{name}.middle.0"), *residual(f"{name}.middle.2"))
        for i in range(max(residuals) + 1):
            stem = f"{name}.{body}.{i}"
            if i in residuals:
                yield from residual(stem, i in shortcuts)
            else:
                yield from conv(f"{stem}.resample.1", *[f"{stem}.time_conv"] * (i in timed))

    yield from conv("conv1", "conv2")
    yield from coder("encoder", "downsamples", {0, 1, 3, 4, 6, 7, 9, 10}, {3, 6}, {5, 8})
    yield from coder("decoder", "upsamples", {*range(15)} - {3, 7, 11}, {4}, {3, 7})
