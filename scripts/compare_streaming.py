"""Compare long videos of SkyReels-V2: windows that overlap, and streaming with several limits on the cache.

    bash scripts/compare_streaming.sh --num_frames 377

The moving shapes of the small checkpoint should look at the end as at the beginning. Measured between the
first and the last window's length of the video:

- background: PSNR of the pictures that have, at each pixel, its median over the frames in which no shape is
  there;
- shape: PSNR of the mean pictures of the shape, moved to the middle (it leaves on one side and comes back
  on the other) and cut out;
- area: of the shape, last over first;
- joins: mean PSNR of a frame to the one before it where a block begins (windows begin with one, too), minus
  the mean over all frames: below 0, joins are jumps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from interleaved import main
from numpy.typing import NDArray
from tqdm import tqdm

from flowcache import Trace
from flowcache.command_line import Parser, check_device
from flowcache.files import write_atomically, write_json
from flowcache.markdown import markdown_table
from flowcache.metrics import psnr
from flowcache.video import Frames, contact_sheet, to_uint8
from skyreels_v2 import VideoSettings, load_pipeline, resolve_model

#: Settings and limits on the cache of each way.
WAYS = {
    "windows": ({}, {}),
    "streaming, budget 1": ({"streaming": True}, {"budget_block": 1}),
    "streaming, budget 4": ({"streaming": True}, {"budget_block": 4}),
    "streaming, range 1": ({"streaming": True}, {"kvrange": 1}),
    "streaming, range 4": ({"streaming": True}, {"kvrange": 4}),
}
PROMPTS = ("a red circle moves right over a dark background", "a blue square turns over a grey background")
#: Frames of a block, so that windows begin where blocks do.
OVERLAP = 17
#: From here on, in levels of 0 to 255, a pixel is of the shape and not of the background.
APART = 60


def shape_masks(frames: Frames) -> NDArray[np.bool_]:
    """Where each frame differs from the colour of the frame's rim, ``[frames, height, width]``."""
    rim = np.concatenate([frames[:, 0], frames[:, -1]], axis=1)
    colour = np.median(rim.reshape(-1, 3), axis=0)
    return np.abs(frames.astype(float) - colour).max(axis=-1) > APART


def background_psnr(first: Frames, last: Frames) -> float:
    """PSNR of the backgrounds of two clips, over the pixels that show it in a tenth of both."""
    seen, pictures = [], []
    for frames in (first, last):
        bare = np.where(shape_masks(frames)[..., None], np.nan, frames.astype(np.float32))
        seen.append(np.isfinite(bare[..., 0]).mean(axis=0) > 0.1)
        pictures.append(bare)
    both = seen[0] & seen[1]
    shown = [np.nanmedian(bare[:, both], axis=0)[None, None].astype(np.uint8) for bare in pictures]
    return psnr(*shown)[0]


def centred_shape(frames: Frames) -> Frames:
    """The mean picture of the shape, moved to the middle, ``[1, height, width, 3]``."""
    masks = shape_masks(frames)
    moved = [
        np.roll(frame, [_to_middle(mask, axis) for axis in (0, 1)], axis=(0, 1))
        for frame, mask in zip(frames, masks, strict=True)
        if mask.any()
    ]
    side = frames.shape[1] // 4
    return np.mean(moved, axis=0, keepdims=True).astype(np.uint8)[:, side:-side, side:-side]


def _to_middle(mask: NDArray[np.bool_], axis: int) -> int:
    """Pixels to move a shape along an axis of a frame whose sides meet: its mean place on a circle."""
    profile = mask.sum(axis=1 - axis)
    angles = 2 * np.pi * np.arange(len(profile)) / len(profile)
    place = np.angle((profile * np.exp(1j * angles)).sum()) / (2 * np.pi) * len(profile)
    return round(len(profile) / 2 - place)


def constancy(frames: Frames, settings: VideoSettings) -> dict[str, float]:
    """How much of the video's beginning is there at its end; see the top of this file."""
    length = settings.base_num_frames
    first, last = frames[:length], frames[-length:]
    steps = psnr(frames[1:], frames[:-1])[1].numpy()
    block = 4 * settings.causal_block_size
    return {
        "background dB": background_psnr(first, last),
        "shape dB": psnr(centred_shape(first), centred_shape(last))[0],
        "area": float(shape_masks(last).mean() / shape_masks(first).mean()),
        "joins dB": float(steps[block - 4 :: block].mean() - steps.mean()),
    }


def bench(args: argparse.Namespace) -> str:
    """Make all videos, write contact sheets and measurements; returns a Markdown table."""
    args.outdir.mkdir(parents=True, exist_ok=True)
    source = resolve_model(args.model_id, args.device)
    pipeline = load_pipeline(source, args.device)
    pipeline.set_progress_bar_config(disable=True)
    shared = {"num_frames": args.num_frames, "overlap_history": OVERLAP, "addnoise_condition": 20}
    shared |= {"ar_step": 5, "inference_steps": args.steps, "seed": args.seed}
    rows = []
    for index, prompt in enumerate(tqdm(args.prompts, unit="prompt")):
        videos = {}
        for way, (changes, limits) in tqdm(WAYS.items(), leave=False, unit="way"):
            settings = source.video_settings(**shared, **changes)
            cache, trace = source.method_config("flowcache", "balanced", **limits), Trace(method=way)
            video = pipeline(prompt, settings=settings, cache=cache, trace=trace)
            videos[way] = to_uint8(video.frames)
            spent = {"TFLOPs": trace.flops["actual"] / 1e12, "KV MiB": trace.windows[0].kv_bytes / 2**20}
            rows.append({"way": way, "prompt": prompt} | constancy(videos[way], settings) | spent)
        contact_sheet(videos, args.outdir / f"prompt{index}.png", columns=16, scale=1.5)
    write_json(args.outdir / "compare_streaming.json", rows)
    text = summarise(rows)
    write_atomically(args.outdir / "compare_streaming.md", f"{text}\n".encode())
    return text


def summarise(rows: list[dict]) -> str:
    """A row for each way, means over the prompts."""
    names = [name for name in rows[0] if name not in ("way", "prompt")]
    cells = []
    for way in WAYS:
        means = [np.mean([row[name] for row in rows if row["way"] == way]) for name in names]
        cells.append([way, *(f"{mean:.2f}" for mean in means)])
    return markdown_table(["way", *names], cells)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_id", default="auto", help="as for generate_video_df.py")
    add("--num_frames", type=int, default=377)
    add("--steps", type=int, default=50)
    add("--seed", type=int, default=0)
    add("--prompts", nargs="+", default=list(PROMPTS))
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--outdir", type=Path, default=Path("outputs/compare_streaming"))
    args = parser.parse_args()
    check_device(args.device)
    source = resolve_model(args.model_id, args.device)
    source.video_settings(num_frames=args.num_frames, overlap_history=OVERLAP, inference_steps=args.steps)
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
