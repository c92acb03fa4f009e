"""Estimates of memory, of the small checkpoints and of the official sizes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from flowcache.cli import find_model, main, prepare_video
from flowcache.memory import GIB, Estimate, StorageCounter, estimate, log_needs
from flowcache.trace import Trace
from research.memory import CARDS, describe_video
from skyreels_v2.checkpoint import new_pipeline, resolve_model

SMALL = {
    "skyreels_v2": "--weights small --num_frames 33 --inference_steps 6 --ar_step 2 --causal_block_size 2",
    "magi1": "--weights small --num_frames 72 --num_steps 8",
}


def plan(model, options, every_call=False):
    job = prepare_video(find_model(model), [*options.split(), "--dry_run"])
    return estimate(job.sampler.model, job.sampler.config, job.start, job.sampler.device, every_call)


def test_counter_follows_storages():
    with StorageCounter() as counter:
        first = torch.empty(100, device="meta")
        view = first[10:]
        counter.stage = "decode"
        second = first + 1
        del first
        assert counter.peaks == {"denoise": 400, "decode": 800}
        del view, second
        with counter.measure() as taken:
            torch.empty(5, device="meta")
        assert taken == [20]
        assert torch.ones(2, device="meta").tolist() == [1, 1]
        assert bool(torch.zeros((), device="meta") > 0)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("skyreels_v2", "--method vanilla"),
        ("skyreels_v2", "--preset fast"),
        ("skyreels_v2", "--preset paper-fast --use_compress"),
        ("skyreels_v2", "--method teacache"),
        ("magi1", "--preset fast"),
        ("magi1", "--compress_kv_cache --total_cache_chunk_nums 5 --kv_bits 8"),
    ],
)
def test_skipped_calls_count_as_if_they_ran(model, method):
    options = f"{SMALL[model]} {method}"
    short, whole = plan(model, options), plan(model, options, every_call=True)
    assert short.weights == whole.weights and short.kv == whole.kv > 0
    assert short.flops == whole.flops > 0
    assert short.peak == pytest.approx(whole.peak, rel=0.05)
    assert short.is_bound == ("paper" in method or "teacache" in method)


def test_weights_and_cache_are_those_of_a_run(tmp_path):
    options = SMALL["skyreels_v2"].split()
    job = prepare_video(find_model("skyreels_v2"), [*options, "--outdir", str(tmp_path)])
    needed = job.estimate()
    pipeline = job.sampler.model.load("cpu")
    for name, size in needed.weights.items():
        part = getattr(pipeline, name)
        assert size == pytest.approx(sum(p.nbytes for p in part.parameters()), rel=0.05)
    job.run()
    trace = Trace.load(job.output.with_suffix(".trace.json"))
    assert needed.kv == trace.windows[0].kv_bytes
    assert needed.flops == trace.flops["actual"]


@pytest.mark.parametrize(
    ("weights", "parameters"),
    [("1.3B-540P", 1_435_525_696), ("14B-540P", 14_288_491_584), ("14B-720P", 14_288_491_584)],
)
def test_official_transformers_have_their_published_size(weights, parameters):
    pipeline = new_pipeline(resolve_model(f"Skywork/SkyReels-V2-DF-{weights}"), torch.device("cuda"))
    assert sum(p.numel() for p in pipeline.transformer.parameters()) == parameters


def test_official_sizes():
    row = "--weights Skywork/SkyReels-V2-DF-14B-540P --inference_steps 50 --ar_step 5 --causal_block_size 3"
    always = describe_video("skyreels_v2", f"{row} --method vanilla --num_frames 9 --resolution 540P")
    assert len(always) == 4 + len(CARDS)
    assert float(always[1]) > 37 > float(always[2]) > 27  # the transformer has 27, the text encoder 11
    assert always[4:] == ["–", "–", "`--offload --vae_tiling`", "yes", "yes", "yes"]


def test_dry_run_needs_no_gpu_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = "--dry_run --device cuda --weights small --num_frames 17 --inference_steps 4 --rate 100"
    assert main(["generate", "--model", "skyreels_v2", *options.split()]) == 0
    shown = capsys.readouterr().out
    assert "MiB" in shown and "FLOPs" in shown and "100 TFLOP/s" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--rate", "1"], ["--dry_run", "--rate", "0"]])
def test_rate_is_checked(options, capsys):
    assert main(["generate", "--model", "magi1", "--weights", "small", *options]) == 2
    assert "rate" in capsys.readouterr().err


def test_warning_names_options_that_help(monkeypatch, caplog):
    caplog.set_level("INFO")
    own = Estimate({"transformer": 2 * GIB}, {"denoise": GIB}, 0, frozenset(), frozenset(), 1e15, is_bound=False)
    helpful, changes = (
        [],
        {"--same": {}, "--less": {"working": {"denoise": 0}}, "--fewer": {"weights": {"transformer": GIB}}},
    )

    def others(option):
        if option not in changes:
            raise ValueError(option)
        return replace(own, **changes[option])

    def warnings(size, device="cuda:0"):
        caplog.clear()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=size))
        helpful.append(log_needs(lambda: own, others, ["--refused", *changes], device))
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    (warned,) = warnings(3 * GIB)
    assert "--less (2.0 GiB) or --fewer (2.0 GiB)" in warned and "--same" not in warned and "--refused" not in warned
    assert helpful == [["--less", "--fewer"]]
    assert warnings(5 * GIB) == [] and "3.0 GiB" in caplog.text
    assert warnings(GIB, "cpu") == [] and not caplog.records
