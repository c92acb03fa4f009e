"""What is asked of the pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from flowcache import FlowCacheConfig
from flowcache.arguments import GivenFrames, as_frames, check_prompt, check_type

from .captions import CaptionSwitches, SpecialTokens
from .config import FRAMES, MagiConfig
from .guidance import PREVIOUS_WEIGHT, DistilledGuidance, Guidance, ThreeWayGuidance
from .methods import check_cache
from .schedule import Timetable


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A video to make.

    Attributes:
        prompt: what to show.
        config: the video and its sampling; the model's own section is not read.
        cache: the method; see ``FlowCacheConfig`` for the default.
        prefix: pixels in [-1, 1], ``[3, frames, height, width]``: one frame for image-to-video, a multiple of
            four to continue a video. Images and uint8 arrays are converted; see ``as_frames``.
        switches: special tokens before the caption.
        special_tokens: their table.
        discard_nearly_clean: leave out the lonely second run of the oldest chunk when it is nearly clean.
        previous_weight: share of the velocity that sees the chunks before, where there is such a run.

    Raises:
        TypeError: an argument is of another type; it is named.
        ValueError: the prefix does not fit, special tokens lack their table, the share is no number, or the
            cache has a setting that MAGI-1 lacks.
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
        check_prompt("prompt", self.prompt)
        check_type("config", self.config, MagiConfig)
        check_type("cache", self.cache, FlowCacheConfig)
        if self.switches.any and self.special_tokens is None:
            raise ValueError("special tokens are asked for, but there is no table of them; give one.")
        if not math.isfinite(self.previous_weight):
            raise ValueError(f"prev_chunks_scale must be a finite number, got {self.previous_weight}.")
        check_cache(self.cache)
        if self.prefix is not None:
            runtime = self.config.runtime_config
            size = (runtime.video_size_h, runtime.video_size_w)
            object.__setattr__(self, "prefix", as_frames("prefix", self.prefix, *size))
            num_frames = self.prefix.shape[1]
            if num_frames != 1 and num_frames % FRAMES:
                raise ValueError(
                    f"prefix must be one frame or a multiple of {FRAMES}, got {num_frames} frames."
                )

    @property
    def shows_prefix(self) -> bool:
        """Whether the video begins with what is given: an image does not stand before it, but in it."""
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
