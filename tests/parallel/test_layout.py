"""How processes divide a video, without starting any."""

import pytest
import torch
from diffusers import ParallelConfig, SkyReelsV2Transformer3DModel
from parallel_videos import CASES, make_pipelines, stream

from flowcache import Trace, blockwise
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache
from flowcache.parallel import Group, Layout, SequenceShares
from flowcache.parallel.efficiency import PlannedGroup
from flowcache.parallel.layout import check_count, choose_cfg_size, describe_busy
from flowcache.wan.chunk_model import WanChunkModel


def test_shares_are_contiguous_and_differ_by_one_at_most():
    assert Group(0, 3).shares(8) == [range(0, 3), range(3, 6), range(6, 8)]
    assert Group(2, 3).share(8) == range(6, 8)
    assert Group().share(5) == range(5)


@pytest.mark.parametrize(
    ("processes", "guidance", "asked", "parts"),
    [(8, True, "auto", 2), (8, False, "auto", 1), (3, True, "auto", 1), (8, True, 1, 1), (2, True, 2, 2)],
)
def test_guidance_is_split_first_where_it_can_be(processes, guidance, asked, parts):
    assert choose_cfg_size(processes, guidance, asked) == parts


@pytest.mark.parametrize(("processes", "guidance", "asked"), [(3, True, 2), (4, False, 2), (4, True, 3)])
def test_cfg_sizes_that_do_not_fit_are_refused(processes, guidance, asked):
    with pytest.raises(ValueError, match="cfg_size"):
        choose_cfg_size(processes, guidance, asked)


def test_more_processes_than_heads_are_refused():
    with pytest.raises(ValueError) as refused:
        check_count(16, 1, 8)
    expected = "16 processes are too many: this model has 8 key-value heads; start at most 8."
    assert str(refused.value) == expected
    check_count(24, 2, 12, guidance=True)
    with pytest.raises(ValueError, match="cfg_size"):
        check_count(16, 1, 12, guidance=True)
    with pytest.raises(ValueError, match="a frame has 4 tokens"):
        SequenceShares(Group(0, 5), 4, 8)


def test_uneven_heads_say_how_busy_processes_are():
    expected = "12 heads on 8 processes: 75% busy; 6, or 2 x 4 with guidance, are even."
    assert describe_busy(8, 1, 12, 12, guidance=True) == expected
    assert describe_busy(8, 2, 12, 12, guidance=True) is None
    assert describe_busy(8, 1, 24, 8) is None


def test_one_process_gets_its_own_tensors_back():
    layout, tensor = Layout.plan(Group(), heads=4, kv_heads=2), torch.ones(1, 3, 4, 2)
    group, shares = layout.world, SequenceShares(layout.tokens, 3, 2)
    assert group.exchange([tensor], [tensor.shape])[0] is tensor
    for made in (group.gather(tensor, 1, [3]), group.sum(tensor), group.max(tensor), group.broadcast(tensor, "cpu")):
        assert made is tensor
    assert shares.take(tensor, 1) is tensor and shares.join(tensor, 1) is tensor
    assert shares.to_heads(tensor, tensor, tensor)[1] is tensor and shares.to_tokens(tensor) is tensor
    assert group.broadcast_object("a") == "a" and group.gather_objects("a") == ["a"]
    assert group.traffic.collectives == 0 and group.traffic.nbytes == 0


def test_a_transformer_under_diffusers_parallelism_is_refused():
    with torch.device("meta"):
        transformer = SkyReelsV2Transformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=12)
    transformer._parallel_config = ParallelConfig()
    with pytest.raises(ValueError, match="parallelize"):
        WanChunkModel(transformer, torch.zeros(1, 8, 16), (4, 4), 5)


def test_processes_with_shares_of_different_sizes_exchange_as_often(monkeypatch):
    """Some of these shares of a call are above the size from which guidance branches run one after another."""
    monkeypatch.setattr(blockwise, "MAX_TOKENS", 27)
    sizes = {"num_layers": 1, "num_attention_heads": 3, "attention_head_dim": 12, "text_dim": 16, "ffn_dim": 32}
    transformer = SkyReelsV2Transformer3DModel(**sizes, in_channels=4, out_channels=4, freq_dim=32).eval()
    counts = []
    for index in range(3):
        group = PlannedGroup(index, 3)
        model = WanChunkModel(transformer, torch.zeros(2, 4, 16), (10, 16), 2, processes=Layout(group, tokens=group))
        inputs = [ChunkInput(0, 0, torch.zeros(4, 2, 10, 16), (0.0, 0.0), 0, None)]
        cache = ChunkKVCache(model.cache_layout(), 80)
        cache.enter(0, 80)
        with torch.inference_mode():
            model.blocks(inputs, model.embed(inputs), cache)
        counts.append(group.traffic.collectives)
    assert counts == [4, 4, 4]


def test_parts_of_guidance_are_refused_by_a_model_that_has_none():
    pipeline = make_pipelines()["magi1"]
    pipeline.parallelize(Group(), cfg_size=2)
    with pytest.raises(ValueError, match="cfg_size"):
        next(stream(pipeline, CASES["magi_fast"], Trace()))
