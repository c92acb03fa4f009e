"""Find the setting that meets a target from a few short runs, and keep what they showed.

A pilot makes one short video without reuse and again with each setting of a ladder. What each saves and how
close it stays is the profile, a file that serves all later runs of the same model and settings.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .config import FlowCacheConfig
from .files import write_json
from .fingerprint import differences
from .limits import check_number
from .metrics import psnr
from .output import VideoOutput
from .reuse.plans import Plans
from .trace import Trace
from .typed import as_type
from .user_files import expand_path, read_json, reading
from .video import to_uint8

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

#: Folder of what is kept between runs, and the variable that says another one.
CACHE_FOLDER, CACHE_VARIABLE = "~/.cache/flowcache", "FLOWCACHE_CACHE"

#: Steps from one computed step to the next that a pilot tries.
INTERVALS = range(2, 11)

#: Fields of ``FlowCacheConfig`` that a setting of the ladder may change.
TRIED = ("policy", "interval", "pace", "computed_steps")

#: Makes the pilot's video with the given settings of the cache.
Pilot = Callable[[FlowCacheConfig], VideoOutput]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a run is to come to, exactly one of the two.

    Args:
        speedup: times fewer FLOPs than the original takes, at the best quality.
        psnr: dB to the same video without reuse, with the fewest FLOPs.

    Raises:
        ValueError: none or both are given, or the one is out of range; the flag is named.
    """

    speedup: float | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.psnr is None):
            raise ValueError("target_speedup and target_psnr exclude each other: give exactly one of them.")
        least = 1 if self.psnr is None else 0
        check_number(self.flag, self.value, least, 1000)
        if self.value == least:
            raise ValueError(f"{self.flag} must be above {least}, got {self.value:g}.")

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "target_speedup" if self.psnr is None else "target_psnr"

    @property
    def value(self) -> float:
        """The number that is asked for."""
        return self.speedup if self.psnr is None else self.psnr

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.psnr is None else f"{self.value:g}dB"


@dataclass(frozen=True)
class Setting:
    """A setting as the pilot showed it.

    Attributes:
        changes: fields of ``FlowCacheConfig``.
        speedup: times fewer FLOPs than the original takes.
        psnr: dB to the pilot's video without reuse.
        seconds: of denoising.
    """

    changes: dict[str, Any]
    speedup: float
    psnr: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.speedup:.2f}x fewer FLOPs than vanilla and {self.psnr:.1f} dB to no reuse"


@dataclass(frozen=True)
class Profile:
    """What a pilot showed.

    Attributes:
        key: everything that it depends on: model, video, cache, ladder.
        settings: of the ladder.
        seconds: of denoising without reuse.
        environment: what it ran on.
    """

    key: dict[str, Any]
    settings: list[Setting]
    seconds: float
    environment: dict[str, str]

    def choose(self, target: Target) -> Setting:
        """The best setting that meets a target.

        Raises:
            ValueError: none does; the sentence says which comes nearest.
        """
        if target.psnr is None:
            near = max(self.settings, key=lambda s: s.speedup)
            meet = [s for s in self.settings if s.speedup >= target.speedup]
            best = max(meet, key=lambda s: (s.psnr, s.speedup), default=None)
        else:
            near = max(self.settings, key=lambda s: s.psnr)
            meet = [s for s in self.settings if s.psnr >= target.psnr]
            best = max(meet, key=lambda s: (s.speedup, s.psnr), default=None)
        if best is None:
            raise ValueError(
                f"{target.flag} {target.value:g} is out of reach: the nearest comes to {near}; ask for less."
            )
        return best

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all; its folder is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read what ``save`` wrote.

        Raises:
            ValueError: it is no such file.
        """
        remedy = "delete it to have it made again"
        content = read_json(path, dict[str, Any], "a profile", remedy)
        with reading(path, "a profile", remedy):
            if content.pop("format", None) != FORMAT_VERSION:
                raise ValueError(f"it is not of format {FORMAT_VERSION}")
            profile = as_type(content, cls)
            for setting in profile.settings:
                if "computed_steps" in setting.changes:
                    setting.changes["computed_steps"] = tuple(setting.changes["computed_steps"])
            return profile


@dataclass(frozen=True)
class Tuned:
    """The settings that a target came to.

    Attributes:
        cache: with the setting that was chosen.
        target: that was asked for.
        expected: what the pilot showed of that setting.
        seconds: that the pilot took to denoise without reuse, as its first run.
        hardware: on which.
    """

    cache: FlowCacheConfig
    target: Target
    expected: Setting
    seconds: float
    hardware: str

    def __str__(self) -> str:
        taken = ", ".join(f"{name} {value}" for name, value in self.expected.changes.items())
        return (
            f"{self.target} asked for, taken is {taken}; expected are {self.expected} "
            f"(a pilot took {self.expected.seconds:.1f} s instead of {self.seconds:.1f} s on {self.hardware})"
        )

    def note(self, trace: Trace) -> None:
        """Let a trace say how its settings came about."""
        trace.settings["tuning"] = {"target": str(self.target), "expected": str(self)}


class Tuning:
    """The search for a setting, of which the profile is looked up or made.

    Args:
        target: what to come to.
        cache: settings of the method; those of the ladder are put in their place.
        num_steps: local steps of a chunk.
        plans: to try as well; None: there are none.
        described: model, video and all else that the pilot depends on, beside the cache; for JSON.
        name: of the file, as far as it can be read; the rest tells the settings apart.
        path: of the profile; None: in the cache folder.

    Raises:
        ValueError: a chunk has too few steps to skip any.
    """

    def __init__(
        self,
        target: Target,
        cache: FlowCacheConfig,
        num_steps: int,
        plans: Plans | None,
        described: Mapping[str, Any],
        name: str,
        path: Path | None = None,
    ) -> None:
        self.target, self.cache = target, cache
        self.ladder = ladder(cache.warmup_steps, num_steps, plans)
        if not self.ladder:
            raise ValueError(f"{target.flag} needs more steps to skip some of them, got {num_steps}.")
        shared = {key: value for key, value in cache.as_dict().items() if key not in TRIED}
        # As JSON gives it back; the ladder last, as it differs whenever steps or plans do.
        self.key = json.loads(json.dumps({**described, "cache": shared, "ladder": self.ladder}))
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:8]
        self.path = path or profile_folder() / f"{name}-{digest}.json"

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides about the setting, as ``ResumeFile`` wants it."""
        return {"target": str(self.target), "profile": self.key}

    def saved(self) -> Profile | None:
        """The profile, if it is there.

        Raises:
            ValueError: it cannot be read, or is of another model or other settings; the first is named.
        """
        if not self.path.exists():
            return None
        profile = Profile.load(self.path)
        differing = differences(profile.key, self.key)
        if differing:
            raise ValueError(
                f"profile {self.path} is of other settings: {differing[0]}; give another, or leave it out."
            )
        if [setting.changes for setting in profile.settings] != self.ladder:
            raise ValueError(f"profile {self.path} is damaged; delete it to have it made again.")
        return profile

    def check(self) -> None:
        """Refuse what a saved profile cannot serve; nothing is said if there is none.

        Raises:
            ValueError: one sentence that names the argument and the fix.
        """
        profile = self.saved()
        if profile is not None:
            profile.choose(self.target)

    def run(self, pilot: Pilot) -> Tuned:
        """Choose the setting; the profile is made and saved if it is not there.

        Raises:
            ValueError: as ``check``.
        """
        profile = self.saved()
        if profile is None:
            profile = self._measure(pilot)
            profile.save(self.path)
        expected = profile.choose(self.target)
        cache = replace(self.cache, **expected.changes)
        hardware = profile.environment.get("hardware", "unknown hardware")
        tuned = Tuned(cache, self.target, expected, profile.seconds, hardware)
        logger.info("%s, by %s", tuned, self.path)
        return tuned

    def _measure(self, pilot: Pilot) -> Profile:
        logger.info("no profile %s: %d short runs make it", self.path, len(self.ladder) + 1)
        with tqdm(total=len(self.ladder) + 1, desc="pilot", unit="run") as progress:
            plain = pilot(replace(self.cache, policy="none"))
            reference = to_uint8(plain.frames)
            progress.update()
            settings = []
            for changes in self.ladder:
                video = pilot(replace(self.cache, **changes))
                speedup = video.trace.flops["vanilla"] / video.trace.flops["actual"]
                closeness, _ = psnr(to_uint8(video.frames), reference)
                settings.append(Setting(changes, speedup, closeness, video.trace.seconds["denoise"]))
                progress.update()
        return Profile(self.key, settings, plain.trace.seconds["denoise"], plain.trace.environment)


def ladder(warmup_steps: int, num_steps: int, plans: Plans | None = None) -> list[dict[str, Any]]:
    """Settings that a pilot tries, as fields of ``FlowCacheConfig``.

    Args:
        warmup_steps: that are computed in any case.
        num_steps: of a chunk.
        plans: to try as well.
    """
    at_intervals = [
        {"policy": "fixed_interval", "interval": interval}
        for interval in INTERVALS
        if warmup_steps + interval < num_steps
    ]
    planned = [] if plans is None else [{"policy": "planned", "computed_steps": s} for s in plans.steps]
    return at_intervals + planned


def profile_folder() -> Path:
    """Where profiles are kept: in ``FLOWCACHE_CACHE``, or else in ``~/.cache/flowcache``."""
    return expand_path(os.environ.get(CACHE_VARIABLE) or CACHE_FOLDER, CACHE_VARIABLE) / "profiles"
