"""The small checkpoints, ready to run with any settings of the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from flowcache.reuse.plans import Plans, Sampling

from flowcache import FlowCacheConfig
from flowcache.config import KVCompressionConfig
from flowcache.output import VideoOutput
from flowcache.reuse.forecast import Forecast
from flowcache.reuse.policy import ReusePolicy
from magi1 import model_source as magi_source
from magi1.config import FlowCacheOptions
from magi1.methods import method_config as magi_method
from magi1.request import VideoRequest
from skyreels_v2 import load_pipeline, resolve_model

ROOT = Path(__file__).resolve().parents[1]
#: Of SkyReels-V2, the most that it denoises at once.
WINDOW_FRAMES = 97
MAGI_CONFIG = ROOT / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json"


def held_out() -> list[str]:
    """Captions that no checkpoint was trained on."""
    return json.loads((ROOT / "scripts/train_small/held_out.json").read_text())


@dataclass(frozen=True, kw_only=True)
class TrialConfig(FlowCacheConfig):
    """Settings with a policy or a forecast that they know no name for; None: as they say."""

    trial_policy: ReusePolicy | None = None
    trial_forecast: Forecast | None = None

    @classmethod
    def of(cls, config: FlowCacheConfig, **trial: Any) -> TrialConfig:
        """The settings ``config`` but for what is on trial."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(config)}, **trial)

    def make_policy(self, num_chunk_steps: int) -> ReusePolicy:
        return self.trial_policy or super().make_policy(num_chunk_steps)

    def make_forecast(self) -> Forecast:
        return self.trial_forecast or super().make_forecast()

    def as_dict(self, num_chunk_steps: int | None = None) -> dict[str, Any]:
        return {"policy": self.policy}


@dataclass(frozen=True)
class Family:
    """A model, ready to run, and its methods.

    Attributes:
        generate: makes the video of a caption and seed with settings of the cache.
        plain: settings that reuse nothing.
        ours: settings that the policies and forecasts are put into.
        paper: the paper's rule with a threshold.
        distance: ours by the same distance, with a threshold.
        compression: of finished chunks to a budget.
        thresholds: at which all that accumulate that distance are measured.
        latent_thresholds: the same for the filtered latent.
        folder: of the checkpoint.
        sampling: what plans for it are found by.
    """

    generate: Callable[[str, int, FlowCacheConfig], VideoOutput]
    plain: FlowCacheConfig
    ours: FlowCacheConfig
    paper: Callable[[float], FlowCacheConfig]
    distance: Callable[[float], FlowCacheConfig]
    compression: Callable[[int], KVCompressionConfig]
    thresholds: tuple[float, ...]
    latent_thresholds: tuple[float, ...]
    folder: Path
    sampling: Sampling

    @property
    def plans(self) -> Plans | None:
        """Those that lie beside the weights."""
        return Plans.find(self.folder, self.sampling)


def skyreels(steps: int | None = None, frames: int | None = None) -> Family:
    """The small SkyReels-V2: 97 frames, a window, unless told; more are streamed; blocks lag by 5 steps."""
    source, frames = resolve_model("small", "cpu"), frames or WINDOW_FRAMES
    settings = {"ar_step": 5, "causal_block_size": 5, "inference_steps": steps or 50}
    video = source.video_settings(num_frames=frames, streaming=frames > WINDOW_FRAMES, **settings)
    pipeline = load_pipeline(source, "cpu")
    pipeline.set_progress_bar_config(disable=True)

    def generate(caption: str, seed: int, cache: FlowCacheConfig) -> VideoOutput:
        return pipeline(caption, settings=replace(video, seed=seed), cache=cache)

    return Family(
        generate,
        source.method_config("causal"),
        source.method_config("flowcache", "fast"),
        lambda threshold: source.method_config("flowcache", "paper-fast", threshold=threshold),
        lambda threshold: source.method_config("flowcache", "fast", threshold=threshold),
        lambda budget: source.method_config("causal", budget_block=budget).compression,
        thresholds=(0.03, 0.06, 0.1, 0.15, 0.25, 0.4),
        latent_thresholds=(0.2, 0.4, 0.8),
        folder=source.path,
        sampling=video.sampling,
    )


def magi(steps: int | None = None, frames: int | None = None) -> Family:
    """The small MAGI-1: 96 frames unless told, four chunks at a time."""
    sampling = {"num_steps": steps or 64, "num_frames": frames or 96}
    source = magi_source.resolve_model(MAGI_CONFIG, sampling, "small", "cpu")
    pipeline = magi_source.load_pipeline(source, "cpu")
    pipeline.set_progress_bar_config(disable=True)

    def generate(caption: str, seed: int, cache: FlowCacheConfig) -> VideoOutput:
        config = replace(source.config, runtime_config=replace(source.config.runtime_config, seed=seed))
        return pipeline(VideoRequest(prompt=caption, config=config, cache=cache))

    def by_distance(preset: str, threshold: float) -> FlowCacheConfig:
        return magi_method("flowcache", FlowCacheOptions(rel_l1_thresh=threshold), preset=preset)

    def compression(budget: int) -> KVCompressionConfig:
        total = budget + source.config.runtime_config.window_size
        options = FlowCacheOptions(compress_kv_cache=True, total_cache_chunk_nums=total)
        return magi_method("vanilla", options).compression

    return Family(
        generate,
        magi_method("vanilla"),
        magi_method("flowcache", preset="fast"),
        partial(by_distance, "paper-fast"),
        partial(by_distance, "fast"),
        compression,
        thresholds=(0.01, 0.02, 0.04, 0.08, 0.15),
        latent_thresholds=(0.15, 0.3, 0.6),
        folder=Path(source.config.runtime_config.load),
        sampling=source.config.runtime_config.sampling,
    )


FAMILIES = {"skyreels": skyreels, "magi": magi}
