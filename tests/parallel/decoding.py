"""Encoding and decoding in each of some processes, compared with a single one; prints a verdict a line."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist

from flowcache.parallel import Group
from magi1.vae import AutoencoderKLMagi, Tiling

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


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group(dist.get_rank(), dist.get_world_size())
    torch.manual_seed(0)
    for cases in (magi_cases,):
        for name, known, found in cases(group):
            same = group.gather_objects(torch.equal(known, found))
            if group.is_first:
                print("same" if all(same) else "different", name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
