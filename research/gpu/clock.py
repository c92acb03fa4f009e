"""Time on a device, its peak, and what a step launches, waits for and copies."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .bench import Bench

#: Calls of CUDA in which the host waits for the device.
_WAITS = frozenset({"cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"})
_READS = frozenset({"aten::_local_scalar_dense"})


class Clock:
    """Marks in the work of a device; on CUDA events, which the host sets without a pause, elsewhere processor time.

    It waits for the mark before the last, so that it is at most one interval ahead of the device.
    """

    def __init__(self, bench: Bench) -> None:
        self._on_cuda, self._marks = bench.on_cuda, []

    def mark(self) -> None:
        if not self._on_cuda:
            self._marks.append(time.process_time())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)
        if len(self._marks) > 1:
            self._marks[-2].synchronize()

    def intervals(self) -> list[float]:
        """Seconds between the marks; waits for the last one."""
        if self._on_cuda and self._marks:
            self._marks[-1].synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]


def measure(bench: Bench, work: Callable[[], object], repeats: int = 5, warmup: int = 2) -> float:
    """Seconds of a piece of work, the median of several."""
    for _ in range(warmup):
        work()
    clock = Clock(bench)
    clock.mark()
    for _ in range(repeats):
        work()
        clock.mark()
    return median(clock.intervals())


def measure_peak(bench: Bench) -> float:
    """TFLOP/s of a large product of matrices, bf16 on CUDA and fp32 elsewhere: what layers are compared with."""
    size, dtype = (8192, torch.bfloat16) if bench.on_cuda else (256, torch.float32)
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / measure(bench, lambda: torch.mm(a, b, out=out), repeats=50) / 1e12


@dataclass(frozen=True)
class Activity:
    """What happened in a piece of work.

    Attributes:
        launches: kernels on CUDA; elsewhere operators that call no other.
        waits: times that the host read a value from the device, or waited for it.
        upload, download: seconds of copies from host memory and to it, which may overlap with kernels.
        busy: seconds in which kernels ran.
    """

    launches: int
    waits: int
    upload: float
    download: float
    busy: float


class Recorder:
    """Records the ``Activity`` between ``start`` and ``stop``."""

    def __init__(self, bench: Bench) -> None:
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.on_cuda
        self._bench, self._profile = bench, profile(activities=kinds)

    def start(self) -> None:
        self._bench.synchronize()
        self._profile.start()

    def stop(self) -> Activity:
        self._bench.synchronize()
        self._profile.stop()
        events = self._profile.events()
        on_device = [event for event in events if event.device_type == DeviceType.CUDA]
        names = [event.name for event in events if event.device_type == DeviceType.CPU]
        if not self._bench.on_cuda:
            operators = [e for e in events if e.name.startswith("aten::") and not e.cpu_children]
            return Activity(len(operators), sum(name in _READS for name in names), 0.0, 0.0, 0.0)
        kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]

        def seconds(prefix: str) -> float:
            return sum(e.time_range.elapsed_us() for e in on_device if e.name.startswith(prefix)) / 1e6

        return Activity(
            launches=len(kernels),
            waits=sum(name in _WAITS for name in names),
            upload=seconds("Memcpy HtoD"),
            download=seconds("Memcpy DtoH"),
            busy=sum(event.time_range.elapsed_us() for event in kernels) / 1e6,
        )
