"""Windows of a long video, which overlap; or a single one with streaming."""

from dataclasses import dataclass

from flowcache import FlowCacheConfig, StaircaseSchedule
from flowcache.kv.compactors import Retimed
from flowcache.wan.sizes import latent_frames

from .settings import VideoSettings


@dataclass(frozen=True)
class WindowPlan:
    """One window, in latent frames; ``prefix`` of them are given."""

    frames: int
    prefix: int

    def schedule(self, settings: VideoSettings, arrives: bool = False) -> StaircaseSchedule:
        """Staircase of this window; ``arrives`` adds the given chunk of a last frame."""
        given = self.prefix // settings.causal_block_size + arrives
        chunks = -(-self.frames // settings.causal_block_size) + arrives
        # A block starts at the latest when the one before it is clean.
        stride = min(settings.ar_step, settings.inference_steps)
        return StaircaseSchedule(chunks, settings.inference_steps, stride, given)


def plan_windows(settings: VideoSettings, prefix_frames: int = 0) -> list[WindowPlan]:
    """Plan windows that cover the video behind a prefix of pixel frames; the last window is the shortest."""
    total, base = latent_frames(settings.num_frames), latent_frames(settings.base_num_frames)
    prefix = latent_frames(prefix_frames) if prefix_frames else 0
    if prefix >= min(total, base):
        raise ValueError(
            f"num_frames and base_num_frames must exceed the {prefix_frames} frames of the start, "
            f"got {settings.num_frames} and {settings.base_num_frames}."
        )
    plans = [WindowPlan(total if settings.streaming else min(total, base), prefix)]
    done = plans[0].frames
    while done < total:
        overlap = latent_frames(settings.overlap_history)
        plans.append(WindowPlan(min(base, total - done + overlap), overlap))
        done += plans[-1].frames - overlap
    return plans


def check_streaming(settings: VideoSettings, cache: FlowCacheConfig, arrives: bool) -> None:
    """Raise ValueError for streaming with a method or a last frame (``arrives``) that excludes it."""
    if settings.streaming and cache.whole_window:
        raise ValueError("streaming needs a KV cache: use method causal or flowcache.")
    if settings.streaming and cache.compression is None and cache.clean_range is None:
        raise ValueError("streaming needs use_compress or use_kvrange, or the cache grows with the video.")
    if settings.streaming and arrives:
        raise ValueError("streaming has no window that could arrive at end_image: leave one of them out.")
    if arrives and cache.compression and isinstance(cache.compression.compactor, Retimed):
        raise ValueError("compactor: expected chunks in order of time with retimed, got end_image; use select.")
