"""Which branches, conditions and keys the chunks of a window get."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from flowcache import StaircaseSchedule
from flowcache.chunk_model import ChunkInput
from flowcache.kv.window_cache import WindowCache
from magi1 import attention
from magi1.attention import choose_backend
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


def test_a_given_chunk_sees_eight_where_nothing_is_said_of_ranges():
    model = model_of(StaircaseSchedule(12, 16, 4, first_chunk=10))
    cache = WindowCache(model, model.sampling.schedule, [model.num_tokens(1)] * 12)
    assert cache.first_chunk(9, step=0) == 9 + 1 - GIVEN_REACH == 2
    assert cache.first_chunk(3, step=0) == 0
    assert cache.first_chunk(10, step=16) is None, "a finished one sees all"
    ranged = model_of(model.sampling.schedule, kv_range=KVRange((4, 3, 2, 2), 2))
    cache = WindowCache(ranged, model.sampling.schedule, [model.num_tokens(1)] * 12)
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
    cuda = torch.device("cuda")
    with caplog.at_level(logging.INFO):
        assert choose_backend(torch.device("cpu"), torch.float32) is AttentionBackendName.NATIVE
    assert "attention: native" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: True)
    assert choose_backend(cuda, torch.bfloat16) is AttentionBackendName._FLASH_3
    assert choose_backend(cuda, torch.float32) is AttentionBackendName.NATIVE
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(attention, "is_flash_attn_available", lambda: True)
    monkeypatch.setattr(attention, "is_flash_attn_version", lambda *_: True)
    assert choose_backend(cuda, torch.bfloat16) is AttentionBackendName.FLASH
    monkeypatch.setenv(attention.BACKEND_VARIABLE, "sage")
    assert choose_backend(cuda, torch.bfloat16) is None
