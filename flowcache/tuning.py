"""Find the interval that meets a target from a few short runs, and save what they measured.

A pilot makes one short video without reuse and again with each interval. The speed-up and PSNR of each are
the profile, a file that serves all later runs of the same model and settings.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from tqdm import tqdm

from .config import FlowCacheConfig
from .files import write_json
from .fingerprint import differences
from .metrics import psnr
from .parallel import Group
from .registry import check_number
from .reuse import Interval, NoReuse
from .trace import Trace
from .typed import as_type
from .user_files import expand_path, read_json, reading
from .video import to_uint8

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2

#: Default folder of profiles, and the environment variable that names another.
CACHE_FOLDER, CACHE_VARIABLE = "~/.cache/flowcache", "FLOWCACHE_CACHE"

#: Intervals that a pilot tries.
INTERVALS = range(2, 11)

#: Makes the pilot's video with a configuration: ``[3, frames, height, width]`` in [-1, 1], and its trace.
Pilot = Callable[[FlowCacheConfig], tuple[Tensor, Trace]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a run must reach; exactly one of the two."""

    speedup: float | None = None  # FLOPs ratio to the original, reached at the best quality
    psnr: float | None = None  # dB to the same video without reuse, reached with the fewest FLOPs

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.psnr is None):
            raise ValueError("target_speedup, target_psnr: expected exactly one of them.")
        least = 1 if self.psnr is None else 0
        check_number(self.flag, self.value, least, 1000)
        if self.value == least:
            raise ValueError(f"{self.flag}: expected more than {least}, got {self.value:g}.")

    @property
    def flag(self) -> str:
        return "target_speedup" if self.psnr is None else "target_psnr"

    @property
    def value(self) -> float:
        return self.speedup if self.psnr is None else self.psnr

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.psnr is None else f"{self.value:g}dB"


@dataclass(frozen=True)
class Setting:
    """An interval as the pilot measured it: FLOPs ratio to the original, dB to no reuse, denoising time."""

    interval: int
    speedup: float
    psnr: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.speedup:.2f}x fewer FLOPs than vanilla and {self.psnr:.1f} dB to no reuse"


@dataclass(frozen=True)
class Profile:
    """What a pilot measured, and everything that it depends on (``key``); ``seconds`` without reuse."""

    key: dict[str, Any]
    settings: list[Setting]
    seconds: float
    environment: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a profile; a file that holds none is a ValueError."""
        remedy = "delete it to have it made again"
        with reading(path, "a profile", remedy):
            content = read_json(path, dict[str, Any], "a profile", remedy)
            if content.pop("format", None) != FORMAT_VERSION:
                raise ValueError(f"its format is not {FORMAT_VERSION}")
            return as_type(content, cls)


class Tuning:
    """The search for an interval between the ``num_steps`` steps of a chunk, whose profile is read or made.

    ``described`` is everything else that the pilot depends on, such as model and video, for JSON. Without a ``path``,
    the profile is in the cache folder, under ``name`` and a digest of the settings.
    """

    def __init__(
        self,
        target: Target,
        cache: FlowCacheConfig,
        num_steps: int,
        described: Mapping[str, Any],
        name: str,
        path: Path | None = None,
    ) -> None:
        if not isinstance(cache.policy, Interval):
            raise ValueError(f"{target.flag}: expected the policy interval, which it searches over.")
        self.target, self.cache = target, cache
        self.intervals = [i for i in INTERVALS if cache.policy.warmup_steps + i < num_steps]
        if not self.intervals:
            raise ValueError(f"{target.flag}: expected steps that can be skipped, got only {num_steps}.")
        fixed = {name: value for name, value in cache.as_dict().items() if name not in ("interval", "scale")}
        # As JSON returns it; the intervals last, as they differ whenever steps do.
        self.key = json.loads(json.dumps({**described, "cache": fixed, "intervals": self.intervals}))
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:8]
        self.path = path or profile_folder() / f"{name}-{digest}.json"

    def saved(self) -> Profile | None:
        """The profile; None if there is no file, ValueError for that of another model or other settings."""
        if not self.path.exists():
            return None
        profile = Profile.load(self.path)
        if differing := differences(profile.key, self.key):
            raise ValueError(f"profile: {self.path} is of other settings, {differing[0]}; give another file.")
        if [setting.interval for setting in profile.settings] != self.intervals:
            raise ValueError(f"profile: {self.path} is damaged; delete it to have it made again.")
        return profile

    def check(self) -> None:
        """Refuse a target that a saved profile cannot serve (ValueError)."""
        if (profile := self.saved()) is not None:
            self._choose(profile)

    def run(self, pilot: Pilot) -> tuple[FlowCacheConfig, Setting, str]:
        """Choose the setting, or raise as ``check``; without a profile, measure and save one first.

        Returns the configuration, what the profile expects of it, and both as a sentence.
        """
        if (profile := self.saved()) is None:
            profile = self._measure(pilot)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"format": FORMAT_VERSION, **asdict(profile)})
        expected = self._choose(profile)
        sentence = (
            f"target {self.target}: interval {expected.interval}, expected {expected} (the pilot took "
            f"{expected.seconds:.1f} s instead of {profile.seconds:.1f} s on "
            f"{profile.environment.get('hardware', 'unknown hardware')})"
        )
        logger.info("%s, by %s", sentence, self.path)
        return self._with_interval(expected.interval), expected, sentence

    def run_together(self, group: Group, pilot: Pilot) -> tuple[FlowCacheConfig, str]:
        """Call ``run`` in the first process of a group, whose pilots all make; returns configuration and sentence."""
        if group.is_first:
            config, _, sentence = self.run(lambda tried: pilot(group.broadcast_object((tried, None))[0]))
            return group.broadcast_object((config, sentence))
        while True:
            config, sentence = group.broadcast_object()
            if sentence is not None:
                return config, sentence
            pilot(config)

    def _choose(self, profile: Profile) -> Setting:
        """The best setting that meets the target; ValueError names the nearest if none does."""
        target = self.target
        wanted, other = ("speedup", "psnr") if target.psnr is None else ("psnr", "speedup")
        best = max(
            profile.settings, key=lambda s: (getattr(s, wanted) >= target.value, getattr(s, other), getattr(s, wanted))
        )
        if getattr(best, wanted) < target.value:
            nearest = max(profile.settings, key=lambda s: getattr(s, wanted))
            raise ValueError(f"{target.flag}: {target.value:g} is out of reach; the nearest is {nearest}.")
        return best

    def _with_interval(self, interval: int) -> FlowCacheConfig:
        return replace(self.cache, policy=replace(self.cache.policy, interval=interval))

    def _measure(self, pilot: Pilot) -> Profile:
        logger.info("no profile %s: %d short runs make it", self.path, len(self.intervals) + 1)
        frames, plain = pilot(replace(self.cache, policy=NoReuse()))
        reference, settings = to_uint8(frames), []
        for interval in tqdm(self.intervals, desc="pilot", unit="run"):
            frames, trace = pilot(self._with_interval(interval))
            decibels, _ = psnr(to_uint8(frames), reference)
            speedup = trace.flops["vanilla"] / trace.flops["actual"]
            settings.append(Setting(interval, speedup, decibels, trace.seconds["denoise"]))
        return Profile(self.key, settings, plain.seconds["denoise"], plain.environment)


def profile_folder() -> Path:
    """Folder of profiles: in ``FLOWCACHE_CACHE``, by default in ``~/.cache/flowcache``."""
    return expand_path(os.environ.get(CACHE_VARIABLE) or CACHE_FOLDER, CACHE_VARIABLE) / "profiles"
