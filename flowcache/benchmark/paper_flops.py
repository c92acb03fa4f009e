"""The paper's PFLOPs beside what our counters give, model by model.

A model package registers a function without arguments that returns its ``PaperFlops``, under the entry point
group ``flowcache.paper_flops``; so this package need not know which models there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from ..markdown import markdown_table

GROUP = "flowcache.paper_flops"
PETA = 1e15


@dataclass(frozen=True)
class PaperRow:
    """What the paper's tables say of a method beside its PFLOPs; VBench in percent, None: nothing."""

    speedup: float
    latency_seconds: float
    vbench: float
    lpips: float | None = None
    ssim: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class PaperFlops:
    """What the paper states of a model, and what we count at the settings that fit its first row best.

    Attributes:
        model: its name.
        settings: what was counted, in words.
        stated: the paper's PFLOPs by method (arXiv 2602.10825, tables 1 and 2), ``vanilla`` first.
        counted: FLOPs of runs without any reuse, by which chunk-steps run; the first is ``vanilla``.
        rows: the rest of the paper's table, by method.
    """

    model: str
    settings: str
    stated: Mapping[str, float]
    counted: Mapping[str, float]
    rows: Mapping[str, PaperRow] = field(default_factory=dict)

    @property
    def vanilla(self) -> float:
        """PFLOPs that we count for the vanilla row."""
        return next(iter(self.counted.values())) / PETA

    def difference(self, method: str) -> float:
        """By how much the paper's row differs from our vanilla, as a share of ours."""
        return self.stated[method] / self.vanilla - 1

    def reused_share(self, method: str, running: str) -> float | None:
        """Share of the chunk-steps that the paper's row reused, if the others cost what they cost on average.

        Args:
            method: a row of ``stated``.
            running: a key of ``counted``: which chunk-steps would have run without reuse.

        Returns:
            The share, or None where the row costs more than all of these, which then were not all that ran.
        """
        share = 1 - self.stated[method] * PETA / self.counted[running]
        # a paper's total is rounded to whole PFLOPs
        return max(share, 0.0) if share > -0.5 * PETA / self.counted[running] else None


def registered_models(points: Iterable[EntryPoint] | None = None) -> list[PaperFlops]:
    """Tables of all model packages, by name.

    Args:
        points: where they are registered; None: in what is installed.

    Raises:
        ValueError: there is none, or one cannot be imported.
    """
    points = entry_points(group=GROUP) if points is None else points
    try:
        tables = [point.load()() for point in sorted(points, key=lambda point: point.name)]
    except ImportError as error:
        raise ValueError(
            f"A registered model cannot be imported ({error}); install this project again."
        ) from error
    if not tables:
        raise ValueError(
            f"No model is registered under {GROUP}; install this project again: pip install -e ."
        )
    return tables


def markdown(paper: PaperFlops) -> str:
    """A heading and a table with a row for each method of the paper."""
    titles = ["method", "our vanilla, PFLOPs", "paper, PFLOPs", "paper to our vanilla"]
    titles += [f"reused, of {running}" for running in paper.counted]
    rows = []
    for method, pflops in paper.stated.items():
        shares = [paper.reused_share(method, running) for running in paper.counted]
        cells = [method, f"{paper.vanilla:.2f}", f"{pflops:g}", f"{100 * paper.difference(method):+.1f} %"]
        rows.append(cells + ["" if share is None else f"{share:.2f}" for share in shares])
    return f"{paper.model}: {paper.settings}\n\n{markdown_table(titles, rows)}"
