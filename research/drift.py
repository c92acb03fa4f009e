"""Measure how far endless videos drift: what is right at the end of a minute, by what the KV cache keeps.

    python -m research.drift

Every policy makes the same videos on the small Self-Forcing: held-out captions, the same noise. The first ten seconds
are compared with the last ten:

- colour, ground: distance of the shape's and the background's median colours, of the first and the last five seconds,
  in levels (0 to 255);
- sharpness: mean squared difference of neighbouring pixels, last over first;
- speed: of the shape's centre, last over first, where it moves at first;
- overlap: intersection over union with the best rendered shape of the caption's form, at the end;
- right: videos whose caption's words are right at the end (``research.train_small.shape_probe``).

Latents are kept under ``--outdir``: an interrupted measurement continues.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowcache.files import markdown_table, replaced_when_done
from flowcache.video import Frames, contact_sheet, to_uint8
from flowcache.wan.codec import VideoCodec
from self_forcing import FlowCacheSelfForcingPipeline, method_config

from .compare import main, positive, write_results
from .runs import new_parser
from .train_small.moving_shapes import read_held_out
from .train_small.shape_probe import NAMED, REST, check_probe, read_caption, read_clip

CHUNK = 3  # latent frames
#: Latent frames of the cache, as trained: those of the running chunk and of six clean ones.
WINDOW = 7 * CHUNK
#: Latent frames of ten seconds, and pixel frames of five.
TEN, FIVE = 40, 80

_ROLLING, _BUDGET = {"local_attn_size": WINDOW}, {"compress": True, "budget": WINDOW // CHUNK - 1}
#: Settings of the video and options of the cache. The sink of ten frames is that of Deep Forcing.
POLICIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "window": (_ROLLING, {}),
    "window, sink 3": (_ROLLING | {"sink_size": 3}, {}),
    "window, sink 10": (_ROLLING | {"sink_size": 10}, {}),
    "window, sink 10, re-timed": (_ROLLING | {"sink_size": 10, "retime_sink": True}, {}),
    "participative": ({}, _BUDGET | {"scorer": "participative"}),
    "participative, re-timed": ({}, _BUDGET | {"scorer": "participative", "compactor": "retimed"}),
    "static and dynamic heads": ({}, _BUDGET | {"scorer": "static_dynamic"}),
    "static and dynamic heads, re-timed": ({}, _BUDGET | {"scorer": "static_dynamic", "compactor": "retimed"}),
    "spread, matched": ({}, _BUDGET),
    "paper": ({}, _BUDGET | {"scorer": "paper"}),
}


@dataclass(frozen=True)
class Drift:
    """What changed in a video, see above; ``speed`` is None where the shape rests at first."""

    policy: str
    caption: int
    kv_bytes: int
    colour: float
    ground: float
    sharpness: float
    speed: float | None
    overlap: float
    right: dict[str, bool]


def make_latents(
    pipeline: FlowCacheSelfForcingPipeline, policy: str, caption: int, args: argparse.Namespace
) -> tuple[Tensor, int]:
    """Latents of a video, ``[channels, frames, height, width]``, and bytes of its KV cache; stored once made."""
    video, options = POLICIES[policy]
    path = args.outdir / f"{policy.replace(',', '').replace(' ', '_')}_{caption}_{args.chunks}.pt"
    config = method_config("flowcache" if options else "vanilla", **options)
    video = video | {"num_output_frames": CHUNK * args.chunks, "seed": caption}
    settings = repr((video, config.as_dict()))
    if not path.exists() or torch.load(path, weights_only=True)["settings"] != settings:
        out = pipeline(read_held_out()[caption], cache=config, output_type="latent", **video)
        with replaced_when_done(path) as temporary:
            kept = {"latents": out.latents[0].cpu(), "kv_bytes": out.trace.windows[0].kv_bytes}
            torch.save({**kept, "settings": settings}, temporary)
    made = torch.load(path, weights_only=True)
    return made["latents"], made["kv_bytes"]


def decode(pipeline: FlowCacheSelfForcingPipeline, latents: Tensor) -> Frames:
    """Frames of a part of a video without its first latent frame, as the VAE has not seen what is before it."""
    return to_uint8(VideoCodec(pipeline.vae).decode(latents)[:, 1:])


def measure(policy: str, caption: int, kv_bytes: int, first: Frames, last: Frames) -> Drift:
    """Compare ten seconds at the start of a video with ten at its end."""
    said = read_caption(read_held_out()[caption])
    start, end, before, after = map(read_clip, (first[:FIVE], last[-FIVE:], first, last))
    return Drift(
        policy,
        caption,
        kv_bytes,
        colour=float(np.linalg.norm(start.shape_levels - end.shape_levels)),
        ground=float(np.linalg.norm(start.ground_levels - end.ground_levels)),
        sharpness=gradient_energy(last) / gradient_energy(first),
        speed=after.speed / before.speed if before.speed > REST else None,
        overlap=after.overlap[said["form"]],
        right={name: getattr(after, name) == said[name] for name in NAMED},
    )


def gradient_energy(frames: Frames) -> float:
    """Mean squared difference of neighbouring pixels, levels."""
    return float(sum(np.square(np.diff(frames.astype(np.float32), axis=axis)).mean() for axis in (1, 2)))


def bench(args: argparse.Namespace) -> str:
    if CHUNK * args.chunks < 2 * TEN:
        raise ValueError(f"chunks: expected at least {-(-2 * TEN // CHUNK)}, twenty seconds, got {args.chunks}.")
    if max(args.captions) >= len(read_held_out()):
        raise ValueError(f"captions: expected numbers below {len(read_held_out())}, got {max(args.captions)}.")
    pipeline = FlowCacheSelfForcingPipeline.from_pretrained("small")
    if args.device != "cpu":
        pipeline.to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    drifts, rows = [], {policy: [] for policy in args.policies}
    for caption, policy in tqdm(list(product(args.captions, args.policies)), unit="video"):
        latents, kv_bytes = make_latents(pipeline, policy, caption, args)
        ends = (decode(pipeline, part) for part in (latents[:, : TEN + 1], latents[:, -TEN - 1 :]))
        drifts.append(measure(policy, caption, kv_bytes, *ends))
        if caption in args.shown:
            places = np.linspace(2, latents.shape[1], 13).round().astype(int)
            rows[policy].append(np.stack([decode(pipeline, latents[:, at - 2 : at])[-1] for at in places]))
    if args.shown:
        sheet = {policy: np.concatenate(own, axis=1) for policy, own in rows.items()}
        contact_sheet(sheet, args.outdir / "drift.png", columns=13, scale=0.75)
    probe = " ".join(f"{name} {share:.3f}" for name, share in check_probe(args.clips, 4 * TEN).items())
    note = f"The probe on {args.clips} rendered clips of ten seconds: {probe}."
    return write_results(args, "drift", f"{summarise(drifts)}\n\n{note}", drifts)


def summarise(drifts: Sequence[Drift]) -> str:
    titles = ["policy", "KV MiB", "colour", "ground", "sharpness", "speed", "overlap", *NAMED, "all four"]
    cells = []
    for policy in dict.fromkeys(drift.policy for drift in drifts):
        own = [drift for drift in drifts if drift.policy == policy]
        means = [np.mean([getattr(drift, name) for drift in own]) for name in ("colour", "ground")]
        ratios = [np.mean([getattr(drift, name) for drift in own]) for name in ("sharpness", "overlap")]
        speeds = [drift.speed for drift in own if drift.speed is not None]
        right = [sum(drift.right[name] for drift in own) for name in NAMED]
        right.append(sum(all(drift.right.values()) for drift in own))
        row = [policy, f"{max(drift.kv_bytes for drift in own) / 2**20:.1f}", *(f"{mean:.1f}" for mean in means)]
        row += [f"{ratios[0]:.2f}", f"{np.mean(speeds):.2f}" if speeds else "", f"{ratios[1]:.2f}"]
        cells.append([*row, *(f"{count} of {len(own)}" for count in right)])
    return markdown_table(titles, cells)


if __name__ == "__main__":
    parser = new_parser(__doc__, "drift", models=())
    add = parser.add_argument
    captions = {"type": int, "nargs": "*", "choices": range(100), "metavar": "N"}
    add("--captions", **captions, default=[0, 5, 18, 4, 6, 11], help="held-out ones (default: 0 5 18 4 6 11)")
    add("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="of the cache (default: all)")
    add("--shown", **captions, default=[0, 5, 18], help="captions on the contact sheet (default: 0 5 18)")
    add("--clips", type=positive, default=300, help="rendered, on which the probe is checked (default: 300)")
    add("--chunks", type=positive, default=80, help="of each video (default: 80, a minute)")
    parser.set_defaults(model="self_forcing")
    main(parser, bench)
