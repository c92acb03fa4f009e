"""Compare what becomes of the KV cache when the prompt changes in the middle of a video: keep or recompute.

    python -m research.prompt_switch

Pairs of captions of moving shapes change the colour, the form or the motion. Of the frames behind the switch:

- there: share of frames, from a second on, that are nearer to the new caption than to the old one in what it changes;
- frames until there: from the switch to the first frame from which half a second shows it (medians; the video's end
  where it never does);
- colour error: distance of the shape's mean colour in the last second to the caption's, of 255 levels (means);
- jump: PSNR of the first switched frame to the one before it, minus the mean at the earlier starts of chunks (means).
"""

import argparse
import re
from collections import defaultdict
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flowcache import PromptSchedule, Trace
from flowcache.cli import find_model as find_adapter
from flowcache.cli import prepare_video
from flowcache.files import markdown_table
from flowcache.metrics import psnr
from flowcache.video import Frames, contact_sheet

from .compare import main, write_results
from .runs import Model, new_parser
from .streaming import mask_shapes
from .train_small.moving_shapes import COLOURS, DRIFTS, Scene, render

PAIRS = (
    ("a red circle moves right over a dark background", "a blue circle moves right over a dark background"),
    ("a green square bounces over a grey background", "a yellow square bounces over a grey background"),
    ("a blue circle bounces over a light background", "a blue square bounces over a light background"),
    ("a cyan circle moves right over a dark background", "a cyan circle moves left over a dark background"),
)
SELF_FORCING = "--weights small --num_output_frames 24"
#: Model, and options of a video whose first chunks are clean at the switch.
SETTINGS = {
    "Self-Forcing, all attended": ("self_forcing", SELF_FORCING),
    "Self-Forcing, window of 12, sink of 3": ("self_forcing", f"{SELF_FORCING} --local_attn_size 12 --sink_size 3"),
    "SkyReels-V2, streaming, budget 2": (
        "skyreels_v2",
        "--weights small --inference_steps 20 --ar_step 10 --num_frames 137 "
        "--streaming --use_compress --budget_block 2",
    ),
    "MAGI-1, 16 steps": ("magi1", "--model small --num_frames 144 --num_steps 16"),
}


def words_of(caption: str) -> tuple[str, str, str]:
    """Colour, form and motion of a caption."""
    return re.fullmatch(r"an? (\w+) (\w+) (.+) over .*", caption).groups()


def measure_colour(frames: Frames) -> NDArray[np.float64]:
    """Mean colour of the shape in each frame; NaN where there is none."""
    pairs = zip(frames, mask_shapes(frames), strict=True)
    return np.array([frame[mask].mean(axis=0) if mask.any() else np.full(3, np.nan) for frame, mask in pairs])


def measure_form(frames: Frames) -> NDArray[np.float64]:
    """Area of the shape over that of its bounding box, and whether its middle is filled, for each frame."""
    found = []
    for mask in mask_shapes(frames):
        # The frame's sides meet: start where the shape has a gap.
        for axis in (0, 1):
            empty = np.flatnonzero(~mask.any(axis=1 - axis))
            mask = np.roll(mask, -empty[0] if len(empty) else 0, axis=axis)
        rows, columns = (np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1))
        if not len(rows):
            found.append((np.nan, np.nan))
            continue
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = box.shape
        middle = box[height * 3 // 8 : height * 5 // 8 + 1, width * 3 // 8 : width * 5 // 8 + 1]
        found.append((box.mean(), middle.mean()))
    return np.array(found)


def measure_motion(frames: Frames) -> NDArray[np.float64]:
    """Shift of the shape's centre along x and y from four frames before to each frame, in frame sides."""
    places = []
    for mask in mask_shapes(frames):
        turns = [np.exp(2j * np.pi * np.arange(n) / n) for n in mask.shape]
        places.append([np.angle((mask.sum(axis=axis) * turns[1 - axis]).sum()) / (2 * np.pi) for axis in (0, 1)])
    shifts = np.array(places)[4:] - np.array(places)[:-4]
    shifts = (shifts + 0.5) % 1 - 0.5
    return np.concatenate([np.repeat(shifts[:1], 4, axis=0), shifts])


def shows_new(frames: Frames, old: str, new: str) -> NDArray[np.bool_]:
    """Whether each frame is nearer to the new caption in what it changes."""
    pairs = enumerate(zip(words_of(old), words_of(new), strict=True))
    changed, before, after = next((i, *words) for i, words in pairs if len({*words}) > 1)
    if changed == 0:
        seen, targets = measure_colour(frames), [255 * np.array(COLOURS[word]) for word in (before, after)]
    elif changed == 1:
        ideal = [Scene("red", form, "bounces", "dark", 0.26, 0.5, 0.5, 0, 0) for form in (before, after)]
        pictures = [((render(scene, 1).permute(1, 2, 3, 0).numpy() + 1) * 127.5).astype(np.uint8) for scene in ideal]
        seen, targets = measure_form(frames), [measure_form(picture)[0] for picture in pictures]
    else:
        seen, targets = measure_motion(frames), [0.05 * np.array(DRIFTS[motion]) for motion in (before, after)]
    far, near = (np.linalg.norm(seen - target, axis=-1) for target in targets)
    return near < far


def measure(frames: Frames, switch: int, chunk: int, fps: float, old: str, new: str) -> dict[str, float]:
    """Measurements of one video, whose frame ``switch`` is the first with the new prompt; see above."""
    second = round(fps)
    there, half = shows_new(frames, old, new), second // 2
    stays = [bool(there[i : i + half].mean() > 0.9) for i in range(switch, len(frames) - half)]
    error = np.linalg.norm(
        np.nanmean(measure_colour(frames[-second:]), axis=0) - 255 * np.array(COLOURS[words_of(new)[0]])
    )
    steps = psnr(frames[1:], frames[:-1])[1].numpy()
    return {
        "there": float(there[switch + second :].mean()),
        "frames until there": stays.index(True) if True in stays else len(frames) - switch,
        "colour error": float(error),
        "jump dB": float(steps[switch - 1] - steps[switch - 1 - chunk : 0 : -chunk].mean()),
    }


def bench(args: argparse.Namespace) -> str:
    results = []
    for name, (package, words) in tqdm(SETTINGS.items(), unit="setting"):
        kind, pipeline, sheets = find_adapter(package), None, defaultdict(dict)
        for switch in ("keep",) if package == "magi1" else ("keep", "recompute"):
            options = ["--prompt_switch", switch, "--prompt_schedule", "0: a", *words.split(), "--device", args.device]
            sampler = prepare_video(kind, [*options, "--dry_run"]).sampler
            model = Model(sampler.model, args.device)
            pipeline = model.pipeline = pipeline or model.pipeline
            video = sampler.model.video
            for number, (old, new) in enumerate(tqdm(PAIRS, leave=False, unit="pair")):
                time = 0.45 * video.num_frames / video.fps
                schedule = PromptSchedule(((0, old), (time, new)))
                for seed in range(args.seeds):
                    frames, trace = model.video(schedule, seed, sampler.config, Trace())
                    starts = chunk_starts(trace, package)
                    first = next(start for start in starts if start >= time * video.fps)
                    row = measure(frames, first, starts[-1] - starts[-2], video.fps, old, new)
                    row |= {"TFLOPs": trace.flops["actual"] / 1e12}
                    results.append({"setting": name, "switch": switch, "pair": number, "seed": seed, **row})
                    if seed == 0:
                        sheets[number][f"{switch}: {new}, from frame {first} of {len(frames)} on"] = frames
        for number, videos in sheets.items():
            contact_sheet(videos, args.outdir / f"{package}{list(SETTINGS).index(name)}_{number}.png", columns=16)
        table = write_results(args, "prompt_switch", make_table(results), results)
    return table


def chunk_starts(trace: Trace, package: str) -> list[int]:
    """Frames of the video with which chunks start, in order of time."""
    starts, offset = [], 0
    for window in trace.windows:
        given = sum(window.chunk_frames[: window.first_chunk]) if starts else 0
        offset -= given
        for frames in window.chunk_frames:
            starts.append(offset)
            offset += frames
    return sorted({4 * start if package == "magi1" else max(0, 4 * start - 3) for start in starts})


def make_table(results: list[dict]) -> str:
    groups, cells = defaultdict(list), []
    for row in results:
        groups[row["setting"], row["switch"]].append(row)
    for (setting, switch), rows in groups.items():
        there, frames, error, jump, flops = ([row[name] for row in rows] for name in (*list(rows[0])[4:],))
        shown = [f"{mean(there):.0%}", f"{median(frames):.0f}", f"{mean(error):.0f}", f"{mean(jump):+.1f}"]
        cells.append([setting, switch, *shown, f"{mean(flops):.4f}"])
    titles = ["setting", "cache", "there", "frames until there", "colour error", "jump dB", "TFLOPs"]
    return markdown_table(titles, cells)


if __name__ == "__main__":
    parser = new_parser(__doc__, "prompt_switch", models=())
    parser.add_argument("--seeds", type=int, default=1, help="videos of each pair (default: 1)")
    parser.set_defaults(model="")
    main(parser, bench)
