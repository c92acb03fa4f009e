"""A request to the pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from flowcache import FlowCacheConfig
from flowcache.arguments import GivenFrames, as_frames, check_type
from flowcache.prompts import check_prompt

from .captions import CaptionSwitches, SpecialTokens, clean_prompt
from .config import FRAMES, MagiConfig
from .guidance import PREVIOUS_WEIGHT, DistilledGuidance, Guidance, ThreeWayGuidance
from .methods import check_cache
from .schedule import Timetable


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A video to make.

    Attributes:
        prompt: what to show; empty: the null caption.
        config: the video and its sampling; the model's own section is not read.
        cache: settings of the method.
        prefix: pixels in [-1, 1], ``[3, frames, height, width]``: one frame for image-to-video, a multiple of
            four to continue a video. Images and uint8 arrays are converted; see ``as_frames``.
        switches: special tokens before the caption.
        special_tokens: their table.
        discard_nearly_clean: no extra forward pass without context of the oldest chunk when nearly clean.
        previous_weight: share of the velocity that sees the chunks before, beside that pass.

    Raises:
        TypeError: an argument has another type; it is named.
        ValueError: the cleaning leaves nothing of the prompt, or an argument does not fit.
    """

    prompt: str
    config: MagiConfig
    cache: FlowCacheConfig = field(default_factory=FlowCacheConfig)
    prefix: GivenFrames | None = None
    switches: CaptionSwitches = field(default_factory=CaptionSwitches)
    special_tokens: SpecialTokens | None = None
    discard_nearly_clean: bool = False
    previous_weight: float = PREVIOUS_WEIGHT

    def __post_init__(self) -> None:
        check_prompt("prompt", self.prompt, clean_prompt)
        check_type("config", self.config, MagiConfig)
        check_type("cache", self.cache, FlowCacheConfig)
        if self.switches.any and self.special_tokens is None:
            raise ValueError("special_tokens: expected their table, as switches ask for some, got none.")
        if not math.isfinite(self.previous_weight):
            raise ValueError(f"prev_chunks_scale must be a finite number, got {self.previous_weight}.")
        check_cache(self.cache)
        if self.prefix is not None:
            runtime = self.config.runtime_config
            size = (runtime.video_size_h, runtime.video_size_w)
            object.__setattr__(self, "prefix", as_frames("prefix", self.prefix, *size))
            num_frames = self.prefix.shape[1]
            if num_frames != 1 and num_frames % FRAMES:
                raise ValueError(f"prefix must be one frame or a multiple of {FRAMES}, got {num_frames}.")

    @property
    def shows_prefix(self) -> bool:
        """Whether the prefix, an image, is the first frame of the video."""
        return self.prefix is not None and self.prefix.shape[1] == 1

    @property
    def timetable(self) -> Timetable:
        """Times of the steps."""
        runtime, engine = self.config.runtime_config, self.config.engine_config
        return Timetable(runtime.num_steps, engine.shortcut_mode, engine.distill, runtime.clean_t)

    @property
    def guidance(self) -> Guidance:
        """Branches and their mix."""
        runtime, engine = self.config.runtime_config, self.config.engine_config
        if runtime.cfg_number == 3:
            return ThreeWayGuidance(runtime.cfg_t_range, runtime.prev_chunk_scales, runtime.text_scales)
        threshold = None if self.discard_nearly_clean else engine.distill_nearly_clean_chunk_threshold
        return DistilledGuidance(threshold, self.previous_weight)
