"""A reuse policy of your own: skip the model while the measured error of its forecast stays small.

python examples/own_policy.py --tolerance 0.01
"""

import argparse
import sys
from dataclasses import dataclass, replace

import torch

from flowcache import FlowCacheConfig, ReusePolicy, enable
from flowcache.registry import option
from flowcache.reuse.policy import COMPUTE, Decision
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline


@dataclass
class ErrorControl(ReusePolicy):
    """Skip all live chunks while the expected error of the skipped steps stays below a tolerance.

    When the model runs, the difference to the forecast is known. Divided by the product of the distances to
    the two evaluations behind the forecast, it is the velocity's curvature; times the same product at a later
    step it predicts that step's error, and times the step's length what that adds to the latents.

    Args:
        tolerance: relative error that consecutive skipped steps may add; 0 never reuses.
    """

    tolerance: float = option(0.01, 0, 1000)

    def begin(self, num_chunk_steps, times, forecast):
        self.times, self.forecast = times, forecast
        self.errors, self.spent = {}, {}

    def observe(self, chunk, local_step, velocity):
        if len(self.forecast.evaluated_at(chunk)) == 2:  # enough for a line
            wrong = self.forecast.extrapolate(chunk, local_step) - velocity
            self.errors[chunk] = wrong.norm() / velocity.norm() / self.spread(chunk, local_step)

    def decide(self, step, num_steps, live, indicators):
        known = [chunk for chunk in live if chunk in self.errors]
        curvature = dict(zip(known, self.to_host(known), strict=True))
        decisions = {chunk: self.judge(chunk, live[chunk], curvature) for chunk in live}
        if not all(decision.reuse for decision in decisions.values()):
            decisions = {chunk: replace(d, reuse=False) for chunk, d in decisions.items()}
        self.spent = {chunk: d.accumulated if d.reuse else 0.0 for chunk, d in decisions.items()}
        return decisions

    def judge(self, chunk, local_step, curvature):
        if chunk not in curvature or local_step + 2 == len(self.times):  # a chunk's last step is computed
            return COMPUTE
        error = curvature[chunk] * self.spread(chunk, local_step)
        length = abs(self.times[local_step + 1] - self.times[local_step])
        spent = self.spent[chunk] + error * length
        return Decision(spent < self.tolerance, error, spent)

    def spread(self, chunk, local_step):
        before, last = self.forecast.evaluated_at(chunk)
        return abs(self.times[local_step] - before) * abs(self.times[local_step] - last)

    def to_host(self, chunks):
        return torch.stack([self.errors[chunk] for chunk in chunks]).tolist() if chunks else []

    def forget(self, chunk):
        self.errors.pop(chunk, None)

    def state_dict(self):  # for a run that is killed and resumed
        return {"errors": dict(self.errors), "spent": dict(self.spent)}

    def load_state_dict(self, state):
        self.errors, self.spent = state["errors"], state["spent"]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=0.01, help="relative error (default: 0.01)")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps (default: 30)")
    parser.add_argument("--output", default="own_policy.png", help="reuse map (default: own_policy.png)")
    args = parser.parse_args(words)
    pipe = FlowCacheSkyReelsV2Pipeline.from_pretrained("small")
    enable(pipe, config=FlowCacheConfig(policy=ErrorControl(args.tolerance)))
    video = {"num_frames": 33, "height": 64, "width": 64, "num_inference_steps": args.steps, "ar_step": 5}
    trace = pipe("a red circle moves right", **video, causal_block_size=5).trace
    trace.reuse_map(args.output)
    sys.stdout.write(f"reused {trace.reuse_ratio:.0%} of chunk steps; reuse map: {args.output}\n")


if __name__ == "__main__":
    main()
