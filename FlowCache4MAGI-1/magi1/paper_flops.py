"""The paper's table of MAGI-1, counted at the settings that fit its first row; it does not state them."""

from flowcache.benchmark.paper_flops import PaperFlops, PaperRow

from .chunk_model import transformer_flops
from .config import ModelSection
from .guidance import DistilledGuidance, Guidance
from .schedule import Timetable

STEPS = 64
CHUNKS = 10
#: Six latent frames of 720 x 720 pixels; the autoencoder and the patches reduce each side 16 times.
CHUNK_TOKENS = 6 * (720 // 16) ** 2


def paper_flops() -> PaperFlops:
    """The table, and the cost without reuse, with and without the extra pass of nearly clean chunks."""
    return PaperFlops(
        model="MAGI-1",
        settings=f"4.5B distilled, 720 x 720, 240 frames in {CHUNKS} chunks that see all before them, "
        f"{STEPS} steps, text not counted",
        rows={
            "vanilla": PaperRow(306, 1.0, 2873, 77.06),
            "TeaCache-slow": PaperRow(294, 1.12, 2579, 77.50, 0.6211, 0.2801, 13.26),
            "TeaCache-fast": PaperRow(225, 1.44, 1998, 70.11, 0.8160, 0.1138, 8.94),
            "FlowCache-slow": PaperRow(161, 1.86, 1546, 78.96, 0.3160, 0.6497, 22.34),
            "FlowCache-fast": PaperRow(140, 2.38, 1209, 77.93, 0.4311, 0.5140, 19.27),
        },
        counted={
            "all chunk-steps": _count_denoising(DistilledGuidance()),
            "all without extra passes": _count_denoising(DistilledGuidance(threshold=None)),
        },
    )


def _count_denoising(guidance: Guidance) -> float:
    """FLOPs of all steps of all chunks; clean chunks are not run again."""
    flops, timetable = transformer_flops(ModelSection()), Timetable(STEPS)
    # Of the window's four live chunks, only the oldest is ever nearly clean.
    branches = [branch for time in timetable.times[:-1] for branch in guidance.branches(time, oldest=True)]
    edges = STEPS * flops.embed(CHUNK_TOKENS) + len(branches) * flops.head(CHUNK_TOKENS)
    blocks = sum(
        flops.blocks(CHUNK_TOKENS, CHUNK_TOKENS * (1 if branch.slot is None else chunk + 1), text_tokens=0)
        for chunk in range(CHUNKS)
        for branch in branches
    )
    return blocks + CHUNKS * edges
