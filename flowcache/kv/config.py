"""Settings of the KV cache, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..registry import check_options, option
from .cache import CacheLayout
from .original import OriginalCompression
from .quantized import BITS, QuantizedRows, group_size
from .scorers import SCORERS, Paper, Scorer
from .selection import TokenSelector
from .stores import HostStore, PlainRows, RowStore

GranularityName = Literal["token", "frame", "chunk"]


@dataclass(frozen=True, kw_only=True)
class KVCompressionConfig:
    """How many tokens of clean chunks are kept, and which.

    Args:
        budget: chunks' worth of tokens kept of clean chunks, per layer and head.
        total: chunks that the cache may hold, live ones included; the budget is the rest.
        scorer: a scorer, or a name of ``SCORERS``.
        strategy: keep single tokens, whole frames or whole chunks.
        query_granularity: newest queries that importance is measured by.
        max_queries: most queries used, spread evenly; None: all.
        mix_lambda: weight of importance in the ``paper`` score, 0 to 1.
        original: what the original does differently.

    Raises:
        ValueError: one sentence that names the argument.
    """

    budget: int = option(1, 1, 10**6)
    total: int | None = option(None, 1, 10**6)
    scorer: Scorer | str = "paper"
    strategy: GranularityName = "token"
    query_granularity: GranularityName = "token"
    max_queries: int | None = option(256, 1, 10**6)
    mix_lambda: float | None = option(None, 0, 1)
    original: OriginalCompression | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scorer, str):
            if self.scorer not in SCORERS:
                raise ValueError(f"scorer: expected one of {', '.join(SCORERS)}, got {self.scorer!r}.")
            object.__setattr__(self, "scorer", SCORERS[self.scorer]())
        check_options(self)
        if self.mix_lambda is not None and isinstance(self.scorer, Paper):
            object.__setattr__(self, "scorer", replace(self.scorer, mix_lambda=self.mix_lambda))

    @property
    def when(self) -> str:
        return "over" if self.original is not None and self.original.within_step else "full"

    def as_dict(self) -> dict[str, Any]:
        names = {kind: name for name, kind in SCORERS.items()}
        original = self.original and vars(self.original)
        return {**vars(self), "scorer": names.get(type(self.scorer)), "original": original}

    def make_selector(self, tokens_per_frame: int, tokens_per_chunk: int) -> TokenSelector:
        original = self.original or OriginalCompression(best_first=False)
        return TokenSelector(
            self.scorer,
            tokens_per_frame,
            tokens_per_chunk,
            self.strategy,
            self.query_granularity,
            self.max_queries,
            original.weighting,
            original.power,
            not original.best_first,
        )


@dataclass(frozen=True, kw_only=True)
class KVStorageConfig:
    """How keys and values of clean chunks are stored.

    Args:
        bits: of a number: 8 or 4; None: as the model makes them.
        offload: keep them in host memory; the next layer's are fetched while a layer computes.

    Raises:
        ValueError: one sentence that names the argument.
    """

    bits: Literal[8, 4] | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"bits must be 8 or 4, got {self.bits!r}.")
        if self.bits is None and not self.offload:
            raise ValueError("storage must ask for something: set bits to 8 or 4, or offload to true.")

    def make_store(self, layout: CacheLayout, rows: int, unit: int) -> RowStore:
        form = PlainRows() if self.bits is None else QuantizedRows(self.bits, group_size(unit))
        return (HostStore if self.offload else RowStore)(layout, rows, form)
