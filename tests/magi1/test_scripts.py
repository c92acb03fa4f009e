"""The shell scripts: their settings are defaults, and what is typed overrides them."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import Program, script_words
from reference import ROOT

FOLDER = ROOT / "FlowCache4MAGI-1"
RUNS = sorted(path.name for path in (FOLDER / "scripts" / "single_run").glob("*_?2v.sh"))
SAMPLES = sorted(path.name for path in (FOLDER / "scripts" / "sample").glob("*_*.sh"))


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """A program with the flags and the other words of a script that starts it from another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))

    def parse(script, *typed):
        module = Program(FOLDER / script.parts[0], monkeypatch).module
        words = script_words(FOLDER / "scripts" / Path(*script.parts[1:]), *typed, cwd=tmp_path)
        return module, *module.build_parser().parse_known_args(words)

    return parse


@pytest.mark.parametrize("script", RUNS)
def test_every_script_takes_its_settings_and_what_is_typed(parse, script):
    _, args, rest = parse(Path("generate_video.py", "single_run", script), "--num_steps", "16", "--log")
    assert [args.method, args.mode] == script.removesuffix(".sh").split("_")
    assert args.config_file.is_file() and args.additional_config.is_file()
    assert rest == ["--num_steps", "16", "--log"]
    _, args, _ = parse(Path("generate_video.py", "single_run", script), "--mode=t2v", "--method", "vanilla")
    assert (args.method, args.mode) == ("vanilla", "t2v")


@pytest.mark.parametrize("method", ["vanilla", "teacache", "flowcache"])
def test_a_target_works_with_every_script(parse, weights, method):
    typed = ["--config_file", weights, "--model", "official", "--target_speedup", 2]
    module, args, rest = parse(Path("generate_video.py", "single_run", f"{method}_t2v.sh"), *typed)
    job = module.prepare(args, rest)
    assert (str(job.tuning.target), job.sampler.method) == ("2x", "flowcache")
    module, args, rest = parse(
        Path("generate_video.py", "single_run", f"{method}_t2v.sh"), *typed, "--method", "vanilla"
    )
    with pytest.raises(ValueError, match="target_speedup needs method flowcache, got vanilla"):
        module.prepare(args, rest)


@pytest.mark.parametrize("script", SAMPLES)
def test_every_sampling_script_names_its_file_and_takes_another(parse, script, tmp_path):
    _, args, rest = parse(Path("sample_video.py", "sample", script), "--end", "3", "--num_steps", "16")
    assert args.yaml_config == FOLDER / "yaml_config" / "sample" / script.replace(".sh", ".yaml")
    assert (args.end, rest) == (3, ["--num_steps", "16"])
    own = tmp_path / "own.yaml"
    config = FOLDER / "config" / "sample" / "vbench.json"
    own.write_text(f"config_file: {config}\nreuse_strategy: original\nsamples: 2\n")
    module, args, rest = parse(Path("sample_video.py", "sample", script), own, "--num_steps", "16")
    settings = module.read_settings(args, rest)
    assert (settings.benchmark.samples, settings.overrides, args.method) == (2, {"num_steps": 16}, "vanilla")
