"""The decoder of the Wan VAE over processes: each decodes rows of the latents, and gets the rows beside them."""

import logging
from copy import deepcopy

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanDecoder3d,
    WanResample,
    WanResidualBlock,
)
from torch import Tensor, nn
from torch.nn import functional

from ..parallel import Group

logger = logging.getLogger(__name__)

#: Product of the first four sizes of an input beyond which PyTorch convolves it on a CPU with oneDNN.
ONEDNN_SIZE = 20480


def split_rows(decoder: WanDecoder3d, group: Group, rows: int) -> nn.Module:
    """Return what each process of a group calls in place of a decoder; ``rows``: height of the latents."""
    if group.size > rows and group.is_first:
        logger.info("VAE: %d rows of latents are too few for %d processes; each decodes them all", rows, group.size)
    return RowDecoder(decoder, group, rows) if 1 < group.size <= rows else decoder


class RowDecoder(nn.Module):
    """A decoder over processes, made of another one, which is not changed; they share the parameters.

    It is called as that one, in all processes with the same latents, and returns all rows of the frames. Features that
    the caller carries from frame to frame are those of the rows of this process, and of the one row above and below
    that a convolution reads.

    In fp32 on a CPU, the bits are those of one process, if the latents have an even width and each share 16 pixels.

    Args:
        rows: of the latents, at least one for each process.
    """

    def __init__(self, decoder: WanDecoder3d, group: Group, rows: int) -> None:
        super().__init__()
        self._group, self._shares, self._own = group, group.shares(rows), group.share(rows)
        self._decoder = deepcopy(decoder, {id(weight): weight for weight in decoder.parameters()})
        for module in self._decoder.modules():
            if isinstance(module, WanCausalConv3d):  # the rows beside its own come with its input
                left, right, _, _, *time = module._padding
                module._padding = (left, right, 0, 0, *time)
                module.__class__, module.split = RowConv3d, (len(self._own), rows)
            elif isinstance(module, WanResample):
                upsample, convolution = module.resample
                module.resample[0] = nn.Sequential(RowExchange(group), upsample, EdgeCut())
                convolution.padding = (0, convolution.padding[1])
                convolution.__class__, convolution.split = RowConv2d, (len(self._own), rows)
            elif isinstance(module, WanResidualBlock | WanDecoder3d):  # a convolution follows each use
                module.nonlinearity = nn.Sequential(module.nonlinearity, RowExchange(group))
        middle = self._decoder.mid_block
        middle.attentions = nn.ModuleList(RowAttention(block, group, self._shares) for block in middle.attentions)

    def forward(self, latents: Tensor, *features: list, first_chunk: bool = False) -> Tensor:
        padded = functional.pad(latents, (0, 0, 1, 1))
        own = padded[..., self._own.start : self._own.stop + 2, :]
        frames = self._decoder(own, *features, first_chunk=first_chunk)
        ratio = frames.shape[3] // len(self._own)
        return self._group.gather(frames, 3, [ratio * len(share) for share in self._shares])


class RowConv(nn.Module):
    """Mixin of a convolution of a share of the rows, which come with those beside them."""

    split: tuple[int, int]  # rows of the share and of the whole, of the latents

    def _conv_forward(self, x: Tensor, *weights: Tensor | None) -> Tensor:
        rows, beside = x.shape[-2], self.kernel_size[-2] - 1
        if x.is_cpu and beside:  # the kernel that the whole gets rounds differently
            own, whole = self.split
            size = x.shape[:4].numel() // rows
            needed = ONEDNN_SIZE // size + 1
            if rows < needed <= (rows - beside) * whole // own + self.beside_whole:
                x = functional.pad(x, (0, 0, 0, needed - rows))
        return super()._conv_forward(x, *weights)[..., : rows - beside, :]


class RowConv3d(RowConv, WanCausalConv3d):
    beside_whole = 2  # rows of zeros that come with the whole


class RowConv2d(RowConv, nn.Conv2d):
    beside_whole = 0


class RowExchange(nn.Module):
    """Add the rows of the neighbours above and below; zeros above the first process and below the last."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        first, last = x[..., :1, :], x[..., -1:, :]
        above, below = self._group.swap_edges(first, last)
        zeros = torch.zeros_like(first)
        return torch.cat([zeros if above is None else above, x, zeros if below is None else below], dim=-2)


class EdgeCut(nn.Module):
    """Cut off the first and the last row: of two that upsampling makes of a neighbour's, a convolution reads one."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 1:-1, :]


class RowAttention(nn.Module):
    """Attention of the rows of this process to all rows of a frame."""

    def __init__(self, block: WanAttentionBlock, group: Group, shares: list[range]) -> None:
        super().__init__()
        self._block, self._group, self._shares = block, group, shares

    def forward(self, x: Tensor) -> Tensor:
        whole = self._group.gather(x, 3, [len(share) for share in self._shares])
        frames = self._block.norm(whole.movedim(2, 1).flatten(0, 1))
        query, key, value = self._block.to_qkv(frames).chunk(3, dim=1)
        own = self._shares[self._group.index]
        tokens = (each.flatten(2).mT.contiguous() for each in (query[:, :, own.start : own.stop], key, value))
        attended = functional.scaled_dot_product_attention(*(each.unsqueeze(1) for each in tokens))
        attended = attended.squeeze(1).mT.unflatten(2, x.shape[3:])
        return x + self._block.proj(attended).unflatten(0, (len(x), -1)).movedim(1, 2)
