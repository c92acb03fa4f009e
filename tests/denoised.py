"""A whole window through the loop."""

import torch
from torch import Tensor

from flowcache import Denoiser, StaircaseSchedule, Window
from flowcache.chunk_model import Solver


def denoised(denoiser: Denoiser, window: Window, schedule: StaircaseSchedule, solver: Solver) -> Tensor:
    """Latents of all frames in order of time, given ones included."""
    parts = {window.chunks[c].start: window.latents(c).clone() for c in range(window.num_given)}
    for chunk in denoiser.run(window, schedule, solver):
        assert chunk.latents.isfinite().all()
        parts[chunk.start_frame] = chunk.latents.clone()
    return torch.cat([parts[start] for start in sorted(parts)], dim=1)
