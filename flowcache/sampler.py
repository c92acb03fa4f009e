"""A model and a method, ready to make one video after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter, Start
from .benchmark.samples import Sample
from .config import FlowCacheConfig
from .environment import prepare_device, restart_peak_memory
from .fingerprint import array_digest, file_digest, folder_digest
from .parallel import Group
from .parallel.layout import SINGLE
from .prompt_schedule import PromptSchedule
from .prompts import check_prompt
from .resume import ResumeFile, ResumeShare
from .state import State, VideoPart
from .trace import Trace
from .tuning import Target, Tuning
from .video import VideoWriter, probe_video, read_image, to_uint8


@dataclass(kw_only=True)
class Sampler:
    """Makes videos that differ in prompt, seed and start only; ``method`` is its name in traces."""

    model: Adapter
    config: FlowCacheConfig
    method: str
    device: str
    shows_steps: bool = True
    _pipeline: Any = field(default=None, init=False, repr=False)
    _group: Group = field(default=SINGLE.world, init=False, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides about a video but prompt, seed and start."""
        return {**self.model.settings(), "method": self.method, "reuse": self.config.as_dict()}

    def identity(self, prompt: str | PromptSchedule, start: Start) -> dict[str, Any]:
        """All that decides about a video, for its name and ``ResumeFile``; folders go by their weights."""
        original = self.model.video.noise == "original"
        return {
            **self.model.settings(with_folders=False),
            "method": self.method,
            "reuse": self.config.as_dict(),
            "prompt": str(prompt),
            "seed": self.model.video.seed,
            "noise_device": torch.device(self.device).type if original else None,
            "prefix": array_digest(start.prefix),
            "last": array_digest(start.last),
            "before": None if start.before is None else file_digest(start.before),
            "weights": self._weights(),
        }

    def check(self, sample: Sample) -> None:
        """Raise ValueError for a sample whose prompt, image or video cannot be used; reads no weight."""
        check_prompt("prompt", sample.prompt, self.model.clean_prompt)
        if sample.image is not None:
            read_image(sample.image)
        if sample.video is not None:
            probe_video(sample.video)
            self.model.check_history(sample.video)

    def load(self, group: Group = SINGLE.world) -> None:
        """Read the weights, to make videos with the other processes of a group."""
        prepare_device(self.device)
        self._group, self._pipeline = group, self.model.load(self.device, group)
        self._pipeline.prompt_warnings.once_a_kind = not self.shows_steps
        shows = self.shows_steps and self._group.is_first
        form = "{desc}{percentage:3.0f}%|{bar}| {n} of {total} steps, {remaining} left"
        self._pipeline.set_progress_bar_config(bar_format=form, smoothing=0.1, dynamic_ncols=True, disable=not shows)

    @property
    def is_loaded(self) -> bool:
        return self._pipeline is not None

    def adopt(self, other: Sampler) -> None:
        """Take the weights that another sampler of the same model has loaded, in place of ``load``."""
        self._pipeline, self._group = other._pipeline, other._group

    def tuning(self, target: Target, profile: Path | None = None) -> Tuning:
        """The search for settings that meet a target; its results go to ``profile`` or the cache folder."""
        pilot, place = self.model.pilot(), Path(self.model.location).name
        height, width = self.model.size
        name = f"{place}-{height}x{width}-{self.model.num_steps}steps-{self.model.profile_word}"
        described = {**pilot.settings(with_folders=False), "weights": self._weights()}
        described |= {"model": place, "prompt": self.model.default_prompt}
        return Tuning(target, self.config, self.model.num_steps, described, name, profile)

    def tune(self, tuning: Tuning, trace: Trace, on_step: Callable[[], object] | None = None) -> None:
        """Choose settings that meet a target, by pilot videos; ``on_step``, called after every step, may raise."""
        pilot, prompt = self.model.pilot(), self.model.default_prompt

        def end_step(*_: object) -> None:
            if on_step is not None:
                on_step()

        def run(config: FlowCacheConfig) -> tuple[Tensor, Trace]:
            trace = Trace()
            parts = pilot.stream(self._pipeline, prompt, Start(), config, trace, None, end_step)
            return torch.cat([part.frames for part in parts], dim=1), trace

        self.config, expected = tuning.run_together(self._group, run)
        trace.settings["tuning"] = {"target": str(tuning.target), "expected": expected}

    def generate(self, sample: Sample, path: Path) -> Trace:
        """Make a sample's video and write it; of a video that is continued, only what is new."""
        restart_peak_memory(self.device)
        trace = Trace(method=self.method)
        image = None if sample.image is None else read_image(sample.image)
        start = replace(self.model.start(image, None, sample.video), before=None)
        self.write(sample.prompt, start, path, trace, seed=sample.seed)
        return trace

    def write(
        self,
        prompt: str | PromptSchedule,
        start: Start,
        path: Path,
        trace: Trace,
        *,
        seed: int | None = None,
        resume: ResumeFile | ResumeShare | None = None,
        on_step: Callable[[], dict[str, str] | None] | None = None,
        on_part: Callable[[VideoPart], VideoPart] | None = None,
    ) -> None:
        """Make a video and write it part by part; ``seed`` replaces the settings'.

        ``on_step`` is called after every step and may return ``{"prompt": ...}`` for chunks that have not started;
        ``on_part`` is called with each part before it is written, which it returns.
        """
        model = self.model if seed is None else self.model.with_video(seed=seed)
        state = None if resume is None else resume.begin(trace)
        resumed = state and state.pop("stream")
        callback = None if on_step is None else lambda *_: on_step()
        parts = model.stream(self._pipeline, prompt, start, self.config, trace, resumed, callback)
        parts = parts if on_part is None else map(on_part, parts)
        path = path if self._group.is_first else None
        write_parts(parts, path, model.video.fps, model.size, start, trace, resume, state)
        given = {"prefix": array_digest(start.prefix), "last": array_digest(start.last)}
        trace.settings |= {"model": model.location, "loading": model.loading.settings(), "given": given}

    def _weights(self) -> dict[str, str]:
        return {name: folder_digest(folder) for name, folder in self.model.folders.items()}


def write_parts(
    parts: Iterable[VideoPart],
    path: Path | None,
    fps: float,
    size: tuple[int, int],
    start: Start,
    trace: Trace,
    resume: ResumeFile | ResumeShare | None = None,
    state: State | None = None,
) -> None:
    """Write a video of a height and width part by part; the file takes its name when it is whole.

    ``resume`` saves the state behind each part, once the part is on disk. With such a ``state``, ``parts`` are those
    behind it. Without a path, another process writes the video, and this one takes its part in making it.
    """
    with VideoWriter(path, fps, *size, state=state and state["video"]) if path else nullcontext() as writer:
        skip = start.skip if writer is None or state is None else state["skip"]
        if writer and state is None and start.before is not None:
            writer.write_video(start.before)
        for part in parts:
            if writer:
                frames = to_uint8(part.frames)
                with trace.timer("write"):
                    writer.write(frames[skip:])
                skip = max(0, skip - len(frames))
            if resume is not None and part.state is not None:
                with trace.timer("save"):
                    written = {"video": writer.state_dict(), "skip": skip} if writer else {}
                    resume.save({"stream": part.state(), **written}, trace)
    if resume is not None:
        resume.finish()
