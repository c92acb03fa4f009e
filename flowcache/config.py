"""Settings of the method, checked when they are made."""

import copy
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from .kv.config import KVCompressionConfig, KVStorageConfig
from .registry import check_options, describe, option
from .reuse import POLICIES, Interval, ReusePolicy, make_policy
from .reuse.forecast import FORECASTS

__all__ = ["FlowCacheConfig", "KVCompressionConfig", "KVStorageConfig"]


@dataclass(frozen=True, kw_only=True)
class FlowCacheConfig:
    """Which chunks run the model at a step, what replaces the others, and what the KV cache keeps.

    Args:
        policy: which live chunks skip the model: a name of ``POLICIES``, or an instance of any
            ``ReusePolicy``, your own included.
        forecast: output of a reused chunk, a key of ``FORECASTS``: the last velocity, residual of the block
            stack or displacement of the latents, or the line through the last two; ``corrected_velocity`` also
            takes skipped steps again, with velocities interpolated to the next computed one.
        whole_window: run the whole window whenever the model runs, as the original models do without a
            cache. False: run live chunks only, against a KV cache.
        bidirectional: with ``whole_window``, every chunk attends to the whole window. False: to itself and
            the chunks before it.
        refresh_given: run given chunks at every step instead of once.
        clean_pass: run a chunk once more when it has become clean, so that its keys and values are those of
            clean latents.
        compression: keep only the best tokens of clean chunks; None: all.
        clean_range: newest clean chunks that a live chunk sees; None: all.
        storage: keep clean chunks in fewer bits or in host memory; None: as live ones. Unused where all
            chunks move together, as none is clean before the end.
        prompt_switch: what becomes of clean chunks' keys and values when the first chunk with another prompt starts:
            ``keep``, or ``recompute``, with the new prompt, those of the chunks that are still seen.
    """

    policy: ReusePolicy | str = field(default_factory=Interval)
    forecast: str = "corrected_velocity"
    whole_window: bool = False
    bidirectional: bool = False
    refresh_given: bool = False
    clean_pass: bool = False
    compression: KVCompressionConfig | None = None
    clean_range: int | None = option(None, 0, 10**6)
    storage: KVStorageConfig | None = None
    prompt_switch: Literal["keep", "recompute"] = "keep"

    def __post_init__(self) -> None:
        if isinstance(self.policy, str):
            object.__setattr__(self, "policy", make_policy(self.policy))
        if not isinstance(self.policy, ReusePolicy):
            raise ValueError(f"policy: expected a name or a ReusePolicy, got {self.policy!r}.")
        check_options(self)
        if self.forecast not in FORECASTS:
            raise ValueError(f"forecast: expected one of {', '.join(FORECASTS)}, got {self.forecast!r}.")
        if self.bidirectional and not self.whole_window:
            raise ValueError("bidirectional: expected whole_window, as a KV cache holds no future chunk.")
        if self.whole_window:
            for name in ("compression", "clean_range", "storage", "refresh_given", "clean_pass"):
                if (value := getattr(self, name)) is not None and value is not False:
                    raise ValueError(f"{name}: expected a KV cache, got whole_window; set whole_window to false.")
        recomputes = self.prompt_switch == "recompute"
        if self.refresh_given and (self.compression or self.storage):
            raise ValueError("refresh_given: expected plain keys and values; remove compression and storage.")
        if recomputes and (self.whole_window or self.refresh_given):
            expected = "keep where given or all chunks run at every step"
            raise ValueError(f"prompt_switch: expected {expected}, got recompute.")
        if self.compression and self.compression.trigger == "step" and self.clean_pass:
            raise ValueError("clean_pass: expected false with compression within a step, got true.")

    def make_policy(self) -> ReusePolicy:
        return copy.deepcopy(self.policy)

    def as_dict(self, num_chunk_steps: int | None = None) -> dict[str, Any]:
        """Name and options of the policy and all other settings, in one flat mapping, for traces.

        ``num_chunk_steps`` fills in the interval that follows from it.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["compression"] = self.compression and self.compression.as_dict()
        own["storage"] = self.storage and asdict(self.storage)
        name, _ = describe(POLICIES, self.policy)
        return {**own, "policy": name, **self.policy.describe(num_chunk_steps)}
