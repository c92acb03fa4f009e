"""The analytic count of SkyReels-V2's FLOPs against torch's and the paper's."""

from __future__ import annotations

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowcache.benchmark.paper_flops import PETA
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache
from skyreels_v2.chunk_model import SkyReelsV2ChunkModel
from skyreels_v2.flops import TransformerFlops
from skyreels_v2.paper_flops import FLOPS, paper_flops

TEXT_TOKENS = 12


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=96,
        num_layers=2,
    )


def count(evaluate):
    # of the attention kernels, torch's counter knows the plain one
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate()
    return counter.get_total_flops()


@pytest.mark.parametrize("branches", [1, 2])
def test_flops_of_a_chunk_that_sees_another(transformer, branches):
    embeds = torch.randn(branches, TEXT_TOKENS, 16)
    model = SkyReelsV2ChunkModel(transformer, embeds, (16, 16), 4, guidance_scale=2.0)
    tokens = model.num_tokens(2)
    cache = ChunkKVCache(model.cache_layout(), 2 * tokens)
    cache.enter(0, tokens)
    cache.enter(1, tokens)
    item = ChunkInput(1, 2, torch.randn(4, 2, 16, 16), (500.0, 500.0))

    def evaluate():
        model.head([item], model.blocks([item], model.embed([item]), cache))

    evaluate()  # the text's keys and values and the time are embedded once
    counted = model.block_flops(tokens, 2 * tokens) + model.edge_flops(tokens)
    assert count(evaluate) == pytest.approx(counted, rel=0.01)


def test_flops_of_projecting_the_text(transformer):
    text = torch.randn(1, TEXT_TOKENS, transformer.config.num_attention_heads * 24)

    def project():
        for block in transformer.blocks:
            block.attn2.to_k(text)
            block.attn2.to_v(text)

    flops = TransformerFlops.of(transformer.config, TEXT_TOKENS)
    assert count(project) == flops.text_projections()


def test_sizes_are_those_of_the_1_3b_model(transformer):
    config = {"num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16}
    config = type("Config", (), {**config, "patch_size": (1, 2, 2), "ffn_dim": 8960, "num_layers": 30})
    assert TransformerFlops.of(config, 512) == FLOPS


def test_vanilla_costs_what_the_paper_says():
    table = paper_flops()
    assert table.vanilla == pytest.approx(113.6, abs=0.02)
    assert table.difference("vanilla") == pytest.approx(0, abs=6e-3)


def test_of_live_blocks_less_is_left_to_reuse():
    table = paper_flops()
    live = list(table.counted)[1]
    assert table.counted[live] / PETA == pytest.approx(79.7, abs=0.05)
    shares = {method: table.reused_share(method, live) for method in table.rows}
    assert shares.pop("vanilla") is None
    assert list(shares.values()) == pytest.approx([0.27, 0.39, 0.55, 0.65], abs=0.006)
