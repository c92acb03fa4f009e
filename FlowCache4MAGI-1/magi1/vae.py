"""MAGI-1's autoencoder: vision transformers between video and latents (arXiv 2505.13211, section 2.1)."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from operator import floordiv, mul
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from flowcache.parallel.group import Group
from flowcache.parallel.tiles import run_tiles


def normalise_heads(x: Tensor) -> Tensor:
    """Each head's channels to mean 0 and deviation 1; epsilon is added to the deviation."""
    x32 = x.float()
    deviation, mean = torch.std_mean(x32, dim=-1, keepdim=True, unbiased=False)
    return ((x32 - mean) / (deviation + 1e-5)).type_as(x)


class ViTAttention(nn.Module):
    """Full self attention; with ``ln_in_attn``, queries, keys and values are normalised per head."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, self.num_heads = config.embed_dim, config.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.norm = normalise_heads if config.ln_in_attn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(*self.norm(qkv))
        return self.proj(out.transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    """Attention and MLP on the residual path; ``ln_in_attn`` replaces the norm before attention."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, hidden_dim = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.Identity() if config.ln_in_attn else nn.LayerNorm(dim)
        self.attn = ViTAttention(config)
        self.norm2 = nn.LayerNorm(dim)
        mlp = {"fc1": nn.Linear(dim, hidden_dim), "act": nn.GELU(), "fc2": nn.Linear(hidden_dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(mlp))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A transformer over the patches of a clip, with a class token and learned positions.

    ``config`` holds arguments of ``AutoencoderKLMagi``, as above and below.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        side, dim = config.video_size // config.patch_size, config.embed_dim
        self.grid = (config.video_length // config.patch_length, side, side)  # of the clips in training
        self.patch = (config.patch_length, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + prod(self.grid), dim))
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """``[batch, dim, t, h, w]`` through all blocks and the norm, to the same shape."""
        size = tuple(tokens.shape[2:])
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(size)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, size)

    def _positions(self, size: tuple[int, ...]) -> Tensor:
        """Learned positions, resized for clips of another size than in training."""
        if size == self.grid:
            return self.pos_embed
        places = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        places = functional.interpolate(places, size=size, mode="trilinear", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], places.flatten(2).transpose(1, 2)], dim=1)


class ViTEncoder(ViT):
    """Video ``[batch, 3, t, h, w]`` to moments ``[batch, 2 z, t / 4, h / 8, w / 8]``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        proj = nn.Conv3d(config.in_chans, config.embed_dim, kernel_size=self.patch, stride=self.patch)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        self.last_layer = nn.Linear(config.embed_dim, 2 * config.z_chans)

    def forward(self, video: Tensor) -> Tensor:
        x = self.run_blocks(self.patch_embed["proj"](video))
        return self.last_layer(x.movedim(1, -1)).movedim(-1, 1)


class ViTDecoder(ViT):
    """Latents ``[batch, z, t, h, w]`` to video ``[batch, 3, 4 t, 8 h, 8 w]``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        dim, volume, final = config.embed_dim, prod(self.patch), config.use_final_proj
        pixel_dim = 4 if final else dim // volume
        self.proj_in = nn.Linear(config.z_chans, dim)
        self.final_proj = nn.Linear(dim, pixel_dim * volume) if final else nn.Identity()
        self.final_norm = nn.LayerNorm(pixel_dim * volume) if final else nn.Identity()
        self.last_layer = nn.Conv3d(pixel_dim, config.in_chans, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.run_blocks(self.proj_in(latents.movedim(1, -1)).movedim(-1, 1))
        x = self.final_norm(self.final_proj(x.movedim(1, -1)))
        x = x.unflatten(-1, (*self.patch, -1))
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return self.last_layer(x.flatten(6, 7).flatten(4, 5).flatten(2, 3))


@dataclass(frozen=True)
class Tiling:
    """Cut of large clips into tiles, which are blended where they overlap in space."""

    size: int | None = 256  # height and width of a tile, pixels; None: no cut in space
    frames: int | None = 16  # frames of a tile; None: no cut in time
    overlap: float = 0.25  # share of a tile that it has in common with the next

    def stride(self, side: int) -> int:
        """Latents, of ``side`` pixels, from a tile to the next."""
        return int(self.size // side * (1 - self.overlap))


class AutoencoderKLMagi(ModelMixin, ConfigMixin):
    """MAGI-1's autoencoder; arguments as in the official configuration's ``ddconfig``.

    ``video_size`` and ``video_length`` are pixels and frames of the clips in training, ``patch_size`` and
    ``patch_length`` of a latent; ``ln_in_attn`` normalises queries, keys and values per head, in place of the
    norm before attention; ``use_final_proj`` projects before the last convolution.
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
        self.encoder, self.decoder = ViTEncoder(self.config), ViTDecoder(self.config)
        self.tiling: Tiling | None = None

    def enable_tiling(self, tiling: Tiling | None = None) -> None:
        self.tiling = tiling or Tiling()

    def disable_tiling(self) -> None:
        self.tiling = None

    def encode(self, video: Tensor, group: Group | None = None) -> AutoencoderKLOutput:
        """Posterior of the latents of ``[batch, 3, frames, height, width]`` in [-1, 1].

        One frame alone becomes one latent frame; other lengths are multiples of ``patch_length``. ``group`` as of
        ``decode``.
        """
        length, side = self.config.patch_length, self.config.patch_size
        still = video.shape[2] == 1
        if still:
            video = video.expand(-1, -1, length, -1, -1)
        if video.shape[2] % length or video.shape[3] % side or video.shape[4] % side:
            wanted = f"a multiple of {length} frames and {side} pixels"
            raise ValueError(f"video: expected {wanted}, got {list(video.shape)}.")
        moments = self._run_in_tiles(video, self.encoder, True, group or Group())
        return AutoencoderKLOutput(DiagonalGaussianDistribution(moments[:, :, :1] if still else moments))

    def decode(self, latents: Tensor, still: bool = True, group: Group | None = None) -> Tensor:
        """Video ``[batch, 3, frames, height, width]``, not clamped.

        A latent frame gives four, except for a single one if ``still``: it stands for an image and gives one. Tiles
        are dealt to the processes of ``group``, which all call with the same latents and get the whole video.
        """
        video = self._run_in_tiles(latents, self.decoder, False, group or Group())
        return video[:, :, :1] if still and latents.shape[2] == 1 else video

    def cut(self, size: Sequence[int], encodes: bool = False) -> list[list[slice]]:
        """Slices of tiles along frames, height and width of latents, or of a video to encode, of a size."""
        tiling, length, side = self.tiling or Tiling(None, None), self.config.patch_length, self.config.patch_size
        frames, unit = (length, side) if encodes else (1, 1)  # of a latent
        frames = size[0] if tiling.frames is None else tiling.frames // length * frames
        span = stride = max(size[1:])
        if tiling.size is not None and span > tiling.size // side * unit:
            span, stride = tiling.size // side * unit, tiling.stride(side) * unit
        steps = (frames, frames), (stride, span), (stride, span)
        return [
            [slice(start, start + span) for start in range(0, whole, stride)]
            for whole, (stride, span) in zip(size, steps, strict=True)
        ]

    def _run_in_tiles(self, x: Tensor, run: Callable[[Tensor], Tensor], encodes: bool, group: Group) -> Tensor:
        times, tops, lefts = self.cut(x.shape[2:], encodes)
        tiles = [x[:, :, time, top, left] for time in times for top in tops for left in lefts]
        length, side = self.config.patch_length, self.config.patch_size
        channels = 2 * self.config.z_chans if encodes else self.config.in_chans
        scale = floordiv if encodes else mul
        shapes = [(len(tile), channels, *map(scale, tile.shape[2:], (length, side, side))) for tile in tiles]
        results = run_tiles(group, run, tiles, shapes, x)
        if len(tops) == len(lefts) == 1:
            return torch.cat(list(results), dim=2)
        # The original blends encoded tiles with neighbours that are blended already, decoded ones with raw.
        unit, stride = 1 if encodes else side, self.tiling.stride(side)
        keep, blend = stride * unit, (self.tiling.size // side - stride) * unit
        pieces = ([[next(results) for _ in lefts] for _ in tops] for _ in times)
        return torch.cat([_blend_tiles(piece, keep, blend, encodes) for piece in pieces], dim=2)


def _blend_tiles(tiles: list[list[Tensor]], keep: int, blend: int, chained: bool) -> Tensor:
    """Join rows of overlapping tiles, which change in place.

    Of a tile, height and width ``keep`` remain, of which ``blend`` fade in from its neighbours: as they are
    blended (``chained``), or as they were before.
    """
    source = tiles if chained else [[tile.clone() for tile in row] for row in tiles]
    rows = []
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            if i:
                _fade(source[i - 1][j], tile, blend, axis=3)
            if j:
                _fade(source[i][j - 1], tile, blend, axis=4)
        rows.append(torch.cat([tile[..., :keep, :keep] for tile in row], dim=4))
    return torch.cat(rows, dim=3)


def _fade(before: Tensor, after: Tensor, extent: int, axis: int) -> None:
    """Fade the start of ``after``, in place, from the end of the tile before it."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    shape = [1] * after.ndim
    shape[axis] = extent
    weight = (torch.arange(extent, device=after.device, dtype=after.dtype) / extent).view(shape)
    start = after.narrow(axis, 0, extent)
    end = before.narrow(axis, before.shape[axis] - extent, extent)
    start.copy_(end * (1 - weight) + start * weight)
