"""Draw the held-out captions with a checkpoint, one row of frames each, for the eye to judge."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from tqdm import tqdm

from flowcache.video import contact_sheet, to_uint8
from skyreels_v2 import load_pipeline, resolve_model

logger = logging.getLogger("sample_sheet")


def draw(args: argparse.Namespace) -> None:
    """Generate every caption by turns with each method and save one sheet."""
    source = resolve_model(str(args.model), "cpu")
    pipeline = load_pipeline(source, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    captions = json.loads(Path(__file__).with_name("held_out.json").read_text())[: args.captions]
    videos = {}
    for index, caption in enumerate(tqdm(captions, unit="video")):
        method = args.methods[index % len(args.methods)]
        settings = source.video_settings(
            num_frames=args.num_frames,
            overlap_history=17 if args.num_frames > 97 else None,
            addnoise_condition=20,
            inference_steps=args.steps,
            ar_step=0 if method == "vanilla" else 5,
            guidance_scale=args.guidance_scale,
            seed=args.seed + index,
        )
        video = pipeline(caption, settings=settings, cache=source.method_config(method))
        videos[f"{caption} ({method})"] = to_uint8(video.frames)
    contact_sheet(videos, args.out, columns=args.columns, scale=1)
    logger.info("wrote %s", args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    parser.add_argument("--captions", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=["vanilla", "causal"])
    parser.add_argument("--num-frames", type=int, default=97)
    parser.add_argument("--columns", type=int, default=13)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, help="default: the model's")
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_grad_enabled(False)
    draw(parser.parse_args())


if __name__ == "__main__":
    main()
