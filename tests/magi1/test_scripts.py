"""The shell scripts: their settings are defaults, and what is typed overrides them."""

import pytest
from programs import Program, script_words
from reference import ROOT

FOLDER = ROOT / "FlowCache4MAGI-1"
RUNS = sorted(path.name for path in (FOLDER / "scripts" / "single_run").glob("*_?2v.sh"))
SAMPLES = sorted(path.name for path in (FOLDER / "scripts" / "sample").glob("*_*.sh"))


@pytest.fixture
def read(monkeypatch, tmp_path):
    """The program and the options that a script comes to, started from another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))

    def read(program, script, *typed):
        words = script_words(FOLDER / "scripts" / script, *typed, cwd=tmp_path)
        front = Program(FOLDER / program, monkeypatch)
        return front, words, front.read(*words)

    return read


@pytest.mark.parametrize("script", RUNS)
def test_every_script_takes_its_settings_and_typed_ones(read, script):
    _, _, given = read("generate_video.py", f"single_run/{script}", "--num_steps", "16", "--log")
    method, *paper, mode = script.removesuffix(".sh").split("_")
    assert given.pick(("method", "mode", "num_steps")) == {"method": method, "mode": mode, "num_steps": 16}
    assert given.get("preset") == ("paper-fast" if paper else None)
    assert given.get("config_file").is_file() and given.get("yaml_config").is_file()
    _, _, given = read("generate_video.py", f"single_run/{script}", "--mode=t2v", "--method", "vanilla")
    assert (given.get("method"), given.get("mode")) == ("vanilla", "t2v")


@pytest.mark.parametrize("script", ["vanilla", "teacache", "flowcache", "flowcache_paper"])
def test_a_target_works_with_every_script(read, weights, script):
    typed = ["--config_file", weights, "--model", "official", "--target_speedup", 2]
    front, words, _ = read("generate_video.py", f"single_run/{script}_t2v.sh", *typed)
    job = front.prepare(*words)
    assert (str(job.tuning.target), job.sampler.method) == ("2x", "flowcache")
    front, words, _ = read("generate_video.py", f"single_run/{script}_t2v.sh", *typed, "--method", "vanilla")
    with pytest.raises(ValueError, match="target_speedup"):
        front.prepare(*words)


@pytest.mark.parametrize("script", SAMPLES)
def test_every_sampling_script_names_its_file_and_takes_another(read, script, tmp_path):
    _, _, given = read("sample_video.py", f"sample/{script}", "--end", "3", "--num_steps", "16")
    assert given.get("yaml_config") == FOLDER / "yaml_config" / "sample" / script.replace(".sh", ".yaml")
    assert (given.get("end"), given.get("num_steps")) == (3, 16)
    (tmp_path / "own.yaml").write_text("reuse_strategy: original\nsamples: 2\n")
    _, _, given = read("sample_video.py", f"sample/{script}", tmp_path / "own.yaml", "--num_steps", "16")
    assert (given.get("samples"), given.get("method")) == (2, "vanilla")
