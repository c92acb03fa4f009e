"""How a long video is made: of windows that overlap, or as one that goes on."""

from __future__ import annotations

from dataclasses import dataclass

from flowcache import FlowCacheConfig, StaircaseSchedule

from .settings import VideoSettings, latent_frames


@dataclass(frozen=True)
class WindowPlan:
    """One window, in latent frames.

    Attributes:
        frames: length of the window.
        prefix: frames at its start that are given.
        repeated: frames at its start that the window before has already shown.
    """

    frames: int
    prefix: int
    repeated: int

    def schedule(self, settings: VideoSettings, arrives: bool = False) -> StaircaseSchedule:
        """The staircase of this window; ``arrives`` adds the given chunk of a last frame."""
        chunks = -(-self.frames // settings.causal_block_size)
        given = self.prefix // settings.causal_block_size
        extra = int(arrives)
        # a block starts at the latest when the one before it is finished
        stride = min(settings.ar_step, settings.inference_steps)
        return StaircaseSchedule(chunks + extra, settings.inference_steps, stride, given + extra)


def plan_windows(settings: VideoSettings, prefix_frames: int = 0) -> list[WindowPlan]:
    """Windows that cover the video; the last one is as short as it can be. One alone for streaming.

    Args:
        settings: the video.
        prefix_frames: pixel frames that the video is to start with.

    Raises:
        ValueError: the prefix leaves nothing to generate.
    """
    total = latent_frames(settings.num_frames)
    base = latent_frames(settings.base_num_frames)
    prefix = latent_frames(prefix_frames) if prefix_frames else 0
    if prefix >= min(total, base):
        raise ValueError(
            f"num_frames and base_num_frames must exceed the {prefix_frames} frames of the start, "
            f"got {settings.num_frames} and {settings.base_num_frames}."
        )
    plans = [WindowPlan(total if settings.streaming else min(total, base), prefix, 0)]
    done = plans[0].frames
    while done < total:
        overlap = latent_frames(settings.overlap_history)
        frames = min(base, total - done + overlap)
        plans.append(WindowPlan(frames, overlap, overlap))
        done += frames - overlap
    return plans


def check_streaming(settings: VideoSettings, cache: FlowCacheConfig, arrives: bool) -> None:
    """Refuse what streaming cannot do; nothing is refused without it.

    Args:
        settings: the video.
        cache: the method.
        arrives: whether the video is to arrive at a last frame.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    if not settings.streaming:
        return
    if cache.whole_window:
        raise ValueError("streaming needs a KV cache: use method causal or flowcache.")
    if cache.compression is None and cache.clean_range is None:
        raise ValueError(
            "streaming needs use_compress or use_kvrange, or the cache would grow with the video."
        )
    if arrives:
        raise ValueError("streaming has no window that could arrive at end_image: leave one of them out.")
