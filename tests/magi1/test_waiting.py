"""How often the step loop waits for the device."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from cases import SIZES
from torch.overrides import TorchFunctionMode

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, cut_window
from flowcache.reuse.chunkwise import ChunkwiseReuse
from flowcache.reuse.policy import Decision, ReusePolicy
from flowcache.reuse.teacache import TeaCache
from magi1.captions import make_captions
from magi1.chunk_model import KVRange, MagiChunkModel, Sampling
from magi1.guidance import DistilledGuidance, ThreeWayGuidance
from magi1.schedule import Euler, Timetable
from magi1.transformer import MagiTransformer3DModel

STEPS = 4

#: Calls for which the host waits for a device: to get a value or the size of a result.
WAITING = {"item", "tolist", "numpy", "cpu", "equal", "allclose", "is_nonzero"}
WAITING |= {"__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "unique"}


class EveryOther(ReusePolicy):
    """Reuses each chunk at every other of its steps; reads the indicators, but not on the host."""

    needs_indicator = True

    def decide(self, step, num_steps, live, indicators):
        assert all(indicators[chunk].isfinite().all().ndim == 0 for chunk in live)
        return {chunk: Decision(reuse=local_step % 2 == 1) for chunk, local_step in live.items()}


class Waits(TorchFunctionMode):
    """Names of the calls that wait."""

    names: ClassVar[list[str]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        masked = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
        if name in WAITING or masked:
            self.names.append(name)
        if name == "tolist" and args[0].is_meta:
            return [0.0] * len(args[0])
        return function(*args, **(kwargs or {}))

    def take(self) -> list[str]:
        names = self.names.copy()
        self.names.clear()
        return names


def run(device: str, policy: ReusePolicy, forecast: str, distilled: bool = True) -> tuple[list, list]:
    """Denoise three chunks behind a given one and a held frame.

    Returns the waits within each step, and before each clean chunk.
    """
    torch.manual_seed(0)
    transformer = MagiTransformer3DModel(**SIZES).to(device)
    window = cut_window(torch.randn(4, 8, 4, 4, device=device), 2, torch.randn(4, 3, 4, 4, device=device))
    schedule = StaircaseSchedule(len(window.chunks), STEPS, 1, window.num_given)
    caption = torch.randn(5, 16, device=device)
    captions = make_captions(caption, transformer.caption_embed.null_caption, len(window.chunks), 1)
    timetable = Timetable(STEPS, "8,16,16", distilled, 0.9999)
    guidance = DistilledGuidance() if distilled else ThreeWayGuidance([0.0, 0.3], [1.5, 1.0], [7.5, 0.0])
    model = MagiChunkModel(
        transformer, captions, (4, 4), Sampling(timetable, guidance, schedule, KVRange((4, 3), 2))
    )
    loop = Denoiser(model, FlowCacheConfig(policy=policy, forecast=forecast, clean_pass=True))
    steps: list[list[str]] = []
    with Waits() as waits:
        loop.on_step = lambda: steps.append(waits.take())
        at_clean = [waits.take() for _ in loop.run(window, schedule, Euler(timetable))]
    assert sum(len(record.events) for record in loop.trace.steps) == 3 * STEPS
    return steps, at_clean


@pytest.mark.parametrize(
    ("forecast", "distilled"),
    [("hold_displacement", True), ("linear_residual", True), ("linear_velocity", False)],
)
def test_nothing_but_the_decision_waits(forecast, distilled):
    # Tensors of the meta device hold no values: a request for one would fail.
    steps, at_clean = run("meta", EveryOther(), forecast, distilled)
    assert not any(steps)
    assert at_clean == 3 * [["tolist"]], "one check for finite latents as each chunk is handed over"


@pytest.mark.parametrize(
    "policy", [TeaCache(threshold=0.3, warmup_steps=1), ChunkwiseReuse(threshold=0.3, warmup_steps=1)]
)
def test_a_decision_waits_once(policy):
    steps, _ = run("cpu", policy, "hold_velocity")
    assert max(map(len, steps)) == 1
    assert {name for step in steps for name in step} == {"tolist"}
