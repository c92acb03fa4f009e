"""The machine, layers and steps of true size: achieved speed, and what it is compared with."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from flowcache.environment import describe_environment

from .bench import Bench, Check, Row, require
from .clock import measure, measure_peak
from .true_size import RESERVED, Timed, TrueSize, cut, denoising_bytes, needs, time_steps

GIB = 2**30

#: Share of the peak that a step is expected to reach at least, to tell whether time is left for it.
LEAST_SHARE = 0.3

#: Layers of the transformers that are timed, half of them taken away for the second time.
LAYERS = 4


def check_machine(bench: Bench) -> Iterator[tuple[str, Check]]:
    """The card, its largest speed on products of matrices, and that of copies from host memory."""
    yield "device", partial(_describe_device, bench)
    yield "product of matrices", partial(_measure_product, bench)
    yield "copy from host memory", partial(_measure_copy, bench)


def _describe_device(bench: Bench, row: Row) -> str:
    environment = describe_environment(bench.device)
    if bench.on_cuda:
        card = torch.cuda.get_device_properties(bench.device)
        row |= {"GiB": card.total_memory / GIB, "compute capability": f"{card.major}.{card.minor}"}
        row |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return environment["hardware"]


def _measure_product(bench: Bench, row: Row) -> None:
    row["TFLOP/s"] = measure_peak(bench)


def _measure_copy(bench: Bench, row: Row) -> None:
    size = 2**20 if bench.reduced else 2**28
    for name, pinned in {"pageable": False, **({"pinned": True} if bench.on_cuda else {})}.items():
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        device = torch.empty(size, dtype=torch.uint8, device=bench.device)
        row[f"GB/s, {name}"] = size / measure(bench, partial(device.copy_, host, non_blocking=pinned)) / 1e9


@dataclass(frozen=True)
class Case:
    """A model of true size, and its video."""

    size: TrueSize
    words: str
    methods: dict[str, str] = field(default_factory=dict)  # options by name
    #: Words of a shorter staircase with the same chunks, for methods that compute every step.
    short: str = ""
    most: int | None = None  # steps to take of a method that computes every step, all alike

    def __str__(self) -> str:
        cut = "" if self.size.layers is None else f", {self.size.layers} layers"
        return f"{self.size.model} {self.size.name}{cut}"


_SKYREELS = "--num_frames 97 --inference_steps 50 --ar_step 5 --causal_block_size 5"
_MAGI = "--num_frames 120 --num_steps 64"
_METHODS = {"vanilla": "--method vanilla", "fast": "--preset fast"}
_MORE = {"turbo": "--preset turbo", "fast, kv_offload": "--preset fast --kv_offload"}
METHODS = {
    "skyreels_v2": {**_METHODS, "kvcompress": "--preset balanced --use_compress --budget_block 1", **_MORE},
    "magi1": {**_METHODS, "kvcompress": "--preset fast --compress_kv_cache --total_cache_chunk_nums 5", **_MORE},
    "self_forcing": {
        "vanilla": _METHODS["vanilla"],
        "window": "--local_attn_size 12",
        "kvcompress": "--use_compress --budget_block 3",
        "kvcompress, 8 bits": "--use_compress --budget_block 3 --kv_bits 8",
    },
}


def _list_layers(bench: Bench) -> list[Case]:
    sky, magi = ["1.3B-540P", "14B-540P"], ["4.5B_distill", "4.5B_distill_quant", "24B_base", "24B_distill_quant"]
    if bench.reduced:
        sky, magi = ["small"], ["small"]
    frames = (57, 48) if bench.reduced else (97, 96)
    words = f"--num_frames {frames[0]} --inference_steps 6 --ar_step 1 --causal_block_size 5"
    cases = [Case(TrueSize("skyreels_v2", name, LAYERS), words, _METHODS, most=6) for name in sky]
    words = f"--num_frames {frames[1]} --num_steps 12"  # the window is full from the tenth step on
    return cases + [Case(TrueSize("magi1", name, LAYERS), words, _METHODS, most=12) for name in magi]


def _list_steps(bench: Bench) -> list[Case]:
    if bench.reduced:
        sky, magi = TrueSize("skyreels_v2", "small", 2), TrueSize("magi1", "small", 2)
        few = "--num_frames 57 --inference_steps 8 --ar_step 2 --causal_block_size 3"
        kept = ("vanilla", "kvcompress")
        methods = {m: {n: words for n, words in each.items() if n in kept} for m, each in METHODS.items()}
        return [
            Case(sky, few, methods["skyreels_v2"], most=4),
            Case(magi, "--num_frames 120 --num_steps 8", methods["magi1"], "--num_steps 4"),
            Case(TrueSize("self_forcing", "small", 2), "--num_output_frames 18", methods["self_forcing"]),
        ]
    sky, magi, both = TrueSize("skyreels_v2", "1.3B-540P"), TrueSize("magi1", "4.5B_distill"), _METHODS
    large = TrueSize("skyreels_v2", "14B-540P", LAYERS), TrueSize("magi1", "24B_base", LAYERS // 2)
    return [
        Case(sky, _SKYREELS, METHODS["skyreels_v2"], most=5),
        Case(magi, _MAGI, METHODS["magi1"], "--num_steps 8"),
        Case(TrueSize("self_forcing", "causal_forcing"), "--num_output_frames 42", METHODS["self_forcing"]),
        Case(TrueSize("self_forcing", "ar_diffusion"), "--num_output_frames 9", both),
        Case(large[0], _SKYREELS, both, most=5),
        Case(large[1], _MAGI, both, "--num_steps 8"),
    ]


def check_layers(bench: Bench) -> Iterator[tuple[str, Check]]:
    """A layer of each size: the difference of a step with all layers and with half of them."""
    peak, cases = measure_peak(bench), _list_layers(bench)
    for case in cases:
        yield str(case), partial(_time_layer, bench, case, peak)


def _time_layer(bench: Bench, case: Case, peak: float, row: Row) -> None:
    job = case.size.job(bench, f"{case.words} {case.methods['vanilla']}")
    pattern = needs(bench, case.size, job).step_flops[: case.most]
    bench.needs_seconds(1.5 * sum(pattern) / peak / 1e12 / LEAST_SHARE)
    pipeline, steps = case.size.make(bench, job), {"most": case.most, "record": _pick_step(pattern)}
    whole = time_steps(bench, pipeline, job, **steps)
    cut(pipeline.transformer, LAYERS // 2)
    half = time_steps(bench, pipeline, job, **steps)
    (flops, seconds), (fewer, less) = whole.full_step, half.full_step
    flops, seconds = (flops - fewer) / (LAYERS // 2), (seconds - less) / (LAYERS // 2)
    require(seconds > 0, "a step with half of the layers took as long; the machine is busy")
    row |= {"TFLOPs": flops / 1e12, "ms": 1000 * seconds, "TFLOP/s": flops / seconds / 1e12}
    row["of peak, %"] = 100 * flops / seconds / 1e12 / peak
    row["floor, ms"] = flops / peak / 1e9
    if whole.activity and half.activity:
        row["launches"] = (whole.activity.launches - half.activity.launches) / (LAYERS // 2)
        row["launches beside layers"] = whole.activity.launches - LAYERS * row["launches"]
        row["host waits"] = whole.activity.waits


def check_steps(bench: Bench) -> Iterator[tuple[str, Check]]:
    """Videos of true size, step by step; what was not measured is projected from the steps that were."""
    peak, cases = measure_peak(bench), _list_steps(bench)
    remaining = sum(len(case.methods) for case in cases)
    for case in cases:
        make = cache(lambda case=case: case.size.make(bench, case.size.job(bench, case.words)))
        spent: dict[str, tuple[float, float]] = {}
        for method in case.methods:
            stop = time.time() + bench.left / remaining
            yield f"{case}, {method}", partial(_time_method, bench, case, method, make, peak, spent, stop)
            remaining -= 1


def _time_method(
    bench: Bench,
    case: Case,
    method: str,
    make: Any,
    peak: float,
    spent: dict[str, tuple[float, float]],
    stop: float,
    row: Row,
) -> str | None:
    """``spent`` holds seconds and FLOPs of the methods before."""
    plain = method == "vanilla"
    words = f"{case.words} {case.methods[method]}"
    job = case.size.job(bench, words)
    found = needs(bench, case.size, job)
    pattern, expected = found.step_flops, found
    if plain and case.short:
        job = case.size.job(bench, f"{words} {case.short}")
        expected = needs(bench, case.size, job)
    steps = expected.step_flops[: case.most if plain else None]
    bench.needs_seconds(sum(steps[:4]) / peak / 1e12 / LEAST_SHARE)
    record = _pick_step(steps, last="kv_offload" in words)
    timed = time_steps(bench, make(), job, stop, len(steps), record)
    seconds = timed.project(pattern)
    spent[method] = seconds, found.flops
    _fill_speed(row, timed, job.sampler.model.video.num_frames, seconds, found.flops, peak)
    if "vanilla" in spent:
        gain, ratio = (a / b for a, b in zip(spent["vanilla"], spent[method], strict=True))
        row |= {"speed-up": gain, "FLOPs ratio": ratio, "speed-up / ratio": gain / ratio}
    row["measured"] = f"{len(timed.seconds)} of {len(pattern)}"
    if bench.on_cuda:
        row |= {"peak, GiB": timed.peak / GIB, "estimate, GiB": denoising_bytes(expected) / GIB}
        most_bytes = denoising_bytes(expected) + RESERVED
        require(timed.peak <= most_bytes, f"the peak is more than 1 GiB above the estimate of {method}")
    return None if len(timed.seconds) >= len(steps) - 2 else "time ran out; the rest is projected"


def _fill_speed(row: Row, timed: Timed, frames: int, seconds: float, flops: float, peak: float) -> None:
    most, longest = timed.full_step
    row |= {
        "s a video": seconds,
        "frames/s": frames / seconds,
        "PFLOPs": flops / 1e15,
        "full step, ms": 1000 * longest,
    }
    row["TFLOP/s"] = rate = most / longest / 1e12
    row["of peak, %"] = 100 * rate / peak
    if (idle := timed.idle_seconds) is not None:
        row["reused step, ms"] = 1000 * idle
    if timed.activity is not None:
        row |= {"launches": timed.activity.launches, "host waits": timed.activity.waits}
        row["kernels, ms"] = 1000 * timed.activity.busy
        row["from host, ms"] = 1000 * timed.activity.upload
        row["to host, ms"] = 1000 * timed.activity.download


def _pick_step(pattern: Sequence[float], last: bool = False) -> int:
    """A step to record: one with the most FLOPs, or the last that computes, which reads the most clean rows."""
    full = [step for step, flops in enumerate(pattern) if flops > (0.01 if last else 0.999) * max(pattern)]
    return full[-1 if last else len(full) // 2]
