"""Self-Forcing for the programs: its options, settings and videos."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from flowcache.methods import make_config
from flowcache.options import Refuse
from flowcache.parallel.layout import SINGLE
from flowcache.registry import described
from flowcache.wan.adapter import WanAdapter
from flowcache.wan.sizes import TEMPORAL_STRIDE, latent_frames, pixel_frames

from .checkpoint import ModelSource, load_pipeline, new_pipeline, resolve_model
from .methods import TRAITS, check_method, find_unread, fit_method
from .settings import CONFIGS, VideoSettings, make_settings

logger = logging.getLogger(__name__)

_WEIGHTS = "--weights Wan-AI/Wan2.1-T2V-1.3B --checkpoint_path zhuhz22/Causal-Forcing"
_STREAM = "--num_output_frames 120 --local_attn_size 21"
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
    i2v: bool = described(
        "image-to-video: of --image, or of each image in a folder, data_path of sample_video.py, as the original's",
        False,
    )
    num_samples: int | None = described("the original's name of samples")
    output_folder: Path | None = described("the original's name of the folder of the results")


@dataclass(frozen=True, kw_only=True)
class SelfForcing(WanAdapter):
    """Self-Forcing and Causal-Forcing with the settings of their videos."""

    title = "Self-Forcing"
    package = "self_forcing"
    inputs: ClassVar = {"image": (), "video_path": ()}
    lacks = frozenset({"causal_attention"})
    traits = TRAITS
    # As the scripts run them on CUDA, and a checkpoint of 50 steps.
    shipped: ClassVar = {
        "1.3B chunkwise": f"{_WEIGHTS}/chunkwise/causal_forcing.pt",
        "1.3B chunkwise, stream": f"{_WEIGHTS}/chunkwise/causal_forcing.pt {_STREAM}",
        "1.3B chunkwise, 50 steps": f"{_WEIGHTS}/chunkwise/ar_diffusion.pt",
    }
    lengths: ClassVar = {count: f"--num_frames {count}" for count in (45, 81, 153, 321)}
    saving = ("--offload", "--use_compress --budget_block 2", "--kv_bits 8", "--quantize int8")

    source: ModelSource
    video: VideoSettings
    from_images: bool = False

    num_steps = property(lambda self: self.video.num_steps)
    shape = property(lambda self: f"chunks of {self.video.num_frame_per_block}")
    profile_word = property(lambda self: f"shift{self.video.timestep_shift:g}")
    is_small = property(lambda self: self.source.is_small)
    decoded = property(lambda self: [self.video.num_output_frames])

    @classmethod
    def add_flags(cls, parser, program):
        own = {"weights": ("model_id",), "transformer": ("checkpoint_path",)}
        hidden = {"num_samples"} if program == "generate" else ()
        parser.add_fields("model", SelfForcingOptions, own, hidden, {"negative_prompt": "the model's"})
        cls.add_shared_flags(parser, program)
        parser.add_fields("video", VideoSettings, defaults={"num_output_frames": "21, or the nearest that fits"})
        if program == "generate":
            reason = (
                "sample_video.py makes the videos of prompts or, with --i2v, of images; or give --prompt or --image"
            )
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
        if given.get("i2v") and not (given.get("image") or given.get("data_path")):
            raise ValueError("i2v: expected image, or data_path of sample_video.py, beside it, got none.")
        if (folder := given.values.pop("output_folder", None)) is not None:
            given.values |= {"outdir": folder, "base_save_path": str(folder)}
        if given.get("data_path") and not given.get("benchmark"):
            given.values["benchmark"] = "prompts"
        if (count := given.values.pop("num_samples", None)) is not None:
            given.values["samples"] = count
        unbounded = {"compress": False, "kv_range": None, "local_attn_size": -1}
        given.exclude(*(name for name, without in unbounded.items() if given.get(name, without) != without))

    @classmethod
    def resolve(cls, given, device, info, seconds):
        config = given.get("config_path")
        if config is not None and not config.is_file():
            config = CONFIGS / config.with_suffix(".yaml").name
            if not config.is_file():
                known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
                raise ValueError(f"config_path: expected a file or one of {known}, got {given.get('config_path')}.")
        parts = given.pick(("transformer", "vae", "text_encoder"))
        from_images = given.get("i2v", False)
        has_image = from_images or given.get("image") is not None
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
        if not given.typed & {"num_frames", "num_output_frames"}:
            video = replace(video, num_output_frames=video.fitting_frames(count))
        video.check_frames(count, in_pixels="num_frames" in given.typed)
        model = replace(cls.choose(given, source, video), from_images=from_images)
        unread = {} if is_continued else {"overlap_history": "it needs video_path"}
        given.refuse_unread(unread | find_unread(video))
        return model

    def settings(self, with_folders=True):
        published = self.source.published
        own = {"weights": self.source.key, "checkpoint": published and published.name}
        return super().settings(with_folders) | own

    def configure(self, options):
        check_method(options, self.video)
        return fit_method(make_config(options, TRAITS), self.video)

    def fit_frames(self, count, has_image):
        asked = replace(self.video, num_output_frames=latent_frames(super().fit_frames(count, has_image)))
        return pixel_frames(asked.fitting_frames(int(has_image)))

    def check(self, config, start):
        if start.prefix is not None:
            self.video.check_frames(latent_frames(start.prefix.shape[1]))

    def load(self, device, group=SINGLE.world):
        pipeline = load_pipeline(self.source, device, group, **vars(self.loading))
        pipeline.parallelize(group, self.cfg_size)
        return pipeline

    def skeleton(self, device):
        return new_pipeline(self.source, torch.device(device), self.loading)

    def stream(self, pipeline, prompt, start, config, trace, state, on_step_end=None):
        given = (self.negative_prompt, self.video, config, start.prefix, trace, state)
        return pipeline.stream(prompt, *given, on_step_end=on_step_end)

    def pilot(self):
        frames = min(self.video.num_output_frames, 21)
        video = replace(self.video, num_output_frames=frames, seed=0)
        return replace(self, video=replace(video, num_output_frames=video.fitting_frames(0)))
