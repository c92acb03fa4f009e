"""Make plans of the steps to compute, for a small checkpoint and one way to sample it.

    bash scripts/make_plans.sh --family skyreels

Calibrates on captions from the end of the held-out list, which ``bench_policies.py`` does not measure on: one
run of each with all velocities kept, then one run for every step, in which every chunk skips that step alone,
to see how its error grows.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import numpy as np
import torch
from flowcache.reuse.planning import PathRecorder, measure_amplification, plan_steps
from flowcache.reuse.plans import Plans
from interleaved import positive
from small_models import FAMILIES, Family, TrialConfig, held_out
from torch import Tensor
from tqdm import tqdm

from flowcache.command_line import Parser
from flowcache.reuse.policy import Decision, ReusePolicy
from flowcache.running import run_checked

#: Shares of the chunk steps that plans are made for.
SHARES = (0.16, 0.2, 0.25, 0.3, 0.36, 0.42, 0.5, 0.6)


class AllBut(ReusePolicy):
    """Compute every chunk at all of its own steps but one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def decide(self, step, num_steps, live, indicators):
        return {chunk: Decision(local_step == self.step) for chunk, local_step in live.items()}


def calibrate(family: Family, caption: str, seed: int) -> tuple[PathRecorder, np.ndarray]:
    """The path of a caption's velocities, and the amplification of its steps."""
    path = PathRecorder()
    final = family.generate(caption, seed, TrialConfig.of(family.plain, trial_forecast=path)).latents
    line = replace(family.ours, forecast="linear_velocity")

    with tqdm(total=len(path.gram) - 2, unit="step", desc=caption) as progress:

        def final_without(step: int) -> Tensor:
            settings = TrialConfig.of(line, trial_policy=AllBut(step))
            latents = family.generate(caption, seed, settings).latents
            progress.update()
            return latents

        return path, measure_amplification(path.times, path.gram, final, final_without)


def make(args: argparse.Namespace) -> str:
    """Calibrate, plan and save; returns the plans and where they lie."""
    torch.set_grad_enabled(False)
    family = FAMILIES[args.family](args.steps)
    captions = held_out()[-args.captions :]
    found = [calibrate(family, caption, 1000 + i) for i, caption in enumerate(captions)]
    times = tuple(float(time) for time in found[0][0].times)
    gram = np.mean([path.gram / np.trace(path.gram) for path, _ in found], axis=0)
    growth = np.exp(np.mean([np.log(amplification) for _, amplification in found], axis=0))
    stride = int(family.sampling["stride"])
    steps = tuple(tuple(plan_steps(times, gram, share, stride, 1, growth)) for share in SHARES)
    made = f"make_plans.py --family {args.family}, {len(captions)} captions"
    plans = Plans(family.sampling, "linear_velocity", steps, times, tuple(map(float, growth)), made)
    rows = [f"{plans.share_of(plan):.2f}: {' '.join(map(str, plan))}" for plan in steps]
    return "\n".join([*rows, f"plans: {plans.save(family.folder)}"])


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="skyreels")
    parser.add_argument("--captions", type=positive, default=2, help="to calibrate on (default: 2)")
    parser.add_argument("--steps", type=positive, help="denoising steps (default: 50; magi: 64)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run_checked(parse_arguments, make))
