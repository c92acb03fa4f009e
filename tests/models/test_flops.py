"""The analytic counts of FLOPs of both models against torch's and the paper's."""

import pytest
import torch
from cases import random_model
from diffusers import SkyReelsV2Transformer3DModel
from layouts import on_meta
from tiny import SIZES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowcache import StaircaseSchedule
from flowcache.benchmark.paper_flops import PETA
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache
from flowcache.wan.chunk_model import WanChunkModel, transformer_flops
from magi1.guidance import DistilledGuidance, ThreeWayGuidance
from skyreels_v2.paper_flops import FLOPS, paper_flops

TEXT_TOKENS = 12


def count(model, item: ChunkInput, tokens: int, chunks: int, edges: bool = True) -> list[int]:
    """FLOPs of a chunk that sees ``chunks`` of as many tokens, in its first run and in its second."""
    cache, counted = ChunkKVCache(model.cache_layout(), chunks * tokens), []
    for chunk in range(chunks):
        cache.enter(chunk, tokens)
    for _ in range(2):
        # of the attention kernels, torch's counter knows the plain one
        with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            outputs = model.blocks([item], model.embed([item]), cache)
            if edges:
                model.head([item], outputs)
        counted.append(counter.get_total_flops())
    return counted


@pytest.mark.parametrize("branches", [1, 2])
def test_flops_of_a_block_of_skyreels(branches):
    transformer = SkyReelsV2Transformer3DModel(**SIZES)
    embeds = torch.randn(branches, TEXT_TOKENS, SIZES["text_dim"])
    model = WanChunkModel(transformer, embeds, (16, 16), 4, guidance_scale=2.0)
    tokens = model.num_tokens(2)
    once, again = count(model, ChunkInput(1, 2, torch.randn(4, 2, 16, 16), (500.0, 500.0)), tokens, 2)
    assert again == pytest.approx(model.block_flops(tokens, 2 * tokens) + model.edge_flops(tokens), rel=0.01)
    text = branches * transformer_flops(transformer.config).text(TEXT_TOKENS)
    assert text <= once - again < 1.2 * text, "keys and values of the text, and the time, are made once"


def test_counts_are_those_of_the_paper():
    config = on_meta(SkyReelsV2Transformer3DModel, num_attention_heads=12, num_layers=30, ffn_dim=8960).config
    assert transformer_flops(config) == FLOPS
    table = paper_flops()
    assert table.vanilla == pytest.approx(113.6, abs=0.02)
    assert table.rows["vanilla"].pflops / table.vanilla == pytest.approx(1, abs=6e-3)
    live = list(table.counted)[1]
    assert table.counted[live] / PETA == pytest.approx(79.7, abs=0.05)
    shares = {method: table.reused_share(method, live) for method in table.rows}
    assert shares.pop("vanilla") is None
    assert list(shares.values()) == pytest.approx([0.27, 0.39, 0.55, 0.65], abs=0.006)


NUM_STEPS, GRID = 16, (16, 16)
THREE_WAY = ThreeWayGuidance((0.0,), (1.5,), (7.5,))

#: Guidance, chunk and local step (None: given) of live, nearly clean, clean and given chunks.
KINDS = [
    (DistilledGuidance(), 1, 0),
    (DistilledGuidance(), 1, NUM_STEPS - 1),
    (THREE_WAY, 0, 0),
    (THREE_WAY, 0, NUM_STEPS),
    (THREE_WAY, 0, None),
]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("guidance", "chunk", "step"), KINDS)
def test_flops_of_a_chunk_of_magi(gated, guidance, chunk, step):
    schedule = StaircaseSchedule(2, NUM_STEPS, NUM_STEPS // 4, first_chunk=int(step is None))
    sizes = {"num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 256, "num_attention_heads": 4}
    model = random_model(schedule, None, guidance, GRID, **sizes, num_query_groups=2, gated_linear_unit=gated)
    frames, seen = 3, chunk + 1
    tokens = model.num_tokens(frames)
    local_step = NUM_STEPS if step is None else step
    item = ChunkInput(chunk, chunk * frames, torch.randn(4, frames, *GRID), (0.0,) * frames, local_step)
    expected = model.block_flops(tokens, seen * tokens, step) + model.edge_flops(tokens, step)
    _, counted = count(model, item, tokens, seen, edges=local_step < NUM_STEPS)
    assert counted == pytest.approx(expected, rel=0.002)
