"""Plans on disk, beside the weights that they were made for: the steps to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_json
from ..typed import as_type
from ..user_files import read_json, reading
from .planned import computed_share

FORMAT_VERSION = 1

#: The way of sampling that a plan is for: steps, stride, and what else bends the path of a chunk.
Sampling = Mapping[str, float]


@dataclass(frozen=True)
class Plans:
    """Plans of several budgets, made from the same calibration; ``scripts/make_plans.py`` makes them.

    Attributes:
        sampling: steps, stride and so on that they are for.
        forecast: what stands in for the model at the other steps, a key of ``FORECASTS``.
        steps: for each budget, rising, those of the youngest live chunk at which all are computed.
        times: of the starts of a chunk's steps and of its end.
        amplification: of the squared error made at each step, at the end.
        made: how, in one sentence.

    Raises:
        ValueError: a plan names no step, does not rise or leaves the steps that there are.
    """

    sampling: Sampling
    forecast: str
    steps: tuple[tuple[int, ...], ...]
    times: tuple[float, ...]
    amplification: tuple[float, ...]
    made: str

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("steps must hold a plan.")
        count = len(self.times) - 1
        for plan in self.steps:
            if not plan or sorted(set(plan) & set(range(count))) != list(plan):
                raise ValueError(f"steps must rise, from 0 or more to below {count}, got {list(plan)}.")

    @classmethod
    def find(cls, model: Path, sampling: Sampling) -> Plans | None:
        """The plans in the folder of a model for a way to sample it, if there are any."""
        path = model / file_name(sampling)
        return cls.load(path) if path.is_file() else None

    @classmethod
    def load(cls, path: Path) -> Plans:
        """Read what ``save`` wrote.

        Raises:
            ValueError: the file holds no plans, or those of another version.
        """
        content = read_json(path, dict[str, Any], "plans")
        with reading(path, "plans"):
            if (version := content.pop("format", None)) != FORMAT_VERSION:
                raise ValueError(f"its format is {version}, not {FORMAT_VERSION}; make them again")
            plans = as_type(content, cls)
            as_type(plans.sampling["stride"], int, "stride")
            return plans

    def save(self, model: Path) -> Path:
        """Write to the folder of a model, under a name that tells the sampling; returns the path."""
        path = model / file_name(self.sampling)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"format": FORMAT_VERSION, **asdict(self), "sampling": dict(self.sampling)})
        return path

    def of_share(self, share: float) -> tuple[int, ...]:
        """The plan whose share of chunk steps computed is nearest to this one."""
        return min(self.steps, key=lambda plan: abs(self.share_of(plan) - share))

    def share_of(self, plan: tuple[int, ...]) -> float:
        """Share of chunk steps that one of the plans computes."""
        return computed_share(plan, len(self.times) - 1, int(self.sampling["stride"]))


def planned_steps(model: Path | None, sampling: Sampling, share: float) -> tuple[int, ...]:
    """The steps to compute, by the plan in the folder of a model whose share of them is nearest.

    Raises:
        ValueError: the share is none, or there are no plans for this sampling; one sentence.
    """
    if not 0 < share <= 1:
        raise ValueError(f"plan must be a share of the steps, above 0 and at most 1, got {share}.")
    plans = None if model is None else Plans.find(model, sampling)
    if plans is None:
        wanted = ", ".join(f"{name} {value:g}" for name, value in sampling.items())
        raise ValueError(
            f"plan needs plans beside the model for {wanted}, and there are none; make them with "
            "scripts/make_plans.sh, or set an interval instead."
        )
    return plans.of_share(share)


def file_name(sampling: Sampling) -> str:
    """Names and values in a row: ``plans/steps50_stride5_shift8_guidance6.json``."""
    return f"plans/{'_'.join(f'{name}{value:g}' for name, value in sampling.items())}.json"
