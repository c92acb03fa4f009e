"""What the parts of the method bring to Self-Forcing in four steps: time on the small checkpoint, FLOPs at true size.

    OMP_NUM_THREADS=1 python -m research.few_steps
    python -m research.few_steps --tables true --chunks 40 --utilisation 0.3

The first table is measured: on a CPU processor time. Its floor is the transformer's FLOPs at the speed of a product
of matrices on the same device. The second is counted on tensors without storage, at 480 x 832 pixels, and takes a GPU
that reaches a share of its peak; launches, memory and the text encoder are left out. The first row of either is what
the original runs: every clean chunk in a call of its own, the last one, too. Measured, it is five times a call on
each chunk alone.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from tqdm import tqdm

from flowcache import Trace
from flowcache.benchmark.scaling import count_flops
from flowcache.cli import Job, find_model, prepare_video
from flowcache.files import markdown_table
from flowcache.memory import GIB, estimate
from flowcache.parallel.efficiency import Hardware

from .compare import main, positive, write_results
from .gpu.bench import Bench
from .gpu.clock import measure_peak
from .runs import PROMPT, new_parser

ORIGINAL = "the original's calls"
#: Options by cache; each keeps seven chunks of three latent frames but the first, which keeps all.
CACHES = {
    "all keys": "--method vanilla",
    "window": "--method vanilla --local_attn_size 21",
    "budget": "--method flowcache --use_compress --budget_block 6",
    "budget, 8 bits": "--method flowcache --use_compress --budget_block 6 --kv_bits 8",
    "budget, 4 bits": "--method flowcache --use_compress --budget_block 6 --kv_bits 4",
}
TRUE_SIZE = "--weights Wan-AI/Wan2.1-T2V-1.3B --checkpoint_path zhuhz22/Causal-Forcing/chunkwise/causal_forcing.pt"
#: Chunks of the videos that the originals make.
USUAL = 7
#: Frames per second that others state for one H100.
PUBLISHED = {"Self-Forcing, as its authors state": 17.0, "Forcing-KV, as its authors state": 29.0}


def plan(weights: str, device: str, chunks: int, cache: str) -> Job:
    """A video of that many chunks of three latent frames, checked."""
    words = f"--weights small {cache}" if weights == "small" else f"{TRUE_SIZE} {cache}"
    return prepare_video(
        find_model("self_forcing"), f"{words} --device {device} --dry_run --num_output_frames {3 * chunks}".split()
    )


@dataclass(frozen=True)
class Measured:
    """One video of the small checkpoint; seconds.

    Attributes:
        steps: of each step; the text is in the first.
        first: from the prompt to the first chunk's frames.
        whole: of the video, its frames decoded.
    """

    cache: str
    steps: list[float]
    first: float
    whole: float
    frames: int
    flops: float
    kv_bytes: int

    @property
    def chunks(self) -> int:
        return len(self.steps) // 4

    @property
    def alone(self) -> list[float]:
        """A call on each chunk alone: the median of those behind its first step."""
        return [median(self.steps[4 * chunk + 1 : 4 * chunk + 4]) for chunk in range(self.chunks)]

    @property
    def denoising(self) -> float:
        """Without the text."""
        return sum(self.steps[1:]) + self.alone[0]

    @property
    def joined(self) -> float:
        """Time of a clean chunk's call with the next chunk's first step, relative to two calls."""
        return fmean(self.steps[4::4]) / (2 * fmean(self.alone[1:]))


def measure(args: argparse.Namespace) -> list[Measured]:
    now = time.process_time if args.device == "cpu" else time.perf_counter
    jobs = {cache: plan("small", args.device, args.chunks, words) for cache, words in CACHES.items()}
    pipeline, found = next(iter(jobs.values())).sampler.model.load(args.device), []
    pipeline.set_progress_bar_config(disable=True)
    next(iter(pipeline.stream(PROMPT, num_output_frames=6)))  # first calls
    for seed in tqdm(range(args.seeds), unit="seed"):
        for cache, job in jobs.items():
            trace, marks, steps, frames, first = Trace(), [now()], [], 0, 0.0
            start = marks[0]

            def end_step(*_: object, marks: list[float] = marks, steps: list[float] = steps) -> None:
                marks.append(now())
                steps.append(marks[-1] - marks[-2])

            video = job.sampler.model.with_video(seed=seed).video
            options = {"settings": video, "cache": job.sampler.config, "trace": trace, "on_step_end": end_step}
            for part in pipeline.stream(PROMPT, **options):
                marks.append(now())
                first, frames = first or marks[-1] - start, frames + part.frames.shape[1]
            kv_bytes = trace.windows[0].kv_bytes
            found.append(Measured(cache, steps, first, now() - start, frames, trace.flops["actual"], kv_bytes))
    return found


def measured_table(found: list[Measured], rate: float) -> str:
    """``rate``: FLOP/s of a product of matrices."""
    rows = []
    for cache in CACHES:
        own = [each for each in found if each.cache == cache]
        chunks, one = own[0].chunks, own[0]
        decoded = median(each.whole - each.denoising for each in own)

        def describe(name: str, spent: float, *more: str, decoded: float = decoded, one: Measured = one) -> list[str]:
            speeds = (1000 * spent / one.chunks, one.chunks / spent, one.frames / (spent + decoded))
            return [name, *map("{:.1f}".format, speeds), *more]

        if not rows:
            rows.append(describe(ORIGINAL, median(5 * sum(each.alone) for each in own), "", "", ""))
        first = f"{median(each.first for each in own):.2f}"
        more = (f"{chunks * rate / one.flops:.1f}", first, f"{one.kv_bytes / 2**20:.1f}")
        rows.append(describe(cache, median(each.denoising for each in own), *more))
    titles = ["calls, cache", "denoising, ms a chunk", "chunks/s", "frames/s, decoded", "chunks/s at the floor"]
    joined = median(each.joined for each in found if each.cache == "all keys")
    text = f"A clean chunk's call with the next one's first step takes {joined:.2f} of the time of two calls."
    return "\n\n".join([markdown_table([*titles, "s to the first frames", "KV cache, MiB"], rows), text])


@dataclass(frozen=True)
class Counted:
    """One video of true size: FLOPs of each step and of decoding each latent frame, and bytes of the cache."""

    cache: str
    steps: tuple[float, ...]
    decoding: list[float]
    kv_bytes: int

    def describe(self, hardware: Hardware) -> Iterator[list[str]]:
        frames, decoding = 4 * len(self.decoding) - 3, sum(self.decoding)
        named = {self.cache: sum(self.steps)}
        if self.cache == "all keys":  # the last clean chunk's call costs what its last step does
            named = {ORIGINAL: sum(self.steps) + self.steps[-1], **named}
        first = hardware.compute_seconds(sum(self.steps[:4]) + sum(self.decoding[:3]))
        for name, flops in named.items():
            alone, whole = (frames / hardware.compute_seconds(each) for each in (flops, flops + decoding))
            cells = [f"{flops / 1e15:.2f}", f"{sum(self.steps[-4:]) / 1e12:.0f}", f"{alone:.1f}", f"{whole:.1f}"]
            yield [name, str(frames), *cells, f"{first:.2f}", f"{self.kv_bytes / GIB:.1f}"]


def count(chunks: int, caches: Mapping[str, str]) -> Iterator[Counted]:
    for cache, words in caches.items():
        job, decoding = plan("true", "cuda", chunks, words), list[float]()

        def watch(pipeline: Any, found: list[float] = decoding) -> None:
            count_flops(pipeline.vae.decoder, found)

        needed = estimate(job.sampler.model, job.sampler.config, job.start, "cuda", watch=watch)
        yield Counted(cache, needed.step_flops, decoding, needed.kv)


def counted_table(found: list[Counted], hardware: Hardware) -> str:
    titles = ["calls, cache", "frames", "PFLOPs", "TFLOPs of the last chunk", "frames/s, denoising"]
    titles += ["frames/s, decoded", "s to the first frames", "KV cache, GiB"]
    rows = [row for each in found for row in each.describe(hardware)]
    rows += [[name, "", "", "", "", f"{speed:g}", "", ""] for name, speed in PUBLISHED.items()]
    rate = f"{hardware.utilisation:.0%} of {hardware.tflops:g} TFLOP/s"
    return f"Estimates at {rate}, from FLOPs alone:\n\n{markdown_table(titles, rows)}"


def bench(args: argparse.Namespace) -> str:
    if args.chunks <= USUAL:
        raise ValueError(f"chunks: expected more than the {USUAL} that the caches keep, got {args.chunks}.")
    hardware, tables, records = Hardware(utilisation=args.utilisation), [], []
    if "small" in args.tables:
        found = measure(args)
        rate = 1e12 * measure_peak(Bench(args.device, args.device == "cpu", math.inf))
        tables.append(measured_table(found, rate))
        records += map(asdict, found)
    if "true" in args.tables:
        plain = {"all keys": CACHES["all keys"]}
        counted = [*count(USUAL, plain), *tqdm(count(args.chunks, CACHES), total=len(CACHES), unit="video")]
        tables.append(counted_table(counted, hardware))
        records += map(asdict, counted)
    return write_results(args, "few_steps", "\n\n".join(tables), records)


if __name__ == "__main__":
    parser = new_parser(__doc__, "few_steps", models=())
    add = parser.add_argument
    add("--tables", nargs="+", choices=["small", "true"], default=["small", "true"], help="default: both")
    add("--chunks", type=positive, default=40, help="of three latent frames (default: 40)")
    add("--seeds", type=positive, default=1, help="videos of each cache on the small checkpoint (default: 1)")
    add("--utilisation", type=float, default=0.5, help="share of an H100's peak (default: 0.5)")
    parser.set_defaults(model="self_forcing")
    main(parser, bench)
