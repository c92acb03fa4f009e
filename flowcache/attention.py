"""Attention by the fastest kernel that is installed."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils import is_flash_attn_3_available, is_flash_attn_available, is_flash_attn_version
from torch import Tensor

logger = logging.getLogger(__name__)

#: Diffusers' variable for an attention backend; it wins over our choice.
BACKEND_VARIABLE = "DIFFUSERS_ATTN_BACKEND"

#: The oldest supported flash-attention 2, and the architecture that version 3 is written for.
FLASH_2_VERSION, FLASH_3_CAPABILITY = "2.6.3", (9, 0)

#: Most queries and keys that are timed: beyond them, the order of kernels no longer changes with the length.
TIMED_TOKENS = (2**12, 2**14)

#: A kernel counts as slower only beyond this share, so that noise does not change the choice from run to run.
MARGIN = 0.05


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a mask by ``choose_backend``'s kernel.

    Tensors are ``[batch, tokens, heads, head_dim]``; keys and values may have fewer heads (grouped queries).
    """
    grouped = query.shape[2] != key.shape[2]
    return dispatch_attention_fn(query, key, value, enable_gqa=grouped, backend=choose_backend(query, key))


@torch.compiler.disable
def choose_backend(query: Tensor, key: Tensor) -> AttentionBackendName | None:
    """Choose diffusers' backend for tensors like these; None: the one that ``DIFFUSERS_ATTN_BACKEND`` names.

    On CUDA in bf16 and fp16, the first call for a device, type, heads and lengths (up to the next power of two, and
    ``TIMED_TOKENS``) times all that are installed, on tensors of its own. Elsewhere it is PyTorch's attention. Not yet
    run on a GPU.
    """
    if os.environ.get(BACKEND_VARIABLE):
        return None
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return AttentionBackendName.NATIVE
    lengths = zip((query.shape[1], key.shape[1]), TIMED_TOKENS, strict=True)
    tokens = tuple(min(1 << (length - 1).bit_length(), most) for length, most in lengths)
    return _time_backends(query.device, query.dtype, tokens, (query.shape[2], key.shape[2]), query.shape[3])


def pick_fastest(
    kernels: Mapping[str, Callable[[], object]], measure: Callable[[Callable[[], object]], float]
) -> tuple[str | None, dict[str, float]]:
    """Pick the first kernel that is not slower than the fastest by ``MARGIN``; also returns the time of each.

    Kernels that fail are left out; None: all do.
    """
    times = {}
    for name, run in kernels.items():
        try:
            times[name] = measure(run)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            logger.debug("attention: %s cannot run: %s", name, error)
    limit = (1 + MARGIN) * min(times.values(), default=0.0)
    return next((name for name, time in times.items() if time <= limit), None), times


def list_backends(device: torch.device) -> list[AttentionBackendName]:
    """Backends that are installed, PyTorch's own first, for half precision on a CUDA device."""
    found = [AttentionBackendName.NATIVE]
    if is_flash_attn_3_available() and torch.cuda.get_device_capability(device) == FLASH_3_CAPABILITY:
        found.append(AttentionBackendName._FLASH_3)
    if is_flash_attn_available() and is_flash_attn_version(">=", FLASH_2_VERSION):
        found.append(AttentionBackendName.FLASH)
    return [*found, AttentionBackendName._NATIVE_CUDNN]


@cache
def _time_backends(
    device: torch.device, dtype: torch.dtype, tokens: tuple[int, int], heads: tuple[int, int], head_dim: int
) -> AttentionBackendName:
    # A generator of its own, so that the run's noise stays the same.
    generator = torch.Generator(device).manual_seed(0)
    query, key = (
        torch.randn((1, count, own, head_dim), generator=generator, dtype=dtype, device=device)
        for count, own in zip(tokens, heads, strict=True)
    )

    def bind(backend: AttentionBackendName) -> Callable[[], Tensor]:
        return lambda: dispatch_attention_fn(query, key, key, enable_gqa=heads[0] != heads[1], backend=backend)

    kernels = {backend: bind(backend) for backend in list_backends(device)}
    chosen, times = pick_fastest(kernels, partial(measure_on_cuda, device))
    chosen = chosen or AttentionBackendName.NATIVE
    found = ", ".join(f"{backend.value} {time:.3f} ms" for backend, time in times.items())
    sizes = f"{tokens[0]} queries of {heads[0]} heads, {tokens[1]} keys of {heads[1]}"
    logger.info("attention: %s for %s (%s); %s selects another", chosen.value, sizes, found, BACKEND_VARIABLE)
    return chosen


def measure_on_cuda(device: torch.device, run: Callable[[], object], repeats: int = 5) -> float:
    """The shortest time of a function on a CUDA device, in ms, after two runs that are not timed."""
    times, stream = [], torch.cuda.current_stream(device)  # of the device, which need not be the current one
    for _ in range(2 + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times[2:])
