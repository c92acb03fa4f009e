"""Branches, conditions, context and attention of the chunks of a window, and their FLOPs."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from cases import SIZES
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn.functional import scaled_dot_product_attention

from flowcache import FlowCacheConfig, StaircaseSchedule
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import CacheLayout, ChunkKVCache
from flowcache.kv.manager import CacheManager
from magi1 import attention
from magi1.attention import (
    FlashVarlen,
    PackedSegments,
    PerSegmentAttention,
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


def model_of(schedule: StaircaseSchedule, kv_range: KVRange | None = None) -> MagiChunkModel:
    torch.manual_seed(0)
    transformer = MagiTransformer3DModel(**SIZES)
    for parameter in transformer.time_embed.parameters():
        torch.nn.init.normal_(parameter)
    captions = make_captions(torch.randn(3, 16), transformer.caption_embed.null_caption, schedule.num_chunks)
    table = Timetable(schedule.num_steps, distilled=True)
    sampling = Sampling(table, DistilledGuidance(), schedule, kv_range or KVRange())
    return MagiChunkModel(transformer, captions, (4, 4), sampling)


def item(chunk: int, local_step: int) -> ChunkInput:
    return ChunkInput(chunk, chunk, torch.zeros(4, 1, 4, 4), (0.0,), local_step)


@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_only_the_oldest_live_chunk_runs_without_context(window):
    schedule = StaircaseSchedule(6, 16, 16 // window)
    model = model_of(schedule)
    for live in schedule:
        runs = {c: len(model._branches(item(c, k))) for c, k in live.items()}
        nearly_clean = model.timetable.time(max(live.values())) > 0.3
        assert runs == {c: 2 if nearly_clean and c == min(live) else 1 for c in live}


def test_every_chunk_sees_its_own_step_size():
    model = model_of(StaircaseSchedule(4, 12, 1))
    table, branch = model.timetable, model.guidance.branches(0.0, oldest=False)[0]
    for local_step in range(12):
        time, size = (torch.tensor([f(local_step)]) for f in (table.time, table.step_size))
        expected = model.transformer.condition(time, [True], size)[0]
        assert torch.allclose(model._condition(item(0, local_step), branch), expected, atol=1e-4)
    assert table.step_size(0) != table.step_size(1)


def test_context_of_clean_and_given_chunks():
    model = model_of(StaircaseSchedule(12, 16, 4, first_chunk=2), KVRange((), 1))
    assert [model.reach(step) for step in (0, 15, 16)] == [None, None, None], (
        "clean_chunk_kvrange: given only"
    )
    assert model.reach(None) == 1
    assert KVRange((4, 2), 1).reach(16, 16) == KVRange((4, 2), 1).given_reach == 1
    schedule = StaircaseSchedule(12, 16, 4, first_chunk=10)
    managers = [
        CacheManager(model_of(schedule, kv_range), schedule, [4] * 12, FlowCacheConfig())
        for kv_range in (None, KVRange((4, 3, 2, 2), 2))
    ]
    assert managers[0].first_chunk(9, step=0) == 9 + 1 - GIVEN_REACH == 2
    assert managers[0].first_chunk(3, step=0) == 0
    assert managers[0].first_chunk(10, step=16) is None, "a clean one sees all"
    assert managers[1].first_chunk(9, step=0) == 8


def test_an_unknown_indicator_is_refused():
    model = model_of(StaircaseSchedule(2, 16, 4))
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
