"""Research scripts: help, bad input, and tiny runs of the small checkpoints."""

import json
import runpy
import sys

import pytest

SCRIPTS = ("methods", "policies", "kv", "long_video", "compression", "streaming", "peers")
TRAINING = ("vae", "skyreels", "magi")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.delitem(sys.modules, f"research.{name}", raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(f"research.{name}", run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"train_small.{name}" for name in TRAINING)])
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
        ("streaming --model magi", "model"),
        ("peers --num_frames 93", "num_frames"),
        ("peers --methods nocache:1", "nocache"),
        ("peers --methods fbcache", "fbcache:2"),
    ],
)
def test_bad_input_ends_in_one_sentence(run, words, named):
    code, _, err = run(*words.split())
    assert code == 2
    assert named in err.splitlines()[-1] and "Traceback" not in err


def test_methods_of_the_small_checkpoint(run, tmp_path):
    words = ["--model", "magi", "--num_frames", 48, "--steps", 8, "--repeats", 1, "--outdir", tmp_path]
    code, out, _ = run("methods", *words, "--methods", "vanilla", "flowcache:fast")
    table = (tmp_path / "bench.md").read_text()
    assert code == 0 and table.strip() in out
    assert "| flowcache:fast | " in table and "x from reuse (seed 0)" in table
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [m["method"] for m in record["measurements"]] == ["vanilla", "flowcache:fast"]
    for name in ("seed0.png", "flowcache_fast_seed0.reuse.png", "vanilla_seed0.trace.json"):
        assert (tmp_path / name).stat().st_size > 500
