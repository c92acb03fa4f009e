"""Measure what every reuse policy, with every forecast, makes of the same compute.

    bash scripts/bench_policies.sh --family skyreels

Each curve is a policy with a forecast, at several settings of its knob; each point is the median over the
captions of the closeness to the run that reuses nothing, against the share of chunk steps that were computed.
Runs are appended to ``OUTDIR/runs.jsonl``; a measurement that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from interleaved import main, positive
from policy_curves import Point, report
from small_models import FAMILIES, Family, held_out
from tqdm import tqdm

from flowcache import FlowCacheConfig
from flowcache.benchmark.sample_folder import Manifest
from flowcache.command_line import Parser
from flowcache.metrics import psnr, ssim
from flowcache.video import Frames, to_uint8

INTERVALS = (2, 3, 4, 5, 7, 10)
TOLERANCES = (0.003, 0.02, 0.1)

#: What is put into every rule, by the name that curves have; the first at every setting, others at some.
FORECASTS = {
    "line": "linear_velocity",
    "held velocity": "hold_velocity",
    "line of the residual": "linear_residual",
    "parabola": "quadratic_velocity",
}


def curves_of(family: Family) -> dict[str, dict[float, FlowCacheConfig]]:
    """Settings of each curve, by the knob: the originals, then every rule with every forecast."""
    tea = replace(family.paper(0.0), policy="teacache", final_steps=1, clean_pass=family.ours.clean_pass)
    tea_cache = {x: replace(tea, threshold=x) for x in family.thresholds[::2]}
    curves = {
        "the paper's rule": {x: family.paper(x) for x in family.thresholds},
        "TeaCache": {x: replace(cache, forecast="hold_residual") for x, cache in tea_cache.items()},
    }
    for rule, settings in {"TeaCache": tea_cache, **_rules_of(family)}.items():
        for index, (name, forecast) in enumerate(FORECASTS.items()):
            step = 2 if index and len(settings) > 3 else 1
            curves[f"{rule}, {name}"] = {
                x: replace(settings[x], forecast=forecast) for x in list(settings)[::step]
            }
    return curves


def _rules_of(family: Family) -> dict[str, dict[float, FlowCacheConfig]]:
    """Rules that forecasts are put into, by name and knob."""
    ours, distance = family.ours, family.distance
    controlled = replace(ours, policy="error_controlled", together=True)
    rules = {
        "chunkwise": {x: replace(family.paper(x), clean_pass=ours.clean_pass) for x in family.thresholds},
        "chunkwise together": {x: distance(x) for x in family.thresholds[1:]},
        "together on the filtered latent": {
            x: replace(distance(x), indicator="filtered_latent", coefficients=None)
            for x in family.latent_thresholds
        },
        "interval": {x: replace(ours, policy="fixed_interval", interval=x) for x in INTERVALS},
        "error-controlled": {x: replace(controlled, tolerance=x) for x in TOLERANCES},
    }
    if (plans := family.plans) is not None:
        rules["planned"] = {
            round(plans.share_of(steps), 2): replace(ours, policy="planned", computed_steps=steps)
            for steps in plans.steps
        }
    return rules


def measure(args: argparse.Namespace, family: Family) -> Iterator[Point]:
    """Run all that is not yet in the record, caption by caption."""
    curves = curves_of(family)
    limits = {"compression": family.compression(args.budget)} if args.budget else {}
    plain_settings = replace(family.plain, **limits)
    for name in args.curves or curves:
        if name not in curves:
            raise ValueError(f"curves must be among {'; '.join(curves)}; got {name!r}.")
    captions = list(enumerate(held_out()))[args.skip :][: args.captions]
    record = Manifest(args.outdir / "runs.jsonl")
    ways = [
        (name, knob, replace(curves[name][knob], **limits))
        for name in args.curves or curves
        for knob in curves[name]
    ]
    with tqdm(total=len(captions) * len(ways), unit="run") as progress:
        for index, caption in captions:
            plain: Frames | None = None
            for curve, knob, cache in ways:
                name = f"{curve}, {knob:g}: {caption}"
                settings = _settings(args, cache)
                known = record.records().get(name)
                if known is None or known["settings"] != settings:
                    if plain is None:
                        plain = to_uint8(family.generate(caption, index, plain_settings).frames)
                    point = _measured(family, plain, caption, index, (curve, knob, cache))
                    known = {"name": name, "settings": settings, "run": asdict(point)}
                    record.append(known)
                yield Point(**known["run"])
                progress.update()


def _settings(args: argparse.Namespace, cache: FlowCacheConfig) -> dict[str, Any]:
    """All that decides about a run, as JSON gives it back."""
    return json.loads(json.dumps({"steps": args.steps, "frames": args.frames, "cache": cache.as_dict()}))


def _measured(
    family: Family, plain: Frames, caption: str, seed: int, way: tuple[str, float, FlowCacheConfig]
) -> Point:
    name, knob, cache = way
    video = family.generate(caption, seed, cache)
    frames = to_uint8(video.frames)
    flops = video.trace.flops
    return Point(
        name,
        knob,
        caption,
        computed=1 - video.trace.reuse_ratio,
        saved=flops["causal"] / flops["actual"],
        psnr=psnr(frames, plain)[0],
        ssim=ssim(frames, plain)[0],
    )


def bench(args: argparse.Namespace) -> str:
    """Measure, draw, and return the table."""
    torch.set_grad_enabled(False)
    args.outdir.mkdir(parents=True, exist_ok=True)
    points = list(measure(args, FAMILIES[args.family](args.steps, args.frames)))
    return report(points, args.outdir, args.family)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--family", choices=FAMILIES, default="skyreels")
    add("--captions", type=positive, default=12, help="held-out captions to take (default: 12)")
    add("--skip", type=int, default=0, help="held-out captions to pass over first (default: 0)")
    add("--steps", type=positive, help="denoising steps (default: 50; magi: 64)")
    add("--frames", type=positive, help="of the video (default: 97; magi: 96)")
    add("--budget", type=positive, help="compress finished chunks to this many (default: not at all)")
    add("--curves", nargs="+", help="only these")
    add("--outdir", type=Path, help="default: outputs/bench_policies_FAMILY")
    args = parser.parse_args()
    args.outdir = args.outdir or Path(f"outputs/bench_policies_{args.family}")
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
