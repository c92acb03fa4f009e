"""Video to latents and back, through the Wan VAE."""

from itertools import product

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor, nn

from ..finite import check_finite
from ..parallel import Group
from ..parallel.tiles import run_tiles
from ..state import State, on_device
from .row_decoder import split_rows
from .sizes import pixel_frames


class VideoCodec:
    """Encodes videos, and decodes one window piece by piece, in order of time, without a seam.

    Latents are normalised per channel. The VAE is causal in time: a frame needs the last features of those
    before it, at every convolution. Only these are kept, and the newest frames. A VAE with ``enable_tiling`` runs in
    tiles that overlap, cut and blended as diffusers does; each has features of its own, in host memory.

    The processes of a group call the same methods with the same tensors, and get the same results. The first one
    encodes. Each decodes some rows of all frames, or some of the tiles, and keeps the features of these alone.

    Args:
        vae: the autoencoder.
        repeated: latent frames at the start that the window before has shown; ``decode_new`` omits them.
        num_kept: newest frames to keep in ``newest`` for the next window.
        offload: keep the features in host memory between pieces, also without tiles.
        group: processes that share the work.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        repeated: int = 0,
        num_kept: int = 0,
        offload: bool = False,
        group: Group | None = None,
    ) -> None:
        self.vae, self._repeated, self._num_kept, self._offload = vae, repeated, num_kept, offload
        self._group = group or Group()
        self._row_decoder: nn.Module | None = None  # made for the height of the first latents
        self._num_convolutions = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
        #: By the place of a tile; of a convolution, None before its first input, and diffusers' word for its first.
        self._features: dict[tuple[int, int], list[Tensor | str | None]] = {}
        self._start = 0  # latent frames decoded so far
        #: ``[3, frames, height, width]``; None before the first piece, and without ``num_kept``
        self.newest: Tensor | None = None

    def encode(self, video: Tensor) -> Tensor:
        """Encode ``[3, frames, height, width]`` in [-1, 1] to latents in fp32."""
        mean, std = self._statistics()
        latents = None
        if self._group.is_first:
            given = video.unsqueeze(0).to(self.vae.device, self.vae.dtype)
            latents = (self.vae.encode(given).latent_dist.mode().float() - mean) / std
        latents = self._group.broadcast(latents, self.vae.device)
        return check_finite("latents of the given frames", latents[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latents to ``[3, frames, height, width]`` in [-1, 1]."""
        vae, (mean, std) = self.vae, self._statistics()
        latents = (latents.unsqueeze(0).to(vae.device) * std + mean).to(vae.dtype)
        video = self._decode_tiles(vae.post_quant_conv(latents))
        self._start += latents.shape[2]
        if vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=vae.config.patch_size)
        video = check_finite("frames from the VAE", video[0].float()).clamp(-1, 1)
        if self._num_kept:
            known = video if self.newest is None else torch.cat([self.newest.to(video.device), video], dim=1)
            self.newest = known[:, -self._num_kept :].clone()
        return video

    def decode_new(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Decode the next latents; frames and latents of those not repeated, None if all are."""
        start = self._start
        frames, shown = self.decode(latents), max(start, self._repeated)
        if shown >= self._start:
            return None
        return frames[:, pixel_frames(shown) - pixel_frames(start) :], latents[:, shown - start :].clone()

    def state_dict(self) -> State:
        return {"start": self._start, "newest": self.newest, "features": dict(self._features)}

    def load_state_dict(self, state: State) -> None:
        """Continue where another codec of the same window stood."""
        self._start, self.newest = state["start"], state["newest"]
        self._features = dict(state["features"])

    def _decode_tiles(self, latents: Tensor) -> Tensor:
        """Decode ``[1, channels, frames, height, width]`` in one tile or several, as ``vae.tiled_decode``."""
        vae, ratio, patch = self.vae, self.vae.spatial_compression_ratio, self.vae.config.patch_size or 1
        tall, wide = vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio
        count, height, width = latents.shape[2:]
        if not vae.use_tiling or (height <= tall and width <= wide):
            if self._row_decoder is None:
                self._row_decoder = split_rows(vae.decoder, self._group, height)
            return self._decode_tile(self._row_decoder, latents, (0, 0))
        down, right = vae.tile_sample_stride_height, vae.tile_sample_stride_width
        blends = (vae.tile_sample_min_height - down) // patch, (vae.tile_sample_min_width - right) // patch
        tops, lefts = range(0, height, down // ratio), range(0, width, right // ratio)
        frames = pixel_frames(self._start + count) - pixel_frames(self._start)
        tiles = {(y, x): latents[..., y : y + tall, x : x + wide] for y, x in product(tops, lefts)}
        sizes = [[side * ratio // patch for side in tile.shape[3:]] for tile in tiles.values()]
        shapes = [(1, vae.config.out_channels, frames, *size) for size in sizes]

        def run(place: tuple[int, int]) -> Tensor:
            return self._decode_tile(vae.decoder, tiles[place], place)

        decoded = run_tiles(self._group, run, list(tiles), shapes, latents)
        rows, joined = [[next(decoded) for _ in lefts] for _ in tops], []
        for i, row in enumerate(rows):
            for j, tile in enumerate(row):  # each fades in from its neighbours as they are blended
                tile = vae.blend_v(rows[i - 1][j], tile, blends[0]) if i else tile
                row[j] = vae.blend_h(row[j - 1], tile, blends[1]) if j else tile
            joined.append(torch.cat([tile[..., : down // patch, : right // patch] for tile in row], dim=4))
        return torch.cat(joined, dim=3)[..., : height * ratio // patch, : width * ratio // patch]

    def _decode_tile(self, decoder: nn.Module, latents: Tensor, place: tuple[int, int]) -> Tensor:
        """Decode the next latents of a tile behind those before them."""
        features = on_device(self._features.pop(place, [None] * self._num_convolutions), latents.device)
        frames = [
            decoder(latent, features, [0], first_chunk=self._start + index == 0)
            for index, latent in enumerate(latents.split(1, dim=2))
        ]
        on_host = self._offload or self.vae.use_tiling
        self._features[place] = on_device(features, "cpu") if on_host else features
        return torch.cat(frames, dim=2)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config, device = self.vae.config, self.vae.device
        mean, std = (torch.tensor(x, device=device) for x in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
