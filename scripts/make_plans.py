"""Make plans of the steps to compute, for a small checkpoint and one way to sample it.

    bash scripts/make_plans.sh --family skyreels

Calibrates on captions from the end of the held-out list, which ``bench_policies.py`` does not measure on: one
run of each with all velocities kept, then one run for every step, without that step, to see how its error
grows.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from interleaved import main, positive
from small_models import FAMILIES, Family, held_out
from torch import Tensor
from tqdm import tqdm

from flowcache import FlowCacheConfig
from flowcache.command_line import Parser
from flowcache.reuse.forecast import Forecast
from flowcache.reuse.planning import PathRecorder, measure_amplification, plan_steps
from flowcache.reuse.plans import Plans

#: Shares of the steps that plans are made for.
SHARES = (0.16, 0.2, 0.25, 0.3, 0.36, 0.42, 0.5, 0.6)


@dataclass(frozen=True, kw_only=True)
class RecordedConfig(FlowCacheConfig):
    """Settings of a run whose velocities are kept by ``recorder``."""

    recorder: PathRecorder = field(default_factory=PathRecorder)

    @classmethod
    def of(cls, config: FlowCacheConfig) -> RecordedConfig:
        return cls(**{f.name: getattr(config, f.name) for f in fields(config)})

    def make_forecast(self) -> Forecast:
        return self.recorder

    def as_dict(self) -> dict[str, Any]:
        return {"policy": self.policy}


def calibrate(family: Family, caption: str, seed: int) -> tuple[PathRecorder, np.ndarray]:
    """The path of a caption's velocities, and the amplification of its steps."""
    recorded = RecordedConfig.of(family.plain)
    final = family.generate(caption, seed, recorded).latents
    path = recorded.recorder
    count = len(path.gram)
    planned = replace(family.ours, policy="planned", forecast="linear_velocity", computed_steps=(0,))

    with tqdm(total=count - 2, unit="step", desc=caption) as progress:

        def final_without(step: int) -> Tensor:
            others = tuple(k for k in range(count) if k != step)
            latents = family.generate(caption, seed, replace(planned, computed_steps=others)).latents
            progress.update()
            return latents

        return path, measure_amplification(path.times, path.gram, final, final_without)


def bench(args: argparse.Namespace) -> str:
    """Calibrate, plan and save; returns the plans."""
    torch.set_grad_enabled(False)
    family = FAMILIES[args.family](args.steps)
    captions = held_out()[-args.captions :]
    found = [calibrate(family, caption, 1000 + i) for i, caption in enumerate(captions)]
    times = tuple(float(time) for time in found[0][0].times)
    gram = np.mean([path.gram / np.trace(path.gram) for path, _ in found], axis=0)
    growth = np.exp(np.mean([np.log(amplification) for _, amplification in found], axis=0))
    budgets = sorted({max(3, round(share * len(gram))) for share in SHARES})
    steps = tuple(tuple(plan_steps(times, gram, n, 1, growth)) for n in budgets)
    made = f"make_plans.py --family {args.family}, {len(captions)} captions"
    plans = Plans(family.sampling, "linear_velocity", steps, times, tuple(map(float, growth)), made)
    args.outdir = plans.save(family.folder)
    return "\n".join(f"{len(plan)} of {len(gram)}: {' '.join(map(str, plan))}" for plan in steps)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="skyreels")
    parser.add_argument("--captions", type=positive, default=2, help="to calibrate on (default: 2)")
    parser.add_argument("--steps", type=positive, help="denoising steps (default: 50; magi: 64)")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments, bench)
