"""MAGI-1's autoencoder: vision transformers between video and latents (arXiv 2505.13211, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional


class HeadNorm(nn.Module):
    """Each head's channels to mean 0 and spread 1, without a gain; epsilon is added to the spread."""

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        spread = x32.std(dim=-1, keepdim=True, unbiased=False)
        return ((x32 - x32.mean(dim=-1, keepdim=True)) / (spread + 1e-5)).type_as(x)


class ViTAttention(nn.Module):
    """Full self attention; optionally queries, keys and values are normalised per head."""

    def __init__(self, dim: int, num_heads: int, bias: bool, head_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        self.norm = HeadNorm() if head_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(*self.norm(qkv))
        return self.proj(out.transpose(1, 2).flatten(2))


class ViTMLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    """Attention and MLP on the residual path; the norm before attention may be the one inside it."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, bias: bool, head_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if head_norm else nn.LayerNorm(dim)
        self.attn = ViTAttention(dim, num_heads, bias, head_norm)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ViTMLP(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A transformer over the patches of a clip, with a class token and learned places.

    Args:
        grid: frames, height and width of the clip it was trained on, in patches.
        dim, depth, num_heads, mlp_ratio, bias, head_norm: of the blocks.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        bias: bool,
        head_norm: bool,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1] * grid[2], dim))
        sizes = (dim, num_heads, int(dim * mlp_ratio), bias, head_norm)
        self.blocks = nn.ModuleList(ViTBlock(*sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """``[batch, dim, t, h, w]`` through all blocks and the norm, to the same shape."""
        size = tuple(tokens.shape[2:])
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._places(size)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, size)

    def _places(self, size: tuple[int, ...]) -> Tensor:
        """Learned places, resized if the clip is of another size than those in training."""
        if size == tuple(self.grid):
            return self.pos_embed
        places = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        places = functional.interpolate(places, size=size, mode="trilinear", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], places.flatten(2).transpose(1, 2)], dim=1)


class ViTEncoder(ViT):
    """Video ``[batch, 3, t, h, w]`` to moments ``[batch, 2 z, t / 4, h / 8, w / 8]``."""

    def __init__(self, patch: tuple[int, int, int], in_channels: int, out_channels: int, **vit) -> None:
        super().__init__(**vit)
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv3d(in_channels, vit["dim"], kernel_size=patch, stride=patch)}
        )
        self.last_layer = nn.Linear(vit["dim"], out_channels)

    def forward(self, video: Tensor) -> Tensor:
        x = self.run_blocks(self.patch_embed["proj"](video))
        return self.last_layer(x.movedim(1, -1)).movedim(-1, 1)


class ViTDecoder(ViT):
    """Latents ``[batch, z, t, h, w]`` to video ``[batch, 3, 4 t, 8 h, 8 w]``."""

    def __init__(
        self, patch: tuple[int, int, int], in_channels: int, out_channels: int, final_proj: bool, **vit
    ) -> None:
        super().__init__(**vit)
        self.patch = patch
        self.proj_in = nn.Linear(in_channels, vit["dim"])
        volume = patch[0] * patch[1] * patch[2]
        pixel_dim = 4 if final_proj else vit["dim"] // volume
        self.final_proj = nn.Linear(vit["dim"], pixel_dim * volume) if final_proj else nn.Identity()
        self.final_norm = nn.LayerNorm(pixel_dim * volume) if final_proj else nn.Identity()
        self.last_layer = nn.Conv3d(pixel_dim, out_channels, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.run_blocks(self.proj_in(latents.movedim(1, -1)).movedim(-1, 1))
        x = self.final_norm(self.final_proj(x.movedim(1, -1)))
        x = x.unflatten(-1, (*self.patch, -1))
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return self.last_layer(x.flatten(6, 7).flatten(4, 5).flatten(2, 3))


@dataclass(frozen=True)
class Tiling:
    """Clips larger than a tile are cut, run tile by tile and blended over where tiles overlap.

    Attributes:
        size: height and width of a tile, pixels; None: no cut in space.
        frames: of a tile; tiles do not overlap in time; None: no cut in time.
        overlap: share of a tile that it has in common with the next.
    """

    size: int | None = 256
    frames: int | None = 16
    overlap: float = 0.25


class AutoencoderKLMagi(ModelMixin, ConfigMixin):
    """MAGI-1's autoencoder; arguments as in the official configuration's ``ddconfig``.

    Args:
        video_size, video_length: of the clips it was trained on, pixels and frames.
        patch_size, patch_length: pixels and frames of a latent.
        in_chans, z_chans: channels of video and latents.
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias: of both transformers.
        ln_in_attn: normalise queries, keys and values per head, in place of the norm before attention.
        use_final_proj: project before the last convolution.
        scaling_factor: latents that the diffusion model sees are these times it.
    """

    @register_to_config
    def __init__(
        self,
        video_size: int = 256,
        video_length: int = 16,
        patch_size: int = 8,
        patch_length: int = 4,
        in_chans: int = 3,
        z_chans: int = 16,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        ln_in_attn: bool = True,
        use_final_proj: bool = False,
        scaling_factor: float = 0.18215,
    ) -> None:
        super().__init__()
        side = video_size // patch_size
        vit = {
            "grid": (video_length // patch_length, side, side),
            "dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "bias": qkv_bias,
            "head_norm": ln_in_attn,
        }
        patch = (patch_length, patch_size, patch_size)
        self.encoder = ViTEncoder(patch, in_chans, 2 * z_chans, **vit)
        self.decoder = ViTDecoder(patch, z_chans, in_chans, use_final_proj, **vit)
        self.tiling: Tiling | None = None

    def enable_tiling(self, tiling: Tiling | None = None) -> None:
        """Run large clips tile by tile, which bounds memory; see ``Tiling`` for the default."""
        self.tiling = tiling or Tiling()

    def disable_tiling(self) -> None:
        """Run every clip at once."""
        self.tiling = None

    @apply_forward_hook
    def encode(self, video: Tensor) -> AutoencoderKLOutput:
        """Posterior of the latents of ``[batch, 3, frames, height, width]`` in [-1, 1].

        One frame alone becomes one latent frame; other lengths are multiples of ``patch_length``.

        Raises:
            ValueError: the clip cannot be cut into patches.
        """
        length, side = self.config.patch_length, self.config.patch_size
        if video.shape[2] == 1:
            moments = self._in_tiles(video.expand(-1, -1, length, -1, -1), self.encoder, encodes=True)[
                :, :, :1
            ]
            return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))
        if video.shape[2] % length or video.shape[3] % side or video.shape[4] % side:
            raise ValueError(
                f"video must have a multiple of {length} frames and {side} pixels, got {list(video.shape)}."
            )
        moments = self._in_tiles(video, self.encoder, encodes=True)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    @apply_forward_hook
    def decode(self, latents: Tensor, still: bool = True) -> Tensor:
        """Video ``[batch, 3, frames, height, width]``, not clamped.

        Args:
            latents: ``[batch, channels, frames / 4, height / 8, width / 8]``.
            still: a single latent frame stands for an image and gives one frame; False: it is part of a video
                and gives four, like any other.
        """
        video = self._in_tiles(latents, self.decoder, encodes=False)
        return video[:, :, :1] if still and latents.shape[2] == 1 else video

    def _in_tiles(self, x: Tensor, run: Callable[[Tensor], Tensor], encodes: bool) -> Tensor:
        """Run on the whole, or tile by tile; neighbours are blended when ``x`` is larger than a tile."""
        if self.tiling is None:
            return run(x)
        length, side = self.config.patch_length, self.config.patch_size
        unit_in, unit_out = ((length, side), (1, 1)) if encodes else ((1, 1), (length, side))
        tiling = self.tiling
        frames = x.shape[2] if tiling.frames is None else tiling.frames // length * unit_in[0]
        pieces = x.split(frames, dim=2)
        if tiling.size is None or max(x.shape[3:]) <= tiling.size // side * unit_in[1]:
            return torch.cat([run(piece) for piece in pieces], dim=2)
        cut = _SpatialCut(tiling.size // side, tiling.overlap, unit_in[1], unit_out[1])
        # The original blends encoded tiles with neighbours that are blended already, decoded ones with raw.
        return torch.cat([cut.run(piece, run, chained=encodes) for piece in pieces], dim=2)


@dataclass(frozen=True)
class _SpatialCut:
    """Cuts in height and width. ``size`` counts latents; the units are pixels or latents per latent."""

    size: int
    overlap: float
    unit_in: int
    unit_out: int

    def run(self, x: Tensor, run: Callable[[Tensor], Tensor], chained: bool) -> Tensor:
        stride = int(self.size * (1 - self.overlap))
        step, tile = stride * self.unit_in, self.size * self.unit_in
        tops, lefts = (range(0, x.shape[axis], step) for axis in (3, 4))
        tiles = {
            (i, j): run(x[..., top : top + tile, left : left + tile])
            for (i, top), (j, left) in product(enumerate(tops), enumerate(lefts))
        }
        blend, keep = (self.size - stride) * self.unit_out, stride * self.unit_out
        source = tiles if chained else {place: out.clone() for place, out in tiles.items()}
        rows = []
        for i in range(len(tops)):
            row = []
            for j in range(len(lefts)):
                out = tiles[i, j]
                if i:
                    _blend(source[i - 1, j], out, blend, axis=3)
                if j:
                    _blend(source[i, j - 1], out, blend, axis=4)
                row.append(out[..., :keep, :keep])
            rows.append(torch.cat(row, dim=4))
        return torch.cat(rows, dim=3)


def _blend(before: Tensor, after: Tensor, extent: int, axis: int) -> None:
    """Fade the start of ``after``, in place, from the end of the tile before it."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    shape = [1] * after.ndim
    shape[axis] = extent
    weight = (torch.arange(extent, device=after.device, dtype=after.dtype) / extent).view(shape)
    start = after.narrow(axis, 0, extent)
    end = before.narrow(axis, before.shape[axis] - extent, extent)
    start.copy_(end * (1 - weight) + start * weight)
