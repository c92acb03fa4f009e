"""Measure the time and memory of compressing the cache at the sizes of the official models, on random keys.

    python -m research.compression --model magi-4.5B --device cuda
    python -m research.compression --model skyreels-1.3B --tables share

Table ``queries``: a cache that holds its budget of clean chunks and one more is compressed to its budget: by the
paper's score with all queries that the model's method asks, and as our presets do, with at most ``--max_queries``.
Table ``share``: one layer's compaction by our default beside one evaluation of a chunk by a transformer block of the
official configuration, on a CPU in processor time. No weights are needed: time does not depend on the tokens'
values. Numbers are bf16 on a GPU and fp32 elsewhere.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from diffusers import SkyReelsV2Transformer3DModel
from torch import Tensor
from tqdm import tqdm

from flowcache.chunk_model import ChunkInput
from flowcache.command_line import check_device
from flowcache.environment import peak_memory_bytes, restart_peak_memory, synchronize
from flowcache.files import markdown_table
from flowcache.kv.cache import ChunkKVCache
from flowcache.kv.compression import FullKVCache
from flowcache.kv.config import KVCompressionConfig
from flowcache.kv.layout import CacheLayout
from flowcache.kv.scorers import ScoreInput
from flowcache.kv.selection import TokenSelector
from flowcache.parallel import SequenceShares
from flowcache.wan.attention import PackedChunks, TextContext, use_chunkwise_blocks
from magi1.attention import PackedSegments, Segment, TextBank
from magi1.transformer import MagiTransformer3DModel

from .compare import main, positive, write_results
from .runs import new_parser


class Shape(NamedTuple):
    """Sizes of a model at its usual resolution; ``granularity`` of the queries that its method asks."""

    layers: int
    branches: int
    heads: int
    kv_heads: int
    head_dim: int
    frame_tokens: int
    chunk_tokens: int
    granularity: str
    text_tokens: int


SHAPES = {
    "magi-4.5B": Shape(34, 1, 24, 8, 128, 2025, 6 * 2025, "frame", 800),  # 720 x 720
    "skyreels-1.3B": Shape(30, 2, 12, 12, 128, 2040, 5 * 2040, "chunk", 512),  # 544 x 960
}

#: Chunks that a live chunk sees beside the clean ones, itself included, in the mean over four live chunks.
SEEN_LIVE = 2.5
TABLES = ("queries", "share")


def bench(args: argparse.Namespace) -> str:
    check_device(args.device)
    if args.chunks < 2:
        raise ValueError(f"chunks: expected at least 2, so that some tokens are kept, got {args.chunks}.")
    shape = SHAPES[args.model]
    makers = {"queries": compare_queries, "share": find_share}
    made = [makers[name](args, shape) for name in args.tables]
    tables, records = zip(*made, strict=True)
    return write_results(args, args.model, "\n\n".join(tables), [row for rows in records for row in rows])


def compare_queries(args: argparse.Namespace, shape: Shape) -> tuple[str, list[dict[str, Any]]]:
    """Time and memory of the paper's score, and of our default with few queries."""
    shape = shape._replace(layers=args.layers or shape.layers)
    found = [measure(args, shape, most) for most in tqdm((None, args.max_queries), unit="run")]
    titles = ("queries asked", "ms per layer", f"s, {shape.layers} layers", "MiB beside the cache")
    rows = []
    for each in found:
        seconds, mib = each["seconds"], each["bytes"] / 2**20
        rows.append((each["asked"], f"{1000 * seconds / shape.layers:.1f}", f"{seconds:.2f}", f"{mib:.0f}"))
    return markdown_table(titles, rows), found


@torch.no_grad()
def measure(args: argparse.Namespace, shape: Shape, most: int | None) -> dict[str, Any]:
    """Median over the repeats of the seconds of a compression of all layers, and bytes taken meanwhile."""
    device, tokens = torch.device(args.device), shape.chunk_tokens
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = CacheLayout(shape.layers, shape.branches, shape.kv_heads, shape.head_dim, dtype, device)
    paper = {"scorer": "paper", "compactor": "select", "query_granularity": shape.granularity}
    config = KVCompressionConfig(**{} if most else paper, max_queries=most)
    # Queries of two chunks are held when a cache is compressed again.
    selector = TokenSelector(config, shape.frame_tokens, tokens, asked_chunks=2)
    cache = FullKVCache(layout, args.chunks * tokens, selector, budget=tokens)

    def noise(heads: int) -> torch.Tensor:
        return torch.randn(shape.branches, tokens, heads, shape.head_dim, dtype=dtype, device=device)

    seconds, peak = [], 0
    for chunk in range(args.chunks + args.repeats):
        cache.enter(chunk, tokens)
        for layer in range(shape.layers):
            cache.write(layer, chunk, noise(shape.kv_heads), noise(shape.kv_heads))
            cache.observe(layer, chunk, noise(shape.heads))
        if chunk < args.chunks - 1:
            continue  # not yet full
        synchronize(device)
        restart_peak_memory(device)
        before, start = peak_memory_bytes(device), time.perf_counter()
        cache.make_room(cache.chunks, tokens)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        peak = max(peak, peak_memory_bytes(device) - before)
    asked = {"frame": shape.frame_tokens, "chunk": tokens}[shape.granularity]
    # the first compression pays for first calls
    measured = {"asked": min(asked, most or asked), "seconds": median(seconds[1:]), "bytes": peak}
    return measured | {"shape": shape._asdict()}


@torch.no_grad()
def find_share(args: argparse.Namespace, shape: Shape) -> tuple[str, list[dict[str, Any]]]:
    """Seconds of one layer's compaction by our default, and of a block on a chunk; ``--tokens`` of it, scaled."""
    device, tokens = torch.device(args.device), min(args.tokens, shape.chunk_tokens)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    noise = partial(torch.randn, dtype=dtype, device=device)
    found = []
    for budget in tqdm(args.budgets, unit="budget"):
        compact = make_compaction(shape, budget, args.max_queries, noise)
        evaluate = make_evaluation(args.model, shape, budget, tokens, noise)
        timed = [median(measure_seconds(run, device) for _ in range(args.repeats)) for run in (compact, evaluate)]
        found.append({"budget": budget, "compaction": timed[0], "evaluation": timed[1] * shape.chunk_tokens / tokens})
    titles = ("budget", "compaction, s", "block on a chunk, s", "ratio", f"of a chunk with {args.evaluations} steps")
    rows = []
    for each in found:
        share = each["compaction"] / each["evaluation"]
        seconds = (f"{each[name]:.1f}" for name in ("compaction", "evaluation"))
        rows.append((each["budget"], *seconds, f"{share:.1%}", f"{share / args.evaluations:.2%}"))
    return markdown_table(titles, rows), found


def measure_seconds(run: Callable[[], object], device: torch.device) -> float:
    """On a CPU processor time, which other programs hardly change."""
    now = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    start = now()
    run()
    synchronize(device)
    return now() - start


def make_compaction(shape: Shape, budget: int, most: int, noise: Callable[..., Tensor]) -> Callable[[], object]:
    """Scoring and compaction of one layer from a chunk more than the budget; ``most`` queries of a query head."""
    config, rows = KVCompressionConfig(max_queries=most), (budget + 1) * shape.chunk_tokens
    keys, values = noise(2, shape.branches, rows, shape.kv_heads, shape.head_dim)
    queries = noise(shape.branches, most, shape.heads, shape.head_dim)
    ages = torch.arange(rows, device=keys.device).flip(0).expand(shape.branches, shape.kv_heads, -1)
    given = ScoreInput(keys, values, queries, ages, shape.chunk_tokens, budget * shape.chunk_tokens)
    selector = TokenSelector(config, shape.frame_tokens, shape.chunk_tokens)

    def run() -> object:
        tokens = replace(given)  # without attention that an earlier run has left
        return config.compactor.compact(tokens, selector.choose(tokens))

    return run


def make_evaluation(
    model: str, shape: Shape, budget: int, tokens: int, noise: Callable[..., Tensor]
) -> Callable[[], object]:
    """A transformer block of the official configuration on the last tokens of a live chunk, against the cache."""
    like, seen = noise(1), round((budget + SEEN_LIVE) * shape.chunk_tokens)
    layout = CacheLayout(1, shape.branches, shape.kv_heads, shape.head_dim, like.dtype, like.device)
    cache = ChunkKVCache(layout, seen)
    for chunk, length in enumerate((seen - tokens, tokens)):
        cache.enter(chunk, length)
    cache.write(0, 0, *noise(2, shape.branches, seen - tokens, shape.kv_heads, shape.head_dim))
    make_block = make_magi_block if model == "magi-4.5B" else make_skyreels_block
    return make_block(shape, cache, tokens, noise)


def make_magi_block(
    shape: Shape, cache: ChunkKVCache, tokens: int, noise: Callable[..., Tensor]
) -> Callable[[], object]:
    transformer = MagiTransformer3DModel(num_layers=1).to(noise(1))  # else its defaults are the official configuration
    block, dim = transformer.blocks[0], transformer.config.hidden_size
    text = TextBank([noise(shape.text_tokens, dim)])
    text.project(0, 0, block.attention.project_text)  # once a video
    segments = PackedSegments([Segment(1, tokens, text=0, slot=0)], cache, text)
    condition, rotary = noise(1, block.gates.in_features), noise(1, tokens, 1, 6 * len(transformer.rotary_bands))
    return partial(block, 0, noise(1, tokens, dim), condition, rotary, segments)


def make_skyreels_block(
    shape: Shape, cache: ChunkKVCache, tokens: int, noise: Callable[..., Tensor]
) -> Callable[[], object]:
    sizes = {"num_attention_heads": shape.heads, "attention_head_dim": shape.head_dim, "ffn_dim": 8960}
    transformer = SkyReelsV2Transformer3DModel(**sizes, num_layers=1).to(noise(1))
    use_chunkwise_blocks(transformer)
    block, dim = transformer.blocks[0], shape.heads * shape.head_dim
    text = TextContext(noise(shape.branches, shape.text_tokens, dim))
    text.keys_values(0, block.attn2)  # once a video
    item, rotary = ChunkInput(1, 0, noise(1), timesteps=(0.0,)), noise(1, 1, tokens, 1, shape.head_dim // 2, 2).float()
    packed = PackedChunks([item], [tokens], rotary, cache, bidirectional=False, shares=SequenceShares())
    return partial(block, noise(shape.branches, 1, tokens, dim), [(text, 1)], noise(1, 1, 6, 1, dim).float(), packed)


if __name__ == "__main__":
    parser = new_parser(__doc__, "compression", models=())
    add = parser.add_argument
    add("--model", choices=SHAPES, default="magi-4.5B", help="default: magi-4.5B")
    add("--chunks", type=positive, default=6, help="chunks' worth of tokens that are scored (default: 6)")
    add("--layers", type=positive, help="default: all of the model's")
    most = KVCompressionConfig().max_queries
    add("--max_queries", type=positive, default=most, help=f"in the second run (default: {most})")
    add("--repeats", type=positive, default=3, help="compressions whose median counts (default: 3)")
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="tables to make (default: all)")
    add("--budgets", type=positive, nargs="+", default=[1, 3], help="in chunks, of the table share (default: 1 3)")
    add("--tokens", type=positive, default=512, help="of a chunk that a block runs on, scaled to all (default: 512)")
    add("--evaluations", type=positive, default=12, help="computed steps of a chunk (default: 12, as fast does)")
    main(parser, bench)
