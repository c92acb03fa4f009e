"""The autoencoder against tensors of the original code."""

import pytest
import torch
from cases import magi_case, pick_known, relative_error
from safetensors.torch import load_file
from torch import Tensor

from magi1.vae import AutoencoderKLMagi, Tiling

RELATIVE = 1e-4


def load_case(name: str) -> tuple[AutoencoderKLMagi, dict[str, Tensor]]:
    case = magi_case(name)
    vae = AutoencoderKLMagi(**pick_known(AutoencoderKLMagi, case.info["config"])).eval()
    inside = {k.removeprefix("w."): v for k, v in case.tensors.items() if k.startswith("w.")}
    vae.load_state_dict(inside or load_file(case.folder / case.info["weights"]))
    return vae, case.tensors


def clips(name: str) -> list[str]:
    case = magi_case(name)
    if not (case.folder / f"{name}.json").is_file():
        return ["absent"]
    return sorted(key.removesuffix("_x") for key in case.info["tensors"] if key.endswith("_x"))


@pytest.mark.parametrize("clip", clips("vae_encode_decode"))
def test_encode_and_decode(clip):
    vae, tensors = load_case("vae_encode_decode")
    posterior = vae.encode(tensors[f"{clip}_x"]).latent_dist
    assert relative_error(posterior.parameters, tensors[f"{clip}_moments"]) < RELATIVE
    assert relative_error(posterior.mode(), tensors[f"{clip}_z"]) < RELATIVE
    assert relative_error(vae.decode(tensors[f"{clip}_z"]), tensors[f"{clip}_dec"]) < RELATIVE


@pytest.mark.parametrize("clip", clips("vae_tiling"))
def test_tiles(clip):
    (vae, tensors), tiling = load_case("vae_tiling"), magi_case("vae_tiling").info["tiling"]
    size = None if "nosp" in clip else tiling["tile_px"]
    vae.enable_tiling(Tiling(size, tiling["tile_frames"], tiling["spatial_overlap"]))
    encoded = vae.encode(tensors[f"{clip}_x"]).latent_dist.mode()
    assert relative_error(encoded, tensors[f"{clip}_z"]) < RELATIVE
    decoded, known = vae.decode(tensors[f"{clip}_z"]), tensors[f"{clip}_dec"]
    assert decoded.shape == tensors[f"{clip}_x"].shape, "no frame of the last tile is lost"
    # The original loses frames of a last tile of one latent frame.
    assert relative_error(decoded[:, :, : known.shape[2]], known) < RELATIVE


def test_variant():
    vae, tensors = load_case("vae_variant_b")
    assert relative_error(vae.encode(tensors["x"]).latent_dist.mode(), tensors["z"]) < RELATIVE
    assert relative_error(vae.decode(tensors["z"]), tensors["dec"]) < RELATIVE


def test_official_names_and_shapes():
    listed = magi_case("keys_vae_unverified").info
    config = listed["assumed_config"]
    with torch.device("meta"):
        vae = AutoencoderKLMagi(**pick_known(AutoencoderKLMagi, config.get("ddconfig", config)))
    shapes = {key: list(tensor.shape) for key, tensor in vae.state_dict().items()}
    assert shapes == {key: tensor["shape"] for key, tensor in listed["tensors"].items()}
