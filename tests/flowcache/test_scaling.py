"""The model of several GPUs: what it predicts from calls, and the command that prints it."""

import csv
import json
import logging
from dataclasses import replace

import pytest
import torch
from programs import assert_refused
from reference import ROOT

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.scaling import Video
from flowcache.flops import TransformerFlops
from flowcache.parallel.efficiency import Call, Hardware, Workload, predict
from magi1.adapter import Magi1
from magi1.chunk_model import transformer_flops
from magi1.config import MagiConfig
from self_forcing.adapter import SelfForcing
from skyreels_v2.adapter import SkyReelsV2
from skyreels_v2.paper_flops import FLOPS

LARGE = TransformerFlops(5120, 5120, 5120, 2 * 13824, 40, 64, 64)
SMALL = {
    SkyReelsV2: "--weights small --num_frames 33 --inference_steps 4 --ar_step 2 --causal_block_size 2",
    Magi1: "--weights small --num_frames 48 --num_steps 8",
    SelfForcing: "--weights small --num_output_frames 3",
}


def work_of(name, call):
    network = {"1.3B": FLOPS, "14B": LARGE}.get(name)
    if network is None:
        path = ROOT / f"FlowCache4MAGI-1/config/single_run/{name}_base.json"
        network = transformer_flops(MagiConfig.from_file(path).model_config)
    flops = network.blocks(call.num_tokens, call.frames * call.tokens, 0)
    return Workload(network, {call: 1}, 1, call.num_tokens, flops, 1000, guidance=call.branches > 1)


@pytest.mark.parametrize(
    ("name", "call", "cfg_size", "expected"),
    [
        ("1.3B", Call(2, 15, 2040), 1, {2: (188, 0.937), 4: (141, 0.921), 6: (104, 0.915), 8: (86, 0.748)}),
        ("1.3B", Call(2, 15, 2040), 2, {2: (0, 1.0), 4: (94, 0.935), 6: (84, 0.924), 8: (70, 0.918)}),
        ("14B", Call(2, 15, 2040), 1, {2: (627, 0.952), 4: (470, 0.941), 6: (350, 0.913), 8: (274, 0.934)}),
        ("14B", Call(2, 15, 2040), 2, {2: (0, 1.0), 4: (313, 0.952), 6: (277, 0.920), 8: (235, 0.940)}),
        ("4.5B", Call(1, 24, 2025), 1, {2: (199, 0.971), 4: (149, 0.963), 8: (87, 0.957)}),
        ("24B", Call(1, 24, 3600), 1, {2: (619, 0.982), 4: (465, 0.977), 8: (271, 0.975)}),
    ],
)
def test_packed_calls_of_the_official_models(name, call, cfg_size, expected):
    """Megabytes as computed by hand, n d (N - 1) / N^2 elements each; efficiency near an independent model's."""
    for processes, (megabytes, efficiency) in expected.items():
        found = predict(work_of(name, call), processes, cfg_size=cfg_size)
        assert found.layer_bytes / 1e6 == pytest.approx(megabytes, abs=0.6)
        assert found.call_efficiency == pytest.approx(efficiency, abs=0.006)


def test_one_process_sends_nothing_and_loses_nothing():
    found = predict(work_of("1.3B", Call(2, 15, 2040)), 1)
    assert (found.efficiency, found.call_efficiency, found.kv) == (1, 1, 1000)
    assert (found.sent.nbytes, found.sent.collectives, found.layer_bytes) == (0, 0, 0)


def test_traffic_of_a_video_is_that_of_its_calls():
    """By hand: q, k, v and the output in each layer, the head's patches in fp32, one decision a step."""
    call, few = Call(2, 20, 2040), Call(2, 5, 2040)
    work = replace(work_of("1.3B", call), calls={call: 3, few: 2}, decisions=4, head_tokens=2 * 70 * 2040)
    exchanged, patches = 30 * 70 * 2040 * 1536 * 2 * 4, 70 * 2040 * 64 * 4
    for cfg_size, ranks, branches_at_once in ((2, 4, 1), (1, 4, 1), (1, 2, 0)):
        sent = predict(work, cfg_size * ranks, cfg_size=cfg_size).sent
        share = (ranks - 1) / ranks
        nbytes = 2 / cfg_size * exchanged * share / ranks + patches * share + (cfg_size - 1) * patches / ranks
        assert sent.nbytes == nbytes
        # On two processes, the three large calls run branch by branch.
        layers = 60 * (5 if branches_at_once else 8)
        assert sent.collectives == layers + 5 * cfg_size + 4


def test_uneven_shares_and_too_many_processes():
    work = work_of("1.3B", Call(2, 15, 2040))
    found = predict(work, 8, cfg_size=1)
    assert (found.busy_heads, found.busy_tokens, found.kv) == (0.75, 1, 166)
    slow = predict(work, 8, Hardware(bandwidth=1e9), cfg_size=1)
    assert slow.efficiency < found.efficiency < 0.75
    assert predict(work, 9).ranks == 9
    with pytest.raises(ValueError, match="at most 24"):
        predict(work, 32)


@pytest.mark.parametrize("model", SMALL)
def test_workload_is_that_of_a_video(model, caplog):
    caplog.set_level(logging.ERROR)
    work = Video(model, f"{SMALL[model]} --method vanilla").work
    layers = work.network.num_layers
    assert layers == 6 and work.guidance == (model is SkyReelsV2)
    assert 0.5 * work.flops < work.token_flops < work.flops
    assert work.dtype in (torch.bfloat16, torch.float16) and work.kv > 0
    assert all(call.tokens == 16 for call in work.calls)


def test_command(monkeypatch, tmp_path, capsys):
    for model, options in SMALL.items():
        monkeypatch.setattr(model, "shipped", {"small": options})
    words = ["scaling", "--gpus", "4", "16", "--methods", "fast", "--output", str(tmp_path / "table")]
    assert program.main(words) == 0
    shown = capsys.readouterr().out
    assert "| SkyReels-V2 small | fast | 4 | 2 x 2 | 75%, 100% |" in shown
    assert "16 processes are too many" in shown and "not a measurement" in shown
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["video"], row["gpus"]) for row in rows] == [
        (f"{title} small", count) for title in ("SkyReels-V2", "MAGI-1", "Self-Forcing") for count in ("4", "16")
    ]
    assert rows[1]["refusal"] and not rows[1]["efficiency"] and float(rows[0]["efficiency"]) > 0
    assert json.loads((tmp_path / "table.json").read_text())["hardware"]["bandwidth"] == 3e11


@pytest.mark.parametrize(
    ("options", "name"),
    [(["--only", "nothing"], "only"), (["--gpus", "0"], "gpus"), (["--utilisation", "2"], "utilisation")],
)
def test_bad_input_is_named(options, name, capsys):
    assert_refused(program.main(["scaling", *options]), name, capsys)
