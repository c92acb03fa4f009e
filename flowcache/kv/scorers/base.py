"""What a scorer is given, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from ...parallel.layout import SINGLE, Layout
from ...registry import check_options
from .attention import Blocks, group_queries


@dataclass(frozen=True)
class ScoreInput:
    """Tokens that may be dropped, and the queries that read them; leading dimensions are alike in all.

    Attributes:
        keys, values: ``[..., tokens, kv_heads, head_dim]``, positions applied.
        queries: that were recorded, ``[..., n, heads, head_dim]``.
        ages: age of each token and head, ``[..., kv_heads, tokens]``, larger is older.
        tokens_per_chunk: tokens of a whole chunk.
        budget: tokens that will be kept.
        processes: that hold the other heads and guidance branches.
        all_heads: key-value heads of all processes; 0: those given.
        tokens_per_frame: tokens of a latent frame.
        retime: turns keys ``[branches, tokens, kv_heads, head_dim]`` by whole frames ``[branches, tokens, kv_heads]``,
            ``ChunkModel.retime``; None: the model cannot.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    ages: Tensor
    tokens_per_chunk: int
    budget: int
    processes: Layout = SINGLE
    all_heads: int = 0
    tokens_per_frame: int = 1
    retime: Callable[[Tensor, Tensor], Tensor] | None = None

    @cached_property
    def attention(self) -> tuple[Blocks, Tensor]:
        """Attention to all tokens, after a pass, and its outputs, ``[..., kv_heads, n, head_dim]``, fp32.

        Kept, as a scorer and a compactor read it.
        """
        queries = group_queries(self.queries, self.keys.shape[-2]).float() / self.queries.shape[-1] ** 0.5
        blocks = Blocks(queries, self.keys.transpose(-3, -2))
        return blocks, blocks.attend(self.values.transpose(-3, -2))


class Scorer(ABC):
    """Scores how much each token is worth keeping; options are the fields of a frozen dataclass."""

    #: Whether rows must come in order of time, so that even the original's habits leave kept ones in it.
    needs_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_options(self)

    def sink_chunks(self, budget: float) -> float:
        """First chunks of the video whose tokens are always kept, for a budget in chunks."""
        return 0.0

    @abstractmethod
    def score(self, tokens: ScoreInput) -> Tensor:
        """Scores, shaped as the ages, fp32; higher is kept."""
