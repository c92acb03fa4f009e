"""The model of ``examples/own_model.py`` with fixed weights, and whole windows through the loop."""

import contextlib
import io
import runpy

import torch
from reference import ROOT
from torch import Tensor

from flowcache import Denoiser, StaircaseSchedule, Window
from flowcache.chunk_model import Solver

with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
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


def denoised(denoiser: Denoiser, window: Window, schedule: StaircaseSchedule, solver: Solver) -> Tensor:
    """Latents of all frames in order of time, given ones included."""
    parts = {window.chunks[c].start: window.latents(c).clone() for c in range(window.num_given)}
    for chunk in denoiser.run(window, schedule, solver):
        assert chunk.latents.isfinite().all()
        parts[chunk.start_frame] = chunk.latents.clone()
    return torch.cat([parts[start] for start in sorted(parts)], dim=1)
