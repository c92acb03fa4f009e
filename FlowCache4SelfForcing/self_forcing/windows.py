"""Chunks, steps and rolling windows of a video, as the originals have them."""

import torch

from flowcache import KVCompressionConfig, StaircaseSchedule
from flowcache.chunk_model import Solver
from flowcache.kv.original import OriginalCompression
from flowcache.kv.scorers import Recency, SinkWindow
from flowcache.wan.solver import ChunkUniPC

from .settings import VideoSettings
from .solver import FewStepSolver, step_times


def rolling_window(frames: int, sink: int, chunk_frames: int, retime: bool = False) -> KVCompressionConfig:
    """Keep the last ``frames``, with those of the running chunk, and the first ``sink`` of the video.

    Frames leave when the next chunk does not fit (``local_attn_size`` and ``sink_size``), whole chunks or not. With
    ``retime``, the keys of the sink turn to the frames right before the others.
    """
    scorer = SinkWindow(sink=sink / chunk_frames) if sink else Recency()
    original = OriginalCompression(trigger="full", best_first=False)
    return KVCompressionConfig(
        window=frames, scorer=scorer, compactor="retimed" if retime else "select", original=original
    )


def plan(
    settings: VideoSettings, num_chunks: int, num_given: int, generator: torch.Generator, dtype: torch.dtype
) -> tuple[StaircaseSchedule, Solver]:
    """Schedule and solver of a video: one chunk after another; ``generator`` and ``dtype`` of the fresh noise."""
    shift, steps = settings.timestep_shift, settings.denoising_step_list
    if steps is None:
        num_steps = settings.sampling_steps
        solver = ChunkUniPC(num_steps, shift, first_correction_as_original=False)
        return StaircaseSchedule(num_chunks, num_steps, num_steps, num_given), solver
    first, warp = settings.denoising_step_list_first_chunk, settings.warp_denoising_step
    times, first_times = (None if s is None else step_times(s, shift, warp) for s in (steps, first))
    solver = FewStepSolver(times, shift, generator, dtype, first_times, num_given)
    num_steps = len(solver.times) - 1
    return StaircaseSchedule(num_chunks, num_steps, num_steps - solver.skipped, num_given, solver.skipped), solver
