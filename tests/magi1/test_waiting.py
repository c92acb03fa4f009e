"""How often the step loop waits for the device."""

from __future__ import annotations

import pytest
import torch
from flowcache.reuse.error_controlled import ErrorControlled
from torch.overrides import TorchFunctionMode

from flowcache import Denoiser, LoopOptions, StaircaseSchedule, Trace, cut_window
from flowcache.reuse.chunkwise import ChunkwiseReuse
from flowcache.reuse.forecast import FORECASTS
from flowcache.reuse.policy import Decision, ReusePolicy
from flowcache.reuse.teacache import TeaCache
from magi1.captions import make_captions
from magi1.chunk_model import KVRange, MagiChunkModel, Sampling
from magi1.guidance import DistilledGuidance, ThreeWayGuidance
from magi1.schedule import Euler, Timetable
from magi1.transformer import MagiTransformer3DModel

SIZES = {"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2}
SIZES |= {"num_query_groups": 1, "kv_channels": 16, "in_channels": 4, "out_channels": 4}
SIZES |= {"caption_channels": 16, "caption_max_length": 20}
STEPS = 4

#: What makes the host wait for a device: to bring it a value, or to say how large a result is.
WAITING = {"item", "tolist", "numpy", "cpu", "equal", "allclose", "is_nonzero"}
WAITING |= {"__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "unique"}


class EveryOther(ReusePolicy):
    """Reuses each chunk at every other of its steps; looks at the indicators, but not on the host."""

    needs_indicator = True

    def decide(self, step, num_steps, live, indicators):
        assert all(indicators[chunk].isfinite().all().ndim == 0 for chunk in live)
        return {chunk: Decision(reuse=local_step % 2 == 1) for chunk, local_step in live.items()}


class Waits(TorchFunctionMode):
    """Counts the calls that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        masked = name in ("__getitem__", "__setitem__") and _is_mask(args[1])
        if name in WAITING or masked:
            self.names.append(name)
        if name == "tolist" and args[0].is_meta:
            return [0.0] * len(args[0])
        return function(*args, **(kwargs or {}))


def _is_mask(index: object) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


def run(
    device: str, policy: ReusePolicy, forecast: str, distilled: bool = True
) -> tuple[list[list[str]], list[list[str]]]:
    """Denoise three chunks behind a given one and a held frame; what waited within each step, and before each
    clean chunk was handed over."""
    torch.manual_seed(0)
    transformer = MagiTransformer3DModel(**SIZES).to(device)
    window = cut_window(torch.randn(4, 8, 4, 4, device=device), 2, torch.randn(4, 3, 4, 4, device=device))
    schedule = StaircaseSchedule(len(window.chunks), STEPS, 1, window.num_given)
    caption = torch.randn(5, 16, device=device)
    captions = make_captions(caption, transformer.caption_embed.null_caption, len(window.chunks), 1)
    timetable = Timetable(STEPS, "8,16,16", distilled, 0.9999)
    guidance = DistilledGuidance() if distilled else ThreeWayGuidance([0.0, 0.3], [1.5, 1.0], [7.5, 0.0])
    sampling = Sampling(timetable, guidance, schedule, KVRange((4, 3), 2))
    model = MagiChunkModel(transformer, captions, (4, 4), sampling)
    loop = Denoiser(model, policy, FORECASTS[forecast](), LoopOptions(clean_pass=True), Trace())
    steps: list[list[str]] = []
    with Waits() as waits:

        def end_step() -> None:
            steps.append(waits.names.copy())
            waits.names.clear()

        loop.on_step = end_step
        at_clean = []
        for _ in loop.run(window, schedule, Euler(timetable)):
            at_clean.append(waits.names.copy())
            waits.names.clear()
    assert sum(len(record.events) for record in loop.trace.steps) == 3 * STEPS
    return steps, at_clean


@pytest.mark.parametrize(
    ("forecast", "distilled"),
    [("hold_displacement", True), ("linear_residual", True), ("quadratic_velocity", False)],
)
def test_nothing_but_the_decision_waits(forecast, distilled):
    # Tensors of the meta device hold no values: whatever asked for one would fail.
    steps, at_clean = run("meta", EveryOther(), forecast, distilled)
    assert not any(steps)
    assert at_clean == 3 * [["tolist"]], "whether all was finite is asked when a chunk is handed over"


POLICIES = [TeaCache(0.3), ChunkwiseReuse(0.3, STEPS), ErrorControlled(0.3, STEPS)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_decision_waits_once(policy):
    steps, _ = run("cpu", policy, "hold_velocity")
    assert max(map(len, steps)) == 1
    assert {name for step in steps for name in step} == {"tolist"}
