"""The analytic count of MAGI-1's FLOPs against torch's."""

from __future__ import annotations

import pytest
import torch
from cases import SIZES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowcache import StaircaseSchedule
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache
from magi1.captions import Captions
from magi1.chunk_model import MagiChunkModel, Sampling
from magi1.guidance import DistilledGuidance, ThreeWayGuidance
from magi1.paper_flops import paper_flops
from magi1.schedule import Timetable
from magi1.transformer import MagiTransformer3DModel

STEPS, GRID = 16, (16, 16)
THREE_WAY = ThreeWayGuidance((0.0,), (1.5,), (7.5,))

#: Guidance, chunk and local step (None: given) of live, nearly clean, clean and given chunks.
KINDS = [
    (DistilledGuidance(), 1, 0),
    (DistilledGuidance(), 1, STEPS - 1),
    (THREE_WAY, 0, 0),
    (THREE_WAY, 0, STEPS),
    (THREE_WAY, 0, None),
]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("guidance", "chunk", "step"), KINDS)
def test_flops_of_a_chunk(gated, guidance, chunk, step):
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 64, "ffn_hidden_size": 256, "num_layers": 3, "num_attention_heads": 4}
    transformer = MagiTransformer3DModel(**sizes | {"num_query_groups": 2}, gated_linear_unit=gated)
    transformer.requires_grad_(False)  # the counter trips over parameters without a graph
    # much longer than the null caption
    captions = Captions([torch.randn(58, 16)], [0, 0], transformer.caption_embed.null_caption[:2])
    schedule = StaircaseSchedule(2, STEPS, STEPS // 4, first_chunk=int(step is None))
    sampling = Sampling(Timetable(STEPS, distilled=guidance is not THREE_WAY), guidance, schedule)
    model = MagiChunkModel(transformer, captions, GRID, sampling)
    frames, seen = 3, chunk + 1
    tokens = model.num_tokens(frames)
    cache = ChunkKVCache(model.cache_layout(), seen * tokens)
    for each in range(seen):
        cache.enter(each, tokens)
    local_step = STEPS if step is None else step
    item = ChunkInput(chunk, chunk * frames, torch.randn(4, frames, *GRID), (0.0,) * frames, local_step)

    def evaluate():
        outputs = model.blocks([item], model.embed([item]), cache)
        if local_step < STEPS:
            model.head([item], outputs)

    evaluate()  # the text's keys and values are projected once
    # of the attention kernels, torch's counter knows the plain one
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate()
    counted = model.block_flops(tokens, seen * tokens, step) + model.edge_flops(tokens, step)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.002)


def test_vanilla_costs_what_the_paper_says():
    table = paper_flops()
    assert table.vanilla == pytest.approx(305.98, abs=0.005)
    assert table.difference("vanilla") == pytest.approx(0, abs=1e-3)
