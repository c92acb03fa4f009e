"""Which chunks move at each step of the loop, and how far each has come."""

from collections.abc import Iterator
from dataclasses import dataclass

from .registry import check_options, option


@dataclass(frozen=True)
class StaircaseSchedule:
    """Denoise chunks one behind the other, each ``stride`` steps after the one before it.

    Chunk ``c`` is live at step ``s`` when ``0 <= s - stride * (c - first_chunk) < num_steps``; that
    difference is its local step. ``stride = 0`` moves all chunks together, ``stride = num_steps`` finishes
    one before the next starts. SkyReels-V2's asynchronous mode is ``stride = ar_step``; MAGI-1 is
    ``stride = num_steps / window_size`` (FlowCache, section 3.1).

    ``skipped``: the first local steps, which only the first chunk takes (Causal-Forcing++); one chunk finishes before
    the next starts then, so ``stride`` is the number of the others.

    A count out of range is a ValueError that names it.
    """

    num_chunks: int = option(least=1, most=10**7)  # given ones included
    num_steps: int = option(least=1, most=10**6)  # of every chunk
    stride: int  # steps by which a chunk starts after the one before it
    first_chunk: int = 0  # the first chunk to denoise; those before it are given (the prefix)
    skipped: int = 0

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 <= self.stride <= self.num_steps:
            raise ValueError(f"stride: expected 0 to num_steps ({self.num_steps}), got {self.stride}.")
        if not 0 <= self.first_chunk < self.num_chunks:
            raise ValueError(f"first_chunk: expected 0 to {self.num_chunks - 1}, got {self.first_chunk}.")
        if self.skipped and self.skipped != self.num_steps - self.stride:
            expected = f"0 or num_steps - stride ({self.num_steps - self.stride})"
            raise ValueError(f"skipped: expected {expected}, got {self.skipped}.")

    def __len__(self) -> int:
        return self.num_steps + (self.num_chunks - 1 - self.first_chunk) * self.stride

    def __iter__(self) -> Iterator[dict[int, int]]:
        """Yield ``live`` of every step."""
        return map(self.live, range(len(self)))

    def local_step(self, chunk: int, step: int) -> int:
        """Local step of ``chunk`` at ``step``: below 0, or one that it skips, before its start, ``num_steps`` or
        more once clean."""
        return step - self.stride * (chunk - self.first_chunk) if chunk >= self.first_chunk else self.num_steps

    def live(self, step: int) -> dict[int, int]:
        """Local steps of the chunks that are live at ``step``, oldest chunk first."""
        chunks = range(self.first_below(self.num_steps, step), self.first_waiting(step))
        return {chunk: self.local_step(chunk, step) for chunk in chunks}

    def first_waiting(self, step: int) -> int:
        """Oldest chunk that starts after ``step``, or ``num_chunks``."""
        return max(self.first_below(self.skipped, step), self.first_chunk + 1) if step >= 0 else self.first_chunk

    def finished(self, step: int) -> range:
        """Denoised chunks that took their last step right before ``step``."""
        return range(self.first_below(self.num_steps + 1, step), self.first_below(self.num_steps, step))

    def first_below(self, local_step: int, step: int) -> int:
        """Oldest chunk to denoise whose local step is below a bound at ``step``, or ``num_chunks``.

        Computed without a search, so that it costs the same in a video of any length.
        """
        if self.stride == 0:
            return self.first_chunk if step < local_step else self.num_chunks
        beyond = (step - local_step) // self.stride + 1
        return min(self.num_chunks, self.first_chunk + max(0, beyond))

    @property
    def max_live(self) -> int:
        chunks = self.num_chunks - self.first_chunk
        return chunks if self.stride == 0 else min(chunks, -(-(self.num_steps - self.skipped) // self.stride))
