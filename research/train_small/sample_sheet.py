"""Draw held-out captions with a checkpoint, one row of frames each, to judge it by eye."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from flowcache import Trace
from flowcache.video import contact_sheet

from ..runs import MODELS, add_model_flags, find_model
from .moving_shapes import read_held_out


def draw_sheet(args: argparse.Namespace) -> None:
    """Make a video of every caption, with each method in turn, and save one sheet."""
    videos, models = {}, {}
    for method in args.methods:
        # the plain SkyReels-V2 denoises all blocks at the same step
        together = {"ar_step": 0} if method == "vanilla" else {}
        models[method] = find_model(args, guidance_scale=args.guidance_scale, **together)
    for index, caption in enumerate(tqdm(read_held_out()[: args.captions], unit="video")):
        method = args.methods[index % len(args.methods)]
        model = models[method]
        frames = model.video(caption, args.seed + index, model.configure(method), Trace())
        videos[f"{caption} ({method})"] = frames
    contact_sheet(videos, args.out, columns=args.columns, scale=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_flags(parser, "97; magi: 96")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="PNG")
    add("--captions", type=int, default=20, help="number of captions (default: 20)")
    add("--methods", nargs="+", help="in turn (default: all without reuse)")
    add("--columns", type=int, default=13, help="frames per row (default: 13)")
    add("--guidance_scale", type=float, help="of skyreels (default: the model's)")
    add("--seed", type=int, default=0, help="of the first caption (default: 0)")
    args = parser.parse_args()
    args.methods = args.methods or [m for m in MODELS[args.model].methods if m in ("vanilla", "causal")]
    draw_sheet(args)


if __name__ == "__main__":
    main()
