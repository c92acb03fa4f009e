"""Self-Forcing for the programs: its options, settings and videos."""

import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from flowcache.adapter import Adapter, Start
from flowcache.memory import STAGES
from flowcache.methods import SELECTORS, make_config
from flowcache.options import Refuse
from flowcache.parallel.layout import SINGLE
from flowcache.prompts import check_prompt
from flowcache.registry import described
from flowcache.video import last_frames, probe_video, to_float
from flowcache.wan.chunk_model import transformer_flops
from flowcache.wan.conversion import lora_names
from flowcache.wan.loading import WanLoading
from flowcache.wan.processes import ProcessOptions, check_usp, read_processes
from flowcache.wan.sizes import TEMPORAL_STRIDE, latent_frames

from .checkpoint import ModelSource, load_pipeline, new_pipeline, resolve_model
from .methods import TRAITS, fit_method
from .settings import CONFIGS, VideoSettings, make_settings

logger = logging.getLogger(__name__)

#: Flags of the original that nothing reads.
IGNORED = ("save_with_index", "report_timing")


@dataclass(frozen=True, kw_only=True)
class SelfForcingOptions:
    """Options of Self-Forcing beside the settings of the video."""

    weights: str = described(
        "base model: auto (wan_models/Wan2.1-T2V-1.3B or the Hub's; without CUDA and checkpoint: small), small, a "
        "folder, or a Hub id",
        "auto",
    )
    transformer: Path | None = described(
        "checkpoint of the originals: a file, or one on the Hub (default: Causal-Forcing's for chunks, on CUDA)"
    )
    use_ema: bool | None = described("moving average of the weights (default: as published)")
    config_path: Path | None = described(
        "configuration of the originals, a file or a name in configs/ (default: the checkpoint's)"
    )
    vae: Path | None = described("weights in place of the model's VAE: a file or a folder")
    text_encoder: Path | None = described("the same for the text encoder")
    negative_prompt: str | None = described("what to avoid, with guidance")
    num_frames: int | None = described("frames of the video, 4 k + 1, in place of num_output_frames")
    i2v: bool = described("the original's flag for image-to-video: needs --image", False)
    num_samples: int | None = described("the original's name of samples")
    output_folder: Path | None = described("the original's name of the folder of the results")


@dataclass(frozen=True, kw_only=True)
class SelfForcing(Adapter):
    """Self-Forcing and Causal-Forcing with the settings of their videos."""

    title = "Self-Forcing"
    package = "self_forcing"
    inputs: ClassVar = {"image": (), "video_path": ()}
    lacks = frozenset({"causal_attention"})
    traits = TRAITS
    transformer_flops = staticmethod(transformer_flops)
    shipped: ClassVar = {}
    saving = ("--offload", "--use_compress --budget_block 2", "--kv_bits 8", "--quantize int8")
    clean_prompt, translate_lora = staticmethod(prompt_clean), staticmethod(lora_names)

    source: ModelSource
    video: VideoSettings
    negative_prompt: str | None = None  # what to avoid; None: what suits the model
    loading: WanLoading = WanLoading()
    use_usp: bool = False  # whether all processes make one video
    usp_size: int | None = None  # how many of them do in a benchmark; None: all
    cfg_size: int | str = "auto"

    size = property(lambda self: (self.video.height, self.video.width))
    num_steps = property(lambda self: self.video.num_steps)
    shape = property(lambda self: f"chunks of {self.video.num_frame_per_block}")
    profile_word = property(lambda self: f"shift{self.video.timestep_shift:g}")
    location = property(lambda self: self.source.location)
    folders = property(
        lambda self: {**({} if self.source.path is None else {"model": self.source.path}), **self.source.parts}
    )
    default_prompt = property(lambda self: self.source.defaults["prompt"])
    is_small = property(lambda self: self.source.is_small)
    staged = property(lambda self: frozenset(STAGES.values()) if self.loading.offload else frozenset())
    is_guided = property(lambda self: self.video.is_guided)

    @classmethod
    def add_flags(cls, parser, program):
        own = {"weights": ("model_id",), "transformer": ("checkpoint_path",)}
        hidden = {"num_samples"} if program == "generate" else ()
        parser.add_fields("model", SelfForcingOptions, own, hidden, {"negative_prompt": "the model's"})
        parser.add_fields("loading", WanLoading)
        parser.add_fields("processes", ProcessOptions, hidden={"usp_size"} if program == "generate" else ())
        parser.add_fields("video", VideoSettings, defaults={"num_output_frames": "21, or the nearest that fits"})
        if program == "generate":
            reason = "sample_video.py makes the videos of a file of prompts; or give --prompt"
            parser.add_argument("--data_path", action=Refuse, const=reason)
        parser.ignore(IGNORED)

    @classmethod
    def translate(cls, given):
        given.exclude("num_frames", "num_output_frames")
        if (frames := given.values.pop("num_frames", None)) is not None:
            if frames < 1 or frames % TEMPORAL_STRIDE != 1:
                raise ValueError(f"num_frames: expected 4 k + 1 (1, 5, 9, ...), got {frames}.")
            given.values["num_output_frames"] = latent_frames(frames)
            given.spelled["num_output_frames"] = "num_frames"
        if given.get("i2v") and not given.get("image"):
            raise ValueError("i2v: expected image beside it, got none.")
        if (folder := given.values.pop("output_folder", None)) is not None:
            given.values |= {"outdir": folder, "base_save_path": str(folder)}
        if given.get("data_path") and not given.get("benchmark"):
            given.values["benchmark"] = "prompts"
        if (count := given.values.pop("num_samples", None)) is not None:
            given.values["samples"] = count
        given.exclude("compress", "kv_range")

    @classmethod
    def resolve(cls, given, device, info, seconds):
        config = given.get("config_path")
        if config is not None and not config.is_file():
            config = CONFIGS / config.with_suffix(".yaml").name
            if not config.is_file():
                known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
                raise ValueError(f"config_path: expected a file or one of {known}, got {given.get('config_path')}.")
        parts = given.pick(("transformer", "vae", "text_encoder"))
        has_image = given.get("image") is not None
        source = resolve_model(given.get("weights", "auto"), device, parts, given.get("use_ema"), config, has_image)
        defaults, values = source.defaults, given.pick(VideoSettings)
        if info is not None and info.height > info.width and defaults["height"] < defaults["width"]:
            defaults["height"], defaults["width"] = defaults["width"], defaults["height"]
        if info is not None and info.fps and "fps" not in values and given.get("video_path"):
            values["fps"] = info.fps
        video = make_settings(defaults, **values)
        if seconds is not None:
            wanted = latent_frames(video.overlap_history + math.ceil(seconds * video.fps))
            video = replace(video, num_output_frames=wanted)
        is_continued = given.get("video_path") or seconds is not None
        count = latent_frames(video.overlap_history) if is_continued else int(has_image)
        if "num_output_frames" not in values:
            video = replace(video, num_output_frames=video.fitting_frames(count))
        video.check_frames(count)
        model = cls(
            source=source,
            video=video,
            negative_prompt=given.values.get("negative_prompt"),
            loading=WanLoading(**given.pick(WanLoading)),
            **read_processes(given),
        )
        if model.negative_prompt is not None:
            check_prompt("negative_prompt", model.negative_prompt, prompt_clean)
        video.check_negative_prompt(model.negative_prompt)
        unread = {} if is_continued else {"overlap_history": "it needs video_path"}
        if video.is_few_step:
            reason = "steps of denoising_step_list have fresh noise, so that no step can be reused"
            unread |= dict.fromkeys((*SELECTORS, "preset", "warmup_steps", "retention", "forecast"), reason)
            unread |= dict.fromkeys(("sampling_steps", "guidance_scale"), "denoising_step_list is set")
        else:
            unread |= {"warp_denoising_step": "it needs denoising_step_list"}
        given.refuse_unread(unread)
        return model

    def settings(self, with_folders=True):
        video, negative = asdict(self.video), self.negative_prompt
        del video["seed"]
        if not with_folders and negative is None:
            negative = self.source.defaults["negative_prompt"]
        own = {"video": video, "negative_prompt": negative, "weights": self.source.key, **self.loading.settings()}
        published = self.source.published
        own["checkpoint"] = published and published.name
        if with_folders and self.source.parts:
            own["parts"] = {name: str(path) for name, path in self.source.parts.items()}
        return own | ({"model": self.location} if with_folders or self.source.path is None else {})

    def configure(self, options):
        if self.video.is_few_step and options.method == "teacache":
            raise ValueError("method: expected vanilla or flowcache with denoising_step_list, got teacache.")
        return fit_method(make_config(options, TRAITS), self.video)

    def check_processes(self, count):
        check_usp(self.use_usp, count)
        super().check_processes(count)

    def choose_processes(self, count):
        return (self.usp_size or count) if self.use_usp else 1

    def check(self, config, start):
        if start.prefix is not None:
            self.video.check_frames(latent_frames(start.prefix.shape[1]))

    def check_history(self, path):
        info = probe_video(path)
        seconds = 0 if info.num_frames is None or not info.fps else info.num_frames / info.fps
        if seconds * self.video.fps < self.video.overlap_history + 1:  # by the header, which may be wrong
            self.continue_from(path)

    def continue_from(self, history):
        wanted, fps = self.video.overlap_history, self.video.fps
        frames, count = last_frames(history, wanted, fps, self.size)
        if count < wanted:
            found = f"{history} has {count} frames at {fps:g} a second"
            raise ValueError(f"{found}, fewer than overlap_history ({wanted}).")
        return Start(to_float(frames), before=history, skip=wanted)

    def load(self, device, group=SINGLE.world):
        pipeline = load_pipeline(self.source, device, group, **vars(self.loading))
        pipeline.parallelize(group, self.cfg_size)
        return pipeline

    def skeleton(self, device):
        return new_pipeline(self.source, torch.device(device), self.loading)

    def rehearse(self, pipeline, start, config, trace):
        named = ("prompt_embeds", "negative_prompt_embeds")[: 1 + self.video.is_guided]
        tokens = torch.zeros(len(named), pipeline.text_length, dtype=torch.int64, device="meta")
        with trace.timer("text"):
            embeds = dict(zip(named, pipeline.text_encoder(tokens).last_hidden_state, strict=True))
        yield from pipeline.stream(None, None, self.video, config, start.prefix, trace, **embeds)

    def stream(self, pipeline, prompt, start, config, trace, state):
        return pipeline.stream(prompt, self.negative_prompt, self.video, config, start.prefix, trace, state)

    def with_video(self, **changes: Any):
        return replace(self, video=replace(self.video, **changes))

    def pilot(self):
        frames = min(self.video.num_output_frames, 21)
        video = replace(self.video, num_output_frames=frames, seed=0)
        return replace(self, video=replace(video, num_output_frames=video.fitting_frames(0)))
