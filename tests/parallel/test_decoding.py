"""Autoencoders over processes: the same bits as with one."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import chain, product
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from launched import run_in_group
from PIL import Image
from torch import Tensor

from flowcache.files import shipped
from flowcache.parallel import Group
from flowcache.parallel.efficiency import PlannedGroup
from flowcache.parallel.tiles import deal
from flowcache.wan.codec import VideoCodec
from flowcache.wan.row_decoder import split_rows
from magi1.pipeline import MagiPipeline
from magi1.vae import AutoencoderKLMagi, Tiling
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

#: Name of a case, and what a process gets of its group.
Case = tuple[str, Tensor]


def magi_cases(group: Group) -> Iterator[Case]:
    vae = AutoencoderKLMagi(video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1).eval()
    tilings = {"whole": None, "time": Tiling(None, 8), "space": Tiling(32, None), "both": Tiling(32, 8)}
    for height, width, frames in ((4, 4, 4), (7, 10, 6), (3, 5, 1)):
        latents = torch.randn(1, 4, frames, height, width)
        video = torch.rand(1, 3, 4 * frames if frames > 1 else 1, 8 * height, 8 * width)
        for name, tiling in tilings.items():
            vae.tiling, name = tiling, f"MAGI-1 {name} {height} x {width} x {frames}"
            yield f"{name} decoded", vae.decode(latents, group=group)
            yield f"{name} encoded", vae.encode(video, group).latent_dist.parameters


def decode_in_pieces(vae: AutoencoderKLWan, latents: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Frames and the newest of them, by codecs of which each continues where the one before it stood."""
    frames, state = [], None
    for piece in latents.split([1, 2, 1], dim=1):
        codec = VideoCodec(vae, num_kept=3, group=group)
        if state is not None:
            codec.load_state_dict(state)
        frames.append(codec.decode(piece))
        state = codec.state_dict()
    return torch.cat(frames, dim=1), codec.newest


def plan_decoding(vae: AutoencoderKLWan, latents: Tensor, group: Group) -> Tensor:
    """Bytes and collectives of a process that decodes latents."""
    planned, features = PlannedGroup(group.index, group.size), [None] * 99
    decoder = split_rows(deepcopy(vae.decoder).to("meta"), planned, latents.shape[2])
    for index, latent in enumerate(latents.unsqueeze(0).to("meta").split(1, dim=2)):
        decoder(latent, features, [0], first_chunk=index == 0)
    return torch.tensor([planned.traffic.nbytes, planned.traffic.collectives])


def skyreels_cases(group: Group) -> Iterator[Case]:
    channels = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vaes = {
        "small": AutoencoderKLWan.from_pretrained(shipped("assets/skyreels_v2_small/vae")),
        "tiny": AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, **channels),
        "in tiles": AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, **channels),
    }
    vaes["in tiles"].enable_tiling(48, 64, 32, 48)
    sizes = [("small", (7, 12)), *product(("tiny", "in tiles"), ((8, 8), (7, 12), (2, 16)))]
    for name, (height, width) in sizes:
        vae = vaes[name]
        name, latents = f"SkyReels-V2 {name} {height} x {width}", torch.randn(vae.config.z_dim, 4, height, width)
        before = torch.tensor([group.traffic.nbytes, group.traffic.collectives])
        frames, newest = decode_in_pieces(vae, latents, group)
        sent = torch.tensor([group.traffic.nbytes, group.traffic.collectives]) - before
        yield f"{name} decoded", frames
        yield f"{name} newest", newest
        if not vae.use_tiling:
            yield f"{name} sent, beyond the plan", sent - plan_decoding(vae, latents, group)
        video = torch.rand(3, 5, 8 * height, 8 * width)
        yield f"{name} encoded", VideoCodec(vae, group=group).encode(video)


def video_cases(group: Group) -> Iterator[Case]:
    """Videos of the small checkpoints; a window takes over frames of the one before it."""
    windows = {"num_frames": 25, "base_num_frames": 17, "overlap_history": 5, "num_inference_steps": 2}
    image = {"num_frames": 24, "num_inference_steps": 4, "image": Image.new("RGB", (64, 64), "red")}
    for model, options in ((FlowCacheSkyReelsV2Pipeline, windows), (MagiPipeline, image)):
        pipeline = model.from_pretrained("small")
        pipeline.set_progress_bar_config(disable=True)
        pipeline.parallelize(group)
        yield f"video of {model.__name__}", pipeline("a red circle", output_type="pt", **options).frames


def make_cases(group: Group) -> Iterator[Case]:
    torch.manual_seed(0)
    return chain(magi_cases(group), skyreels_cases(group), video_cases(group))


@torch.no_grad()
def find_differences(known: Path, group: Group) -> list[str]:
    cases = zip(torch.load(known, weights_only=True), make_cases(group), strict=True)
    return [name for (name, one), (_, found) in cases if not all(group.gather_objects(torch.equal(one, found)))]


@torch.no_grad()
def test_decoding_is_that_of_one_process(tmp_path):
    torch.save(list(make_cases(Group())), known := tmp_path / "known.pt")
    assert run_in_group(tmp_path, partial(find_differences, known), 3) == []


def test_tiles_are_dealt_evenly():
    assert deal([4, 1, 1, 1, 1], 2) == [0, 1, 1, 1, 1]
    assert deal([2, 2], 3) == [0, 1]
