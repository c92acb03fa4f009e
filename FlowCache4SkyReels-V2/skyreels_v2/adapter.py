"""SkyReels-V2 for the programs: its options, settings and videos."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from flowcache.methods import make_config
from flowcache.options import Refuse
from flowcache.parallel.layout import SINGLE
from flowcache.registry import described
from flowcache.wan.adapter import WanAdapter

from .checkpoint import ModelSource, load_pipeline, new_pipeline, resolve_model
from .methods import TRAITS, traits_for
from .settings import RESOLUTIONS, VideoSettings, make_settings
from .windows import check_streaming, plan_windows

logger = logging.getLogger(__name__)

#: Defaults that depend on the model.
_DEFAULTS = {
    "height": "by the resolution",
    "width": "by the resolution",
    "causal_block_size": "1; small checkpoint: 5",
    "guidance_scale": "6; small checkpoint: 2",
    "fps": "24, or that of a video that is continued",
}
#: Those of run.sh.
_SETTINGS = (
    "--base_num_frames 97 --overlap_history 17 --inference_steps 50 --ar_step 5 --causal_block_size 5 "
    "--addnoise_condition 20"
)
_REFUSED = {
    ("--prompt_enhancer", "--prompt_enhance"): "no enhancer is included; write a longer prompt",
}


@dataclass(frozen=True, kw_only=True)
class SkyReelsOptions:
    """Options of SkyReels-V2 beside the settings of the video."""

    weights: str = described("auto (the official 1.3B on CUDA, otherwise small), small, a folder, or a Hub id", "auto")
    transformer: Path | None = described("weights in place of the model's transformer: a file or a folder")
    vae: Path | None = described("the same for the VAE")
    text_encoder: Path | None = described("the same for the text encoder")
    resolution: str = described("size of the frames", "auto")
    negative_prompt: str | None = described("what to avoid")
    use_kvrange: bool = described("clean blocks limited to the newest, --kvrange of them", False)
    teacache: bool = described("the original's flag for --method teacache", False)


@dataclass(frozen=True, kw_only=True)
class SkyReelsV2(WanAdapter):
    """SkyReels-V2 with the settings of its videos."""

    title = "SkyReels-V2"
    package = "skyreels_v2"
    inputs: ClassVar = {"image": (), "end_image": (), "video_path": ()}
    traits = TRAITS
    saving = (
        "--offload",
        "--use_compress --budget_block 1",
        "--kv_bits 8",
        "--quantize int8",
        "--base_num_frames 57",
        "--method vanilla",
    )
    shipped: ClassVar = {
        name: f"--weights Skywork/SkyReels-V2-DF-{name} --num_frames 177 {_SETTINGS}"
        for name in ("1.3B-540P", "14B-540P", "14B-720P")
    }
    lengths: ClassVar = {count: f"--num_frames {count} {_SETTINGS}" for count in (49, 97, 177, 337)}

    source: ModelSource
    video: VideoSettings

    num_steps = property(lambda self: self.video.inference_steps)
    shape = property(lambda self: f"ar_step {self.video.ar_step}, blocks of {self.video.causal_block_size}")
    profile_word = property(lambda self: f"shift{self.video.shift:g}")
    is_small = property(lambda self: self.source.family == "small")
    words = property(lambda self: ("streaming",) if self.video.streaming else ())
    decoded = property(lambda self: [plan.frames for plan in plan_windows(self.video)])

    @classmethod
    def add_flags(cls, parser, program):
        own = {"weights": ("model_id",)}
        choices = {"resolution": ("auto", *RESOLUTIONS)}
        shown = {"negative_prompt": "the model's"}
        parser.add_fields("model", SkyReelsOptions, own, defaults=shown, choices=choices)
        cls.add_shared_flags(parser, program)
        parser.add_fields("video", VideoSettings, defaults=_DEFAULTS)
        for names, reason in _REFUSED.items():
            parser.add_argument(*names, action=Refuse, const=reason)

    @classmethod
    def translate(cls, given):
        if given.get("teacache"):
            if "method" in given.typed and given.values["method"] != "teacache":
                method = given.values["method"]
                raise ValueError(f"teacache: expected method teacache, got {method}; leave one of them out.")
            given.override("method", "teacache")
            given.typed |= {"method"}
        if given.get("method") in ("vanilla", "teacache") and "streaming" not in given.typed:
            given.override("streaming", None)
        window = given.get("base_num_frames", VideoSettings.base_num_frames)
        if "overlap_history" not in given.typed and given.get("overlap_history", 0) >= window:
            given.override("overlap_history", None)
        given.exclude("compress", "use_kvrange")
        if given.get("use_kvrange"):
            given.values.setdefault("kv_range", 0)
            if "use_kvrange" in given.typed and "kv_range" not in given.typed:
                given.typed |= {"kv_range"}
                given.spelled["kv_range"] = "use_kvrange"
        else:
            given.refuse_unread({"kv_range": "it needs use_kvrange"})
            given.values.pop("kv_range", None)

    @classmethod
    def resolve(cls, given, device, info, seconds):
        source = resolve_model(
            given.get("weights", "auto"), device, given.pick(("transformer", "vae", "text_encoder"))
        )
        height, width = source.defaults["height"], source.defaults["width"]
        height, width = RESOLUTIONS.get(given.get("resolution"), (height, width))
        if info is not None and (info.height > info.width) != (height > width) and height != width:
            height, width = width, height
        values = {"height": height, "width": width, **given.pick(VideoSettings)}
        if info is not None and info.fps and "fps" not in values:
            values["fps"] = info.fps
        if seconds is not None:
            values["num_frames"] = _continued_frames(values, source, seconds)
        defaults = source.defaults
        if "causal_block_size" not in given.typed:
            defaults["causal_block_size"] = values.pop("causal_block_size", defaults["causal_block_size"])
        model = cls.choose(given, source, make_settings(defaults, **values))
        plan_windows(model.video, 0 if seconds is None else model.video.overlap_history)
        continues, video = given.get("video_path") or seconds is not None, model.video
        if not continues and (video.num_frames <= video.base_num_frames or video.streaming):
            unread = {"overlap_history": "it needs video_path, or windows"}
            if not given.get("image"):
                unread["addnoise_condition"] = "it needs image, video_path or windows"
            if video.moves_together and not video.streaming:
                no_clean = "without ar_step and causal_block_size no block is clean before the last step"
                unread |= dict.fromkeys(("compress", "use_kvrange", "kv_bits", "kv_offload"), no_clean)
            with given.naming():
                given.refuse_unread(unread)
        return model

    def configure(self, options):
        fitted = self.source.defaults.get("reuse_coefficients")
        options = replace(options, coefficients=options.coefficients or fitted)
        traits = replace(traits_for(self.source.family), together=self.video.moves_together)
        if options.runs_jointly(traits):
            logger.info("all blocks move together: flowcache runs the whole window, with attention to all of it")
        elif traits.together and options.method == "flowcache":
            logger.info("all blocks move together, but blocks attend to the past alone, as preset or KV cache need it")
        return make_config(options, traits)

    def check(self, config, start):
        check_streaming(self.video, config, arrives=start.last is not None)
        if start.prefix is not None:
            plan_windows(self.video, start.prefix.shape[1])

    def load(self, device, group=SINGLE.world):
        pipeline = load_pipeline(self.source, device, group, **vars(self.loading))
        pipeline.parallelize(group, self.cfg_size)
        return pipeline

    def skeleton(self, device):
        return new_pipeline(self.source, torch.device(device), self.loading)

    def stream(self, pipeline, prompt, start, config, trace, state, on_step_end=None):
        settings = (self.negative_prompt, self.video, config)
        return pipeline.stream(prompt, *settings, start.prefix, start.last, trace, state, on_step_end=on_step_end)

    def pilot(self):
        frames = min(self.video.num_frames, self.video.base_num_frames)
        return self.with_video(num_frames=frames, overlap_history=None, addnoise_condition=0, seed=0)


def _continued_frames(values: dict[str, Any], source: ModelSource, seconds: float) -> int:
    """Frames of a video, ``4 k + 1``, that continues another one for some seconds."""
    overlap, frames = values.get("overlap_history"), values.get("num_frames")
    if overlap is None:
        raise ValueError("overlap_history is needed to continue the videos of physicsiq; 17 is usual.")
    wanted = overlap + math.ceil(seconds * values.get("fps", source.defaults["fps"]))
    if frames is not None and frames < wanted:
        needed = f"{wanted} for physicsiq, overlap_history and {seconds:g} s"
        raise ValueError(f"num_frames: expected at least {needed}, got {frames}.")
    return frames or wanted + (1 - wanted) % 4
