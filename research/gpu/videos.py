"""Videos of the small checkpoints: against the CPU, with caches in host memory, with offload, compiled."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from flowcache import FlowCacheConfig, Trace
from flowcache.environment import peak_memory_bytes
from flowcache.metrics import psnr
from flowcache.reuse import NoReuse
from flowcache.video import to_uint8

from ..runs import MAGI_CONFIG, PROMPT, Model, find_chunk_model, find_model
from .bench import Bench, Check, Row, free_memory, require

MODELS = {"skyreels": "SkyReels-V2", "magi": "MAGI-1", "self_forcing": "Self-Forcing"}
#: Frames and steps of a usual video, and of a reduced one.
LENGTHS = {"skyreels": ((97, 50), (21, 8)), "magi": ((96, 64), (48, 8))}
LENGTHS |= dict.fromkeys(("self_forcing", "self_forcing_50"), ((81, 50), (21, 8)))

#: Methods to compare, with their presets; the first two compute every step.
METHODS = ("vanilla", "causal", "teacache", "flowcache:fast", "flowcache:paper-fast")

#: Most relative error of fp32 latents between devices where every step is computed.
TOLERANCE = 1e-4
#: Least PSNR, dB, of the types in which weights are loaded on the device to fp32 on the CPU; and where that changed
#: which chunks are computed. On the CPU, bf16 has 44 to 54 dB.
LEAST_PSNR, LEAST_CHANGED = 35.0, 25.0

Made = tuple[Tensor, Tensor, Trace]


def pick_models(bench: Bench) -> dict[str, str]:
    """All models; in a reduced run the one that the tests of offload and quantised weights leave out."""
    return {name: title for name, title in MODELS.items() if not bench.reduced or name == "self_forcing"}


def find_small(bench: Bench, name: str, device: str, chunks: int = 0) -> Model:
    """The small checkpoint, for the usual video or for one of that many chunks, some of them clean."""
    frames, steps = LENGTHS[name][bench.reduced]
    common = {"model": name, "checkpoint": "small", "config_file": MAGI_CONFIG, "device": device}
    if chunks:
        model = find_chunk_model(Namespace(**common, steps=4 if bench.reduced else 16), chunks)
    else:
        model = find_model(Namespace(**common, num_frames=frames, steps=steps))
    if bench.reduced:
        sides = ("video_size_h", "video_size_w") if name == "magi" else ("height", "width")
        model.adapter = model.adapter.with_video(**dict.fromkeys(sides, 32))
    return model


def make(model: Model, config: FlowCacheConfig, seed: int = 0) -> Made:
    """Latents and frames of a video, on the host, and its trace."""
    trace = Trace()
    parts = [(part.latents.cpu(), part.frames.cpu()) for part in model.stream(PROMPT, seed, config, trace)]
    latents, frames = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    return latents, frames, trace


def check_devices(bench: Bench) -> Iterator[tuple[str, Check]]:
    """The same videos on the device and on the CPU: in fp32, and in the types of a run on the device."""
    torch.backends.cudnn.allow_tf32 = False  # programs let fp32 convolutions use TF32
    for name, title in {**MODELS, "self_forcing_50": "Self-Forcing, 50 steps"}.items():
        host, exact, usual = (find_small(bench, name, device) for device in ("cpu", "cpu", bench.device))
        exact.pipeline.to(bench.device)
        reference = cache(partial(_make_method, host))
        methods = [m for m in METHODS if m.partition(":")[0] in host.adapter.traits.methods]
        if isinstance(_configure(host, {}).policy, NoReuse):  # whatever the preset
            methods = methods[:1]
        methods = methods[::3] if bench.reduced else methods
        for method in methods:
            yield f"{title}, {method}, fp32", partial(_compare_exactly, reference, exact, method)
        kind = str(usual.pipeline.transformer.dtype).removeprefix("torch.")
        for method in methods:
            yield f"{title}, {method}, {kind}", partial(_compare_frames, reference, usual, method)


def check_stores(bench: Bench) -> Iterator[tuple[str, Check]]:
    """Keys and values in host memory against those on the device, in the same bits."""
    for name, title in MODELS.items():
        chunks = 5 if bench.reduced else 9
        model = find_small(bench, name, bench.device, chunks)
        everything = {"kv_range": chunks}
        plain = cache(lambda options, model=model: make(model, _configure(model, dict(options))))
        for bits in (None, 8) if bench.reduced else (None, 8, 4):
            for budget in (None, 2) if not bench.reduced else (bits and 2,):
                options = {} if bits is None else {"kv_bits": bits}
                options |= everything if budget is None else {"budget": budget}
                words = [f"{bits} bits" if bits else "all bits", f"budget {budget}" if budget else "all tokens"]
                yield (
                    f"{title}, {', '.join(words)}",
                    partial(_compare_stores, bench, model, plain, options, everything),
                )


def check_offload(bench: Bench) -> Iterator[tuple[str, Check]]:
    """Idle components in host memory: the same latents, and a lower peak."""
    for name, title in pick_models(bench).items():
        yield title, partial(_compare_offload, bench, name)


def _configure(model: Model, options: dict[str, Any]) -> FlowCacheConfig:
    return model.configure("flowcache", "fast", **options)


def _make_method(model: Model, method: str) -> Made:
    return make(model, model.configure(*method.split(":")))


def _compare(reference: Callable[[str], Made], model: Model, method: str, row: Row) -> tuple[float, float, int]:
    """Relative error of latents, PSNR of frames in dB, and chunks that only one of both runs computed."""
    latents, frames, trace = _make_method(model, method)
    expected, pictures, other = reference(method)
    pairs = zip(_decisions(trace), _decisions(other), strict=True)
    found = ((latents - expected).norm() / expected.norm()).item(), measure_psnr(frames, pictures)
    found = *found, sum(ours != theirs for ours, theirs in pairs)
    row |= dict(zip(("latents, relative error", "PSNR, dB", "other decisions"), found, strict=True))
    return found


def _compare_exactly(reference: Callable[[str], Made], model: Model, method: str, row: Row) -> str | None:
    error, _, changed = _compare(reference, model, method, row)
    require(changed == 0, f"{changed} chunks were computed here and reused on the CPU, or the reverse")
    if method not in METHODS[:2]:
        return "extrapolation amplifies the error, which has no bound"
    require(error <= TOLERANCE, f"expected a relative error of at most {TOLERANCE:g}, got {error:.2g}")
    return None


def _compare_frames(reference: Callable[[str], Made], model: Model, method: str, row: Row) -> None:
    _, found, changed = _compare(reference, model, method, row)
    least = LEAST_CHANGED if changed else LEAST_PSNR
    require(found >= least, f"expected at least {least:g} dB to fp32 on the CPU, got {found:.1f}")


def _compare_stores(
    bench: Bench, model: Model, plain: Any, options: dict[str, Any], everything: dict[str, Any], row: Row
) -> str | None:
    expected, pictures, _ = plain(tuple(options.items()))
    latents, _, trace = make(model, _configure(model, {**options, "kv_offload": True}))
    window = trace.windows[0]
    row |= {"MiB on the device": window.kv_bytes / 2**20, "MiB in host memory": window.kv_host_bytes / 2**20}
    row["latents, largest difference"] = (latents - expected).abs().max().item()
    if options != everything:
        row["PSNR to all tokens and bits, dB"] = measure_psnr(pictures, plain(tuple(everything.items()))[1])
    require(torch.equal(latents, expected), "expected the latents of the store on the device")
    if not bench.on_cuda:
        return "host memory is the device's own"
    require(window.kv_host_bytes > 0, "expected clean chunks in host memory")
    return None


def _compare_offload(bench: Bench, name: str, row: Row) -> str | None:
    model, peaks, made = find_small(bench, name, bench.device), [], []
    config = _configure(model, {})
    make(model, config)  # memory of libraries, which stays
    for _ in range(2):
        free_memory(bench)
        made.append(make(model, config)[0])
        peaks.append(peak_memory_bytes(bench.device))
        model.pipeline.enable_stage_offload(bench.device)
    again = make(model, config)[0]
    row["latents, largest difference"] = (made[1] - made[0]).abs().max().item()
    require(torch.equal(*made), "expected the latents of a run without offload")
    require(torch.equal(again, made[0]), "expected the same latents in a second video")
    if not bench.on_cuda:
        return "peak memory is not compared on a CPU"
    row |= {"peak, MiB": peaks[0] / 2**20, "peak with offload, MiB": peaks[1] / 2**20}
    require(peaks[1] < peaks[0], "expected a lower peak with offload")
    return None


def measure_psnr(frames: Tensor, reference: Tensor) -> float:
    """PSNR, dB, of frames ``[3, frames, height, width]`` in [-1, 1]."""
    return psnr(to_uint8(frames), to_uint8(reference))[0]


def _decisions(trace: Trace) -> list[tuple[int, int, int, bool]]:
    return [(step.step, e.chunk, e.local_step, e.reused) for step in trace.steps for e in step.events]
