"""Models of true size with random weights, and timed steps of their videos.

Time depends on shapes, not on values; our presets choose the steps that they compute by number, not by content.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean, median
from typing import Any

import torch

from flowcache import Trace
from flowcache.adapter import Adapter, Start
from flowcache.cli import Job, find_model, prepare_video
from flowcache.environment import peak_memory_bytes
from flowcache.memory import RESERVED, Estimate, estimate
from flowcache.pipeline import StepCallback

from .bench import Bench, free_memory, skip
from .clock import Activity, Clock, Recorder

#: Steps with a smaller share of the largest step's FLOPs count as reused.
IDLE = 0.01

WEIGHTS = {"skyreels_v2": "--weights Skywork/SkyReels-V2-DF-{}", "magi1": "--load sand-ai/MAGI-1/ckpt/magi/{0}"}
WEIGHTS["magi1"] += " --config_file config/single_run/{0}.json"
WEIGHTS["self_forcing"] = "--weights Wan-AI/Wan2.1-T2V-1.3B --checkpoint_path zhuhz22/Causal-Forcing/chunkwise/{}.pt"


class _Enough(Exception):
    """Ends a video after the steps that were wanted."""


@dataclass(frozen=True)
class TrueSize:
    """A model of a size; ``name`` is as in ``WEIGHTS``, or ``small``. Without ``layers``, with all its layers."""

    model: str
    name: str
    layers: int | None = None

    def job(self, bench: Bench, words: str) -> Job:
        """A video with further options."""
        weights = "--weights small" if self.name == "small" else WEIGHTS[self.model].format(self.name)
        options = f"{weights} {words} --dry_run --device {bench.device}"
        return prepare_video(find_model(self.model), options.split())

    def make(self, bench: Bench, job: Job) -> Any:
        """A pipeline whose transformer has random weights; text encoder and VAE stay without any."""
        pipeline = CutModel(job.sampler.model, self.layers).skeleton(bench.device)
        fill_randomly(pipeline.transformer, bench.device)
        pipeline.enable_stage_offload(bench.device, components=())  # says where the transformer is
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@dataclass(frozen=True)
class CutModel:
    """What ``estimate`` asks of an adapter, with the first ``layers`` of the transformer only; None: all."""

    adapter: Adapter
    layers: int | None

    staged = property(lambda self: self.adapter.staged)
    on_host = property(lambda self: self.adapter.on_host)

    def skeleton(self, device: str) -> Any:
        pipeline = self.adapter.skeleton(device)
        if self.layers is not None:
            cut(pipeline.transformer, self.layers)
        return pipeline

    def rehearse(self, *arguments: Any) -> Iterator[Any]:
        return self.adapter.rehearse(*arguments)


def cut(transformer: Any, layers: int) -> None:
    """Keep the first layers of a transformer."""
    transformer.blocks = transformer.blocks[:layers]
    transformer.register_to_config(num_layers=layers)


@torch.no_grad()
def fill_randomly(module: Any, device: str) -> None:
    """Move a module from the meta device, with small random weights."""
    module.to_empty(device=device)
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            tensor.normal_(0, 0.02)
        else:
            tensor.random_(64)  # as fp8, numbers from 0 to 2
    if rope := getattr(module, "rope", None):
        # Tables, which are no weights.
        module.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len).to(device)
    module.eval().requires_grad_(False)


@dataclass
class Timed:
    """Steps of a video, or its first ones.

    Attributes:
        flops, seconds: of each step but the first, which pays for first calls.
        activity: of the recorded step; None if that was not reached.
        peak: most bytes on the device.
    """

    flops: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    activity: Activity | None = None
    peak: int = 0

    @property
    def full_step(self) -> tuple[float, float]:
        """FLOPs and median seconds of the steps that compute the most."""
        most = max(self.flops)
        return most, median(s for f, s in zip(self.flops, self.seconds, strict=True) if f > 0.999 * most)

    @property
    def idle_seconds(self) -> float | None:
        """Mean seconds of the steps that reuse all; None if none was measured."""
        idle = [s for f, s in zip(self.flops, self.seconds, strict=True) if f < IDLE * max(self.flops)]
        return fmean(idle) if idle else None

    def project(self, pattern: Sequence[float]) -> float:
        """Seconds of steps with the FLOPs of ``pattern``, each in proportion to the measured ones nearest in FLOPs."""
        least, computed = IDLE * max(self.flops), defaultdict[float, list[float]](list)
        for flops, seconds in zip(self.flops, self.seconds, strict=True):
            if flops >= least:
                computed[flops].append(seconds)
        total = (self.idle_seconds or 0.0) * sum(flops < least for flops in pattern)
        for flops in pattern:
            if flops >= least:
                nearest = min(computed, key=lambda known: abs(known - flops))
                total += fmean(computed[nearest]) * flops / nearest
        return total


def time_steps(
    bench: Bench,
    pipeline: Any,
    job: Job,
    stop: float = math.inf,
    most: int | None = None,
    record: int | None = None,
) -> Timed:
    """Make the first steps of a job's video and measure them.

    Args:
        stop: time, as of ``time.time``, after which no step begins; four are made in any case.
        most: steps; None: all of the video.
        record: the step whose activity to record, from 1 on; its time is left out.
    """
    free_memory(bench)
    trace, clock, recorder, timed = Trace(), Clock(bench), Recorder(bench), Timed()

    def end_step(_: Any, step: int, *__: Any) -> None:
        if step == record:
            timed.activity = recorder.stop()
        clock.mark()
        if (most is not None and step + 1 >= most) or (step > 2 and time.time() > stop):
            raise _Enough
        if step + 1 == record:
            recorder.start()

    with suppress(_Enough):
        run_latents(bench, pipeline, job, trace, end_step)
    steps = zip(trace.steps[1:], clock.intervals(), strict=True)
    kept = [(step.flops, seconds) for step, seconds in steps if step.step != record]
    timed.flops, timed.seconds = (list(each) for each in zip(*kept, strict=True))
    timed.peak = peak_memory_bytes(bench.device)
    return timed


def run_latents(bench: Bench, pipeline: Any, job: Job, trace: Trace, end_step: StepCallback) -> None:
    """Make the latents of a video from random embeddings of the longest prompts."""
    model, sizes = job.sampler.model, pipeline.transformer.config
    named = {"cache": job.sampler.config, "trace": trace, "output_type": "latent", "callback_on_step_end": end_step}
    if model.package == "magi1":
        embeds = {"prompt_embeds": (sizes.caption_max_length, sizes.caption_channels)}
        named["config"] = model.source.config
    else:
        names = ("prompt_embeds", "negative_prompt_embeds")[: 1 + model.is_guided]
        embeds = dict.fromkeys(names, (pipeline.text_length, sizes.text_dim))
        named["settings"] = model.video
    pipeline(**named, **{name: torch.randn(1, *shape, device=bench.device) for name, shape in embeds.items()})


def needs(bench: Bench, size: TrueSize, job: Job) -> Estimate:
    """The estimate of a job; Skipped where the card is too small for its steps."""
    found = estimate(CutModel(job.sampler.model, size.layers), job.sampler.config, Start(), bench.device)
    if bench.on_cuda:
        memory = torch.cuda.get_device_properties(bench.device).total_memory
        if (needed := denoising_bytes(found)) + RESERVED > memory:
            skip(f"it needs {needed / 2**30:.1f} GiB, and the card has {memory / 2**30:.1f}")
    return found


def denoising_bytes(found: Estimate) -> int:
    """Estimated bytes of the transformer and of what its steps need, without the other components."""
    return found.weights["transformer"] + found.working["denoise"]
