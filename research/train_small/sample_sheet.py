"""Draw the held-out captions with a checkpoint, one row of frames each, for the eye to judge."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from flowcache.video import Frames, contact_sheet, to_uint8
from magi1 import model_source as magi_source
from magi1.methods import method_config
from magi1.request import VideoRequest
from skyreels_v2 import load_pipeline, resolve_model

logger = logging.getLogger("sample_sheet")

MAGI_CONFIG = Path(__file__).resolve().parents[2] / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json"

#: Makes the video of a caption and its place; gives what to write above it, and the frames.
Draw = Callable[[str, int], tuple[str, Frames]]


def skyreels(args: argparse.Namespace) -> Draw:
    """Captions by turns with each method of SkyReels-V2."""
    source = resolve_model(str(args.model or "small"), "cpu")
    pipeline = load_pipeline(source, "cpu")
    pipeline.set_progress_bar_config(disable=True)

    def draw(caption: str, index: int) -> tuple[str, Frames]:
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
        return f"{caption} ({method})", to_uint8(video.frames)

    return draw


def magi(args: argparse.Namespace) -> Draw:
    """Captions with the small MAGI-1 in ``assets``, without reuse."""
    sampling = {"num_steps": args.steps, "num_frames": args.num_frames}
    source = magi_source.resolve_model(MAGI_CONFIG, sampling, "small", "cpu")
    pipeline = magi_source.load_pipeline(source, "cpu")
    pipeline.set_progress_bar_config(disable=True)

    def draw(caption: str, index: int) -> tuple[str, Frames]:
        runtime = replace(source.config.runtime_config, seed=args.seed + index)
        config = replace(source.config, runtime_config=runtime)
        request = VideoRequest(prompt=caption, config=config, cache=method_config("vanilla"))
        return caption, to_uint8(pipeline(request).frames)

    return draw


def draw_sheet(args: argparse.Namespace) -> None:
    """Generate every caption and save one sheet."""
    draw = FAMILIES[args.family](args)
    captions = json.loads(Path(__file__).with_name("held_out.json").read_text())[: args.captions]
    videos = dict(draw(caption, index) for index, caption in enumerate(tqdm(captions, unit="video")))
    contact_sheet(videos, args.out, columns=args.columns, scale=1)
    logger.info("wrote %s", args.out)


FAMILIES = {"skyreels": skyreels, "magi": magi}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="skyreels")
    parser.add_argument("--model", type=Path, help="checkpoint folder of skyreels; default: the small one")
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
    draw_sheet(parser.parse_args())


if __name__ == "__main__":
    main()
