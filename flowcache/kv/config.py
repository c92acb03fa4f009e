"""Configuration of the KV cache: which tokens of clean chunks are kept, and in what form."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch

from ..registry import check_options, describe, make_by_name, option
from .compactors import COMPACTORS, Compactor, Retimed
from .layout import CacheLayout
from .original import OriginalCompression, Trigger
from .quantized import QuantizedRows, group_size
from .scorers import SCORERS, Paper, Scorer
from .storage import HostStore, PlainRows, RowStore

Granularity = Literal["token", "frame", "chunk"]
Queries = Literal["token", "frame", "chunk", "live"]


@dataclass(frozen=True, kw_only=True)
class KVCompressionConfig:
    """How many tokens of clean chunks are kept, and which.

    Args:
        budget: chunks' worth of tokens that clean chunks may hold, per layer and head.
        total: chunks that the cache may hold, live ones included; the budget is what those leave.
        window: latent frames that the cache may hold, live ones included, in place of ``budget`` and ``total``.
        scorer: key of ``SCORERS``, or a scorer: which tokens are kept.
        compactor: key of ``COMPACTORS``, or a compactor: what becomes of their keys and values.
        strategy: keep single tokens, whole frames or whole chunks.
        query_granularity: queries that count: the last 50, a frame's or all of the newest chunk; or those of all live
            chunks and the last two that became clean.
        max_queries: most of those that are asked per query head, spread over all of them; None: all, whose square
            ``matched`` holds.
        mix_lambda: weight of importance in the scorer ``paper``; None: its own.
        original: habits of the original FlowCache; None: ours.
    """

    budget: int = option(1, 1, 10**6)
    total: int | None = option(None, 1, 10**6)
    window: int | None = option(None, 1, 10**6)
    scorer: Scorer | str = "spread"
    compactor: Compactor | str = "matched"
    strategy: Granularity = "token"
    query_granularity: Queries = "live"
    max_queries: int | None = option(256, 1, 10**6)
    mix_lambda: float | None = option(None, 0, 1)
    original: OriginalCompression | None = None

    def __post_init__(self) -> None:
        scorer = self.scorer
        if not isinstance(scorer, Scorer):
            scorer = make_by_name("scorer", SCORERS, scorer)
        object.__setattr__(self, "scorer", scorer)
        if not isinstance(self.compactor, Compactor):
            object.__setattr__(self, "compactor", make_by_name("compactor", COMPACTORS, self.compactor))
        check_options(self)
        if self.original and self.original.best_first and isinstance(self.compactor, Retimed):
            raise ValueError("compactor: expected rows in order of time with retimed, got best_first; use select.")
        if self.mix_lambda is not None:
            if not isinstance(scorer, Paper):
                raise ValueError('mix_lambda: expected scorer paper, got another; set scorer="paper".')
            object.__setattr__(self, "scorer", replace(scorer, mix_lambda=self.mix_lambda))

    @property
    def trigger(self) -> Trigger:
        """When chunks are compressed, see ``OriginalCompression``."""
        return self.original.trigger if self.original else "clean"

    def as_dict(self) -> dict[str, Any]:
        """Fields for logs and traces; scorer and compactor as their names, with their options beside them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["original"] = self.original and asdict(self.original)
        values["scorer"], options = describe(SCORERS, self.scorer)
        values["compactor"], more = describe(COMPACTORS, self.compactor)
        return values | options | more


@dataclass(frozen=True, kw_only=True)
class KVStorageConfig:
    """Form and place of clean chunks' keys and values.

    Args:
        bits: bits per number, 8 or 4; None: the model's own type.
        offload: keep them in host memory; while a layer computes, the next one's are copied.
    """

    bits: Literal[8, 4] | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.bits is None and not self.offload:
            raise ValueError("storage: expected bits or offload, got neither; set bits=8 or offload=True.")

    def make_store(self, layout: CacheLayout, rows: int, unit: int) -> RowStore:
        """Memory for that many rows of clean chunks, which come in multiples of ``unit``."""
        form = PlainRows() if self.bits is None else QuantizedRows(self.bits, group_size(unit))
        # On the CPU, host memory is the device's own.
        offload = self.offload and torch.device(layout.device).type == "cuda"
        return (HostStore if offload else RowStore)(layout, rows, form)
