"""Small layers of MAGI-1's transformer, and its rotary positions."""

import math

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional


class OffsetLayerNorm(nn.Module):
    """Layer norm in fp32; with ``offset``, the weight is the gain minus one ("1p"), more exact in bf16."""

    def __init__(self, dim: int, eps: float, offset: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim) if offset else torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.dim, self.eps, self.offset = dim, eps, offset

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.float() + 1 if self.offset else self.weight.float()
        return functional.layer_norm(x.float(), (self.dim,), gain, self.bias.float(), self.eps).type_as(x)


class Fp32Linear(nn.Linear):
    """Linear layer without bias whose product stays in fp32 instead of its weights' type."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[tokens, in_features]`` to ``[tokens, out_features]``."""
        if type(self.weight) is not nn.Parameter:  # a library's quantised weight has this product alone
            return super().forward(x).float()
        if x.device.type != "cpu" and x.dtype != torch.float32:
            return torch.mm(x, self.weight.T, out_dtype=torch.float32)
        return functional.linear(x.float(), self.weight.float())


class TimeEmbedding(TimestepEmbedding):
    """Diffusers' embedding of times in [0, 1], and of the step sizes of distilled models."""

    def __init__(self, dim: int, num_sinusoids: int = 256) -> None:
        super().__init__(num_sinusoids, dim)
        self.sinusoids = Timesteps(num_sinusoids, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)

    def forward(self, times: Tensor) -> Tensor:
        """``[n]`` to ``[n, dim]``."""
        return super().forward(self.sinusoids(times).to(self.linear_1.weight.dtype))


class CaptionEmbedding(nn.Module):
    """Captions to the tokens of cross attention, and the learned null caption."""

    def __init__(self, channels: int, max_length: int, cross_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.null_caption = nn.Parameter(torch.zeros(max_length, channels))
        self.to_cross = nn.Linear(channels, cross_dim)
        self.to_condition = nn.Linear(channels, condition_dim)

    def forward(self, caption: Tensor) -> Tensor:
        """Caption ``[tokens, channels]`` to ``[tokens, cross_dim]``."""
        return functional.silu(self.to_cross(caption.to(self.to_cross.weight.dtype)))

    def condition(self, with_text: bool) -> Tensor:
        """Embed one of the last two rows of the null caption, which mark forwards with text and without."""
        return self.to_condition(self.null_caption[-2 if with_text else -1])


def rotary_table(bands: Tensor, num_frames: int, height: int, width: int, first_frame: int = 0) -> Tensor:
    """Angles of the rotary positions of a grid of patches, ``[frames, height * width, 3 * bands]``, fp32.

    Time is counted in frames from 0. Height and width are centred, and scaled to a frame of 16 x 16 patches'
    area, so that the model sees other resolutions as finer or coarser grids over the same range. ``bands
    [head_dim / 8]`` are learned frequencies.
    """
    shrink = math.sqrt(height * width / 256)
    stop = first_frame + num_frames
    axes = [torch.arange(first_frame, stop, dtype=torch.float32, device=bands.device)]
    for size in (height, width):
        place = torch.arange(size, dtype=torch.float32, device=bands.device) - (size - 1) / 2
        axes.append(place / (size - 1) * (size / shrink - 1) if size > 1 else place)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return (grid.unsqueeze(-1) * bands.float()).flatten(-2).flatten(1, 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply rotary angles ``[tokens, n]`` to ``x [tokens, heads, head_dim]``.

    The first ``2 n`` channels turn, paired half by half; the others stay.
    """
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    count = angles.shape[-1]
    first, second, rest = x.float().split([count, count, x.shape[-1] - 2 * count], dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return rotated.type_as(x)
