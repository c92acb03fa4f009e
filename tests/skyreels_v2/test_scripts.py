"""The shell scripts: their settings are defaults, and what is typed overrides them."""

import pytest
from programs import Program, script_words
from reference import ROOT

FOLDER = ROOT / "FlowCache4SkyReels-V2"
RUNS = sorted(path.name for path in FOLDER.glob("run_*.sh"))


@pytest.fixture
def prepared(checkpoint, monkeypatch, tmp_path):
    """The job that a script comes to on a tiny model, started from another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    program = Program(FOLDER / "generate_video_df.py", monkeypatch)
    size = ["--model_id", checkpoint, "--height", 32, "--width", 32]
    return lambda script, *typed: program.prepare(*script_words(FOLDER / script, *typed, *size, cwd=tmp_path))


@pytest.mark.parametrize("script", RUNS)
def test_every_script_takes_its_settings_and_typed_ones(prepared, script):
    def made(*typed):
        sampler = prepared(script, *typed).sampler
        return sampler.method, sampler.config, sampler.model.video

    method, config, video = made()
    assert method == script.removeprefix("run_").removesuffix(".sh").partition("_")[0]
    assert (video.inference_steps, video.ar_step) == (50, 5)
    assert video.num_frames == (377 if "streaming" in script else 177)
    if method == "flowcache":
        assert config.as_dict()["policy"] == ("chunkwise" if "paper" in script else "interval")
    *_, short = made("--num_frames", 9, "--base_num_frames", 17)
    assert (short.num_frames, short.overlap_history, short.causal_block_size) == (9, None, 3)
    for flags in (["--method", "vanilla"], ["--teacache"]):
        method, config, video = made(*flags)
        assert method == flags[-1].removeprefix("--")
        assert (config.compression, video.streaming) == (None, False)
    _, config, _ = made("--method", "causal")
    assert (config.compression is None) == ("--use_compress" not in (FOLDER / script).read_text())
    job = prepared(script, "--target_speedup", 2)
    assert (str(job.tuning.target), job.sampler.method) == ("2x", "flowcache")
    assert job.sampler.model.video.streaming == ("streaming" in script)


def test_typed_options_override_the_preset_and_the_budget_of_a_script(prepared):
    assert prepared("run_flowcache_fast.sh", "--interval", 3).sampler.config.policy.interval == 3
    config = prepared("run_flowcache_kvcompress.sh", "--use_kvrange", "--kvrange", 2).sampler.config
    assert (config.compression, config.clean_range) == (None, 2)


@pytest.mark.parametrize(
    ("script", "typed", "named"),
    [
        ("run_flowcache_fast.sh", "--target_speedup 2 --preset turbo", "target_speedup and preset"),
        ("run_flowcache_fast.sh", "--target_speedup 2 --method causal", "target_speedup.*method"),
        ("run_vanilla.sh", "--use_compress", "use_compress"),
        ("run_vanilla.sh", "--num_frames 9 --causal_block_size 5", "causal_block_size"),
    ],
)
def test_typed_settings_that_exclude_each_other_are_refused_with_a_script_too(prepared, script, typed, named):
    with pytest.raises(ValueError, match=named):
        prepared(script, *typed.split())


@pytest.mark.parametrize(("benchmark", "frames"), [("vbench", 177), ("physicsiq", None)])
def test_sampling_scripts_set_the_benchmark(benchmark, frames, monkeypatch, tmp_path):
    words = script_words(FOLDER / f"sample_{benchmark}.sh", "--ar_step", 2, cwd=tmp_path)
    given = Program(FOLDER / "sample_video.py", monkeypatch).read(*words)
    expected = {"benchmark": benchmark, "num_frames": frames, "ar_step": 2, "inference_steps": 50}
    expected |= {"overlap_history": 17, "addnoise_condition": 20}
    assert {name: given.get(name) for name in expected} == expected
    assert given.typed == {"ar_step"}
