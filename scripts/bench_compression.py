"""Measure what it takes to compress the cache at the sizes of the official models, on random keys.

    bash scripts/bench_compression.sh --model magi-4.5B --device cuda

A cache that holds its budget of clean chunks and one more is compressed to its budget, with all queries that
the model's method asks and with at most so many of them. No weights are needed; what the tokens are worth
does not matter for the time. Keys are bf16 on a GPU and fp32 elsewhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from interleaved import main, positive
from tqdm import tqdm

from flowcache.command_line import Parser, check_device
from flowcache.config import KVCompressionConfig
from flowcache.environment import describe_environment, peak_memory_bytes, restart_peak_memory, synchronize
from flowcache.files import write_atomically, write_json
from flowcache.kv.cache import CacheLayout
from flowcache.kv.compression import CompressedKVCache
from flowcache.kv.selection import TokenSelector
from flowcache.markdown import markdown_table


@dataclass(frozen=True)
class Shape:
    """Sizes of a model at its usual resolution.

    Attributes:
        layers, branches, heads, kv_heads, head_dim: of the transformer.
        frame_tokens, chunk_frames: of the latent.
        granularity: which of the newest queries its method asks.
    """

    layers: int
    branches: int
    heads: int
    kv_heads: int
    head_dim: int
    frame_tokens: int
    chunk_frames: int
    granularity: str

    @property
    def chunk_tokens(self) -> int:
        return self.frame_tokens * self.chunk_frames


SHAPES = {
    "magi-4.5B": Shape(34, 1, 24, 8, 128, 2025, 6, "frame"),  # 720 x 720
    "skyreels-1.3B": Shape(30, 2, 12, 12, 128, 2040, 5, "chunk"),  # 544 x 960
}


@dataclass(frozen=True)
class Measurement:
    """One way: seconds of a compression of all layers, and bytes taken beside the cache while it lasts."""

    asked: int
    seconds: float
    bytes: int


def bench(args: argparse.Namespace) -> str:
    """Measure, write everything, and return the table."""
    torch.set_grad_enabled(False)
    args.outdir.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[args.model]
    shape = replace(shape, layers=args.layers or shape.layers)
    measurements = list(tqdm(measure(args, shape), total=2, unit="way"))
    titles = ("queries asked", "ms a layer", f"s, {shape.layers} layers", "MiB beside the cache")
    rows = [
        [str(m.asked), f"{1000 * m.seconds / shape.layers:.1f}", f"{m.seconds:.2f}", f"{m.bytes / 2**20:.0f}"]
        for m in measurements
    ]
    table = markdown_table(titles, rows)
    record = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "environment": describe_environment(args.device),
        "shape": vars(shape),
        "measurements": [vars(m) for m in measurements],
    }
    write_json(args.outdir / f"{args.model}.json", record)
    write_atomically(args.outdir / f"{args.model}.md", f"{table}\n".encode())
    return table


def measure(args: argparse.Namespace, shape: Shape) -> Iterator[Measurement]:
    """With all queries, then with few; the first compression of each pays for what later ones find ready."""
    for most in (None, args.max_queries):
        cache = filled_cache(shape, args, most)
        seconds, peak = [], 0
        for turn in range(args.repeats + 1):
            if turn:
                enter(cache, args.chunks - 1 + turn, shape)
            synchronize(args.device)
            restart_peak_memory(args.device)
            before = peak_memory_bytes(args.device)
            start = time.perf_counter()
            cache.make_room(cache.chunks, shape.chunk_tokens)
            synchronize(args.device)
            seconds.append(time.perf_counter() - start)
            peak = max(peak, peak_memory_bytes(args.device) - before)
        counts = {"frame": shape.frame_tokens, "chunk": shape.chunk_tokens}
        asked = min(counts[shape.granularity], most or shape.chunk_tokens)
        yield Measurement(asked, median(seconds[1:]), peak)


def filled_cache(shape: Shape, args: argparse.Namespace, most: int | None) -> CompressedKVCache:
    """A cache that is full: its budget and one clean chunk more."""
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    layout = CacheLayout(
        shape.layers, shape.branches, shape.kv_heads, shape.head_dim, dtype, torch.device(args.device)
    )
    config = KVCompressionConfig(query_granularity=shape.granularity, max_queries=most)
    selector = TokenSelector(config, shape.frame_tokens, shape.chunk_tokens)
    cache = CompressedKVCache(layout, args.chunks * shape.chunk_tokens, selector)
    for chunk in range(args.chunks):
        enter(cache, chunk, shape)
    return cache


def enter(cache: CompressedKVCache, chunk: int, shape: Shape) -> None:
    """Let a chunk of random tokens enter and ask."""
    layout, tokens = cache.layout, shape.chunk_tokens
    cache.enter(chunk, tokens)

    def noise(heads: int) -> torch.Tensor:
        size = (layout.num_branches, tokens, heads, layout.head_dim)
        return torch.randn(size, dtype=layout.dtype, device=layout.device)

    for layer in range(layout.num_layers):
        cache.write(layer, chunk, noise(layout.num_heads), noise(layout.num_heads))
        cache.observe(layer, chunk, noise(shape.heads))


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", choices=SHAPES, default="magi-4.5B")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--chunks", type=positive, default=6, help="chunks' worth of tokens that are scored (default: 6)")
    add("--layers", type=positive, help="default: all of the model's")
    add(
        "--max_queries",
        type=positive,
        default=KVCompressionConfig().max_queries,
        help="asked the second time",
    )
    add("--repeats", type=positive, default=3, help="compressions whose median counts (default: 3)")
    add("--outdir", type=Path, default=Path("outputs/bench_compression"))
    args = parser.parse_args()
    check_device(args.device)
    if args.chunks < 2:
        raise ValueError(f"chunks must be at least 2, or all that is there goes, got {args.chunks}.")
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
