"""Tables from a synthetic run, with files alone."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
from synthetic_run import PROMPTS, SAMPLES, make_run, make_turns

from flowcache.benchmark import __main__ as program
from flowcache.benchmark import run_reports
from flowcache.benchmark.paper_flops import PETA, PaperFlops, PaperRow
from flowcache.benchmark.run_folder import find_model_runs
from flowcache.benchmark.tables import build_table
from flowcache.benchmark.tables_files import markdown
from flowcache.benchmark.vbench import VBenchReport

PAPER = PaperFlops(
    model="Abacus",
    settings="beads",
    stated={"vanilla": 100, "FlowCache-fast": 25},
    counted={"all": 100 * PETA},
    rows={"FlowCache-fast": PaperRow(6.5, 230, 83.05, 0.1467, 0.7635, 22.95)},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three ways, measured once."""
    folder = make_run(tmp_path_factory.mktemp("run"), ("vanilla", "causal", "flowcache:paper-fast"))
    (folder / "command.txt").write_text("bash scripts/reproduce_tables.sh\nbash again.sh\n")
    return folder


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    """A copy of it."""
    monkeypatch.setattr(program, "registered_models", lambda: [PAPER])
    return shutil.copytree(whole, tmp_path / "run")


def table_of(folder):
    return build_table(find_model_runs(folder)[0], [PAPER])


def test_figures_are_those_of_the_files(run):
    table = table_of(run)
    vanilla, causal, flow = table.rows
    assert (table.prompts, table.weights, table.hardware) == (2, "beads", ["abacus, cpu, 1 thread"])
    assert flow.measured["pflops"] == 1.0 and flow.measured["flops_ratio"] == 4.0
    assert flow.measured["latency_seconds"] == 7.0
    assert flow.measured["speedup"] == pytest.approx((10 / 4 + 30 / 10) / 2), "the median of two ratios"
    assert flow.measured["peak_memory_gib"] == 1.0
    assert flow.measured["reuse_ratio"] == 0.5 and vanilla.measured["reuse_ratio"] == 0.0
    assert causal.measured["speedup"] == pytest.approx((10 / 8 + 30 / 20) / 2)
    assert flow.split == {
        "live_only": pytest.approx(1.25),
        "causal": pytest.approx(1.6),
        "reuse": pytest.approx(2.0),
    }
    assert vanilla.split == {"live_only": 1.0, "causal": 1.0, "reuse": 1.0}


def test_command_measures_and_writes_and_needs_no_video_afterwards(run, capsys):
    assert program.main(["tables", str(run)]) == 0, capsys.readouterr().err
    first = (run / "tables.md").read_text()
    for way in (run / "abacus").iterdir():
        shutil.rmtree(way / "videos", ignore_errors=True)
    for suffix in ("md", "csv", "json"):
        (run / f"tables.{suffix}").unlink()
    assert program.main(["tables", str(run)]) == 0, capsys.readouterr().err
    assert (run / "tables.md").read_text() == first
    flow = next(line for line in first.splitlines() if line.startswith("| FlowCache fast"))
    assert "| 1.00 (25.0) | 4.00 (4.00) | 2.75 (6.50) | 7 (230) | (83.05) |" in flow
    assert "(22.95)" in flow
    assert "- VBench: no environment given" in first
    assert first.startswith("`bash scripts/reproduce_tables.sh`\n\n`bash again.sh`\n\n")
    rows = list(csv.DictReader((run / "tables.csv").open()))
    assert rows[2]["way"] == "flowcache:paper-fast" and float(rows[2]["paper_psnr"]) == 22.95
    assert float(rows[1]["ssim"]) < float(rows[2]["ssim"]) < 1
    (content,) = json.loads((run / "tables.json").read_text())["tables"]
    assert content["missing"]["VBench"] == ["no environment given"]


def test_columns_that_could_not_be_measured_say_why(run):
    report = {"mean": {}, "missing": {"lpips": "LPIPS needs torchvision."}}
    videos = {
        f"{sample.name}.mp4": {"mean": {"psnr": 20.0, "ssim": 0.5}, "missing": {}} for sample in SAMPLES
    }
    path = run / "abacus" / "causal" / "closeness_to_vanilla.json"
    path.write_text(json.dumps({**report, "videos": videos}))
    scores = {"mean": {"scene": 0.5}, "totals": {"total": None}}
    (run / "abacus" / "causal" / "vbench.json").write_text(json.dumps(scores))
    table = table_of(run)
    assert table.rows[1].measured["psnr"] == 20.0 and table.rows[1].measured["lpips"] is None
    assert table.missing["LPIPS"] == ["LPIPS needs torchvision", "not measured"]
    assert table.missing["VBench"] == [
        "no environment given",
        "the total needs all 16 dimensions, 1 are scored",
    ]
    assert "\n- LPIPS needs torchvision; not measured" in markdown([table], [])


def test_a_broken_video_is_named_and_has_no_figures(run, capsys):
    video = run / "abacus" / "causal" / "videos" / f"{PROMPTS[0]}-0.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[:100])
    assert program.main(["tables", str(run)]) == 0, capsys.readouterr().err
    (line,) = [line for line in (run / "tables.md").read_text().splitlines() if video.name in line]
    columns = "SSIM, PSNR, PSNR to causal, SSIM to causal"
    assert f"{columns}: {video} cannot be read as a video" in line
    _, causal, flow = table_of(run).rows
    assert causal.measured["psnr"] is None and causal.measured["pflops"] == 2.0
    assert flow.measured["psnr"] > 20 and flow.measured["psnr_to_causal"] is None
    video.write_bytes(whole)
    assert program.main(["tables", str(run)]) == 0
    assert table_of(run).rows[1].measured["psnr"] > 20, "it is measured again"


def test_a_single_way_says_why_it_is_close_to_none(tmp_path):
    table = table_of(make_run(tmp_path, ("vanilla",)))
    assert table.missing["PSNR, dB"] == table.missing["LPIPS"] == ["only vanilla was run"]


def test_several_videos_of_a_prompt_are_counted_as_such(tmp_path):
    table = table_of(make_run(tmp_path, samples=[SAMPLES[0], replace(SAMPLES[0], name="a red circle-1")]))
    assert (table.prompts, table.videos) == (1, 2)
    assert "; 1 prompt, 2 videos. " in markdown([table], [])


def test_vbench_scores_again_what_was_added_since(run, monkeypatch):
    scored = []

    def score(python, videos, *_):
        scored.append(videos.parent.name)
        return VBenchReport(videos, (), looked_at=[path.name for path in videos.iterdir()])

    monkeypatch.setattr(run_reports, "prepare_environment", lambda *_: "python")
    monkeypatch.setattr(run_reports, "package_full_info", lambda _: run)
    monkeypatch.setattr(run_reports, "score", score)

    def score_all(again=False):
        scored.clear()
        run_reports.score_vbench(find_model_runs(run)[0], run, "python", "cpu", again)
        return scored

    ways = ["vanilla", "causal", "flowcache_paper-fast"]
    assert score_all() == ways and score_all() == []
    path = run / "abacus" / "causal" / "vbench.json"
    path.write_text(path.read_text().replace(PROMPTS[0], "another"))
    assert score_all() == ["causal"] and score_all(again=True) == ways


def test_scores_of_vbench_are_taken_in(run):
    for way in ("vanilla", "causal", "flowcache_paper-fast"):
        scores = {"mean": {}, "totals": {"total": 81.5}}
        (run / "abacus" / way / "vbench.json").write_text(json.dumps(scores))
    table = table_of(run)
    assert table.rows[0].measured["vbench"] == 81.5 and "VBench" not in table.missing


def test_a_run_that_was_interrupted_gives_a_table_of_what_is_whole(tmp_path):
    make_run(tmp_path, samples=SAMPLES[:1])
    late = make_turns(tmp_path / "abacus", ways=("vanilla",))
    late.run()
    table = table_of(tmp_path)
    assert table.prompts == 1
    assert table.notes == ["1 videos that not all ways have made so far are left out"]


def test_a_model_that_was_only_begun_does_not_keep_the_others_from_their_tables(run, caplog):
    shutil.copytree(run / "abacus", run / "begun")
    (run / "begun" / "vanilla" / "manifest.jsonl").unlink()
    assert [model.folder.name for model in find_model_runs(run)] == ["abacus"]
    assert "begun holds no video that was made in all of vanilla" in caplog.text


def test_times_of_unlike_machines_make_no_ratio(run):
    manifest = run / "abacus" / "causal" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("abacus", "quipu"))
    table = table_of(run)
    assert table.rows[1].measured["speedup"] is None
    assert table.missing["speed-up"] == ["no prompt was run by causal and vanilla on like machines"]


def _lose_trace(run):
    (run / "abacus" / "vanilla" / "traces" / f"{PROMPTS[0]}-0.trace.json").unlink()


def _break_ways(run):
    (run / "abacus" / "ways.json").write_text("{}")


def _lose_way(run):
    (run / "abacus" / "vanilla" / "manifest.jsonl").unlink()


def _forget_trace(run):
    record = {"name": f"{PROMPTS[0]}-0", "prompt": PROMPTS[0], "file": "videos/a.mp4"}
    (run / "abacus" / "causal" / "manifest.jsonl").write_text(f"{json.dumps(record)}\n")


def _break_closeness(run):
    (run / "abacus" / "causal" / "closeness_to_vanilla.json").write_text("[]")


def _break_scores(run):
    (run / "abacus" / "causal" / "vbench.json").write_text("{}")


def _name_no_way(run):
    content = {"model": "Abacus", "settings": "beads", "ways": []}
    (run / "abacus" / "ways.json").write_text(json.dumps(content))


def _lose_all(run):
    shutil.rmtree(run / "abacus")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_lose_trace, "cannot be read as a trace"),
        (_break_ways, "cannot be read as a list of ways"),
        (_lose_way, "holds no video that was made in all of"),
        (_forget_trace, "trace of a red circle-0 must be text"),
        (_break_closeness, "closeness_to_vanilla.json cannot be read"),
        (_break_scores, "vbench.json cannot be read"),
        (_name_no_way, "ways.json names no way"),
        (_lose_all, "holds no ways.json"),
    ],
)
def test_a_broken_run_is_refused_in_one_sentence(run, harm, message, capsys):
    harm(run)
    assert program.main(["tables", str(run)]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    "name",
    [
        "ways.json",
        f"causal/traces/{PROMPTS[0]}-0.trace.json",
        "causal/closeness_to_vanilla.json",
        "causal/vbench.json",
    ],
)
def test_any_file_of_a_run_may_be_another(run, name, capsys):
    path = run / "abacus" / name
    for wrong in ("[]", "3", '{"mean": [], "totals": {"total": "a"}}', '{"videos": {"a": 3}, "missing": {}}'):
        path.write_text(f"{wrong}\n")
        assert program.main(["tables", str(run)]) in (1, 2)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ") and path.name in line
