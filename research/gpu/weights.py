"""Options of loading, on the small checkpoints: quantised weights and compiled blocks."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch._dynamo.utils import counters

from flowcache.environment import Unavailable

from ..runs import Model
from .bench import Bench, Check, Row, free_memory, require, skip
from .videos import LEAST_PSNR, MODELS, find_small, make, measure_psnr, pick_models

#: Least PSNR, dB, to the weights as they are, by the number of bits of quantised ones.
LEAST_QUANTIZED = {"int8": 35.0, "fp8": 30.0, "int4": 20.0}


def check_quantised(bench: Bench) -> Iterator[tuple[str, Check]]:
    """Videos with quantised weights against those with the weights as they are."""
    for name, title in pick_models(bench).items():
        for kind in ("int8",) if bench.reduced else LEAST_QUANTIZED:
            yield f"{title}, {kind}", partial(_compare_quantised, bench, name, kind)


def check_compiled(bench: Bench) -> Iterator[tuple[str, Check]]:
    """Videos with compiled blocks against those without; a second one compiles nothing."""
    for name, title in MODELS.items():
        yield title, partial(_compare_compiled, bench, name)


def _load(bench: Bench, name: str, **options: Any) -> Model:
    model = find_small(bench, name, bench.device)
    try:
        loading = replace(model.adapter.loading, **options)
    except (Unavailable, ValueError) as error:  # a package or a compiler is missing
        skip(str(error))
    model.adapter = replace(model.adapter, loading=loading)
    free_memory(bench)
    _ = model.pipeline
    return model


def _compare_quantised(bench: Bench, name: str, kind: str, row: Row) -> None:
    plain, model = _load(bench, name), _load(bench, name, quantize=kind)
    config = model.configure("flowcache", "fast")
    _, expected, _ = make(plain, config)
    _, frames, _ = make(model, config)
    row["PSNR, dB"] = found = measure_psnr(frames, expected)
    for title, each in (("s a video", model), ("s with plain weights", plain)):
        row[title] = make(each, config, seed=1)[2].seconds["denoise"]
    least = LEAST_QUANTIZED[kind]
    require(found >= least, f"expected at least {least:g} dB to plain weights, got {found:.1f}")


def _compare_compiled(bench: Bench, name: str, row: Row) -> None:
    if not bench.on_cuda:
        skip("compilers take minutes on a CPU, where the models' tests run compiled blocks")
    plain, model = _load(bench, name), _load(bench, name, compile=True)
    config, graphs = model.configure("flowcache", "fast"), counters["stats"]
    _, expected, _ = make(plain, config)
    _, frames, _ = make(model, config)
    row["PSNR, dB"], row["graphs"] = measure_psnr(frames, expected), graphs["unique_graphs"]
    for title, each in (("s a video", model), ("s without", plain)):
        row[title] = make(each, config, seed=1)[2].seconds["denoise"]
    row["new graphs"] = new = graphs["unique_graphs"] - row["graphs"]
    require(new == 0, f"a second video compiled {new} graphs")
    require(row["PSNR, dB"] >= LEAST_PSNR, f"expected at least {LEAST_PSNR:g} dB to blocks that are not compiled")
