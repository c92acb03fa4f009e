"""Predicted scaling of the shipped configurations over several GPUs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..adapter import Adapter, Start
from ..cli import prepare_video
from ..config import FlowCacheConfig
from ..files import markdown_table, write_results
from ..memory import GIB, StorageCounter, estimate
from ..options import DEFAULTS
from ..parallel import Group, Traffic
from ..parallel.efficiency import Call, Hardware, PlannedGroup, Prediction, Workload, predict

NOTE = (
    "A model, not a measurement: FLOPs at a share of the peak, bytes at a bandwidth and a time for each collective, "
    "with nothing overlapped; text encoder, start and files are left out. Bytes and collectives are those that a "
    "process sends."
)
METHODS = {"vanilla": "--method vanilla", "fast": "--method flowcache --preset fast"}


@dataclass(frozen=True)
class Row:
    """A configuration and a method on a number of GPUs; ``refusal``: why they cannot run it."""

    video: str
    method: str
    processes: int
    predicted: Prediction | None = None
    decoding: float = 0.0  # seconds
    alone: float = 0.0  # seconds of one GPU: denoising and decoding
    refusal: str = ""

    @property
    def efficiency(self) -> float:
        """Of denoising and decoding together."""
        return self.alone / (self.processes * (self.predicted.seconds + self.decoding))

    def as_dict(self) -> dict[str, Any]:
        own = {"video": self.video, "method": self.method, "gpus": self.processes, "refusal": self.refusal}
        if self.predicted is None:
            return own
        figures = asdict(self.predicted)
        whole = {"decoding_seconds": self.decoding, "whole_efficiency": self.efficiency}
        return own | figures.pop("sent") | figures | whole

    def cells(self) -> list[str]:
        start, found = [self.video, self.method, str(self.processes)], self.predicted
        if found is None:
            return [*start, self.refusal, *[""] * (len(TITLES) - len(start) - 1)]
        return [
            *start,
            f"{found.cfg_size} x {found.ranks}",
            f"{found.busy_heads:.0%}, {found.busy_tokens:.0%}",
            f"{found.layer_bytes / 1e6:.0f}",
            f"{found.sent.nbytes / 1e9:.0f}",
            f"{found.sent.collectives:,}",
            f"{found.kv / GIB:.1f}",
            f"{found.efficiency:.3f}",
            f"{self.efficiency:.3f}",
            f"{self.efficiency * self.processes:.1f}x",
        ]


TITLES = (
    "video",
    "method",
    "GPUs",
    "guidance x tokens",
    "busy heads, tokens",
    "MB a layer, largest call",
    "GB in all",
    "collectives",
    "KV cache a GPU, GiB",
    "efficiency, denoising",
    "efficiency, with decoding",
    "speed-up, with decoding",
)


@dataclass(frozen=True)
class ScalingReport:
    hardware: Hardware
    rows: Sequence[Row]

    def text(self) -> str:
        used = ", ".join(f"{name} {value:g}" for name, value in asdict(self.hardware).items())
        return "\n\n".join([f"{NOTE} {used}.", markdown_table(TITLES, [row.cells() for row in self.rows])])

    def save(self, stem: Path) -> list[Path]:
        rows = [row.as_dict() for row in self.rows]
        columns = max((list(row) for row in rows), key=len)
        return write_results(stem, columns, rows, {"hardware": asdict(self.hardware), "rows": rows})


class Video:
    """A video of a model, rehearsed on the meta device for a kind of device."""

    def __init__(self, model: type[Adapter], options: str, device: str = "cuda") -> None:
        # As of a script, so that a model without reuse ignores a preset.
        job = prepare_video(model, ["--dry_run", "--device", device, DEFAULTS, *options.split()])
        self._model, self._pipeline = job.sampler.model, job.sampler.model.skeleton(device)
        self._decoder_flops: list[float] = []
        self.work = self._count_work(job.sampler.config, job.start, device)

    def _count_work(self, config: FlowCacheConfig, start: Start, device: str) -> Workload:
        calls, headed, kinds = Counter[tuple[int, ...]](), [], set[torch.dtype]()

        def note_call(_: Any, args: tuple[Any, ...]) -> None:
            hidden = next(each for each in args if isinstance(each, torch.Tensor))
            calls[hidden.shape[:-1]] += 1
            kinds.add(hidden.dtype)

        def watch(pipeline: Any) -> None:
            transformer = pipeline.transformer
            transformer.blocks[0].register_forward_pre_hook(note_call)
            transformer.norm_out.register_forward_pre_hook(lambda _, args: headed.append(args[0][..., 0].numel()))
            count_flops(pipeline.vae.decoder, self._decoder_flops)

        needed = estimate(self._model, config, start, device, watch=watch)
        guidance, whole = self._model.is_guided, Counter[Call]()
        for (*outer, frames, tokens), count in calls.items():
            # A model that runs branches one after another calls once for each.
            branches, parts = outer[0] if outer else 1, 2 if guidance and outer == [1] else 1
            whole[Call(branches * parts, frames, tokens)] += count // parts
        network = self._model.transformer_flops(self._pipeline.transformer.config)
        decisions = len(needed.step_flops) if config.policy.reads_tensors else 0
        sizes = (decisions, sum(headed), needed.flops, needed.kv)
        return Workload(network, whole, *sizes, guidance, *kinds)

    def plan_decoding(self, processes: int) -> tuple[float, Traffic]:
        """FLOPs of the first of several processes, by its share of the work, and what it sends."""
        (alone, _), (own, sent) = (self._rehearse_decoding(count) for count in (1, processes))
        return sum(self._decoder_flops) * own / alone, sent

    def _rehearse_decoding(self, processes: int) -> tuple[int, Traffic]:
        group = PlannedGroup(0, processes) if processes > 1 else Group()
        total, sent, before = 0, Traffic(), replace(group.traffic)
        with torch.inference_mode(), StorageCounter():
            for times, work in self._model.rehearse_decoding(self._pipeline, group):
                total += times * work
                sent.nbytes += times * (group.traffic.nbytes - before.nbytes)
                sent.collectives += times * (group.traffic.collectives - before.collectives)
                before = replace(group.traffic)
        return total, sent


def count_flops(module: nn.Module, found: list[float]) -> None:
    """Note the FLOPs of each call of a module; of one that computes nothing, those of the last that was alike."""
    forward, known = module.forward, dict[Any, float]()

    def run(given: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with FlopCounterMode(display=False) as counter:
            result = forward(given, *args, **kwargs)
        alike = (given.shape, result.shape)
        known[alike] = counter.get_total_flops() or known.get(alike, 0)
        found.append(known[alike])
        return result

    module.forward = run


def list_videos(models: Iterable[type[Adapter]], only: str = "") -> dict[str, tuple[type[Adapter], str]]:
    """The shipped configurations whose name contains a text."""
    named = {f"{model.title} {name}": (model, options) for model in models for name, options in model.shipped.items()}
    return {name: video for name, video in named.items() if only in name}


def predict_all(
    videos: Mapping[str, tuple[type[Adapter], str]],
    processes: Sequence[int],
    hardware: Hardware,
    cfg_size: str | int = "auto",
    methods: Sequence[str] = tuple(METHODS),
) -> ScalingReport:
    rows, counted = [], dict[str, Workload]()
    for (name, (model, options)), method in product(videos.items(), methods):
        video = Video(model, f"{options} {METHODS[method]}")
        if counted.get(name) == video.work:  # a model without reuse
            continue
        counted[name] = video.work

        def decode(count: int, video: Video = video) -> float:
            flops, sent = video.plan_decoding(count)
            return hardware.compute_seconds(flops) + hardware.exchange_seconds(sent, 0)

        alone = predict(video.work, 1, hardware).seconds + decode(1)
        for count in processes:
            try:
                predicted = predict(video.work, count, hardware, cfg_size)
            except ValueError as error:
                rows.append(Row(name, method, count, refusal=str(error)))
            else:
                rows.append(Row(name, method, count, predicted, decode(count), alone))
    return ScalingReport(hardware, rows)
