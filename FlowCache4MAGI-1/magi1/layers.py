"""Small layers of MAGI-1's transformer, and its rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class OffsetLayerNorm(nn.Module):
    """Layer norm in fp32 whose stored weight is the gain minus one ("1p"), which bf16 holds more exactly.

    Args:
        dim: size of the last axis, which is normalised.
        eps: added to the variance.
        offset: False: the stored weight is the gain itself.
    """

    def __init__(self, dim: int, eps: float, offset: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim) if offset else torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.dim, self.eps, self.offset = dim, eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., dim]``; the result has the type of ``x``."""
        gain = self.weight.float() + 1 if self.offset else self.weight.float()
        return functional.layer_norm(x.float(), (self.dim,), gain, self.bias.float(), self.eps).type_as(x)


class TimeEmbedding(nn.Module):
    """Sinusoids of a time in [0, 1] and two linear layers; also embeds the step size of distilled models.

    Args:
        dim: channels of the embedding.
        num_sinusoids: width of the sinusoids, even.
    """

    def __init__(self, dim: int, num_sinusoids: int = 256) -> None:
        super().__init__()
        self.num_sinusoids = num_sinusoids
        self.linear_1 = nn.Linear(num_sinusoids, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, times: Tensor) -> Tensor:
        """``[n]`` to ``[n, dim]``."""
        sinusoids = self.sinusoids(times).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(sinusoids)))

    def sinusoids(self, times: Tensor) -> Tensor:
        """Cosines, then sines, of falling frequencies, ``[n, num_sinusoids]``, fp32."""
        half = self.num_sinusoids // 2
        # The order of the factors is that of training: for the large times of step sizes it shows in fp32.
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / half
        frequencies = torch.exp(exponents)
        angles = times.float()[:, None] * frequencies[None] * 1000
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class CaptionEmbedding(nn.Module):
    """Captions to the tokens of cross attention, and the learned null caption.

    The modulation does not see the caption itself but one of the last two rows of the null caption, which
    tell a forward with text from one without.

    Args:
        channels: of the text encoder.
        max_length: tokens of a padded caption.
        cross_dim: channels of the cross attention's tokens.
        condition_dim: channels of the modulation's condition.
    """

    def __init__(self, channels: int, max_length: int, cross_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.null_caption = nn.Parameter(torch.zeros(max_length, channels))
        self.to_cross = nn.Linear(channels, cross_dim)
        self.to_condition = nn.Linear(channels, condition_dim)

    def forward(self, caption: Tensor) -> Tensor:
        """Caption ``[tokens, channels]`` to ``[tokens, cross_dim]``."""
        return functional.silu(self.to_cross(caption.to(self.to_cross.weight.dtype)))

    def condition(self, with_text: bool) -> Tensor:
        """What the modulation is told about the text, ``[condition_dim]``."""
        return self.to_condition(self.null_caption[-2 if with_text else -1])


def rotary_table(bands: Tensor, num_frames: int, height: int, width: int) -> Tensor:
    """Angles of the rotary positions, ``[frames, height * width, 3 * bands]``, fp32.

    Time is counted in frames from 0. Height and width are centred, and scaled to a frame of 16 x 16 patches'
    area, so that the model sees other resolutions as finer or coarser grids over the same range.

    Args:
        bands: learned frequencies, ``[head_dim / 8]``.
        num_frames, height, width: size of the grid, in patches.
    """
    shrink = math.sqrt(height * width / 256)
    axes = [torch.arange(num_frames, dtype=torch.float32, device=bands.device)]
    for size in (height, width):
        place = torch.arange(size, dtype=torch.float32, device=bands.device) - (size - 1) / 2
        axes.append(place / (size - 1) * (size / shrink - 1) if size > 1 else place)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return (grid.unsqueeze(-1) * bands.float()).flatten(-2).flatten(1, 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply rotary positions to the first ``2 * angles`` channels, paired half by half; the rest passes.

    Args:
        x: ``[tokens, heads, head_dim]``.
        angles: ``[tokens, n]`` with ``2 n <= head_dim``.
    """
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    count = angles.shape[-1]
    first, second, rest = x.float().split([count, count, x.shape[-1] - 2 * count], dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return rotated.type_as(x)
