"""The autoencoder against tensors of the original code."""

from __future__ import annotations

import inspect

import pytest
import torch
from cases import magi_case, relative_error
from reference import Case
from safetensors.torch import load_file

from magi1.vae import AutoencoderKLMagi, Tiling

RELATIVE = 1e-4


def load_vae(case: Case) -> AutoencoderKLMagi:
    known = inspect.signature(AutoencoderKLMagi.__init__).parameters
    vae = AutoencoderKLMagi(**{k: v for k, v in case.info["config"].items() if k in known}).eval()
    inside = {k.removeprefix("w."): v for k, v in case.tensors.items() if k.startswith("w.")}
    vae.load_state_dict(inside or load_file(case.folder / case.info["weights"]))
    return vae


def clips(name: str, ending: str) -> list[str]:
    case = magi_case(name)
    if not (case.folder / f"{name}.json").is_file():
        return ["absent"]
    return sorted(key.removesuffix(ending) for key in case.info["tensors"] if key.endswith(ending))


@pytest.mark.parametrize("clip", clips("vae_encode_decode", "_x"))
def test_encode_and_decode(clip):
    case = magi_case("vae_encode_decode")
    vae, tensors = load_vae(case), case.tensors
    posterior = vae.encode(tensors[f"{clip}_x"]).latent_dist
    assert relative_error(posterior.parameters, tensors[f"{clip}_moments"]) < RELATIVE
    assert relative_error(posterior.mode(), tensors[f"{clip}_z"]) < RELATIVE
    assert relative_error(vae.decode(tensors[f"{clip}_z"]), tensors[f"{clip}_dec"]) < RELATIVE


@pytest.mark.parametrize("clip", clips("vae_tiling", "_x"))
def test_tiles(clip):
    case = magi_case("vae_tiling")
    vae, tensors, tiling = load_vae(case), case.tensors, case.info["tiling"]
    size = None if "nosp" in clip else tiling["tile_px"]
    vae.enable_tiling(Tiling(size, tiling["tile_frames"], tiling["spatial_overlap"]))
    assert (
        relative_error(vae.encode(tensors[f"{clip}_x"]).latent_dist.mode(), tensors[f"{clip}_z"]) < RELATIVE
    )
    decoded = vae.decode(tensors[f"{clip}_z"])
    assert decoded.shape == tensors[f"{clip}_x"].shape, "no frame of the last tile is lost"
    # The original loses frames of a last tile of one latent frame.
    known = tensors[f"{clip}_dec"]
    assert relative_error(decoded[:, :, : known.shape[2]], known) < RELATIVE


def test_variant():
    case = magi_case("vae_variant_b")
    vae, tensors = load_vae(case), case.tensors
    assert relative_error(vae.encode(tensors["x"]).latent_dist.mode(), tensors["z"]) < RELATIVE
    assert relative_error(vae.decode(tensors["z"]), tensors["dec"]) < RELATIVE


def test_official_names_and_shapes():
    listed = magi_case("keys_vae_unverified").info
    known = inspect.signature(AutoencoderKLMagi.__init__).parameters
    config = listed["assumed_config"]
    config = config.get("ddconfig", config)
    with torch.device("meta"):
        vae = AutoencoderKLMagi(**{key: value for key, value in config.items() if key in known})
    shapes = {key: list(tensor.shape) for key, tensor in vae.state_dict().items()}
    assert shapes == {key: tensor["shape"] for key, tensor in listed["tensors"].items()}


def test_sizes_that_cannot_be_cut_are_refused():
    vae = AutoencoderKLMagi(video_size=32, patch_size=8, z_chans=2, embed_dim=256, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="multiple of 4 frames"):
        vae.encode(torch.zeros(1, 3, 6, 32, 32))
