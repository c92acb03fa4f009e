"""The analytic count of MAGI-1's FLOPs against torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowcache import StaircaseSchedule
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache
from magi1.captions import NULL_TOKENS, Captions, make_captions
from magi1.chunk_model import MagiChunkModel, Sampling
from magi1.guidance import DistilledGuidance, ThreeWayGuidance
from magi1.paper_flops import paper_flops
from magi1.schedule import Timetable
from magi1.transformer import MagiTransformer3DModel

SIZES = {"num_layers": 3, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 16}
SIZES |= {"in_channels": 4, "out_channels": 4, "caption_channels": 16, "caption_max_length": 60}
STEPS, FRAMES, GRID = 16, 3, (16, 16)


@pytest.fixture(params=[False, True], ids=["gelu", "gated"])
def model(request):
    torch.manual_seed(0)
    transformer = MagiTransformer3DModel(
        hidden_size=64, ffn_hidden_size=256, gated_linear_unit=request.param, **SIZES
    )
    transformer.requires_grad_(False)  # the counter trips over parameters without a graph
    caption = torch.randn(NULL_TOKENS, SIZES["caption_channels"])
    captions = make_captions(caption, transformer.caption_embed.null_caption, num_chunks=2)
    timetable = Timetable(STEPS, distilled=True)
    sampling = Sampling(timetable, DistilledGuidance(), StaircaseSchedule(2, STEPS, STEPS // 4))
    return MagiChunkModel(transformer, captions, GRID, sampling)


@pytest.mark.parametrize("step", [0, STEPS - 1], ids=["usual", "nearly clean, and so also alone"])
def test_flops_of_a_chunk_that_sees_another(model, step):
    tokens = model.num_tokens(FRAMES)
    cache = ChunkKVCache(model.cache_layout(), 2 * tokens)
    cache.enter(0, tokens)
    cache.enter(1, tokens)
    time = model.timetable.time(step)
    item = ChunkInput(1, FRAMES, torch.randn(4, FRAMES, *GRID), (time,) * FRAMES, local_step=step)

    def evaluate():
        model.head([item], model.blocks([item], model.embed([item]), cache))

    evaluate()  # the text's keys and values are projected once
    # of the attention kernels, torch's counter knows the plain one
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate()
    counted = model.block_flops(tokens, 2 * tokens, step) + model.edge_flops(tokens, step)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("kind", ["given", "live", "finished"])
def test_flops_of_three_way_guidance(kind):
    torch.manual_seed(0)
    transformer = MagiTransformer3DModel(hidden_size=64, ffn_hidden_size=256, **SIZES).requires_grad_(False)
    # much longer than the null caption
    caption, null = torch.randn(58, SIZES["caption_channels"]), transformer.caption_embed.null_caption[:2]
    captions = Captions([caption], [0, 0], null)
    guidance = ThreeWayGuidance((0.0,), (1.5,), (7.5,))
    schedule = StaircaseSchedule(2, STEPS, STEPS // 4, first_chunk=int(kind == "given"))
    model = MagiChunkModel(transformer, captions, GRID, Sampling(Timetable(STEPS), guidance, schedule))
    tokens = model.num_tokens(1)
    cache = ChunkKVCache(model.cache_layout(), 2 * tokens)
    cache.enter(0, tokens)
    item = ChunkInput(0, 0, torch.randn(4, 1, *GRID), (0.0,), local_step=0 if kind == "live" else STEPS)
    step = {"given": None, "live": 0, "finished": STEPS}[kind]

    def evaluate():
        out = model.blocks([item], model.embed([item]), cache)
        if kind == "live":
            model.head([item], out)

    evaluate()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate()
    counted = model.block_flops(tokens, tokens, step) + model.edge_flops(tokens, step)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.002)


def test_vanilla_costs_what_the_paper_says():
    table = paper_flops()
    assert table.vanilla == pytest.approx(305.98, abs=0.005)
    assert table.difference("vanilla") == pytest.approx(0, abs=1e-3)
