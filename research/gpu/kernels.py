"""Attention, fp8 products and the store in host memory, against plain arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowcache.attention import attend, choose_backend
from flowcache.kv.config import KVStorageConfig
from flowcache.kv.layout import CacheLayout
from flowcache.kv.storage import PlainRows, RowStore
from magi1.quantised import FP8, QuantisedLinear, multiplies_fp8

from .bench import Bench, Check, Row, describe_error, require, skip
from .clock import measure

#: Most relative error to fp32 of bf16 kernels, and of those that round queries and keys to 8 bits.
TOLERANCE, COARSE = 1e-2, 1e-1

#: Backends for other hardware, and those that download their kernels.
_FOREIGN = ("npu", "xla", "hub", "aiter")


@dataclass(frozen=True)
class Shape:
    """Self attention of one chunk against the cache."""

    queries: int
    keys: int
    heads: int
    groups: int  # heads of keys and values
    width: int = 128


SHAPES = {
    "SkyReels-V2 1.3B": Shape(10200, 51000, 12, 12),
    "MAGI-1 4.5B": Shape(12150, 48600, 24, 8),
}
_TINY = {"equal heads": Shape(48, 96, 4, 4, 32), "grouped heads": Shape(48, 96, 6, 2, 32)}


def check_attention(bench: Bench) -> Iterator[tuple[str, Check]]:
    """Our choice and every installed backend of diffusers, in bf16, against PyTorch's plain product in fp32."""
    backends = [b for b in AttentionBackendName if not any(word in b.value for word in _FOREIGN)]
    if not bench.on_cuda:
        backends = [AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH]
    for name, shape in (_TINY if bench.reduced else SHAPES).items():
        for backend in (None, *backends):
            title = backend.value if backend else "our choice"
            yield f"{title}, {name}", partial(_compare_attention, bench, backend, shape)


def _compare_attention(bench: Bench, backend: AttentionBackendName | None, shape: Shape, row: Row) -> str | None:
    try:
        attention_dispatch._check_attention_backend_requirements(backend)
    except RuntimeError as error:
        skip(f"not installed: {str(error).split('. ')[0]}")
    generator = torch.Generator(bench.device).manual_seed(0)
    sizes = [(shape.queries, shape.heads), (shape.keys, shape.groups), (shape.keys, shape.groups)]
    to = {"device": bench.device, "dtype": torch.bfloat16, "generator": generator}
    query, key, value = (torch.randn(1, *size, shape.width, **to) for size in sizes)
    run = partial(attend, query, key, value)
    if backend is not None:
        run = partial(dispatch_attention_fn, *run.args, enable_gqa=shape.heads != shape.groups, backend=backend)
    try:
        found = run()
        bench.synchronize()
    except Exception as error:
        if backend in (None, AttentionBackendName.NATIVE):
            raise
        skip(f"refuses this shape: {describe_error(error)}")
    expected = _attend_plainly(query, key, value, rows=64)
    error = _relative(found[:, :64], expected)
    seconds = measure(bench, run)
    flops = 4 * shape.queries * shape.keys * shape.heads * shape.width
    row |= {"relative error": error, "ms": 1000 * seconds, "TFLOP/s": flops / seconds / 1e12}
    bound = COARSE if backend and "sage" in backend.value else TOLERANCE
    require(error <= bound, f"expected a relative error of at most {bound:g}, got {error:.2g}")
    chosen = choose_backend(query, key)  # None: the one that the environment names
    return f"{chosen.value}, as the fastest" if chosen and not backend else None


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, rows: int) -> Tensor:
    """Attention of the first queries in fp32, ``[1, rows, heads, width]``."""
    times = query.shape[2] // key.shape[2]
    key, value = (each.float().repeat_interleave(times, dim=2).transpose(1, 2) for each in (key, value))
    with sdpa_kernel(SDPBackend.MATH):
        out = functional.scaled_dot_product_attention(query[:, :rows].float().transpose(1, 2), key, value)
    return out.transpose(1, 2)


def check_fp8(bench: Bench) -> Iterator[tuple[str, Check]]:
    """fp8 products of MAGI-1's quantised checkpoints against the same numbers in fp32."""
    sizes = [(128, 64, 96)] if bench.reduced else [(48600, 3072, 12288), (48600, 12288, 3072), (48600, 6144, 16384)]
    for tokens, width, out in sizes:
        yield f"{tokens} tokens, {width} to {out}", partial(_compare_fp8, bench, tokens, width, out)


@torch.inference_mode()
def _compare_fp8(bench: Bench, tokens: int, width: int, out: int, row: Row) -> None:
    if bench.on_cuda and not multiplies_fp8(torch.device(bench.device)):
        skip("the card does not multiply in fp8 (those from compute capability 8.9 on do)")
    torch.manual_seed(0)
    layer = QuantisedLinear(width, out)
    # Codes below 64 are numbers from 0 to 2; half of the weights are negative.
    layer.weight.copy_(torch.randint(64, (out, width)) + 128 * torch.randint(2, (out, width)))
    layer.channel_scale.uniform_(0.5, 2)
    layer.input_scale.fill_(0.5), layer.weight_scale.fill_(0.01)
    layer.to(bench.device)
    x = torch.randn(tokens, width, device=bench.device, dtype=torch.bfloat16)
    few = x[:256]
    rounded = (few / layer.channel_scale).to(torch.bfloat16).to(FP8).float()
    expected = rounded @ layer.weight.view(FP8).float().T * layer.input_scale * layer.weight_scale
    row["relative error"] = error = _relative(layer(x)[:256], expected)
    plain = torch.nn.Linear(width, out, bias=False, device=bench.device, dtype=torch.bfloat16)
    seconds, other = measure(bench, lambda: layer(x)), measure(bench, lambda: plain(x))
    row |= {"ms": 1000 * seconds, "ms in bf16": 1000 * other, "TFLOP/s": 2 * tokens * width * out / seconds / 1e12}
    require(error <= TOLERANCE, f"expected a relative error of at most {TOLERANCE:g}, got {error:.2g}")


def check_store(bench: Bench) -> Iterator[tuple[str, Check]]:
    """The store in host memory alone: rows read while others are written and the device is busy."""
    for bits in (None, 8, 4):
        yield f"{bits or 16} bits", partial(read_and_write, bench, bits)


def read_and_write(bench: Bench, bits: int | None, row: Row) -> None:
    """Read all layers again and again as a model does, and compare with a store on the device at the end."""
    chunk, count = (64, 3) if bench.reduced else (10200, 4)
    sizes = (4, 2, 4, 16) if bench.reduced else (8, 2, 12, 128)
    layout = CacheLayout(*sizes, torch.bfloat16, bench.device)
    there = KVStorageConfig(bits=bits, offload=True).make_store(layout, count * chunk, chunk)
    here = RowStore(layout, count * chunk, PlainRows())
    here = here if bits is None else KVStorageConfig(bits=bits).make_store(layout, count * chunk, chunk)
    buffers = [torch.empty(2, *layout.shape(count * chunk, 1)[1:], **_to(layout)) for _ in range(2)]
    generator = torch.Generator(bench.device).manual_seed(0)
    held, differences = 0, []
    for call in range(3 * count):
        full = held == count
        for layer in range(layout.num_layers):
            if held:
                for store, buffer in zip((there, here), buffers, strict=True):
                    store.load(layer, buffer[:, :, : held * chunk])
                difference = [b[:, :, : held * chunk].float() for b in buffers]
                differences.append((difference[0] - difference[1]).abs().max())
            if bench.on_cuda:
                torch.cuda._sleep(10**6)  # cycles: the host runs ahead
            if call % 3 == 0:
                rows = torch.randn(2, *layout.shape(chunk, 1)[1:], generator=generator, **_to(layout))
                start = (held - full) * chunk
                for store in (there, here):
                    if full:
                        store.move_up(layer, chunk, count * chunk)
                    store.write(layer, start, *rows)
        held = min(count, held + (call % 3 == 0))
    row["largest difference"] = worst = torch.stack(differences).max().item()
    row["MiB in host memory"] = there.host_nbytes / 2**20
    cycle = [measure(bench, partial(_load_all, store, layout, buffers[0])) for store in (there, here)]
    row["ms to read a layer"], row["ms on the device"] = (1000 * s / layout.num_layers for s in cycle)
    require(worst == 0, "expected the rows of a store on the device")
    if bench.on_cuda:
        require(there.host_nbytes > 0, "expected rows in host memory")


def _load_all(store: RowStore, layout: CacheLayout, buffer: Tensor) -> None:
    for layer in range(layout.num_layers):
        store.load(layer, buffer)


def _to(layout: CacheLayout) -> dict:
    return {"dtype": layout.dtype, "device": layout.device}


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()
