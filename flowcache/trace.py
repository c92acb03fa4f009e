"""Record of a run: decisions, distances, time, memory and FLOPs."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from .files import write_atomically
from .kv.compression import CompressionEvent
from .kv.quantized import QuantizationEvent
from .state import State
from .typed import as_type
from .user_files import parse_file

FORMAT_VERSION = 1

_VIDEO = ("model", "prompt", "sent_prompts", "video", "given")  # settings that two methods share


@dataclass(frozen=True)
class ChunkEvent:
    """One chunk at one step: whether it was computed or reused, and what the policy measured."""

    chunk: int
    local_step: int
    reused: bool
    distance: float | None = None
    accumulated: float | None = None


@dataclass
class StepRecord:
    """One step of a window."""

    window: int
    step: int
    events: list[ChunkEvent]  # one for each live chunk
    seconds: float = 0.0  # wall time of the step; the device is not synchronised for it
    kv_tokens: int = 0  # tokens in the cache per layer and branch
    flops: float = 0.0  # computed in this step, over all branches
    compressions: list[CompressionEvent] = field(default_factory=list)
    quantizations: list[QuantizationEvent] = field(default_factory=list)


@dataclass
class WindowRecord:
    """Geometry of one window, given chunks first; bytes of its cache on the device, in host memory, and what it would
    take without compression and storage. Of several processes: in all of them together, and on the device of each."""

    num_steps: int
    stride: int
    first_chunk: int
    chunk_frames: list[int]
    kv_bytes: int = 0
    kv_host_bytes: int = 0
    kv_plain_bytes: int = 0
    kv_rank_bytes: list[int] = field(default_factory=list)


@dataclass
class Trace:
    """Record of a run; ``save`` writes it as JSON, ``load`` reads it back.

    ``seconds`` holds wall time by stage: ``text``, ``encode``, ``denoise``, ``decode``, ``write``, and, as a
    part of ``denoise``, ``compress``; ``processor_seconds`` holds processor time of all threads by stage. ``flops``
    holds totals by accounting, see ``flops.GainSplit``.
    """

    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    windows: list[WindowRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    processor_seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0

    def begin_window(self, window: WindowRecord) -> None:
        self.windows.append(window)

    def add_step(
        self,
        step: int,
        events: list[ChunkEvent],
        seconds: float,
        kv_tokens: int,
        flops: dict[str, float],
        compressions: Sequence[CompressionEvent] = (),
        quantizations: Sequence[QuantizationEvent] = (),
    ) -> None:
        """Append a step of the current window; ``flops`` by accounting."""
        window, spent = len(self.windows) - 1, flops["actual"]
        changes = (list(compressions), list(quantizations))
        self.steps.append(StepRecord(window, step, events, seconds, kv_tokens, spent, *changes))
        for accounting, amount in flops.items():
            self.flops[accounting] = self.flops.get(accounting, 0.0) + amount

    def state_dict(self) -> State:
        """Everything except the steps, which ``step_lines`` returns."""
        own = {name: value for name, value in vars(self).items() if name not in ("windows", "steps")}
        return own | {"windows": [asdict(window) for window in self.windows]}

    def step_lines(self, first: int = 0) -> str:
        """Steps from ``first`` on, one line of JSON each."""
        return "".join(json.dumps(asdict(step)) + "\n" for step in self.steps[first:])

    def load_state_dict(self, state: State, step_lines: str) -> None:
        """Continue another trace; its times by stage are added to this one's."""
        times = ("seconds", "processor_seconds")
        for name in times:
            _add(getattr(self, name), state[name])
        for name in state.keys() - {*times, "windows"}:
            setattr(self, name, state[name])
        self.windows = as_type(state["windows"], list[WindowRecord])
        self.steps = [as_type(json.loads(line), StepRecord) for line in step_lines.splitlines()]

    def add_seconds(self, stage: str, seconds: float) -> None:
        _add(self.seconds, {stage: seconds})

    @contextmanager
    def timer(self, stage: str) -> Iterator[None]:
        start, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.add_seconds(stage, time.perf_counter() - start)
            _add(self.processor_seconds, {stage: time.process_time() - processor})

    @property
    def denoising_seconds(self) -> float:
        """Time of denoising, to compare methods by: processor time on a CPU, which other programs hardly change;
        wall time on other devices, and where processor time was not recorded."""
        on_cpu = self.environment.get("device") == "cpu"
        return (on_cpu and self.processor_seconds.get("denoise")) or self.seconds.get("denoise", 0.0)

    @property
    def has_distances(self) -> bool:
        """Whether the policy measured any."""
        return any(event.distance is not None for record in self.steps for event in record.events)

    @property
    def reuse_ratio(self) -> float:
        events = [event for record in self.steps for event in record.events]
        return sum(event.reused for event in events) / len(events) if events else 0.0

    def save(self, path: str | Path) -> None:
        content = {"format": FORMAT_VERSION, "reuse_ratio": self.reuse_ratio, **asdict(self)}
        write_atomically(path, json.dumps(content).encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a trace that ``save`` wrote; another file is a ValueError."""
        return parse_file(path, cls._parse, "a trace")

    @classmethod
    def _parse(cls, text: str) -> Self:
        content = as_type(json.loads(text), dict[str, Any])
        if content.pop("format", None) != FORMAT_VERSION:
            raise ValueError(f"its format is not {FORMAT_VERSION}; make it again with this version")
        content.pop("reuse_ratio", None)
        trace = as_type(content, cls)
        for names, kind in ((("prompt", "model"), str), (("video", "reuse", "tuning"), dict[str, Any])):
            for name in names:
                as_type(trace.settings.get(name), kind | None, f"settings.{name}")
        for step in trace.steps:
            window = trace.windows[step.window] if 0 <= step.window < len(trace.windows) else None
            count = 0 if window is None else len(window.chunk_frames)
            if step.step < 0 or not all(0 <= event.chunk < count for event in step.events):
                raise ValueError(f"step {step.step} names chunks that its window lacks")
        return trace


def find_trace(folder: Path, method: str, like: Trace) -> tuple[Path, Trace] | None:
    """The newest trace in a folder of the same video by another method, among files that bear the method's name."""
    named = folder.glob(f"*_{method}_*.trace.json")
    for path in sorted(named, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(ValueError):  # damaged, or of an earlier version
            found = Trace.load(path)
            theirs, ours = (_plain([each.settings.get(name) for name in _VIDEO]) for each in (found, like))
            if found.method == method and theirs == ours:
                return path, found
    return None


def _plain(value: Any) -> Any:
    """A value as a file holds it, with lists for tuples."""
    return json.loads(json.dumps(value))


def _add(totals: dict[str, float], more: Mapping[str, float]) -> None:
    for stage, seconds in more.items():
        totals[stage] = totals.get(stage, 0.0) + seconds
