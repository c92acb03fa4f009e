"""The chunks of a window: branches, context, attention, FLOPs, and how often the loop waits."""

import logging
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from cases import SIZES, random_model
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, cut_window
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import CacheLayout, ChunkKVCache
from flowcache.reuse.chunkwise import ChunkwiseReuse
from flowcache.reuse.policy import Decision, ReusePolicy
from flowcache.reuse.teacache import TeaCache
from magi1 import attention
from magi1.attention import FlashVarlen, PackedSegments, PerSegmentAttention, Segment, TextBank, choose_attention
from magi1.chunk_model import GIVEN_REACH, KVRange, MagiChunkModel
from magi1.guidance import ThreeWayGuidance
from magi1.layers import rotate
from magi1.transformer import MagiAttention, MagiTransformer3DModel


@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_only_the_oldest_live_chunk_runs_without_context(window):
    schedule = StaircaseSchedule(6, 16, 16 // window)
    model = random_model(schedule)
    for live in schedule:
        chunks = [ChunkInput(chunk, chunk, torch.zeros(4, 1, 4, 4), (0.0,), step) for chunk, step in live.items()]
        runs = {chunk.chunk: len(model._branches(chunk)) for chunk in chunks}
        nearly_clean = model.timetable.timestep(max(live.values())) > 0.3
        assert runs == {c: 2 if nearly_clean and c == min(live) else 1 for c in live}


def test_context_of_clean_and_given_chunks():
    model = random_model(StaircaseSchedule(12, 16, 4, first_chunk=2), KVRange((), 1))
    assert [model.reach(step) for step in (0, 15, 16, None)] == [None, None, None, 1]
    assert KVRange().reach(None, 16) == GIVEN_REACH
    assert KVRange((4, 2), 1).reach(16, 16) == KVRange((4, 2), 1).reach(None, 16) == 1


def test_an_unknown_indicator_is_refused():
    model = random_model(StaircaseSchedule(2, 16, 4))
    with pytest.raises(ValueError, match="indicator"):
        MagiChunkModel(model.transformer, model._captions, (4, 4), model.sampling, "latent")


def test_queries_and_keys_are_rounded_once():
    torch.manual_seed(0)
    layer = MagiAttention(MagiTransformer3DModel(**SIZES).config, 32).to(torch.bfloat16)
    layer.norm_q.float()
    hidden, angles = torch.randn(5, 32, dtype=torch.bfloat16), torch.randn(5, 6)
    seen = []
    attend = SimpleNamespace(
        attend_video=lambda layer, query, key, value: seen.append(query) or query,
        attend_text=lambda layer, query, project: query,
    )
    layer(0, hidden, angles, attend)
    projected = layer.to_q(layer.norm(hidden)).unflatten(1, (2, 16)).float()
    assert torch.equal(seen[0], rotate(layer.norm_q(projected), angles).to(torch.bfloat16))


def test_attention_is_chosen_once_and_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.delenv(attention.BACKEND_VARIABLE, raising=False)
    functions = {name: lambda: None for name in ("flash_attn", "flash_attn_interface")}
    for name, function in functions.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(flash_attn_varlen_func=function))
    cuda, plain = torch.device("cuda"), PerSegmentAttention(AttentionBackendName.NATIVE)
    assert choose_attention(torch.device("cpu"), torch.float32) == plain
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: True)
    assert choose_attention(cuda, torch.bfloat16).function is functions["flash_attn_interface"]
    assert choose_attention(cuda, torch.float32) == plain
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(attention, "is_flash_attn_available", lambda: True)
    monkeypatch.setattr(attention, "is_flash_attn_version", lambda *_: True)
    assert choose_attention(cuda, torch.bfloat16).function is functions["flash_attn"]
    monkeypatch.setenv(attention.BACKEND_VARIABLE, "sage")
    assert choose_attention(cuda, torch.bfloat16) == PerSegmentAttention(None)
    logged = ("PyTorch's own", "flash-attention 3", "PyTorch's own", "flash-attention 2", "sage")
    assert all(name in record.message for name, record in zip(logged, caplog.records, strict=True))


def flash_stand_in(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """``flash_attn_varlen_func`` by its documentation, on the CPU."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_k[-1] == len(k) == len(v)
    assert max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
    parts = []
    for queries, keys in zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True):
        own, seen = slice(*queries), slice(*keys)
        args = (part.transpose(0, 1) for part in (q[own], k[seen], v[seen]))
        parts.append(scaled_dot_product_attention(*args, enable_gqa=True).transpose(0, 1))
    return torch.cat(parts), None


@pytest.mark.parametrize("alone", [False, True])
def test_flash_attention_runs_all_segments_in_one_call(alone):
    torch.manual_seed(0)
    layout = CacheLayout(num_layers=1, num_branches=1, num_heads=2, head_dim=8)
    cache, text = ChunkKVCache(layout, 12), TextBank([torch.randn(5, 16), torch.randn(3, 16)])
    for chunk in range(3):
        cache.enter(chunk, 4)
    cache.write(0, 0, *torch.randn(2, 4, 2, 8), branch=0)
    segments = [Segment(1, 4, 0, 0), Segment(2, 4, 1, 0, first_chunk=1)] + alone * [Segment(1, 4, 0, None)]
    tokens, calls = 4 * len(segments), []
    query, key, value = torch.randn(tokens, 4, 8), torch.randn(tokens, 2, 8), torch.randn(tokens, 2, 8)

    def project(caption):
        return caption.unflatten(1, (2, 8)), caption.flip(1).unflatten(1, (2, 8))

    flash = FlashVarlen(lambda *args, **more: calls.append(1) or flash_stand_in(*args, **more))
    packed = PackedSegments(segments, cache, text, flash)
    plain = PackedSegments(segments, cache, text, PerSegmentAttention())
    video, words = (0, query, key, value), (0, query, project)
    assert torch.allclose(packed.attend_video(*video), plain.attend_video(*video), atol=1e-6)
    assert torch.allclose(packed.attend_text(*words), plain.attend_text(*words), atol=1e-6)
    assert len(calls) == 2


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

    names: tuple[str, ...] = ()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        masked = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
        if name in WAITING or masked:
            self.names += (name,)
        if name == "tolist" and args[0].is_meta:
            return [0.0] * len(args[0])
        return function(*args, **(kwargs or {}))

    def take(self) -> tuple[str, ...]:
        names, self.names = self.names, ()
        return names


@pytest.mark.parametrize(
    ("policy", "forecast", "distilled", "most"),
    [
        (EveryOther(), "hold_displacement", True, 0),
        (EveryOther(), "linear_residual", True, 0),
        (EveryOther(), "linear_velocity", False, 0),
        (TeaCache(threshold=0.3, warmup_steps=1), "hold_velocity", True, 1),
        (ChunkwiseReuse(threshold=0.3, warmup_steps=1), "hold_velocity", True, 1),
    ],
)
def test_a_step_waits_for_the_decision_alone(policy, forecast, distilled, most):
    """Three chunks behind a given one and a held frame."""
    torch.manual_seed(0)
    # Tensors of the meta device hold no values: a request for one would fail.
    device = "cpu" if most else "meta"
    window = cut_window(torch.randn(4, 8, 4, 4, device=device), 2, torch.randn(4, 3, 4, 4, device=device))
    schedule = StaircaseSchedule(len(window.chunks), STEPS, 1, window.num_given)
    guidance = None if distilled else ThreeWayGuidance([0.0, 0.3], [1.5, 1.0], [7.5, 0.0])
    model = random_model(schedule, KVRange((4, 3), 2), guidance, device=device)
    loop, steps = Denoiser(model, FlowCacheConfig(policy=policy, forecast=forecast, clean_pass=True)), []
    with Waits() as waits:
        loop.on_step = lambda: steps.append(waits.take())
        at_clean = [waits.take() for _ in loop.run(window, schedule, model.timetable)]
    assert sum(len(record.events) for record in loop.trace.steps) == 3 * STEPS
    assert max(map(len, steps)) == most
    assert {name for step in steps for name in step} <= {"tolist"}
    assert at_clean == 3 * [("tolist",)], "one check for finite latents as each chunk is handed over"
