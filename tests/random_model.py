"""The model and solver of ``examples/own_model.py`` with fixed weights, for tests of the loop."""

import contextlib
import runpy

import torch
from reference import ROOT

with torch.random.fork_rng(), contextlib.redirect_stdout(None):
    torch.manual_seed(0)
    EXAMPLE = runpy.run_path(str(ROOT / "examples" / "own_model.py"))

StraightSolver = EXAMPLE["Euler"]


class RandomModel(EXAMPLE["ToyModel"]):
    """One attention layer; every chunk has tokens of one frame each, and its latents decide reuse."""

    def condition_timestep(self, level):
        return level

    def indicators(self, inputs):
        return [item.latents for item in inputs]

    def block_flops(self, num_tokens, num_keys, local_step=None):
        return num_tokens * num_keys

    def edge_flops(self, num_tokens, local_step=None):
        return 0.0
