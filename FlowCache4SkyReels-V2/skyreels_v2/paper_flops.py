"""The paper's table of SkyReels-V2, counted at the settings that fit its first row; it does not state them.

They are those of its released script. Attention is block-causal, as in its code for FlowCache; the original
model attends to the whole window, which would cost 165 PFLOPs.
"""

from flowcache.benchmark.paper_flops import PaperFlops, PaperRow
from flowcache.flops import TransformerFlops
from flowcache.wan.sizes import SPATIAL_STRIDE

from .settings import VideoSettings
from .windows import plan_windows

SETTINGS = VideoSettings(num_frames=177, overlap_history=17, ar_step=5, inference_steps=50)
BRANCHES = 2
#: The 1.3B model.
FLOPS = TransformerFlops(1536, 1536, 1536, 2 * 8960, num_layers=30, patch_features_in=64, patch_features_out=64)
TEXT_TOKENS = 512


def paper_flops() -> PaperFlops:
    """The table, and the cost of the 1.3B model without reuse: every block at every step, or live ones."""
    schedules = [plan.schedule(SETTINGS) for plan in plan_windows(SETTINGS)]
    every = [block for s in schedules for _ in range(len(s)) for block in range(s.num_chunks)]
    # given blocks run once
    live = [block for s in schedules for blocks in (range(s.first_chunk), *s) for block in blocks]
    return PaperFlops(
        model="SkyReels-V2",
        settings=f"1.3B, {SETTINGS.height} x {SETTINGS.width}, {SETTINGS.num_frames} frames, "
        f"{SETTINGS.inference_steps} steps, ar_step {SETTINGS.ar_step}, blocks of "
        f"{SETTINGS.causal_block_size} that see those before them, guidance in {BRANCHES} branches",
        rows={
            "vanilla": PaperRow(113, 1.0, 1540, 83.84),
            "TeaCache-slow": PaperRow(58, 1.89, 814, 82.67, 0.1472, 0.7501, 21.96),
            "TeaCache-fast": PaperRow(49, 2.2, 686, 80.06, 0.3063, 0.6121, 18.39),
            "FlowCache-slow": PaperRow(36, 5.88, 262, 83.12, 0.1225, 0.7890, 23.74),
            "FlowCache-fast": PaperRow(28, 6.7, 230, 83.05, 0.1467, 0.7635, 22.95),
        },
        counted={"every block at every step": _count(every), "live blocks against a cache": _count(live)},
    )


def _count(blocks: list[int]) -> float:
    """FLOPs of running these blocks, each as often as it is listed."""
    frame_tokens = (SETTINGS.height // SPATIAL_STRIDE) * (SETTINGS.width // SPATIAL_STRIDE)
    tokens = SETTINGS.causal_block_size * frame_tokens
    # the original projects the text in every call
    once = FLOPS.embed(tokens) + BRANCHES * (FLOPS.head(tokens) + FLOPS.text(TEXT_TOKENS))
    return sum(once + BRANCHES * FLOPS.blocks(tokens, tokens * (block + 1), TEXT_TOKENS) for block in blocks)
