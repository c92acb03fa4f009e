"""The method on Self-Forcing: what reuses, what only bounds the KV cache, and the model's names of options."""

from dataclasses import replace

from flowcache import FlowCacheConfig
from flowcache.methods import SELECTORS, MethodOptions, ModelTraits
from flowcache.reuse import NoReuse

from .settings import VideoSettings
from .windows import rolling_window

TRAITS = ModelTraits(
    methods=("vanilla", "teacache", "flowcache"),
    # Those of SkyReels-V2, whose indicator it is; not tuned on the official weights.
    thresholds={"paper-slow": 0.1, "paper-fast": 0.15},
    whole_window=False,
    clean_pass=True,
    final_steps=0,  # the pass of a clean chunk leaves its keys and values
    paper_forecast="hold_residual",
    query_granularity="chunk",
    names={"threshold": "teacache_thresh", "compress": "use_compress", "budget": "budget_block"},
    lacking={
        "whole_window": "Self-Forcing always runs against a KV cache",
        "bidirectional": "Self-Forcing always attends to the past",
        "refresh_given": "Self-Forcing runs given chunks once",
    },
)

method_config = TRAITS.configure


def find_unread(settings: VideoSettings) -> dict[str, str]:
    """Why options of the method and settings have no effect on a video, by name."""
    if not settings.is_few_step:
        return dict.fromkeys(("warp_denoising_step", "context_noise"), "it needs denoising_step_list")
    reason = "steps of denoising_step_list have fresh noise, so that no step can be reused"
    unread = dict.fromkeys((*SELECTORS, "preset", "warmup_steps", "retention", "forecast"), reason)
    return unread | dict.fromkeys(("sampling_steps", "guidance_scale"), "denoising_step_list is set")


def check_method(options: MethodOptions, settings: VideoSettings) -> None:
    """Raise ValueError for a method that would reuse between steps with fresh noise."""
    if settings.is_few_step and options.method == "teacache":
        raise ValueError("method: expected vanilla or flowcache with denoising_step_list, got teacache.")


def fit_method(config: FlowCacheConfig, settings: VideoSettings) -> FlowCacheConfig:
    """The configuration on a video: no reuse between steps with fresh noise, and its rolling window.

    A step of a distilled model starts from noise that the one before it has not seen: no forecast stands in for it.
    """
    if settings.is_few_step:
        config = replace(config, policy=NoReuse(), forecast="hold_velocity")
    if settings.local_attn_size == -1:
        return config
    sizes = (settings.local_attn_size, settings.sink_size, settings.num_frame_per_block, settings.retime_sink)
    window = rolling_window(*sizes)
    if config.compression not in (None, window) or config.clean_range is not None:
        raise ValueError("local_attn_size: expected -1 with another bound of the KV cache; leave one of them out.")
    return replace(config, compression=window)
