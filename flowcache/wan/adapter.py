"""What adapters of models on Wan's parts share: fields, video-to-video, processes, rehearsed text."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from ..adapter import Adapter, Start
from ..memory import STAGES
from ..options import Given, OptionParser
from ..prompts import check_prompt
from ..video import last_frames, probe_video, to_float
from .chunk_model import transformer_flops
from .codec import VideoCodec
from .conversion import lora_names
from .loading import WanLoading
from .processes import ProcessOptions, check_usp, read_processes
from .sizes import TEMPORAL_STRIDE, pixel_frames


@dataclass(frozen=True, kw_only=True)
class WanAdapter(Adapter):
    """Weights and settings of videos; those have ``overlap_history`` and ``is_guided`` beside an adapter's."""

    clean_prompt, translate_lora = staticmethod(prompt_clean), staticmethod(lora_names)
    transformer_flops = staticmethod(transformer_flops)

    source: Any  # with ``path``, ``parts``, ``location`` and ``defaults``
    video: Any
    negative_prompt: str | None = None  # what to avoid; None: what suits the model
    loading: WanLoading = WanLoading()
    use_usp: bool = False  # whether all processes make one video
    usp_size: int | None = None  # how many of them do in a benchmark; None: all
    cfg_size: int | str = "auto"

    size = property(lambda self: (self.video.height, self.video.width))
    location = property(lambda self: self.source.location)
    folders = property(
        lambda self: {**({} if self.source.path is None else {"model": self.source.path}), **self.source.parts}
    )
    default_prompt = property(lambda self: self.source.defaults["prompt"])
    staged = property(lambda self: frozenset(STAGES.values()) if self.loading.offload else frozenset())
    is_guided = property(lambda self: self.video.is_guided)

    @property
    @abstractmethod
    def decoded(self) -> Sequence[int]:
        """Latent frames of each window, which is decoded from its start."""

    @staticmethod
    def add_shared_flags(parser: OptionParser, program: str) -> None:
        parser.add_fields("loading", WanLoading)
        parser.add_fields("processes", ProcessOptions, hidden={"usp_size"} if program == "generate" else ())

    @classmethod
    def choose(cls, given: Given, source: Any, video: Any) -> Self:
        """Make an adapter of the options that models share, with its weights and settings of the video."""
        loading, negative = WanLoading(**given.pick(WanLoading)), given.values.get("negative_prompt")
        model = cls(source=source, video=video, negative_prompt=negative, loading=loading, **read_processes(given))
        if negative is not None:
            check_prompt("negative_prompt", negative, prompt_clean)
        video.check_negative_prompt(negative)
        return model

    def fit_frames(self, count, has_image):
        return pixel_frames(max(1, round((count - 1) / TEMPORAL_STRIDE) + 1))

    def settings(self, with_folders=True):
        video, negative = asdict(self.video), self.negative_prompt
        del video["seed"]
        if not with_folders and negative is None:
            negative = self.source.defaults["negative_prompt"]
        own = {"video": video, "negative_prompt": negative, **self.loading.settings()}
        if with_folders and self.source.parts:
            own["parts"] = {name: str(path) for name, path in self.source.parts.items()}
        return own | ({"model": self.location} if with_folders or self.source.path is None else {})

    def check_processes(self, count):
        check_usp(self.use_usp, count)
        super().check_processes(count)

    def choose_processes(self, count):
        return (self.usp_size or count) if self.use_usp else 1

    def check_history(self, path):
        info = probe_video(path)
        seconds = 0 if info.num_frames is None or not info.fps else info.num_frames / info.fps
        if seconds * self.video.fps < self.video.overlap_history + 1:  # by the header, which may be wrong
            self.continue_from(path)

    def continue_from(self, history):
        wanted, fps = self.video.overlap_history, self.video.fps
        if wanted is None:
            raise ValueError("overlap_history is needed to continue a video; 17 is usual.")
        frames, count = last_frames(history, wanted, fps, self.size)
        if count < wanted:
            found = f"{history} has {count} frames at {fps:g} a second"
            raise ValueError(f"{found}, fewer than overlap_history ({wanted}).")
        return Start(to_float(frames), before=history, skip=wanted)

    def rehearse(self, pipeline, start, config, trace):
        named = ("prompt_embeds", "negative_prompt_embeds")[: 1 + self.is_guided]
        tokens = torch.zeros(len(named), pipeline.text_length, dtype=torch.int64, device="meta")
        with trace.timer("text"):
            embeds = dict(zip(named, pipeline.text_encoder(tokens).last_hidden_state, strict=True))
        given = {"prefix": start.prefix, **({} if start.last is None else {"last": start.last})}
        yield from pipeline.stream(None, None, self.video, config, trace=trace, **given, **embeds)

    def rehearse_decoding(self, pipeline, group):
        codec, stride = VideoCodec(pipeline.vae, group=group), pipeline.vae.config.scale_factor_spatial
        windows, (height, width) = self.decoded, (side // stride for side in self.size)
        # From the third frame on, each convolution has all features of those before.
        for times in (len(windows), len(windows), sum(frames - 2 for frames in windows)):
            codec.decode(torch.empty(pipeline.vae.config.z_dim, 1, height, width, device="meta"))
            yield times, len(group.share(height))

    def with_video(self, **changes: Any):
        return replace(self, video=replace(self.video, **changes))
