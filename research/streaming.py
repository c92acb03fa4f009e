"""Compare long videos of SkyReels-V2: overlapping windows, and streaming with several limits on the cache.

    python -m research.streaming --num_frames 377

The moving shapes of the small checkpoint should look the same at the end as at the start. Between the first
and the last window's length of the video:

- background: PSNR of the per-pixel medians over the frames that show no shape there;
- shape: PSNR of the mean pictures of the shape, moved to the middle (it leaves on one side and comes back
  on the other) and cropped;
- area: of the shape, last over first;
- joins: mean PSNR of a frame to the previous one where a block starts (windows start with one, too), minus
  the mean over all frames: joins below 0 are jumps.
"""

import argparse

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flowcache import Trace
from flowcache.files import markdown_table
from flowcache.metrics import psnr
from flowcache.video import Frames, contact_sheet

from .compare import main, write_results
from .runs import PROMPT, find_model, new_parser

#: Whether to stream, and limits on the cache.
VARIANTS = {
    "windows": (False, {}),
    "streaming, budget 1": (True, {"budget": 1}),
    "streaming, budget 4": (True, {"budget": 4}),
    "streaming, range 1": (True, {"kv_range": 1}),
    "streaming, range 4": (True, {"kv_range": 4}),
}
PROMPTS = (PROMPT, "a blue square turns over a grey background")
#: Difference of levels (0 to 255) from which on a pixel belongs to the shape.
APART = 60


def mask_shapes(frames: Frames) -> NDArray[np.bool_]:
    """Pixels that differ from the colour of the frame's rim, ``[frames, height, width]``."""
    rim = np.concatenate([frames[:, 0], frames[:, -1]], axis=1)
    colour = np.median(rim.reshape(-1, 3), axis=0)
    return np.abs(frames.astype(float) - colour).max(axis=-1) > APART


def background_psnr(first: Frames, last: Frames) -> float:
    """PSNR of the backgrounds of two clips, over the pixels that show it in a tenth of both."""
    bare = [np.where(mask_shapes(clip)[..., None], np.nan, clip.astype(np.float32)) for clip in (first, last)]
    both = np.all([np.isfinite(clip[..., 0]).mean(axis=0) > 0.1 for clip in bare], axis=0)
    return psnr(*(np.nanmedian(clip[:, both], axis=0)[None, None].astype(np.uint8) for clip in bare))[0]


def centre_shape(frames: Frames) -> Frames:
    """Mean picture of the shape, moved to the middle, ``[1, height, width, 3]``."""
    moved = []
    for frame, mask in zip(frames, mask_shapes(frames), strict=True):
        if not mask.any():
            continue
        for axis in (0, 1):
            # the frame's sides meet: the mean place is one on a circle
            profile = mask.sum(axis=1 - axis)
            turn = np.exp(2j * np.pi * np.arange(len(profile)) / len(profile))
            place = np.angle((profile * turn).sum()) / (2 * np.pi) * len(profile)
            frame = np.roll(frame, round(len(profile) / 2 - place), axis=axis)
        moved.append(frame)
    side = frames.shape[1] // 4
    return np.mean(moved, axis=0, keepdims=True).astype(np.uint8)[:, side:-side, side:-side]


def measure_constancy(frames: Frames, length: int, block: int) -> dict[str, float]:
    """Compare the first and last ``length`` frames of a video with blocks of ``block`` frames; see above."""
    first, last = frames[:length], frames[-length:]
    steps = psnr(frames[1:], frames[:-1])[1].numpy()
    return {
        "background dB": background_psnr(first, last),
        "shape dB": psnr(centre_shape(first), centre_shape(last))[0],
        "area": float(mask_shapes(last).mean() / mask_shapes(first).mean()),
        "joins dB": float(steps[block - 4 :: block].mean() - steps.mean()),
    }


def bench(args: argparse.Namespace) -> str:
    if args.model != "skyreels":
        raise ValueError(f"model: expected skyreels, which has windows, got {args.model}.")
    models = {streams: find_model(args, streaming=streams) for streams in (False, True)}
    models[True].pipeline = models[False].pipeline
    rows = []
    for index, prompt in enumerate(tqdm(args.prompts, unit="prompt")):
        videos = {}
        for name, (streams, limits) in tqdm(VARIANTS.items(), leave=False, unit="video"):
            model = models[streams]
            config = model.configure("flowcache", "balanced", **limits)
            videos[name], trace = model.video(prompt, args.seed, config, Trace(method=name))
            window, block = model.adapter.video.base_num_frames, model.adapter.video.causal_block_size
            row = measure_constancy(videos[name], window, 4 * block)
            row |= {"TFLOPs": trace.flops["actual"] / 1e12, "KV MiB": trace.windows[0].kv_bytes / 2**20}
            rows.append({"variant": name, "prompt": prompt, **row})
        contact_sheet(videos, args.outdir / f"prompt{index}.png", columns=16, scale=1.5)
    names, cells = list(row), []
    for variant in VARIANTS:
        means = [np.mean([row[name] for row in rows if row["variant"] == variant]) for name in names]
        cells.append([variant, *(f"{mean:.2f}" for mean in means)])
    return write_results(args, "streaming", markdown_table(["variant", *names], cells), rows)


if __name__ == "__main__":
    parser = new_parser(__doc__, "streaming", "377")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), help="default: two of moving shapes")
    parser.set_defaults(num_frames=377)
    main(parser, bench)
