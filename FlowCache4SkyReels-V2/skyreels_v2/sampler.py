"""A model and settings, ready to make one video after another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from flowcache import FlowCacheConfig, Trace
from flowcache.benchmark.sample import Sample
from flowcache.environment import make_current, restart_peak_memory
from flowcache.fingerprint import array_digest, file_digest, folder_digest
from flowcache.output import write_parts
from flowcache.pipeline import join
from flowcache.resume import ResumeFile
from flowcache.tuning import Target, Tuning
from flowcache.video import last_frames, probe_video, read_image, resize_and_crop, to_float

from .checkpoint import ModelSource, load_pipeline
from .conditions import Condition, check_prompts
from .pipeline import FlowCacheSkyReelsV2Pipeline
from .settings import VideoSettings


@dataclass(kw_only=True)
class SkyReelsSampler:
    """Makes videos that differ in prompt, seed and start only.

    Attributes:
        source: the model.
        video: its settings; the seed is that of videos that say none.
        cache: the method's settings.
        method: its name, for the trace.
        device: where to run.
        negative_prompt: what to avoid; None: what suits the model.
        offload: keep what does not work in host memory.
        shows_steps: whether a bar shows the steps of a video.
    """

    source: ModelSource
    video: VideoSettings
    cache: FlowCacheConfig
    method: str
    device: str
    negative_prompt: str | None = None
    offload: bool = False
    shows_steps: bool = True
    _pipeline: FlowCacheSkyReelsV2Pipeline | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.video.check_negative_prompt(self.negative_prompt)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides about a video but the sample itself."""
        video = self.video.as_dict()
        del video["seed"]
        return {
            "model": self.source.location,
            "video": video,
            "negative_prompt": self.negative_prompt,
            "method": self.method,
            "reuse": self.cache.as_dict(),
        }

    def identity(self, prompt: str, condition: Condition, before: Path | None = None) -> dict[str, Any]:
        """All that decides about a video, for its name and its ``ResumeFile``.

        A local model goes by its weights, so that its folder may move; one on the Hub by its id. Arguments as
        those of ``write``.
        """
        path, settings = self.source.path, self.settings
        if path is not None:
            del settings["model"]
        if self.negative_prompt is None:
            settings["negative_prompt"] = self.source.defaults["negative_prompt"]
        return {
            **settings,
            "prompt": prompt,
            "seed": self.video.seed,
            "prefix": array_digest(condition.prefix),
            "last": array_digest(condition.last),
            "before": None if before is None else file_digest(before),
            "weights": None if path is None else folder_digest(path),
        }

    def check(self, sample: Sample) -> None:
        """Refuse a sample whose prompt, image or video cannot be used; a long video is not decoded.

        Raises:
            ValueError: it is named, or the settings do not say how many of its frames to continue from.
        """
        check_prompts(sample.prompt, self.negative_prompt)
        if sample.image is not None:
            read_image(sample.image)
        if sample.video is None:
            return
        info, wanted = probe_video(sample.video), self.video.overlap_history
        if wanted is None:
            raise ValueError("overlap_history is needed to continue a video; 17 is usual.")
        seconds = 0 if info.num_frames is None or not info.fps else info.num_frames / info.fps
        if seconds * self.video.fps < wanted + 1:  # by the header, which may be wrong
            video_prefix(sample.video, self.video)

    def load(self) -> None:
        """Read the weights."""
        make_current(self.device)
        self._pipeline = load_pipeline(self.source, self.device, self.offload)
        self._pipeline.prompt_warnings.once_a_kind = not self.shows_steps
        self._pipeline.set_progress_bar_config(desc=self.method, unit="step", disable=not self.shows_steps)

    def adopt(self, other: SkyReelsSampler) -> None:
        """Take the weights that another one of the same model has loaded, in place of ``load``."""
        self._pipeline = other._pipeline

    def tuning(self, target: Target, profile: Path | None = None) -> Tuning:
        """The search for the setting of the cache that meets a target; runs nothing.

        Args:
            target: what to come to.
            profile: file of what the search found; None: in the cache folder.
        """
        video, path, model = self._pilot_video, self.source.path, Path(self.source.location).name
        described = {
            "model": model,
            "weights": None if path is None else folder_digest(path),
            "video": video.as_dict(),
            "prompt": self.source.defaults["prompt"],
            "negative_prompt": self.negative_prompt,
        }
        steps = video.inference_steps
        name = f"{model}-{video.height}x{video.width}-{steps}steps-shift{video.shift:g}"
        return Tuning(target, self.cache, steps, described, name, profile)

    def tune(self, tuning: Tuning, trace: Trace) -> None:
        """Take the setting that a search finds, and note it in the trace; ``load`` comes before."""
        tuned = tuning.run(self._pilot)
        self.cache = tuned.cache
        tuned.note(trace)

    @property
    def _pilot_video(self) -> VideoSettings:
        """One window, always of the same seed: a profile does not depend on which video came first."""
        frames = min(self.video.num_frames, self.video.base_num_frames)
        alone = {"overlap_history": None, "addnoise_condition": 0}
        return replace(self.video, num_frames=frames, seed=0, **alone)

    def _pilot(self, cache: FlowCacheConfig) -> tuple[Tensor, Trace]:
        if self._pipeline is None:
            raise RuntimeError("load must come before tune")
        prompt = self.source.defaults["prompt"]
        trace = Trace()
        parts = self._pipeline.stream(prompt, self.negative_prompt, self._pilot_video, cache, trace=trace)
        return join(parts), trace

    def generate(self, sample: Sample, path: Path) -> Trace:
        """Make a sample's video and write it; returns what happened. ``load`` comes before.

        Of a video that is continued, only what is new is written.
        """
        restart_peak_memory(self.device)
        trace, condition, skip = Trace(method=self.method), Condition(), 0
        if sample.image is not None:
            image = resize_and_crop(read_image(sample.image)[None], self.video.height, self.video.width)
            condition = Condition(prefix=to_float(image))
        elif sample.video is not None:
            condition = Condition(prefix=video_prefix(sample.video, self.video))
            skip = self.video.overlap_history
        self.write(sample.prompt, condition, path, trace, seed=sample.seed, skip=skip)
        return trace

    def write(
        self,
        prompt: str,
        condition: Condition,
        path: Path,
        trace: Trace,
        *,
        seed: int | None = None,
        before: Path | None = None,
        skip: int = 0,
        resume: ResumeFile | None = None,
    ) -> None:
        """Make a video and write it window by window; ``load`` comes before.

        Args:
            prompt: what to show.
            condition: first frames, last frame.
            path: of the mp4.
            trace: filled in with what happens.
            seed: of the noise; None takes the settings'.
            before: video to write first, at its own speed and in the new one's size.
            skip: frames at the start of the video not to write.
            resume: where to save what is needed to go on, and to go on from; None: nowhere.
        """
        if self._pipeline is None:
            raise RuntimeError("load must come before write")
        settings = self.video if seed is None else replace(self.video, seed=seed)
        state = None if resume is None else resume.begin(trace)
        parts = self._pipeline.stream(
            prompt,
            self.negative_prompt,
            settings,
            self.cache,
            condition,
            trace=trace,
            state=state and state.pop("stream"),
        )
        write_parts(
            parts,
            path,
            settings.fps,
            trace,
            before=before,
            size=(settings.height, settings.width),
            skip=skip,
            resume=resume,
            state=state,
        )
        trace.settings["model"] = self.source.location


def video_prefix(path: Path, settings: VideoSettings) -> Tensor:
    """The frames of a video to continue from, ``[3, frames, height, width]`` in [-1, 1].

    Raises:
        ValueError: it cannot be read, or is shorter than ``overlap_history``.
    """
    wanted = settings.overlap_history
    frames, count = last_frames(path, wanted, settings.fps, (settings.height, settings.width))
    if count < wanted:
        raise ValueError(
            f"{path} has {count} frames at {settings.fps:g} a second, fewer than overlap_history ({wanted})."
        )
    return to_float(frames)
