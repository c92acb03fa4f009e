"""What a video will need: memory, FLOPs and time, from sizes alone.

The pipeline itself makes the video on the meta device, whose tensors have shapes but no storage, while the
bytes that they would take are counted. So the estimate follows the code, and needs no weights and no GPU.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .config import FlowCacheConfig
from .environment import Unavailable
from .plots.style import format_bytes, format_flops
from .quantize import plain_parts
from .trace import Trace

if TYPE_CHECKING:
    from .adapter import Adapter, Start

logger = logging.getLogger(__name__)

GIB = 2**30

#: Bytes of a card for the CUDA context, workspaces of libraries and fragments.
RESERVED = GIB

#: Stages of a run, and the component that each runs.
STAGES = {"text": "text_encoder", "encode": "vae", "denoise": "transformer", "decode": "vae"}

_aten = torch.ops.aten
_READS = (_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default)


@dataclass(frozen=True)
class Estimate:
    """What one video will need. Memory is in bytes, without the CUDA context and workspaces of libraries.

    Attributes:
        weights: by component of the pipeline.
        working: most bytes beside the weights, by stage; those of the KV cache included.
        kv: of the KV cache; what ``kv_offload`` moves to host memory counts as on the device.
        staged: components that are on the device only for their stages.
        on_host: components that never are.
        flops: of the transformer; at most, where the policy measures distances.
        is_bound: whether ``flops`` is only a bound.
        step_flops: of each step; of policies that measure distances, as if every distance were none.
    """

    weights: Mapping[str, int]
    working: Mapping[str, int]
    kv: int
    staged: frozenset[str]
    on_host: frozenset[str]
    flops: float
    is_bound: bool
    step_flops: tuple[float, ...] = ()

    def on_device(self, stage: str) -> dict[str, int]:
        """Bytes by part in a stage."""
        # The transformer stays from its first step to the end of the video.
        present = self.weights.keys() - self.staged | {STAGES[stage], "transformer" if stage == "decode" else None}
        held = {name: size for name, size in self.weights.items() if name in present - self.on_host}
        kv = self.kv if stage in ("denoise", "decode") else 0
        return held | {"KV cache": kv, "activations": self.working[stage] - kv}

    @property
    def peaks(self) -> dict[str, int]:
        """Bytes on the device, by stage."""
        stages = [stage for stage in self.working if STAGES[stage] not in self.on_host]
        return {stage: sum(self.on_device(stage).values()) for stage in stages}

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def seconds(self, rate: float) -> float:
        """Time of the transformer on a device that makes ``rate`` TFLOP/s."""
        return self.flops / rate / 1e12

    def fits(self, memory: int) -> bool:
        """Whether a card with that many bytes holds it, with ``RESERVED`` of them for others."""
        return self.peak + RESERVED <= memory

    @property
    def _bound(self) -> str:
        return "at most " if self.is_bound else ""

    def __str__(self) -> str:
        stage = max(self.peaks, key=self.peaks.get)
        parts = self._describe_parts(stage)
        return f"{format_bytes(self.peak)} ({stage}: {parts}), {self._bound}{format_flops(self.flops)}"

    def _describe_parts(self, stage: str) -> str:
        parts = {name.replace("_", " "): size for name, size in self.on_device(stage).items() if size}
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())

    def report(self, rate: float | None = None) -> str:
        """Several lines: bytes by part and stage, FLOPs, and seconds at ``rate`` TFLOP/s."""
        lines = [f"peak memory: {format_bytes(self.peak)}, without the CUDA context"]
        for stage, peak in self.peaks.items():
            lines.append(f"  {stage}: {format_bytes(peak)} ({self._describe_parts(stage)})")
        lines.append(f"transformer: {self._bound}{format_flops(self.flops)}")
        if rate:
            lines.append(f"time: {self._bound}{self.seconds(rate):.0f} s at {rate:g} TFLOP/s")
        return "\n".join(lines)


def estimate(
    model: Adapter,
    config: FlowCacheConfig,
    start: Start,
    device: str = "cuda",
    every_call: bool = False,
    watch: Callable[[Any], None] | None = None,
) -> Estimate:
    """Estimate what a video needs on a kind of device, ``cuda`` or ``cpu``; none has to be there.

    Args:
        every_call: also run calls of blocks and decoder that are like earlier ones, which takes minutes.
        watch: called with the pipeline before it runs, to add hooks.
    """
    pipeline, counter = model.skeleton(device), StorageCounter()
    pipeline.set_progress_bar_config(disable=True)
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    if not every_call:
        # All but the first are alike. Each runs once, as it keeps the text's keys and values.
        for block in pipeline.transformer.blocks[2:]:
            _run_once(block)
        # A causal decoder has all features of earlier frames from the third call on.
        _skip_repeats(counter, pipeline.vae.decoder, runs=3)
    if watch:
        watch(pipeline)
    with torch.inference_mode(), counter:
        weights = {name: counter.ignore(part) for name, part in parts.items()}
        trace = _StageTrace(counter)
        for _ in model.rehearse(pipeline, start, config, trace):
            pass
    # Distances are not known without weights.
    every_step = "vanilla" if config.whole_window else "causal"
    is_bound = config.policy.needs_indicator
    return Estimate(
        weights=weights,
        working=counter.peaks,
        kv=max(window.kv_bytes for window in trace.windows),
        staged=model.staged,
        on_host=model.on_host,
        flops=trace.flops[every_step if is_bound else "actual"],
        is_bound=is_bound,
        step_flops=tuple(step.flops for step in trace.steps),
    )


def log_needs(
    needed: Callable[[], Estimate], others: Callable[[str], Estimate], options: Sequence[str], device: str
) -> Sequence[str]:
    """Log the estimate of a run on a GPU; if that is too small, warn, and return options that lower the peak.

    Args:
        others: returns the estimate with an option; ValueError where it does not go with the rest.
        options: to try in this order; the first three that help count.
    """
    found: dict[str, int] = {}
    if torch.device(device).type != "cuda":
        return []
    try:
        own, memory = needed(), torch.cuda.get_device_properties(device).total_memory
        logger.info("memory: about %s", own)
        for option in () if own.fits(memory) else options:
            with suppress(ValueError, Unavailable):
                if len(found) < 3 and (peak := others(option).peak) < 0.98 * own.peak:
                    found[option] = peak
        if not own.fits(memory):
            named = [f"{option} ({peak / GIB:.1f} GiB)" for option, peak in found.items()]
            less = " or ".join([*named, "smaller or fewer frames"])
            logger.warning("memory: %s has %.1f GiB; less is needed with %s", device, memory / GIB, less)
    except Exception:  # the run itself may well succeed
        logger.warning("memory: no estimate of this run", exc_info=True)
    return list(found)


class StorageCounter(TorchDispatchMode):
    """Counts bytes of the meta tensors that are alive, and their peak by ``stage``.

    What reads a value gets 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stage, self.peaks = "denoise", dict[str, int]()
        self._alive, self._highest, self._known = 0, 0, set[int]()
        #: shape, stride and type of new tensors, by operator and arguments
        self._made: dict[Any, Any] = {}

    def ignore(self, module: nn.Module) -> int:
        """Leave a module's weights out of the count; returns their bytes."""
        tensors = [part for held in (*module.parameters(), *module.buffers()) for part in plain_parts(held)]
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        self._known |= sizes.keys()
        return sum(sizes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func in _READS:
                return 1
            if func is _aten.bincount.default:  # has no meta kernel
                return args[0].new_zeros(1)
            if torch.device("cpu") in (kwargs.get("device"), *args[1:]):
                # One number stands for all, as the features of a video decoder are large.
                return torch.ones((), dtype=kwargs.get("dtype") or args[0].dtype).expand(args[0].shape)
        result = self._call(func, args, kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        return result

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call an operator; what one that makes a tensor makes is looked up, as meta kernels are slow."""
        if not _makes_tensor(func):
            return func(*args, **kwargs)
        place = (func, _describe(args), _describe([*kwargs.items()]))
        if place not in self._made:
            result = func(*args, **kwargs)
            if not result.is_meta or result.untyped_storage()._cdata in self._known:
                return result
            self._made[place] = result.shape, result.stride(), result.dtype
            return result
        shape, stride, dtype = self._made[place]
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")

    def _add(self, storage: torch.UntypedStorage) -> None:
        if (place := storage._cdata) in self._known:
            return
        self._known.add(place)
        self._alive += storage.nbytes()
        self.reach(0)
        weakref.finalize(storage, self._forget, place, storage.nbytes())

    def reach(self, more: int) -> None:
        """Count that many bytes more than are alive, for a moment."""
        self._highest = max(self._highest, self._alive + more)
        self.peaks[self.stage] = max(self._alive + more, self.peaks.get(self.stage, 0))

    @contextmanager
    def measure(self) -> Iterator[list[int]]:
        """Within the block, count the bytes beside those of before at the peak, for the list."""
        before, outer, taken = self._alive, self._highest, []
        self._highest = before
        yield taken
        taken.append(self._highest - before)
        self._highest = max(outer, self._highest)

    def _forget(self, place: int, size: int) -> None:
        self._known.remove(place)
        self._alive -= size


class _StageTrace(Trace):
    """A trace that tells a counter which stage runs."""

    def __init__(self, counter: StorageCounter) -> None:
        super().__init__()
        self._counter = counter

    @contextmanager
    def timer(self, stage: str):
        self._counter.stage, before = stage, self._counter.stage
        with super().timer(stage):
            yield
        self._counter.stage = before


@cache
def _makes_tensor(func: Any) -> bool:
    """Whether an operator returns one tensor with storage of its own."""
    returns = func._schema.returns
    return len(returns) == 1 and returns[0].alias_info is None and str(returns[0].type) == "Tensor"


def _describe(value: Any) -> Any:
    """What decides about the result of an operator, hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(_describe(each) for each in value)
    return type(value), value


def _run_once(block: nn.Module) -> None:
    """Run a transformer block for its first input alone; it maps every input to the same shape and type."""
    has_run = False

    def run(*args: Any) -> Tensor:
        nonlocal has_run
        if has_run:
            return torch.empty_like(next(value for value in args if isinstance(value, Tensor)))
        has_run = True
        return type(block).forward(block, *args)  # of the class that the chunk model gave it since

    block.forward = run


def _skip_repeats(counter: StorageCounter, module: nn.Module, runs: int) -> None:
    """Run a module that many times on inputs of each shape and options; then count what it took the last time."""
    forward, done, made = module.forward, Counter[Any](), dict[Any, Any]()

    def run(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        place = (given.shape, *kwargs.items())
        done[place] += 1
        if done[place] <= runs:
            with counter.measure() as taken:
                result = forward(given, *args, **kwargs)
            made[place] = result.shape, result.dtype, *taken
            return result
        shape, dtype, taken = made[place]
        counter.reach(taken)
        return given.new_empty(shape, dtype=dtype)

    module.forward = run
