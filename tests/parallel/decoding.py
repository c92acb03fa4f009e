"""Encoding and decoding in each of some processes, compared with a single one; prints a verdict a line."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain, product

import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor
from torch import distributed as dist

from flowcache.files import shipped
from flowcache.parallel import Group
from flowcache.parallel.efficiency import PlannedGroup
from flowcache.wan.codec import VideoCodec
from flowcache.wan.row_decoder import split_rows
from magi1.pipeline import MagiPipeline
from magi1.vae import AutoencoderKLMagi, Tiling
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

#: Name of a case, what one process makes, and what this one got of the group.
Case = tuple[str, Tensor, Tensor]


def magi_cases(group: Group) -> Iterator[Case]:
    vae = AutoencoderKLMagi(video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1).eval()
    tilings = {"whole": None, "time": Tiling(None, 8), "space": Tiling(32, None), "both": Tiling(32, 8)}
    for height, width, frames in ((4, 4, 4), (7, 10, 6), (3, 5, 1)):
        latents = torch.randn(1, 4, frames, height, width)
        video = torch.rand(1, 3, 4 * frames if frames > 1 else 1, 8 * height, 8 * width)
        for name, tiling in tilings.items():
            vae.tiling, name = tiling, f"MAGI-1 {name} {height} x {width} x {frames}"
            yield f"{name} decoded", vae.decode(latents), vae.decode(latents, group=group)
            known, found = (vae.encode(video, each).latent_dist for each in (None, group))
            yield f"{name} encoded", known.parameters, found.parameters


def decode_in_pieces(vae: AutoencoderKLWan, latents: Tensor, group: Group | None) -> tuple[Tensor, Tensor]:
    """Frames and the newest of them, by codecs of which each continues where the one before it stood."""
    frames, state = [], None
    for piece in latents.split([1, 2, 1], dim=1):
        codec = VideoCodec(vae, num_kept=3, group=group)
        if state is not None:
            codec.load_state_dict(state)
        frames.append(codec.decode(piece))
        state = codec.state_dict()
    return torch.cat(frames, dim=1), codec.newest


def plan_decoding(vae: AutoencoderKLWan, latents: Tensor, group: Group) -> tuple[int, int]:
    """Bytes and collectives of a process that decodes latents."""
    planned, features = PlannedGroup(group.index, group.size), [None] * 99
    decoder = split_rows(deepcopy(vae.decoder).to("meta"), planned, latents.shape[2])
    for index, latent in enumerate(latents.unsqueeze(0).to("meta").split(1, dim=2)):
        decoder(latent, features, [0], first_chunk=index == 0)
    return planned.traffic.nbytes, planned.traffic.collectives


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
        before = group.traffic.nbytes, group.traffic.collectives
        known, found = (decode_in_pieces(vae, latents, each) for each in (None, group))
        sent = group.traffic.nbytes - before[0], group.traffic.collectives - before[1]
        yield f"{name} decoded", known[0], found[0]
        yield f"{name} newest", known[1], found[1]
        if not vae.use_tiling:
            yield f"{name} sent", torch.tensor(plan_decoding(vae, latents, group)), torch.tensor(sent)
        video = torch.rand(3, 5, 8 * height, 8 * width)
        yield f"{name} encoded", *(VideoCodec(vae, group=each).encode(video) for each in (None, group))


def video_cases(group: Group) -> Iterator[Case]:
    """Videos of the small checkpoints; a window takes over frames of the one before it."""
    windows = {"num_frames": 25, "base_num_frames": 17, "overlap_history": 5, "num_inference_steps": 2}
    image = {"num_frames": 24, "num_inference_steps": 4, "image": Image.new("RGB", (64, 64), "red")}
    for model, options in ((FlowCacheSkyReelsV2Pipeline, windows), (MagiPipeline, image)):
        pipeline, frames = model.from_pretrained("small"), []
        pipeline.set_progress_bar_config(disable=True)
        for each in (Group(), group):
            pipeline.parallelize(each)
            frames.append(pipeline("a red circle", output_type="pt", **options).frames)
        yield f"video of {model.__name__}", *frames


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group(dist.get_rank(), dist.get_world_size())
    torch.manual_seed(0)
    for name, known, found in chain(magi_cases(group), skyreels_cases(group), video_cases(group)):
        same = group.gather_objects(torch.equal(known, found))
        if group.is_first:
            print("same" if all(same) else "different", name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
