"""Ask whether it pays to recompute only what moves within a chunk (MotionCache, arXiv 2605.01725).

    bash scripts/bench_moving_tokens.sh --family skyreels

Gives token-level reuse more than it could have: at the steps that are skipped the model runs on the whole
chunk, with fresh keys and values for all, and the tokens that move most take their velocity from it; the
others take the forecast. What is counted as computed is the share of those tokens. If whole steps at a fixed
interval are as close at the same share, a policy that runs the model on some tokens cannot win here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from interleaved import main, positive
from small_models import FAMILIES, Family, TrialConfig, held_out
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from tqdm import tqdm

from flowcache import FlowCacheConfig
from flowcache.command_line import Parser
from flowcache.files import write_csv
from flowcache.markdown import markdown_table
from flowcache.metrics import psnr
from flowcache.reuse.forecast import VelocityForecast
from flowcache.video import to_uint8

#: Steps from one full evaluation to the next, and the share of tokens that is computed in between.
WAYS = ((2, 0), (3, 0), (4, 0), (5, 0), (7, 0), (5, 0.1), (5, 0.25), (7, 0.1), (7, 0.25), (10, 0.25))
PATCH = 2  # latents on a side of a token, in both models


class MovingTokens(VelocityForecast):
    """Lets an evaluation count in full at every ``interval``-th step, and for moving tokens alone in between.

    Args:
        interval: steps from one full evaluation to the next.
        share: of the tokens whose evaluation counts in between.
        warmup_steps: steps at the start that count in full.
        num_steps: of a chunk; the last counts in full.
    """

    def __init__(self, interval: int, share: float, warmup_steps: int, num_steps: int) -> None:
        super().__init__(order=1)
        self.interval, self.share = interval, share
        self.warmup_steps, self.last = warmup_steps, num_steps - 1

    def counts_in_full(self, step: int) -> bool:
        return step < self.warmup_steps or step == self.last or step % self.interval == 0

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, velocity in zip(inputs, velocities, strict=True):
            if self.counts_in_full(item.local_step):
                self._learn(item.chunk, item.local_step, velocity.clone())
                continue
            to_go = self._times[-1] - self._times[item.local_step]
            moves = self._moving(item.latents + to_go * velocity)
            # In place: the loop takes this very tensor to the solver.
            velocity.copy_(torch.where(moves, velocity, self._carry_on(item.chunk, item.local_step)))

    def _moving(self, clean: Tensor) -> Tensor:
        """Where the tokens lie that differ most from the frame before or after, ``[1, f, h, w]``."""
        change = (clean[:, 1:] - clean[:, :-1]).abs().mean(0)
        change = torch.cat([change[:1], torch.maximum(change[1:], change[:-1]), change[-1:]])
        by_token = avg_pool2d(change[:, None], PATCH)
        count = max(1, round(self.share * by_token.numel()))
        bound = by_token.flatten().topk(count).values[-1]
        return interpolate((by_token >= bound).float(), scale_factor=PATCH)[:, 0][None] > 0


def ways(family: Family, steps: int) -> Iterator[tuple[str, float | None, FlowCacheConfig]]:
    """Name, share of token-steps that count as computed (None: as the run says), and settings."""
    for interval, share in WAYS:
        name = f"1 of {interval} steps"
        if share:
            partial = MovingTokens(interval, share, family.ours.warmup_steps, steps)
            full = sum(map(partial.counts_in_full, range(steps))) / steps
            name += f", {share:.0%} of the tokens at the others"
            yield name, full + share * (1 - full), TrialConfig.of(family.plain, trial_forecast=partial)
        else:
            yield name, None, replace(family.ours, interval=interval)


def bench(args: argparse.Namespace) -> str:
    """Measure and return the table."""
    torch.set_grad_enabled(False)
    family = FAMILIES[args.family](args.steps)
    rows = list(ways(family, int(family.sampling["steps"])))
    heights, shares = {name: [] for name, _, _ in rows}, {}
    captions = held_out()[: args.captions]
    with tqdm(total=len(captions) * (len(rows) + 1), unit="run") as progress:
        for seed, caption in enumerate(captions):
            plain = to_uint8(family.generate(caption, seed, family.plain).frames)
            progress.update()
            for name, share, cache in rows:
                video = family.generate(caption, seed, cache)
                heights[name].append(psnr(to_uint8(video.frames), plain)[0])
                shares[name] = 1 - video.trace.reuse_ratio if share is None else share
                progress.update()
    measured = sorted(
        ({"way": name, "computed": shares[name], "psnr": median(heights[name])} for name in heights),
        key=lambda row: row["computed"],
    )
    args.outdir.mkdir(parents=True, exist_ok=True)
    write_csv(args.outdir / "moving_tokens.csv", list(measured[0]), measured)
    cells = [(row["way"], f"{row['computed']:.2f}", f"{row['psnr']:.1f} dB") for row in measured]
    return markdown_table(("way", "token-steps computed", "PSNR to no reuse"), cells)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="skyreels")
    parser.add_argument("--captions", type=positive, default=6)
    parser.add_argument("--steps", type=positive, help="denoising steps (default: 50; magi: 64)")
    parser.add_argument("--outdir", type=Path, default=Path("outputs/bench_moving_tokens"))
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments, bench)
