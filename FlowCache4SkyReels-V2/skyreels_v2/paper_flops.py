"""The paper's table of SkyReels-V2, counted at the settings that fit its first row, which it does not state.

They are those of its released script; attention is block-causal, as in its code for FlowCache, although the
original model attends to the whole window, which would cost 165 PFLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flowcache import StaircaseSchedule
from flowcache.benchmark.paper_flops import PaperFlops, PaperRow

from .flops import TransformerFlops
from .settings import SPATIAL_STRIDE, VideoSettings
from .windows import plan_windows

SETTINGS = VideoSettings(num_frames=177, overlap_history=17, ar_step=5, inference_steps=50)
BRANCHES = 2
#: The 1.3B model.
FLOPS = TransformerFlops(
    dim=1536, ffn_dim=8960, num_layers=30, text_tokens=512, patch_features_in=64, patch_features_out=64
)


def paper_flops() -> PaperFlops:
    """The table, and what the 1.3B model costs without reuse: every block at every step, or live ones."""
    return PaperFlops(
        model="SkyReels-V2",
        settings=f"1.3B, {SETTINGS.height} x {SETTINGS.width}, {SETTINGS.num_frames} frames, "
        f"{SETTINGS.inference_steps} steps, ar_step {SETTINGS.ar_step}, blocks of "
        f"{SETTINGS.causal_block_size} that see those before them, guidance in {BRANCHES} branches",
        stated={
            "vanilla": 113,
            "TeaCache-slow": 58,
            "TeaCache-fast": 49,
            "FlowCache-slow": 36,
            "FlowCache-fast": 28,
        },
        counted={
            "every block at every step": _total(_every_block),
            "live blocks against a cache": _total(_live_blocks),
        },
        rows={
            "vanilla": PaperRow(1.0, 1540, 83.84),
            "TeaCache-slow": PaperRow(1.89, 814, 82.67, 0.1472, 0.7501, 21.96),
            "TeaCache-fast": PaperRow(2.2, 686, 80.06, 0.3063, 0.6121, 18.39),
            "FlowCache-slow": PaperRow(5.88, 262, 83.12, 0.1225, 0.7890, 23.74),
            "FlowCache-fast": PaperRow(6.7, 230, 83.05, 0.1467, 0.7635, 22.95),
        },
    )


def _every_block(schedule: StaircaseSchedule) -> Iterator[int]:
    for _ in range(len(schedule)):
        yield from range(schedule.num_chunks)


def _live_blocks(schedule: StaircaseSchedule) -> Iterator[int]:
    yield from range(schedule.first_chunk)  # given blocks run once
    for live in schedule:
        yield from live


def _total(running: Callable[[StaircaseSchedule], Iterator[int]]) -> float:
    """FLOPs of all windows, given which blocks run, each as often as it does."""
    frame_tokens = (SETTINGS.height // SPATIAL_STRIDE) * (SETTINGS.width // SPATIAL_STRIDE)
    tokens = SETTINGS.causal_block_size * frame_tokens
    # the original projects the text in every call
    once = FLOPS.embed(tokens) + BRANCHES * (FLOPS.head(tokens) + FLOPS.text_projections())
    schedules = [plan.schedule(SETTINGS) for plan in plan_windows(SETTINGS)]
    blocks = [block for schedule in schedules for block in running(schedule)]
    return sum(once + BRANCHES * FLOPS.blocks(tokens, tokens * (block + 1)) for block in blocks)
