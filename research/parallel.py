"""Compare one process with several in bf16: PSNR to the video of one, beside bf16's own distance to fp32.

    torchrun --standalone --nproc_per_node 2 -m research.parallel --model skyreels

The small checkpoints on a CPU, held-out captions; the VAE is in fp32 throughout. The first process prints.
"""

import argparse
import sys
from statistics import median

import torch
from torch import distributed

from flowcache import Trace
from flowcache.files import markdown_table
from flowcache.metrics.similarity import psnr
from flowcache.parallel import Group
from flowcache.video import Frames

from .compare import positive
from .quantisation import change_weights
from .runs import Model, find_model, new_parser
from .train_small.moving_shapes import read_held_out

FRAMES, STEPS = {"skyreels": 57, "magi": 72}, 16


def measure(args: argparse.Namespace, group: Group) -> list[list[str]]:
    """A row for each method."""
    args.num_frames, args.steps = args.num_frames or FRAMES[args.model], args.steps or STEPS
    plain, prompts, rows = find_model(args), read_held_out(), []
    rounded = change_weights(plain, "bf16")
    configs = {"no reuse": plain.configure(plain.no_reuse), "fast": plain.configure("flowcache", "fast")}

    def make(model: Model, method: str, seed: int) -> Frames:
        return model.video(prompts[seed], seed, configs[method], Trace())[0]

    for method in configs:
        distances = []
        for seed in range(args.captions):
            alone = make(rounded, method, seed)
            rounded.pipeline.parallelize(group)
            together = make(rounded, method, seed)
            rounded.pipeline.parallelize(Group())
            distances.append([psnr(video, alone)[0] for video in (together, make(plain, method, seed))])
        rows.append([args.model, method, *(f"{median(column):.1f} dB" for column in zip(*distances, strict=True))])
    return rows


def main() -> None:
    parser = new_parser(__doc__, "parallel_MODEL", "57; magi: 72", steps="16")
    parser.add_argument("--captions", type=positive, default=4, help="held-out captions, the first ones (default: 4)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    group = Group(distributed.get_rank(), distributed.get_world_size())
    rows = measure(args, group)
    distributed.destroy_process_group()
    if group.is_first:
        titles = ["model", "method", f"{group.size} processes to one, bf16", "fp32 to bf16, one process"]
        sys.stdout.write(markdown_table(titles, rows) + "\n")


if __name__ == "__main__":
    main()
