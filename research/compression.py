"""Measure the time and memory of compressing the cache at the sizes of the official models, on random keys.

    python -m research.compression --model magi-4.5B --device cuda

A cache that holds its budget of clean chunks and one more is compressed to its budget: by the paper's score with all
queries that the model's method asks, and as our presets do, with at most ``--max_queries``. No weights are needed:
time does not depend on the tokens' values. Keys are bf16 on a GPU and fp32 elsewhere.
"""

import argparse
import time
from statistics import median
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from flowcache.command_line import check_device
from flowcache.environment import peak_memory_bytes, restart_peak_memory, synchronize
from flowcache.files import markdown_table
from flowcache.kv.compression import FullKVCache
from flowcache.kv.config import KVCompressionConfig
from flowcache.kv.layout import CacheLayout
from flowcache.kv.selection import TokenSelector

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


SHAPES = {
    "magi-4.5B": Shape(34, 1, 24, 8, 128, 2025, 6 * 2025, "frame"),  # 720 x 720
    "skyreels-1.3B": Shape(30, 2, 12, 12, 128, 2040, 5 * 2040, "chunk"),  # 544 x 960
}


def bench(args: argparse.Namespace) -> str:
    check_device(args.device)
    if args.chunks < 2:
        raise ValueError(f"chunks: expected at least 2, so that some tokens are kept, got {args.chunks}.")
    shape = SHAPES[args.model]
    shape = shape._replace(layers=args.layers or shape.layers)
    found = [measure(args, shape, most) for most in tqdm((None, args.max_queries), unit="run")]
    titles = ("queries asked", "ms per layer", f"s, {shape.layers} layers", "MiB beside the cache")
    rows = []
    for each in found:
        seconds, mib = each["seconds"], each["bytes"] / 2**20
        rows.append((each["asked"], f"{1000 * seconds / shape.layers:.1f}", f"{seconds:.2f}", f"{mib:.0f}"))
    return write_results(args, args.model, markdown_table(titles, rows), found)


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


if __name__ == "__main__":
    parser = new_parser(__doc__, "compression", has_model=False)
    add = parser.add_argument
    add("--model", choices=SHAPES, default="magi-4.5B", help="default: magi-4.5B")
    add("--chunks", type=positive, default=6, help="chunks' worth of tokens that are scored (default: 6)")
    add("--layers", type=positive, help="default: all of the model's")
    most = KVCompressionConfig().max_queries
    add("--max_queries", type=positive, default=most, help=f"in the second run (default: {most})")
    add("--repeats", type=positive, default=3, help="compressions whose median counts (default: 3)")
    main(parser, bench)
