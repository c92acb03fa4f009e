"""A model and settings, ready to make one video after another."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from flowcache import FlowCacheConfig, Trace
from flowcache.benchmark.sample import Sample
from flowcache.environment import make_current, restart_peak_memory
from flowcache.fingerprint import array_digest, folder_digest
from flowcache.output import write_parts
from flowcache.prompts import check_prompt
from flowcache.resume import ResumeFile
from flowcache.tuning import Target, Tuning
from flowcache.video import Frames, last_frames, probe_video, read_image, resize_and_crop, to_float

from .captions import CaptionSwitches, SpecialTokens, clean_prompt
from .config import FRAMES, RuntimeSection
from .guidance import PREVIOUS_WEIGHT
from .model_source import FOLDERS, ModelSource, load_pipeline
from .pipeline import MagiPipeline
from .request import VideoRequest

PREFIX_SECONDS = 5  # of a video that is continued


@dataclass(kw_only=True)
class MagiSampler:
    """Makes videos that differ in prompt, seed and start only.

    Attributes:
        source: model and configuration.
        cache: the method's settings.
        method: its name, for the trace.
        device: where to run.
        switches, special_tokens, discard_nearly_clean, previous_weight: see ``VideoRequest``.
        shows_steps: whether a bar shows the steps of a video.
    """

    source: ModelSource
    cache: FlowCacheConfig
    method: str
    device: str
    switches: CaptionSwitches = field(default_factory=CaptionSwitches)
    special_tokens: SpecialTokens | None = None
    discard_nearly_clean: bool = False
    previous_weight: float = PREVIOUS_WEIGHT
    shows_steps: bool = True
    _pipeline: MagiPipeline | None = field(default=None, init=False, repr=False)

    @property
    def runtime(self) -> RuntimeSection:
        """The video and its sampling."""
        return self.source.config.runtime_config

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides about a video but the sample itself."""
        config = asdict(self.source.config)
        del config["runtime_config"]["seed"]
        return {
            **config,
            "method": self.method,
            "reuse": self.cache.as_dict(),
            "special_tokens": asdict(self.switches),
            "discard_nearly_clean": self.discard_nearly_clean,
            "previous_weight": self.previous_weight,
        }

    def check(self, sample: Sample) -> None:
        """Refuse a sample whose prompt, image or video cannot be used; decodes a video's first frame only.

        Raises:
            ValueError: it is named.
        """
        check_prompt("prompt", sample.prompt, clean_prompt)
        if sample.image is not None:
            read_image(sample.image)
        if sample.video is not None:
            probe_video(sample.video)

    def load(self) -> None:
        """Read the weights."""
        make_current(self.device)
        self._pipeline = load_pipeline(self.source, self.device)
        self._pipeline.prompt_warnings.once_a_kind = not self.shows_steps
        self._pipeline.set_progress_bar_config(desc=self.method, unit="step", disable=not self.shows_steps)

    def adopt(self, other: MagiSampler) -> None:
        """Take the weights that another one of the same model has loaded, in place of ``load``."""
        self._pipeline = other._pipeline

    def tuning(self, target: Target, prompt: str, profile: Path | None = None) -> Tuning:
        """The search for the setting of the cache that meets a target; runs nothing.

        Args:
            target: what to come to.
            prompt: of the pilot's video.
            profile: file of what the search found; None: in the cache folder.
        """
        config = asdict(self._pilot(prompt).config)
        runtime, folder = self.runtime, Path(self.runtime.load).expanduser()
        # folders go by their names, lest a profile hold in one place only
        config["runtime_config"] |= {key: Path(getattr(runtime, key)).name for key in FOLDERS}
        weights = {name: folder_digest(path) for name, path in self.source.folders.items()}
        described = {**self.settings, **config, "weights": weights, "prompt": prompt}
        del described["reuse"]
        size = f"{runtime.video_size_h}x{runtime.video_size_w}"
        name = f"{folder.name}-{size}-{runtime.num_steps}steps-window{runtime.window_size}"
        return Tuning(target, self.cache, runtime.num_steps, described, name, profile)

    def tune(self, tuning: Tuning, trace: Trace) -> None:
        """Take the setting that a search finds, and note it in the trace; ``load`` comes before."""
        if self._pipeline is None:
            raise RuntimeError("load must come before tune")
        request, pipeline = self._pilot(tuning.key["prompt"]), self._pipeline

        def pilot(cache: FlowCacheConfig) -> tuple[Tensor, Trace]:
            video = pipeline(replace(request, cache=cache))
            return video.frames, video.trace

        tuned = tuning.run(pilot)
        self.cache = tuned.cache
        tuned.note(trace)

    def _pilot(self, prompt: str) -> VideoRequest:
        """A window of chunks and one more, always of the same seed, whichever video came first."""
        runtime = self.runtime
        longest = (runtime.window_size + 1) * runtime.chunk_width * FRAMES
        request = self.request(prompt, seed=0)
        short = replace(request.config.runtime_config, num_frames=min(runtime.num_frames, longest))
        return replace(request, config=replace(request.config, runtime_config=short))

    def generate(self, sample: Sample, path: Path) -> Trace:
        """Make a sample's video and write it; returns what happened. ``load`` comes before."""
        restart_peak_memory(self.device)
        trace = Trace(method=self.method)
        prefix = None
        if sample.image is not None:
            prefix = self.image_prefix(sample.image)
        elif sample.video is not None:
            prefix = self.video_prefix(sample.video)
        self.write(self.request(sample.prompt, prefix, sample.seed), path, trace)
        return trace

    def request(self, prompt: str, prefix: Tensor | None = None, seed: int | None = None) -> VideoRequest:
        """What to ask of the pipeline for a video; ``seed`` None takes the configuration's."""
        config = self.source.config
        if seed is not None:
            config = replace(config, runtime_config=replace(config.runtime_config, seed=seed))
        return VideoRequest(
            prompt=prompt,
            config=config,
            cache=self.cache,
            prefix=prefix,
            switches=self.switches,
            special_tokens=self.special_tokens,
            discard_nearly_clean=self.discard_nearly_clean,
            previous_weight=self.previous_weight,
        )

    def identity(self, request: VideoRequest) -> dict[str, Any]:
        """All that decides about a video, for its name and its ``ResumeFile``.

        Local folders go by their weights, so that they may move; those on the Hub by their ids.
        """
        tables = {} if self.special_tokens is None else vars(self.special_tokens)
        settings, folders = self.settings, self.source.folders
        for name in folders:
            del settings["runtime_config"][name]
        return {
            **settings,
            "prompt": request.prompt,
            "seed": request.config.runtime_config.seed,
            "prefix": array_digest(request.prefix),
            "tables": {name: array_digest(table) for name, table in tables.items()},
            "weights": {name: folder_digest(folder) for name, folder in folders.items()},
        }

    def write(
        self, request: VideoRequest, path: Path, trace: Trace, resume: ResumeFile | None = None
    ) -> None:
        """Make a video and write it chunk by chunk; ``load`` comes before.

        Args:
            request: what to make.
            path: of the mp4.
            trace: filled in with what happens.
            resume: where to save what is needed to go on, and to go on from; None: nowhere.
        """
        if self._pipeline is None:
            raise RuntimeError("load must come before write")
        state = None if resume is None else resume.begin(trace)
        parts = self._pipeline.stream(request, trace, state and state.pop("stream"))
        write_parts(parts, path, self.runtime.fps, trace, resume=resume, state=state)
        trace.settings["model"] = self.runtime.load

    def image_prefix(self, path: Path) -> Tensor:
        """An image in the video's size, ``[3, 1, height, width]`` in [-1, 1]."""
        return to_float(resize_and_crop(read_image(path)[None], *self._size))

    def video_prefix(self, path: Path) -> Tensor:
        """The last seconds of a video in this one's size, ``[3, frames, height, width]`` in [-1, 1]."""
        return to_float(_last_seconds(path, self.runtime.fps, self._size))

    @property
    def _size(self) -> tuple[int, int]:
        return self.runtime.video_size_h, self.runtime.video_size_w


def _last_seconds(path: Path, fps: float, size: tuple[int, int]) -> Frames:
    """The last whole seconds of a video, at most five, at the rate of the video to make.

    At least a latent frame; of a video shorter than a second, all that makes whole latent frames.
    """
    most = max(round(PREFIX_SECONDS * fps), FRAMES)
    frames, count = last_frames(path, most, fps, size)
    seconds = min(int(count / fps), PREFIX_SECONDS)
    kept = max(round(seconds * fps), FRAMES) if seconds else count
    kept = max(min(kept, count) // FRAMES * FRAMES, 1)
    return frames[-kept:]
