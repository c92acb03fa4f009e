"""Predicted scaling of the shipped configurations over several GPUs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..adapter import Adapter
from ..cli import prepare_video
from ..files import markdown_table, write_results
from ..memory import GIB, estimate
from ..parallel.efficiency import Call, Hardware, Prediction, Workload, predict

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
    predicted: Prediction | None
    refusal: str = ""

    def as_dict(self) -> dict[str, Any]:
        own = {"video": self.video, "method": self.method, "gpus": self.processes, "refusal": self.refusal}
        if self.predicted is None:
            return own
        figures = asdict(self.predicted)
        return own | figures.pop("sent") | figures

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
            f"{found.call_efficiency:.3f}",
            f"{found.efficiency:.3f}",
            f"{found.efficiency * self.processes:.1f}x",
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
    "efficiency, largest call",
    "efficiency, denoising",
    "speed-up, denoising",
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


def plan_video(model: type[Adapter], options: str) -> Workload:
    """Rehearse a video of a model on the meta device, and count what it asks of the transformer."""
    job = prepare_video(model, [*options.split(), "--dry_run", "--device", "cuda"])
    calls, kinds, networks = Counter[Call](), set[torch.dtype](), []

    def note(_: Any, args: tuple[Any, ...]) -> None:
        hidden = next(each for each in args if isinstance(each, torch.Tensor))
        *branches, frames, tokens, _ = hidden.shape
        calls[Call(*(branches or [1]), frames, tokens)] += 1
        kinds.add(hidden.dtype)

    def watch(pipeline: Any) -> None:
        pipeline.transformer.blocks[0].register_forward_pre_hook(note)
        networks.append(model.transformer_flops(pipeline.transformer.config))

    needed = estimate(job.sampler.model, job.sampler.config, job.start, "cuda", watch=watch)
    return Workload(networks[0], calls, needed.flops, needed.kv, job.sampler.model.splits_guidance, *kinds)


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
    rows = []
    for (name, (model, options)), method in product(videos.items(), methods):
        work = plan_video(model, f"{options} {METHODS[method]}")
        for count in processes:
            try:
                rows.append(Row(name, method, count, predict(work, count, hardware, cfg_size)))
            except ValueError as error:
                rows.append(Row(name, method, count, None, str(error)))
    return ScalingReport(hardware, rows)
