"""Muon: momentum whose update is made orthogonal, for matrices and convolution kernels."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for weights of two or more dimensions, flattened behind the first.

    Unlike ``torch.optim.Muon`` it takes convolution kernels, and iterates in fp32: bf16 is slow on many CPUs.

    The spectral norm of an update is about ``lr``; ``momentum`` is Nesterov's.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalize(weight.grad.lerp(mean, group["momentum"]).flatten(1))
                weight.add_(update.view_as(weight), alpha=-group["lr"])


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, about, by a quintic Newton-Schulz iteration; scaled to its shape."""
    rows, columns = matrix.shape
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if rows > columns else x
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if rows > columns else x) * max(1.0, rows / columns) ** 0.5


def find_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights for Muon; biases, norms, embeddings and single rows are left to AdamW."""
    layers = (child for child in module.modules() if isinstance(child, (nn.Linear, nn.Conv2d, nn.Conv3d)))
    parameters = (parameter for layer in layers for parameter in layer.parameters(recurse=False))
    return [p for p in parameters if p.ndim > 1 and min(p.shape[0], p[0].numel()) > 1]
