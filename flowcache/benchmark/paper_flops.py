"""The paper's tables, and its PFLOPs beside ours; a model package makes its own in its module ``paper_flops``."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..files import markdown_table

PETA = 1e15

NOTE = "Reused: share of chunk-steps that the paper's row leaves out; empty: it costs more than all."


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables: VBench in percent; closeness to vanilla, of which vanilla has none."""

    pflops: float
    speedup: float
    latency_seconds: float
    vbench: float
    lpips: float | None = None
    ssim: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class PaperFlops:
    """The paper's table of a model, and our FLOPs at the settings that fit its first row best."""

    model: str
    settings: str  # what was counted, in words
    rows: Mapping[str, PaperRow]  # by method, ``vanilla`` first (arXiv 2602.10825, tables 1 and 2)
    counted: Mapping[str, float]  # of runs without reuse, by which chunk-steps run; first as ``vanilla``

    @property
    def vanilla(self) -> float:
        return next(iter(self.counted.values())) / PETA

    def reused_share(self, method: str, running: str) -> float | None:
        """Share of the chunk-steps ``running`` that the paper's row reused; None: it costs more."""
        share = 1 - self.rows[method].pflops * PETA / self.counted[running]
        # a paper's total is rounded to whole PFLOPs
        return max(share, 0.0) if share > -0.5 * PETA / self.counted[running] else None

    def markdown(self) -> str:
        titles = ["method", "our vanilla, PFLOPs", "paper, PFLOPs", "paper to our vanilla"]
        titles += [f"reused, of {running}" for running in self.counted]
        rows = []
        for method, row in self.rows.items():
            shares = [self.reused_share(method, running) for running in self.counted]
            difference = f"{100 * (row.pflops / self.vanilla - 1):+.1f} %"
            cells = [method, f"{self.vanilla:.2f}", f"{row.pflops:g}", difference]
            rows.append(cells + ["" if share is None else f"{share:.2f}" for share in shares])
        return f"{self.model}: {self.settings}\n\n{markdown_table(titles, rows)}"
