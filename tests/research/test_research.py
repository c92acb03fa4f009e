"""Research scripts: what they make of their runs, help, bad input, and tiny runs of the small checkpoints."""

import argparse
import csv
import json
import math
import runpy
import sys
from dataclasses import replace
from itertools import chain, product

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

from flowcache import FlowCacheConfig, KVCompressionConfig, KVStorageConfig, Trace
from flowcache.kv.compactors import Matched, Select
from flowcache.kv.scorers import Recency, ScoreInput
from flowcache.parallel.efficiency import Hardware
from flowcache.state import VideoPart
from flowcache.trace import WindowRecord
from flowcache.video import to_uint8
from flowcache.wan.chunk_model import transformer_flops
from flowcache.wan.solver import noise_grid
from research import compaction, compression, drift, few_steps, kv, long_video, matching, peers, policies, runs
from research.compare import Run, speed_table
from research.train_small.moving_shapes import Scene, render
from research.train_small.shape_probe import NAMED, check_probe

SCRIPTS = ("compaction", "compression", "drift", "few_steps", "kv", "long_video", "methods", "peers", "policies")


class FakeModel(runs.Model):
    """Grey videos; the fewer tokens are kept, the further from those with everything."""

    no_reuse, made = "causal", 0

    def __init__(self, *args, last_seed=None):
        super().__init__(*args)
        self.last_seed = last_seed

    def configure(self, method, preset=None, budget=None, kv_bits=None, kv_range=None, **kept):
        compression = None if budget is None else KVCompressionConfig(budget=budget, **kept)
        storage = None if kv_bits is None else KVStorageConfig(bits=kv_bits)
        return FlowCacheConfig(compression=compression, storage=storage, clean_pass=preset is None)

    def stream(self, prompt, seed, config, trace):
        if self.last_seed is not None and seed > self.last_seed:
            raise KeyboardInterrupt
        kept, apart = config.compression, 0.01 * bool(config.storage)
        apart += 0 if kept is None else 0.1 / kept.budget + 0.02 * (kept.as_dict()["scorer"] == "paper")
        trace.begin_window(WindowRecord(4, 1, 0, [1] * 11, 2**20 * (kept.budget if kept else 10)))
        trace.seconds |= {"denoise": 2.0} | ({"compress": 0.1} if kept else {})
        FakeModel.made += 1
        yield VideoPart(torch.full((3, 4, 16, 16), 2 * apart - 1), torch.zeros(1))


def test_kv_results_and_an_interrupted_measurement(monkeypatch, tmp_path):
    monkeypatch.setattr(kv, "find_chunk_model", lambda args, chunks: FakeModel(None, "cpu", last_seed=0))
    args = argparse.Namespace(model="fake", captions=2, chunks=11, steps=4, device="cpu", outdir=tmp_path)
    args.tables = list(kv.TABLES)
    with pytest.raises(KeyboardInterrupt):
        kv.bench(args)
    assert {row["captions"] for row in csv.DictReader((tmp_path / "kv_fake.csv").open())} == {"1"}
    monkeypatch.setattr(kv, "find_chunk_model", lambda args, chunks: FakeModel(None, "cpu"))
    text = kv.bench(args)
    variants = set(chain(*(made for _, made in kv.TABLES.values())))
    assert FakeModel.made == 2 + 2 * 2 * len(variants), "no video twice; two that warm up"
    assert "| 3 | 3.00 | 25.2 dB (25.2 to 25.2), " in text  # 14 of 255 grey levels
    gain = "+4.9 dB (+4.9 to +4.9), 2 of 2"  # 8 of 255 grey levels against 14
    assert f"| recency | select | 3 | all | {gain} | {gain} |" in text
    rows = list(csv.DictReader((tmp_path / "kv_fake.csv").open()))
    row = next(row for row in rows if (row["budget"], row["scorer"]) == ("3", "random"))
    assert (row["captions"], row["kv_bytes"], row["compress"]) == ("2", str(3 * 2**20), "0.05")
    for name in ("kv_fake.json", "kv.png", "fake_none_caption0.png", "fake_fast_caption1.png"):
        assert (tmp_path / name).stat().st_size > 1000
    lines, made = tmp_path / "runs.jsonl", FakeModel.made
    lines.write_bytes(lines.read_bytes()[:-100])
    assert kv.bench(args) == kv.bench(args) == text
    assert FakeModel.made == made + 4, "the one whose line was cut off, its reference, two that warm up"


def run_of(method, seconds, psnr, ratio=0.0, seed=0):
    flops = {"actual": 1e12 * seconds, "causal": 1e12}
    return Run(method, seed, seconds, 0.0, flops, ratio, 0, psnr, dict.fromkeys(psnr, 0.9))


def test_speed_table_with_the_base_of_each_pipeline():
    found = [
        run_of("vanilla", 4.0, {"diffusers": 30.0}),
        run_of("flowcache:fast", 1.0, {"vanilla": 25.0, "diffusers": 31.0}),
        run_of("diffusers", 6.0, {"vanilla": 30.0}, None),
        run_of("fbcache:0.1", 2.0, {"vanilla": 28.0, "diffusers": 35.0}, None),
    ]
    lines = speed_table(found, ["vanilla", "diffusers"], peers.find_base).splitlines()
    assert lines[3].startswith("| flowcache:fast | 1.00 | 4.00 | 1.000 | 4.00 | 1.00 | 0.00 | 25.0 dB, 0.900 ")
    assert lines[5].startswith("| fbcache:0.1 | 2.00 | 3.00 | 2.000 | 3.00 | 1.00 |  | 28.0 dB")


def test_curves_interpolate_medians_and_are_compared_with_the_papers_rule(tmp_path):
    name = "interval, line"
    heights = {(5, 0.2): (20.0, 30.0), (3, 0.4): (40.0, 42.0), (2, 0.6): (44.0, 50.0)}  # dB of two captions

    def measure(name, lift=0.0):
        return [
            run_of(f"{name} | {value}", share, {policies.PLAIN: height + lift}, 1 - share, seed)
            for (value, share), pair in heights.items()
            for seed, height in enumerate(pair)
        ]

    curve = policies.Curve(name, measure(name))
    assert [point[0] for point in curve.points] == [5, 3, 2] and curve.psnr == (25.0, 41.0, 47.0)
    assert curve.psnr_at([0.1, 0.3, 0.7]) == pytest.approx([math.nan, 33, math.nan], nan_ok=True)
    assert curve.computed_for(33) == pytest.approx(0.3) and math.isnan(curve.computed_for(48))
    # the mean of 29 to 41 over .25 to .4, and of 41 to 44 over .4 to .5
    assert curve.area == pytest.approx((35 * 0.15 + 42.5 * 0.1) / 0.25, abs=0.02)

    args = argparse.Namespace(model="tiny", device="cpu", outdir=tmp_path)
    table = policies.report([*measure(policies.PAPER), *measure(name, lift=16.0)], args)
    assert f"| 0.40 | 41.0 | 57.0 dB ({name}) | less than 0.20, more than 2.0x fewer ({name}) |" in table
    assert f"| 0.60 | 47.0 | 63.0 dB ({name}) | 0.2" in table
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_long_video_and_its_slowdown_without_the_last_chunks(tmp_path):
    spent = ([1.0] * 36 + [0.1] * 3, [1 + i / 100 for i in range(103)], [1.0] * 9)
    found = [long_video.Measurement("plain", len(each) + 1, 100, 0, 0, each).slowdown for each in spent]
    assert found == [1.0, pytest.approx(1.945 / 1.045), None], "the last are too few"
    named = {"model": "skyreels", "checkpoint": "small", "device": "cpu", "steps": 4, "budget": 4}
    args = argparse.Namespace(**named, outdir=tmp_path, chunks=[2])
    found = [long_video.measure(args, (2, cache)) for cache in long_video.CACHES]
    rows = [line.split(" | ")[:3] for line in long_video.summarise(found).splitlines()[2:]]
    assert rows == [["| 2", "37", cache] for cache in ("default", "paper", "plain")]
    long_video.draw(found, tmp_path / "a.png")
    long_video.draw_sheet(args, tmp_path / "sheet.png")
    assert min((tmp_path / name).stat().st_size for name in ("a.png", "sheet.png", "skyreels_plain_2.mp4")) > 500


def test_compression_asks_all_queries_and_few_and_has_its_share_of_a_chunk(monkeypatch, tmp_path):
    monkeypatch.setitem(compression.SHAPES, "tiny", compression.Shape(2, 2, 4, 4, 8, 30, 90, "chunk", 5))
    named = {"model": "tiny", "device": "cpu", "chunks": 6, "layers": 1, "max_queries": 20, "repeats": 2}
    share = {"tables": compression.TABLES, "budgets": [1, 3], "tokens": 9, "evaluations": 12}
    lines = compression.bench(argparse.Namespace(**named, **share, outdir=tmp_path)).splitlines()
    first = [line.split(" | ")[0] for line in lines]
    assert (first[2:4], first[-2:]) == (["| 90", "| 20"], ["| 1", "| 3"])
    ratio, share = (float(cell.strip(" |%")) for cell in lines[-1].split(" | ")[-2:])
    assert share == pytest.approx(ratio / 12, abs=0.01)


@torch.no_grad()
def test_compacted_rows_are_judged_by_later_queries():
    first, later = torch.randn(2, 1, 30, 2, 8), torch.randn(2, 1, 10, 2, 8)
    queries, ages = torch.randn(2, 1, 12, 4, 8), torch.arange(20).flip(0).expand(1, 2, -1)
    probe = compaction.Probe(1, [compaction.Method("newest", Recency(), Select())])
    for rows, asked in ((first[:, :, :20], queries[0]), (torch.cat([later, first[:, :, 20:]], dim=2), queries[1])):
        given = rows.clone()
        probe.compact(ScoreInput(*given, asked, ages, tokens_per_chunk=10, budget=10), ages[..., :10])
        given.zero_()  # as layers share the memory
    (error, mass_error), queries = probe.rows[0][0].errors[0], queries[1, 0, 4:].double()
    logits = torch.einsum("nhd,khd->hnk", queries, first[0, 0, :20].double().repeat_interleave(2, dim=1)) / 8**0.5
    values = first[1, 0, :20].double().repeat_interleave(2, dim=1).transpose(0, 1)
    outputs = logits.softmax(dim=-1) @ values
    apart = logits[..., 10:].softmax(dim=-1) @ values[:, 10:] - outputs
    assert error == pytest.approx(-20 * math.log10(apart.norm() / outputs.norm()), rel=1e-4)
    masses = logits.logsumexp(dim=-1) - logits[..., 10:].logsumexp(dim=-1)
    assert mass_error == pytest.approx(masses.square().mean().sqrt().item(), rel=1e-4)
    assert not probe.rows[0][1].errors, "nothing is dropped yet at a budget of three chunks"


def draw_tokens(rows=40, same_heads=False):
    """Two branches, two KV heads, four query heads; half of the rows are kept."""
    keys, values = torch.randn(2, 2, rows, 1 if same_heads else 2, 8).expand(2, 2, rows, 2, 8).clone()
    queries = torch.randn(2, 12, 2 if same_heads else 4, 8).repeat(1, 1, 2 if same_heads else 1, 1)
    ages = torch.arange(rows).flip(0).expand(2, 2, -1)
    return ScoreInput(keys, values, queries, ages, tokens_per_chunk=rows // 2, budget=rows // 2)


@torch.no_grad()
@pytest.mark.parametrize("adjacent", [False, True])
def test_ridges_by_folds_are_among_those_tried(adjacent):
    tokens, kept = draw_tokens(), torch.arange(0, 40, 2).expand(2, 2, -1)
    made = torch.stack(matching.CrossValidated(folds=3, adjacent=adjacent).compact(tokens, kept))
    pairs = product(matching.MASS_RIDGES, matching.VALUE_RIDGES)
    tried = [torch.stack(Matched(*pair).compact(tokens, kept)) for pair in pairs]
    for branch, head in product(range(2), repeat=2):
        own, *others = (each[:, branch, :, head] for each in (made, *tried))
        assert sum(torch.allclose(own, other, atol=1e-5) for other in others) == 1
    missed = {0.1: [3.0, 1.0], 1.0: [2.0, 4.0], 10.0: [2.5, 2.0]}  # of two heads
    compactor = matching.CrossValidated()
    chosen = compactor._choose([*missed], lambda fold, ridge: torch.tensor(missed[ridge])[:, None, None] - fold / 100)
    assert chosen.flatten().tolist() == pytest.approx([1.0, 0.1])


@torch.no_grad()
@pytest.mark.parametrize("share", ["once", "always"])
def test_heads_have_rows_by_their_error_and_as_many_in_all(share):
    assert matching.share_rows([1, 1, 4], 30, 5, [16] * 3) == [7, 7, 16]
    assert matching.share_rows([0, 1, 1], 31, 5, [16] * 3) == [5, 13, 13]
    methods = [compaction.Method("even"), compaction.Method("by error", per_head=share)]
    same, other = draw_tokens(same_heads=True), draw_tokens()
    other.values[:, :, 0] = 1.0  # no row of this head is missed
    for tokens, counts in ((same, [20, 20]), (other, [10, 30])):
        probe, second = compaction.Probe(1, methods), replace(tokens, queries=tokens.queries.flip(-1))
        for each in (tokens, second):
            probe.compact(each, torch.arange(20).expand(2, 2, -1))
        even, by_error = (rows for rows in probe.rows[0] if rows.budget == 1)
        assert [part.keys.shape[1] for part in by_error.parts] == counts == by_error.counts
        assert even.parts[0].keys.shape[1] == 20 and by_error.errors[0][0] >= even.errors[0][0] - 1e-3


def test_diffusers_gets_our_grid_and_flops_are_those_of_the_blocks_that_run():
    shifted = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 8.0}
    scheduler = peers.OriginalGrid.from_config(UniPCMultistepScheduler(**shifted).config)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(noise_grid(7, 8.0)), rtol=0, atol=1e-7)

    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    model = SkyReelsV2Transformer3DModel(**sizes, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=3)
    inputs = (torch.randn(1, 4, 5, 4, 6), torch.tensor([500]), torch.randn(1, 7, 16))
    plain, cached = Trace(), Trace()
    with peers.count_flops(model, 7, plain):
        model(*inputs)
    expected, tokens = transformer_flops(model.config), 5 * 2 * 3
    edges = expected.embed(tokens) + expected.head(tokens)
    blocks = expected.blocks(tokens, tokens, 7) + expected.text(7)
    assert plain.flops["actual"] == edges + blocks

    peers.register_block()
    model.enable_cache(peers.hooks.FirstBlockCacheConfig(threshold=1e9))
    with peers.count_flops(model, 7, cached):
        for _ in range(2):
            with model.cache_context("cond"):
                model(*inputs)
    model.disable_cache()
    model(*inputs)  # not counted
    # one block of three the second time
    assert cached.flops["actual"] == pytest.approx(2 * edges + blocks * (1 + 1 / 3))


def test_tables_of_few_steps():
    steps = [0.3, 0.1, 0.1, 0.1, *[0.15, 0.1, 0.1, 0.1] * 8]  # nine chunks, the text in the first step
    found = [few_steps.Measured(cache, steps, 0.5, 10.0, 105, 36e9, 2**20) for cache in few_steps.CACHES]
    text = few_steps.measured_table(found, rate=1e10)
    assert "| the original's calls | 500.0 | 2.0 | 10.0 |" in text, "five calls a chunk"
    assert "| all keys | 444.4 | 2.2 | 10.5 | 2.5 | 0.50 | 1.0 |" in text and "takes 0.75" in text
    counted = [few_steps.Counted("all keys", (1e12,) * 8, [1e12] * 6, 2**30)]
    text = few_steps.counted_table(counted, Hardware(tflops=1, utilisation=1))
    assert "| the original's calls | 21 | 0.01 | 4 | 2.3 | 1.4 | 7.00 | 1.0 |" in text
    assert "| all keys | 21 | 0.01 | 4 | 2.6 | 1.5 | 7.00 | 1.0 |" in text


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.delitem(sys.modules, f"research.{name}", raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(f"research.{name}", run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run


def test_drift_of_rendered_clips():
    assert check_probe(6, 100) == pytest.approx({**dict.fromkeys(NAMED, 1), "overlap": 0.95}, abs=0.03)
    scene = Scene("cyan", "circle", "moves right", "dark", 0.26, 0.5, 0.5, speed=0.014, heading=0)
    first = to_uint8(render(scene, 160))
    same = drift.measure("window", 0, 1, first, first)
    assert all(same.right.values()) and (same.colour, same.ground, same.sharpness, same.speed) == (0, 0, 1, 1)
    other = replace(scene, form="square", speed=0.007)
    changed = drift.measure("window", 0, 1, first, (to_uint8(render(other, 160)) * 0.8).astype("uint8"))
    assert changed.right == {"colour": True, "form": False, "motion": True, "background": True}
    assert changed.speed == pytest.approx(0.5, abs=0.01) and changed.sharpness < 0.9
    assert changed.colour == pytest.approx(60, abs=2) and changed.ground == pytest.approx(8, abs=2)


@pytest.mark.parametrize(
    "name",
    [
        "streaming",
        *SCRIPTS,
        *(f"train_small.{name}" for name in ("vae", "skyreels", "magi", "self_forcing", "rounding")),
    ],
)
def test_help(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0 and "--out" in out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("methods --device foo", "device"),
        ("methods --model magi --methods vanilla:fast", "vanilla:fast"),
        ("methods --model magi --methods flowcache:papr", "preset"),
        ("methods --methods flowcache:fast:abc", "'abc'"),
        ("policies --curves interval", "curves"),
        ("kv --steps 6", "steps"),
        ("kv --chunks 10", "chunks"),
        ("long_video --chunks 1", "chunks"),
        ("long_video --outdir /proc/nowhere", "/proc/nowhere"),
        ("compression --chunks 1", "chunks"),
        ("few_steps --chunks 7", "chunks"),
        ("streaming --model magi", "model"),
        ("drift --chunks 26", "chunks"),
        ("drift --captions 20", "captions"),
        ("peers --num_frames 93", "num_frames"),
        ("peers --methods nocache:1", "nocache"),
        ("peers --methods fbcache", "fbcache:2"),
    ],
)
def test_bad_input_ends_in_one_sentence(run, words, named):
    code, _, err = run(*words.split())
    assert code == 2 and named in err.splitlines()[-1] and "Traceback" not in err


def test_methods_of_the_small_checkpoint(run, tmp_path):
    words = ["--model", "magi", "--num_frames", 48, "--steps", 8, "--repeats", 1, "--outdir", tmp_path]
    code, out, _ = run("methods", *words, "--methods", "vanilla", "flowcache:fast")
    table = (tmp_path / "bench.md").read_text()
    assert code == 0 and table.strip() in out and "| flowcache:fast | 0 | " in table and "GFLOP/s" in table
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [m["method"] for m in record["measurements"]] == ["vanilla", "flowcache:fast"]
    for name in ("seed0.png", "flowcache_fast_seed0.reuse.png", "vanilla_seed0.trace.json"):
        assert (tmp_path / name).stat().st_size > 500
