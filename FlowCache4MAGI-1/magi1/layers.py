"""Small layers of MAGI-1's transformer, and its rotary positions."""

import math

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional


class OffsetLayerNorm(nn.Module):
    """Layer norm in the type of its weights, which the result has.

    With ``offset``, the weight is the gain minus one ("1p"), and the sum is rounded to that type, as in the original.
    """

    def __init__(self, dim: int, eps: float, offset: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim) if offset else torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.dim, self.eps, self.offset = dim, eps, offset

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight + 1 if self.offset else self.weight
        return functional.layer_norm(x.type_as(gain), (self.dim,), gain, self.bias, self.eps)


class Fp32Linear(nn.Linear):
    """Linear layer without bias whose product stays in fp32 instead of its weights' type."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        if type(self.weight) is not nn.Parameter:  # a library's quantised weight has this product alone
            return super().forward(x).float()
        if x.device.type != "cpu" and x.dtype != torch.float32:
            product = torch.mm(x.flatten(0, -2), self.weight.T, out_dtype=torch.float32)
            return product.unflatten(0, x.shape[:-1])
        return functional.linear(x.float(), self.weight.float())


class TimeEmbedding(TimestepEmbedding):
    """Diffusers' embedding of times in [0, 1], and of the step sizes of distilled models."""

    def __init__(self, dim: int, num_sinusoids: int = 256) -> None:
        super().__init__(num_sinusoids, dim)
        self.sinusoids = Timesteps(num_sinusoids, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)

    def forward(self, times: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``[n]`` to ``[n, dim]``.

        ``dtype``: round the sinusoids to it, as the original does before its fp32 layers.
        """
        own = self.linear_1.weight.dtype
        return super().forward(self.sinusoids(times).to(dtype or own).to(own))


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


def rotary_table(bands: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """Cosines, then sines, of the rotary angles of a grid of patches, fp32 ``[frames, height * width, 1, 6 * bands]``.

    Time is counted in frames from 0 (``times [frames]``). Height and width are centred, and scaled to a frame of 16 x
    16 patches' area, so that the model sees other resolutions as finer or coarser grids over the same range. ``bands
    [head_dim / 8]`` are learned frequencies.
    """
    shrink, bands, places = math.sqrt(height * width / 256), bands.float(), []
    for size in (height, width):
        place = torch.arange(size, dtype=torch.float32, device=bands.device) - (size - 1) / 2
        places.append(place / (size - 1) * (size / shrink - 1) if size > 1 else place)
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1)
    frame = (grid.unsqueeze(-1) * bands).flatten(-2).flatten(0, 1)
    time, shape = (times.float().unsqueeze(-1) * bands).unsqueeze(1), (len(times), len(frame), -1)
    parts = [turn(angles).expand(shape) for turn in (torch.cos, torch.sin) for angles in (time, frame)]
    return torch.cat(parts, dim=-1).unsqueeze(2)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate ``x [..., heads, head_dim]`` by ``rotary [..., 1, 2 n]``, n cosines and n sines.

    The first ``2 n`` channels turn, paired half by half; the others stay.
    """
    cos, sin = rotary.chunk(2, dim=-1)
    count = cos.shape[-1]
    first, second, rest = x.split([count, count, x.shape[-1] - 2 * count], dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat([*turned, rest], dim=-1)
