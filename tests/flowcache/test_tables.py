"""Tables of a synthetic run, with files alone, and the script that makes the paper's."""

import csv
import json
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
from programs import Program, assert_refused
from reference import ROOT
from synthetic_run import PROMPTS, SAMPLES, make_run, make_sampling

from flowcache import Trace
from flowcache.benchmark import __main__ as program
from flowcache.benchmark import runs
from flowcache.benchmark.paper_flops import PETA, PaperFlops, PaperRow
from flowcache.benchmark.runs import find_model_runs
from flowcache.benchmark.tables import build_table, format_tables, method_title, save_tables
from flowcache.benchmark.vbench import VBenchReport

ROWS = {"vanilla": PaperRow(100, 1.0, 1500, 84.0)}
ROWS["FlowCache-fast"] = PaperRow(25, 6.5, 230, 83.05, 0.1467, 0.7635, 22.95)
PAPER = PaperFlops("Abacus", "beads", ROWS, {"all": 100 * PETA})
METHODS = ["vanilla", "causal", "flowcache:paper-fast"]
FIRST = f"{PROMPTS[0]}-0"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of three methods."""
    monkeypatch.setattr(program, "load_papers", lambda: [PAPER])
    make_run(tmp_path / "abacus", methods=METHODS)
    return tmp_path


def table_of(folder):
    return build_table(find_model_runs(folder)[0], [PAPER])


def test_figures_are_those_of_the_files(run):
    table = table_of(run)
    vanilla, causal, flow = table.rows
    assert (table.prompts, table.weights, table.hardware) == (2, "beads", ["abacus, cpu, 1 thread"])
    figures = {"pflops": 1, "flops_ratio": 4, "latency_seconds": 7, "peak_memory_gib": 1, "reuse_ratio": 0.5}
    assert {key: flow.measured[key] for key in figures} == figures and vanilla.measured["reuse_ratio"] == 0
    speedups = [row.measured["speedup"] for row in (causal, flow)]
    assert speedups == pytest.approx([(10 / 8 + 30 / 20) / 2, (10 / 4 + 30 / 10) / 2]), "medians of ratios"
    assert flow.split == pytest.approx({"live_only": 1.25, "causal": 1.6, "reuse": 2.0})
    assert vanilla.split == {"live_only": 1.0, "causal": 1.0, "reuse": 1.0}


def test_command_measures_and_writes_and_needs_no_video_afterwards(run, capsys):
    (run / "command.txt").write_text("bash scripts/reproduce_tables.sh\nbash again.sh\n")
    assert program.main(["tables", str(run)]) == 0, capsys.readouterr().err
    first = (run / "tables.md").read_text()
    for path in (run / "abacus").glob("*/videos"):
        shutil.rmtree(path)
    (run / "tables.md").unlink()
    assert program.main(["tables", str(run)]) == 0, capsys.readouterr().err
    assert (run / "tables.md").read_text() == first
    costs, quality, _ = (line for line in first.splitlines() if line.startswith("| FlowCache paper-fast"))
    assert "| 1.00 | 25.0 | 4.00 | 4.00 | 2.75 (2.50 to 3.00) | 6.50 | 7 | 230 |" in costs
    assert "| 83.05 | 0.1467 |" in quality and "| 22.95 |" in quality
    assert first.startswith("`bash scripts/reproduce_tables.sh`\n\n`bash again.sh`\n\n")
    rows = list(csv.DictReader((run / "tables.csv").open()))
    assert rows[2]["way"] == METHODS[2] and float(rows[2]["paper_psnr"]) == 22.95
    assert (float(rows[2]["speedup_low"]), float(rows[2]["speedup_high"])) == (2.5, 3.0)
    assert float(rows[1]["ssim"]) < float(rows[2]["ssim"]) < 1
    (content,) = json.loads((run / "tables.json").read_text())["tables"]
    assert content["missing"]["VBench"] == ["no environment given"]
    assert [row["way"] for row in content["rows"]] == METHODS


def test_a_figure_without_a_column_is_left_out(run, tmp_path):
    table = table_of(run)
    rows = [replace(row, ranges={"psnr": (1.0, 2.0), "lpips_to_causal": (0.0, 1.0)}) for row in table.rows]
    save_tables([replace(table, rows=rows)], tmp_path / "tables", [])
    row = next(csv.DictReader((tmp_path / "tables.csv").open()))
    assert row["psnr_high"] == "2.0" and "lpips_to_causal_high" not in row


def test_missing_figures_are_explained(run):
    mean = {"mean": {"psnr": 20.0, "ssim": 0.5}, "missing": {}}
    report = {"missing": {"lpips": "LPIPS needs torchvision."}}
    report["videos"] = {f"{sample.name}.mp4": mean for sample in SAMPLES}
    causal = run / "abacus" / "causal"
    (causal / "closeness_to_vanilla.json").write_text(json.dumps(report))
    scores = {"mean": {"scene": 0.5}, "totals": {"total": None}}
    (causal / "vbench.json").write_text(json.dumps(scores))
    (causal / "manifest.jsonl").write_text((causal / "manifest.jsonl").read_text().replace("abacus", "quipu"))
    table = table_of(run)
    measured = table.rows[1].measured
    assert [measured[key] for key in ("psnr", "lpips", "speedup")] == [20.0, None, None]
    assert table.missing["LPIPS"] == ["LPIPS needs torchvision", "not measured"]
    assert table.missing["VBench"][0] == "no environment given" and "16" in table.missing["VBench"][1]
    assert "like machines" in table.missing["speed-up"][0]
    assert "\n- LPIPS needs torchvision; not measured" in format_tables([table], [])


def test_a_broken_video_is_named_and_measured_once_it_is_whole(run, capsys):
    video = run / "abacus" / "causal" / "videos" / f"{FIRST}.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[:100])
    assert program.main(["tables", str(run)]) == 0, capsys.readouterr().err
    (line,) = [line for line in (run / "tables.md").read_text().splitlines() if video.name in line]
    assert f"SSIM, PSNR, PSNR to causal, SSIM to causal: {video} cannot be read as a video" in line
    _, causal, flow = table_of(run).rows
    assert causal.measured["psnr"] is None and causal.measured["pflops"] == 2.0
    assert flow.measured["psnr"] > 20 and flow.measured["psnr_to_causal"] is None
    video.write_bytes(whole)
    assert program.main(["tables", str(run)]) == 0
    assert table_of(run).rows[1].measured["psnr"] > 20


def test_small_costs_have_a_unit_of_their_own_and_the_papers_methods_stand_before_ours(run):
    table = table_of(run)
    rows = [replace(row, measured={**row.measured, "pflops": 3.4e-5}) for row in table.rows]
    text = format_tables([replace(table, rows=rows)], [])
    assert "| GFLOPs | paper: PFLOPs |" in text and "| FlowCache paper-fast | 34.0 | 25.0 |" in text
    assert "1.00x" not in text
    path = run / "abacus" / "ways.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "ways": ["vanilla", "flowcache:fast", *METHODS[1:]]}))
    (model,) = find_model_runs(run)
    assert [method.method for method in model.methods] == METHODS and model.absent == ["flowcache:fast"]
    assert method_title("flowcache:fast") == "FlowCache fast (ours)"


def test_vbench_scores_again_what_was_added_since(run, monkeypatch):
    def score(_, videos, *more):
        return VBenchReport(videos, (), looked_at=[path.name for path in videos.iterdir()])

    def score_all(again=False):
        monkeypatch.setattr(runs, "score", mock.Mock(side_effect=score))
        find_model_runs(run)[0].score((run, "python"), "cpu", again)
        return [call.args[1].parent.name for call in runs.score.call_args_list]

    folders = ["vanilla", "causal", "flowcache_paper-fast"]
    assert score_all() == folders and score_all() == []
    path = run / "abacus" / "causal" / "vbench.json"
    path.write_text(path.read_text().replace(PROMPTS[0], "another").replace('"total": null', '"total": 81.5'))
    assert table_of(run).rows[1].measured["vbench"] == 81.5
    assert score_all() == ["causal"] and score_all(again=True) == folders


def test_an_interrupted_run_gives_tables_of_what_is_finished(run, caplog):
    shutil.copytree(run / "abacus", run / "begun")
    (run / "begun" / "vanilla" / "manifest.jsonl").unlink()
    assert [model.folder.name for model in find_model_runs(run)] == ["abacus"]
    assert "begun has no video" in caplog.text
    make_sampling(run / "abacus" / "vanilla", ("vanilla",), [replace(SAMPLES[0], name="a red circle-1")]).run()
    table = table_of(run)
    assert table.prompts == 2 and len(table.notes) == 2 and "left out" in table.notes[1]
    assert table.notes[0].endswith("causal, no reuse 0.69, FlowCache paper-fast 0.69")


WRONG = '{"mean": [], "totals": {"total": "a"}, "videos": {"a": 3}, "missing": {}}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((f"vanilla/traces/{FIRST}.trace.json", wrong, "read as a trace") for wrong in (None, "[]", WRONG)),
        ("vanilla/manifest.jsonl", None, "has no video that was made by all"),
        ("causal/manifest.jsonl", json.dumps({"name": FIRST, "prompt": "a", "file": "a.mp4"}), FIRST),
        ("ways.json", None, "has no ways.json"),
        ("ways.json", '{"model": "Abacus", "settings": "beads", "ways": []}', "ways.json names no method"),
        *((f"causal/{name}", WRONG, name) for name in ("closeness_to_vanilla.json", "vbench.json")),
    ],
)
def test_a_broken_run_is_refused_in_one_sentence(run, name, content, message, capsys):
    path = run / "abacus" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(f"{content}\n")
    assert program.main(["tables", str(run)]) in (1, 2)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line


def test_a_share_is_what_the_row_does_not_pay_for():
    rows = {name: PaperRow(pflops, 1, 1, 1) for name, pflops in (("vanilla", 100), ("slow", 80), ("fast", 50))}
    counted = {"everything": 100 * PETA, "live chunks": 80.2 * PETA}
    lines = PaperFlops("a model", "small", rows, counted).markdown().splitlines()
    assert lines[0] == "a model: small"
    assert lines[-1] == "| fast | 100.00 | 50 | -50.0 % | 0.50 | 0.38 |"
    assert lines[-3] == "| vanilla | 100.00 | 100 | +0.0 % | 0.00 |  |", "it costs more than live chunks"
    rounded = PaperFlops("a", "b", rows, {"everything": 99.7 * PETA})
    assert rounded.reused_share("vanilla", "everything") == 0, "the paper's figures are rounded"


def test_command_prints_the_tables_of_all_models(capsys, monkeypatch):
    assert program.main(["flops"]) == 0
    text = capsys.readouterr().out
    assert all(row in text for row in ("| vanilla | 305.98 | 306 | +0.0 % |", "| FlowCache-fast | 113.60 | 28 |"))
    monkeypatch.setattr(program, "MODELS", {"no_such_package": ""})
    assert_refused(program.main(["flops"]), "no_such_package install", capsys)


# The script


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The script; its commands go to ``run``, and end well."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "scripts" / "reproduce_tables.py"))["main"]

    def front(*words):
        monkeypatch.setattr(sys, "argv", ["reproduce_tables.py", *map(str, words)])
        try:
            return main()
        except SystemExit as stop:
            return stop.code

    front.run = mock.Mock(return_value=ended(0))
    monkeypatch.setattr(subprocess, "run", front.run)
    return front


def ended(code):
    return SimpleNamespace(returncode=code)


def test_the_sampling_programs_take_its_commands(front, monkeypatch):
    assert front("--model", "small", "--prompts", 1, "--magi_flags", "--num_steps 8") == 0
    for call, folder in zip(front.run.call_args_list[:2], ("FlowCache4SkyReels-V2", "FlowCache4MAGI-1"), strict=True):
        _, path, *words = call.args[0]
        assert path == str(ROOT / folder / "sample_video.py")
        devices, work = Program(ROOT / folder / "sample_video.py", monkeypatch).prepare(*words)
        assert devices and len(work.samples) == 1
        assert {"vanilla", "teacache:paper-slow", "flowcache:paper-fast", "flowcache:quality"} <= {*work.samplers}


def test_tables_and_pictures_follow_and_all_commands_of_a_folder_are_kept(front, tmp_path, capsys):
    front.run.side_effect = map(ended, (0, 1, 0, 0))
    assert front("--outdir", "out") == 1, "only one model's videos were made"
    assert front.run.call_count == 4 and "magi1: not finished" in capsys.readouterr().err
    front.run.reset_mock(side_effect=True)
    for _ in range(2):
        assert front("--outdir", "out", "--only", "magi1") == 0
    assert [call.args[0][3] for call in front.run.call_args_list[1:3]] == ["tables", "plot"]
    base = "bash scripts/reproduce_tables.sh --outdir out"
    assert (tmp_path / "out" / "command.txt").read_text().splitlines() == [base, f"{base} --only magi1"]


def test_one_of_many_machines_only_samples(front, monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert front() == 0 and front.run.call_count == 2
    command = (tmp_path / "outputs" / "tables_auto" / "command.txt").read_text()
    assert command == "torchrun --nnodes=2 --nproc_per_node=2 scripts/reproduce_tables.py\n"


@pytest.mark.parametrize(
    ("arguments", "first", "expected", "named"),
    [
        (["--outdir", "out"], ended(2), 1, "skyreels_v2"),
        (["--outdir", "out"], KeyboardInterrupt, 130, "interrupted"),
        (["--prompts", 0], None, 2, "prompts"),
        (["--magi_flags", "'--a"], None, 2, "magi_flags"),
        (["--model", "large"], None, 2, "model"),
    ],
)
def test_bad_input_or_a_program_that_refuses_ends_it(front, arguments, first, expected, named, capsys):
    front.run.side_effect = [first]
    assert front(*arguments) == expected
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line and front.run.call_count == (first is not None)


def test_methods_are_compared_by_processor_time_on_a_cpu():
    trace = Trace(environment={"device": "cpu"})
    with trace.timer("denoise"):
        time.sleep(0.05)
    assert trace.denoising_seconds == trace.processor_seconds["denoise"] < 0.05 <= trace.seconds["denoise"]
    trace.environment["device"] = "cuda"
    assert trace.denoising_seconds == trace.seconds["denoise"]
