"""What the comparison with other caches rests on: the grid, the counting of FLOPs, the table."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from programs import load_script

from skyreels_v2 import VideoSettings
from skyreels_v2.flops import TransformerFlops
from skyreels_v2.solver import noise_grid


@pytest.fixture
def load(monkeypatch):
    return partial(load_script, monkeypatch=monkeypatch)


def test_grid_is_that_of_our_solver(load):
    shifted = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 8.0}
    scheduler = load("peers").OriginalGrid.from_config(UniPCMultistepScheduler(**shifted).config)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(noise_grid(7, 8.0)), rtol=0, atol=1e-7)


@torch.no_grad()
def test_flops_are_those_of_the_blocks_that_run(load):
    peers = load("peers")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    model = SkyReelsV2Transformer3DModel(**sizes, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=3)
    inputs = (torch.randn(1, 4, 5, 4, 6), torch.tensor([500]), torch.randn(1, 7, 16))
    with peers.BlockFlops(model, text_tokens=7) as plain:
        model(*inputs)
    expected, tokens = TransformerFlops.of(model.config, 7), 5 * 2 * 3
    edges = expected.embed(tokens) + expected.head(tokens)
    blocks = expected.blocks(tokens, tokens) + expected.text_projections()
    assert plain.total == edges + blocks

    peers.register_block()
    model.enable_cache(peers.FirstBlockCacheConfig(threshold=1e9))
    with peers.BlockFlops(model, text_tokens=7) as cached:
        for _ in range(2):
            with model.cache_context("cond"):
                model(*inputs)
    assert cached.total == pytest.approx(2 * edges + blocks * (1 + 1 / 3)), (
        "one block of three the second time"
    )

    model.disable_cache()
    model(*inputs)
    assert cached.total == pytest.approx(2 * edges + blocks * (1 + 1 / 3)), "counts while it is entered only"


def test_table_has_a_row_with_the_reason_for_what_cannot_run(load):
    bench = load("bench_peers")

    def run(way, seconds, psnr):
        return bench.Measurement(
            way, 0, seconds, {"actual": 1e12 * seconds}, 0.0, psnr, dict.fromkeys(psnr, 0.9)
        )

    runs = [
        run("vanilla", 4.0, {"vanilla": 100.0, "diffusers": 30.0}),
        run("flowcache:fast", 1.0, {"vanilla": 25.0, "diffusers": 31.0}),
        run("diffusers", 6.0, {"vanilla": 30.0, "diffusers": 100.0}),
        run("fbcache:0.1", 2.0, {"vanilla": 28.0, "diffusers": 35.0}),
    ]
    reasons = {m.way: None for m in runs} | {
        "dbcache:0.1": "ModuleNotFoundError: No module named 'cache_dit'"
    }
    lines = bench.summarise(runs, reasons).splitlines()
    assert lines[3].startswith("| flowcache:fast | 1.00 | 4.00 | 1.000 | 4.00 | 25.0 dB, 0.900 |")
    assert lines[5].startswith("| fbcache:0.1 | 2.00 | 3.00 | 2.000 | 3.00 |"), "over diffusers' plain run"
    assert lines[6].startswith(
        "| dbcache:0.1 | cannot run: ModuleNotFoundError: No module named 'cache_dit' |"
    )
    assert len({line.count("|") for line in lines}) == 1


def test_processor_time_leaves_out_waiting(load):
    trace = load("bench_peers").ProcessorTrace()
    with trace.timer("denoise"):
        time.sleep(0.2)
    assert 0 <= trace.seconds["denoise"] < 0.1


@pytest.mark.parametrize(
    ("way", "complaint"), [("nocache:1", "ways must be one of diffusers, fbcache"), ("pab", "needs a number")]
)
def test_unknown_ways_are_refused(load, way, complaint):
    with pytest.raises(ValueError, match=complaint):
        load("peers").parse_cache(way)


def test_videos_that_diffusers_would_leave_unfinished_are_refused(load):
    check = load("bench_peers").check_blocks
    settings = {"height": 64, "width": 64, "causal_block_size": 5}
    check(VideoSettings(**settings, num_frames=97, ar_step=5))
    check(VideoSettings(**settings, num_frames=93, ar_step=0))
    with pytest.raises(ValueError, match="num_frames must fill blocks of 5"):
        check(VideoSettings(**settings, num_frames=93, ar_step=5))
