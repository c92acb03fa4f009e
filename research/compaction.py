"""Measure how far compacted rows are from all rows, by attention of later queries.

    python -m research.compaction --model skyreels
    python -m research.compaction --model magi --chunks 40 --tables refits
    python -m research.compaction --model magi --captions 8 --tables folds heads

Videos of captions that are not held out, with our default compaction at a budget of one chunk. At each compaction,
the rows that each method of a table made at the one before are compared with all rows that they stand for, by the
queries recorded since: error of attention's output, in dB below the output, also over the last quarter of the
compactions, and of the log of its mass. Means over layers, medians and quartiles over captions and presets. Results
are written after every caption, of the captions so far.
"""

import argparse
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import log10
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowcache import Trace
from flowcache.files import markdown_table
from flowcache.kv.compactors import Compactor, Matched, Select
from flowcache.kv.scorers import Importance, Paper, Random, Recency, ScoreInput, Scorer, Spread
from flowcache.kv.selection import select

from .compare import main, positive, write_results
from .matching import CrossValidated, share_rows, split_heads
from .runs import LIVE, Model, find_chunk_model, new_parser
from .train_small.moving_shapes import draw_scene, read_held_out

PRESETS = ("none", "fast")
BUDGETS = (1, 3)
#: Bounds of a head's rows over those of an even split.
LEAST, MOST = 0.5, 1.6


@dataclass(frozen=True)
class Method:
    """A scorer and a compactor.

    Args:
        queries: share of the recorded ones that they get.
        original: compact from all rows at each compaction, not from what the one before left.
        per_head: the KV heads of a layer have rows in proportion to the root of the squared error that as many rows in
            each leave: as the first compaction finds it (``once``), or each does from all rows (``always``), which no
            cache has; None: as many in each.
    """

    name: str
    scorer: Scorer = field(default_factory=Spread)
    compactor: Compactor = field(default_factory=Matched)
    queries: float = 1.0
    original: bool = False
    per_head: Literal["once", "always"] | None = None


TABLES: dict[str, list[Method]] = {
    "rows": [
        Method("paper, select", Paper(), Select()),
        Method("random, select", Random(), Select()),
        Method("spread, select", Spread(), Select()),
        Method("paper, matched", Paper()),
        Method("importance, matched", Importance()),
        Method("recency, matched", Recency()),
        Method("random, matched", Random()),
        *(Method(f"spread power={power}, matched", Spread(power=power)) for power in (0.0, 0.5, 1.0)),
    ],
    "ridges": [
        *(Method(f"mass={mass}, values=0.3", compactor=Matched(mass=mass)) for mass in (0.3, 1.0, 3.0)),
        *(Method(f"mass=1, values={values}", compactor=Matched(values=values)) for values in (0.01, 0.1, 1.0)),
        Method("keys alone", compactor=Matched(values=None)),
        Method("values alone", compactor=Matched(mass=None)),
    ],
    "folds": [
        Method("default"),
        Method("ridges by folds of every fourth query", compactor=CrossValidated()),
        Method("ridges by folds of adjacent queries", compactor=CrossValidated(adjacent=True)),
    ],
    "queries": [Method(f"{share:.0%} of the queries", queries=share) for share in (0.25, 0.5, 1.0)],
    "refits": [Method("refits of refits"), Method("from all rows", original=True)],
    "heads": [
        Method("default"),
        Method("rows per head by the first compaction", per_head="once"),
        Method("rows per head by each compaction of all rows", per_head="always"),
    ],
}


@dataclass(eq=False)
class Rows:
    """Rows of one layer that a method has made at a budget, and their errors over the compactions.

    ``parts``: of all heads together, or of each; ``counts``: rows of a head in each at the last compaction.
    """

    method: Method
    budget: int
    parts: list[ScoreInput] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    errors: list[tuple[float, float]] = field(default_factory=list)

    def compare(self, every: ScoreInput, queries: Tensor) -> None:
        """Record the errors of attention by queries that were not known when the rows were made."""
        mass, outputs = _attend(every, queries)
        parts = self._split(replace(every, queries=queries))
        made = [_attend(rows, part.queries) for rows, part in zip(self.parts, parts, strict=True)]
        own_mass, own = (torch.cat(each, dim=1) for each in zip(*made, strict=True))
        error = (own - outputs).square().sum() / outputs.square().sum()
        self.errors.append((-10 * log10(error.item()), (own_mass - mass).square().mean().sqrt().item()))

    def compact(self, every: ScoreInput, new: ScoreInput) -> None:
        """Take in new rows; ``every``: all of the video so far."""
        afresh = self.method.original or not self.parts
        sources = self._split(every if afresh else new)
        if not afresh:
            sources = [_join(rows, part) for rows, part in zip(self.parts, sources, strict=True)]
        lengths, even = [source.keys.shape[1] for source in sources], self.budget * new.tokens_per_chunk
        if sum(lengths) <= even * len(sources):
            self.parts = sources
            return
        if self.method.per_head == "always" or not self.counts:
            self.counts = self._share(every, lengths, even)
        self.parts = [self._make(*each) for each in zip(sources, self.counts, strict=True)]

    def _share(self, every: ScoreInput, lengths: Sequence[int], even: int) -> list[int]:
        """Rows of a head in each part, of as many as it has; ``even`` in the mean."""
        if not self.method.per_head:
            return [even]
        errors = [_find_error(part, self._make(part, even)) for part in self._split(every)]
        most = [min(int(MOST * even), length) for length in lengths]
        return share_rows(errors, even * len(errors), int(LEAST * even), most)

    def _split(self, tokens: ScoreInput) -> list[ScoreInput]:
        return split_heads(tokens) if self.method.per_head else [tokens]

    def _make(self, source: ScoreInput, count: int) -> ScoreInput:
        """Compact rows to ``count``."""
        place = torch.linspace(0, source.queries.shape[1] - 1, round(self.method.queries * source.queries.shape[1]))
        source = replace(source, queries=source.queries[:, place.long()], budget=count)
        kept = select(self.method.scorer.score(source), count).sort(dim=-1).values
        keys, values = self.method.compactor.compact(source, kept)
        return replace(source, keys=keys, values=values, ages=source.ages.gather(-1, kept))


class Probe(Compactor):
    """Compacts as the default does, and lets methods compact the same rows beside it.

    ``rows``: of each layer, by the methods at all budgets; ``every``: all rows of each layer.
    """

    def __init__(self, layers: int, methods: Sequence[Method]) -> None:
        self.layers, self.methods = layers, methods
        self.rows: list[list[Rows]] = []
        self.every: list[ScoreInput] = []

    def compact(self, tokens: ScoreInput, kept: Tensor) -> tuple[Tensor, Tensor]:
        # Layers share the memory that the cache's rows are views of.
        tokens = replace(tokens, keys=tokens.keys.clone(), values=tokens.values.clone())
        if len(self.every) < self.layers:
            new = every = tokens
            self.rows.append([Rows(method, budget) for method in self.methods for budget in BUDGETS])
        else:
            # Layers follow one another.
            every, self.rows[:] = self.every.pop(0), [*self.rows[1:], self.rows[0]]
            new = _newest(tokens, tokens.keys.shape[1] - tokens.budget)
            for rows in self.rows[-1]:
                if any(part.keys.shape[1] < every.keys.shape[1] for part in rows.parts):
                    # The first queries are of a chunk that has not run since the compaction before.
                    rows.compare(every, tokens.queries[:, tokens.queries.shape[1] // 3 :])
            every = _join(every, new)
        self.every.append(every)
        for rows in self.rows[-1]:
            rows.compact(every, new)
        return Matched().compact(tokens, kept)


def _attend(tokens: ScoreInput, queries: Tensor) -> tuple[Tensor, Tensor]:
    blocks, outputs = replace(tokens, queries=queries).attention
    return blocks.mass, outputs


def _find_error(every: ScoreInput, made: ScoreInput) -> float:
    """Root of the squared error of attention's output by the queries that ``made`` was made with."""
    return (_attend(made, made.queries)[1] - _attend(every, made.queries)[1]).norm().item()


def _newest(tokens: ScoreInput, count: int) -> ScoreInput:
    ages = tokens.ages[..., -count:]
    return replace(tokens, keys=tokens.keys[:, -count:], values=tokens.values[:, -count:], ages=ages)


def _join(old: ScoreInput, new: ScoreInput) -> ScoreInput:
    rows = {name: torch.cat([getattr(each, name) for each in (old, new)], dim=1) for name in ("keys", "values")}
    return replace(new, **rows, ages=torch.cat([old.ages + new.ages.shape[-1], new.ages], dim=-1))


def probe(model: Model, methods: Sequence[Method], caption: str, seed: int, preset: str) -> list[Rows]:
    """Make a video; returns the rows of all layers."""
    method = (model.no_reuse,) if preset == "none" else ("flowcache", preset)
    config = model.configure(*method, budget=1)
    made = Probe(len(model.pipeline.transformer.blocks), methods)
    config = replace(config, compression=replace(config.compression, compactor=made))
    deque(model.stream(caption, seed, config, Trace()), maxlen=0)
    return list(chain(*made.rows))


def draw_captions(count: int) -> list[str]:
    """Captions that are not held out."""
    rng, held_out = np.random.default_rng(0), frozenset(read_held_out())
    return [draw_scene(rng, held_out).caption for _ in range(count)]


def summarise(rows: Sequence[Rows], method: Method, budget: int) -> list[float]:
    """Means over the layers: error of the output in dB, and of the last quarter of compactions; error of log mass."""
    errors = torch.tensor([each.errors for each in rows if (each.method, each.budget) == (method, budget)])
    last = errors[:, -max(1, errors.shape[1] // 4) :, 0]
    return [errors[..., 0].mean().item(), last.mean().item(), errors[..., 1].mean().item()]


def bench(args: argparse.Namespace) -> str:
    model = find_chunk_model(args, args.chunks)
    methods, runs, text = list(dict.fromkeys(chain(*(TABLES[name] for name in args.tables)))), [], ""
    for seed, caption in enumerate(tqdm(draw_captions(args.captions), unit="caption")):
        runs += [probe(model, methods, caption, seed, preset) for preset in PRESETS]
        text = report(args, runs)
    return text


def report(args: argparse.Namespace, runs: Sequence[Sequence[Rows]]) -> str:
    """Write the tables of the videos so far."""
    tables, records = [], []
    for name in args.tables:
        titles = [f"budget {budget}: {what}" for budget in BUDGETS for what in ("output dB", "at the end", "log mass")]
        lines = []
        for method in TABLES[name]:
            cells = [method.name]
            for budget in BUDGETS:
                found = torch.tensor([summarise(rows, method, budget) for rows in runs])
                records.append({"method": method.name, "budget": budget, "runs": found.tolist()})
                low, output, high = found[:, 0].quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
                end, mass = found[:, 1:].median(dim=0).values.tolist()
                cells += [f"{output:.1f} ({low:.1f} to {high:.1f})", f"{end:.1f}", f"{mass:.2f}"]
            lines.append(cells)
        tables.append(markdown_table([name, *titles], lines))
    return write_results(args, f"compaction_{args.model}", "\n\n".join(tables), records)


if __name__ == "__main__":
    parser = new_parser(__doc__, "compaction")
    add = parser.add_argument
    add("--steps", type=positive, default=12, help=f"denoising steps, a multiple of {LIVE} (default: 12)")
    add("--captions", type=positive, default=4, help="number of captions (default: 4)")
    add("--chunks", type=positive, default=11, help="of each video (default: 11)")
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="tables to make (default: all)")
    main(parser, bench)
