"""Which branches, conditions and keys the chunks of a window get."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn.functional import scaled_dot_product_attention

from flowcache import StaircaseSchedule
from flowcache.chunk_model import ChunkInput
from flowcache.config import FlowCacheConfig
from flowcache.kv.cache import CacheLayout, ChunkKVCache
from flowcache.kv.manager import CacheManager
from magi1 import attention
from magi1.attention import (
    FlashVarlen,
    OneByOne,
    PackedSegments,
    Segment,
    TextBank,
    choose_attention,
)
from magi1.captions import make_captions
from magi1.chunk_model import GIVEN_REACH, KVRange, MagiChunkModel, Sampling
from magi1.guidance import DistilledGuidance
from magi1.layers import rotate
from magi1.schedule import Timetable
from magi1.transformer import MagiAttention, MagiTransformer3DModel

SIZES = {"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2}
SIZES |= {"num_query_groups": 1, "kv_channels": 16, "in_channels": 4, "out_channels": 4}
SIZES |= {"caption_channels": 16, "caption_max_length": 20}


def model_of(schedule: StaircaseSchedule, distilled: bool = True, kv_range: KVRange | None = None):
    torch.manual_seed(0)
    transformer = MagiTransformer3DModel(**SIZES)
    for parameter in transformer.time_embed.parameters():
        torch.nn.init.normal_(parameter)
    captions = make_captions(torch.randn(3, 16), transformer.caption_embed.null_caption, schedule.num_chunks)
    table = Timetable(schedule.num_steps, distilled=distilled)
    sampling = Sampling(table, DistilledGuidance(), schedule, kv_range or KVRange())
    return MagiChunkModel(transformer, captions, (4, 4), sampling)


def item(chunk: int, local_step: int) -> ChunkInput:
    return ChunkInput(chunk, chunk, torch.zeros(4, 1, 4, 4), (0.0,), local_step)


@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_of_the_live_chunks_only_the_oldest_runs_alone(window):
    schedule = StaircaseSchedule(6, 16, 16 // window)
    model = model_of(schedule)
    for live in schedule:
        runs = {c: len(model._branches(item(c, k))) for c, k in live.items()}
        nearly_clean = model.timetable.time(max(live.values())) > 0.3
        assert runs == {c: 2 if nearly_clean and c == min(live) else 1 for c in live}


def test_every_chunk_is_told_its_own_step_size():
    schedule = StaircaseSchedule(4, 12, 1)
    model = model_of(schedule)
    branch = model.guidance.branches(0.0, oldest=False)[0]
    for local_step in range(12):
        time, size = (
            torch.tensor([value])
            for value in (model.timetable.time(local_step), model.timetable.step_size(local_step))
        )
        expected = model.transformer.condition(time, [True], size)[0]
        assert torch.allclose(model._condition(item(0, local_step), branch), expected, atol=1e-4)
    assert model.timetable.step_size(0) != model.timetable.step_size(1)


def test_without_ranges_a_clean_chunk_sees_all_before_it():
    """``clean_chunk_kvrange`` then counts for given chunks only, as in the original."""
    model = model_of(StaircaseSchedule(12, 16, 4, first_chunk=2), kv_range=KVRange((), 1))
    assert [model.reach(step) for step in (0, 15, 16)] == [None, None, None]
    assert model.reach(None) == 1
    assert KVRange((4, 2), 1).reach(16, 16) == KVRange((4, 2), 1).given_reach == 1


def test_a_given_chunk_sees_eight_where_nothing_is_said_of_ranges():
    model = model_of(StaircaseSchedule(12, 16, 4, first_chunk=10))
    cache = CacheManager(model, model.sampling.schedule, [model.num_tokens(1)] * 12, FlowCacheConfig())
    assert cache.first_chunk(9, step=0) == 9 + 1 - GIVEN_REACH == 2
    assert cache.first_chunk(3, step=0) == 0
    assert cache.first_chunk(10, step=16) is None, "a finished one sees all"
    ranged = model_of(model.sampling.schedule, kv_range=KVRange((4, 3, 2, 2), 2))
    cache = CacheManager(ranged, model.sampling.schedule, [model.num_tokens(1)] * 12, FlowCacheConfig())
    assert cache.first_chunk(9, step=0) == 8


def test_queries_and_keys_are_rounded_once():
    torch.manual_seed(0)
    layer = MagiAttention(32, 2, 1, 16, 32, 1e-6, True).to(torch.bfloat16)
    layer.norm_q.float()
    hidden, angles = torch.randn(5, 32, dtype=torch.bfloat16), torch.randn(5, 6)
    seen = []

    class Attend:
        def attend_video(self, layer, query, key, value):
            seen.append(query)
            return query

        def attend_text(self, layer, query, project):
            return query

    layer(0, hidden, angles, Attend())
    projected = layer.to_q(layer.norm(hidden)).unflatten(1, (2, 16)).float()
    expected = rotate(layer.norm_q(projected), angles)
    assert torch.equal(seen[0], expected.to(torch.bfloat16))


def test_attention_is_chosen_once_and_said(monkeypatch, caplog):
    monkeypatch.delenv(attention.BACKEND_VARIABLE, raising=False)
    functions = {name: lambda: None for name in ("flash_attn", "flash_attn_interface")}
    for name, function in functions.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(flash_attn_varlen_func=function))
    cuda = torch.device("cuda")
    with caplog.at_level(logging.INFO):
        assert choose_attention(torch.device("cpu"), torch.float32) == OneByOne(AttentionBackendName.NATIVE)
    assert "attention: PyTorch's own" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: True)
    with caplog.at_level(logging.INFO):
        chosen = choose_attention(cuda, torch.bfloat16)
    assert chosen.function is functions["flash_attn_interface"]
    assert "attention: flash-attention 3, all segments in one call" in caplog.text
    assert choose_attention(cuda, torch.float32) == OneByOne(AttentionBackendName.NATIVE)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(attention, "is_flash_attn_available", lambda: True)
    monkeypatch.setattr(attention, "is_flash_attn_version", lambda *_: True)
    assert choose_attention(cuda, torch.bfloat16).function is functions["flash_attn"]
    monkeypatch.setenv(attention.BACKEND_VARIABLE, "sage")
    assert choose_attention(cuda, torch.bfloat16) == OneByOne(None)


class FlashStandIn:
    """What ``flash_attn_varlen_func`` is documented to do, on the CPU; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert cu_seqlens_k[-1] == len(k) == len(v)
        assert max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
        self.calls += 1
        parts = []
        for queries, keys in zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True):
            own, seen = slice(*queries), slice(*keys)
            args = (part.transpose(0, 1) for part in (q[own], k[seen], v[seen]))
            parts.append(scaled_dot_product_attention(*args, enable_gqa=True).transpose(0, 1))
        return torch.cat(parts), None


@pytest.mark.parametrize("branches", ["one", "with a lonely run"])
def test_flash_attention_runs_all_segments_in_one_call(branches):
    torch.manual_seed(0)
    layout = CacheLayout(num_layers=1, num_branches=1, num_heads=2, head_dim=8)
    cache, text = ChunkKVCache(layout, 12), TextBank([torch.randn(5, 16), torch.randn(3, 16)])
    for chunk in range(3):
        cache.enter(chunk, 4)
    cache.write(0, 0, *torch.randn(2, 4, 2, 8), branch=0)
    segments = [Segment(1, 4, 0, 0), Segment(2, 4, 1, 0, first_chunk=1)]
    if branches != "one":
        segments.append(Segment(1, 4, 0, None))
    tokens = 4 * len(segments)
    query, key, value = torch.randn(tokens, 4, 8), torch.randn(tokens, 2, 8), torch.randn(tokens, 2, 8)

    def project(caption):
        return caption.unflatten(1, (2, 8)), caption.flip(1).unflatten(1, (2, 8))

    function = FlashStandIn()
    packed = PackedSegments(segments, cache, text, FlashVarlen(function))
    plain = PackedSegments(segments, cache, text, OneByOne())
    for run in ("attend_video", "attend_text"):
        arguments = (0, query, key, value) if run == "attend_video" else (0, query, project)
        calls = function.calls
        actual, expected = getattr(packed, run)(*arguments), getattr(plain, run)(*arguments)
        assert torch.allclose(actual, expected, atol=1e-6)
        assert function.calls == calls + 1
