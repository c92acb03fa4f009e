"""A small Wan VAE, and its 3D convolutions run as 2D ones: the same results, quicker on a CPU."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)
from torch import Tensor, nn
from torch.nn import functional

#: 8 x 8 x 4 compression into 16 channels, as the official one; patches of 2 x 2 take the place of a level.
CONFIG = {
    "base_dim": 24,
    "decoder_base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
}


class PlaneConv3d(WanCausalConv3d):
    """A causal 3D convolution whose neighbouring frames are stacked in the channels of a 2D one."""

    @classmethod
    def of(cls, conv: WanCausalConv3d) -> PlaneConv3d:
        """The same convolution, with the same parameters."""
        pads = conv._padding
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
        plane = cls(*sizes, padding=(pads[4] // 2, pads[2], pads[0]))
        plane.weight, plane.bias = conv.weight, conv.bias
        return plane

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """``x [b, c, t, h, w]``, and up to two earlier frames in ``cache_x``, to ``[b, out, t', h', w']``."""
        left, top, past = self._padding[0], self._padding[2], self._padding[4]
        span, stride = self.kernel_size[0], self.stride[0]
        if past:
            if cache_x is not None:
                x, past = torch.cat([cache_x, x], dim=2), past - cache_x.shape[2]
            x = functional.pad(x, (0, 0, 0, 0, past, 0))
        batch, count = x.shape[0], (x.shape[2] - span) // stride + 1
        frames = x.transpose(1, 2)
        last = stride * (count - 1) + 1
        stacked = torch.cat([frames[:, k : k + last : stride] for k in range(span)], dim=2).flatten(0, 1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        stacked = stacked.contiguous(memory_format=torch.channels_last)
        out = functional.conv2d(stacked, weight, self.bias, self.stride[1:], (top, left))
        return out.unflatten(0, (batch, -1)).transpose(1, 2)


def use_planes(module: nn.Module) -> None:
    """Replace every causal 3D convolution below ``module``; its state dict stays what it was."""
    for name, child in module.named_children():
        if type(child) is WanCausalConv3d:
            setattr(module, name, PlaneConv3d.of(child))
        else:
            use_planes(child)


@torch.no_grad()
def new_wan_vae() -> AutoencoderKLWan:
    """A VAE that starts by passing its input on: unit gain, no bias, residual branches that give nothing.

    With PyTorch's initialisation the decoder learns for hundreds of steps to ignore its input.
    """
    vae = AutoencoderKLWan(**CONFIG)
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            _init_unit_gain(module)
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, WanAttentionBlock):
            nn.init.zeros_(module.proj.weight)
        elif isinstance(module, WanResample):
            for child in module.modules():
                if isinstance(child, (nn.Conv2d, nn.Conv3d)):
                    nn.init.zeros_(child.weight)
    return vae


def _init_unit_gain(conv: nn.Conv2d | nn.Conv3d) -> None:
    """No bias; a 3D kernel starts as a 2D one on the present frame."""
    nn.init.zeros_(conv.bias)
    nn.init.zeros_(conv.weight)
    present = conv.weight[:, :, -1] if conv.weight.ndim == 5 else conv.weight
    present.normal_(0, 1 / math.sqrt(present[0].numel()))


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Mean of the latents ``[b, z, t', h', w']``: the first frame, then all others in one go."""
    vae.clear_cache()
    pieces = [piece for piece in (video[:, :, :1], video[:, :, 1:]) if piece.shape[2]]
    hidden = [vae.encoder(piece, feat_cache=vae._enc_feat_map, feat_idx=[0]) for piece in pieces]
    vae.clear_cache()
    return vae.quant_conv(torch.cat(hidden, dim=2)).chunk(2, dim=1)[0]


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Video ``[b, 3, t, h, w]``, not clamped: the library's clamp would stop the gradient."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    frames = [vae.decoder(hidden[:, :, :1], feat_cache=vae._feat_map, feat_idx=[0], first_chunk=True)]
    if hidden.shape[2] > 1:
        frames.append(vae.decoder(hidden[:, :, 1:], feat_cache=vae._feat_map, feat_idx=[0]))
    vae.clear_cache()
    return torch.cat(frames, dim=2)
