"""Compression within a step, as the original FlowCache does it on SkyReels-V2."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from .compression import CompressedKVCache


class WithinStepCache(CompressedKVCache):
    """Compresses as soon as more than the budget is clean: in each layer, right before a chunk reads.

    That chunk's own queries decide. Chunks that take their last step in this very step count as clean for
    later ones, so one chunk more than are live must fit; given chunks count from the second step on.
    """

    clean_range = 10**9

    _due: Mapping[int, list[int]] = {}
    _budget = 0

    @classmethod
    def sizes(cls, lengths: Sequence[int], max_live: int, budget: int) -> tuple[int, int, int]:
        live, clean, _ = super().sizes(lengths, max_live + 1, budget)
        return live, clean, min(budget, sum(lengths[:-1]))

    def prepare(self, clean: Mapping[int, range], budget: int) -> dict[int, int]:
        due, dropped, held, compressed = {}, {}, self.num_kept, set()
        for chunk, before in clean.items():
            new = [c for c in self._oldest_clean(before) if c not in compressed]
            rows = held + sum(len(self._ranges[0][c]) for c in new)
            if rows > budget:
                due[chunk], dropped[chunk], held = new, rows - budget, budget
                compressed.update(new)
        self._due, self._budget = due, budget
        if any(clean.values()):  # else they are given chunks, which are compressed when they do not fit
            self._asking = due.keys()
        return dropped

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        super().observe(layer, chunk, queries, branch)
        if chunk in self._due:
            self._compress(slice(layer, layer + 1), self._due[chunk], self._budget)
