"""The shell scripts: their settings are defaults, and what is typed overrides them."""

from __future__ import annotations

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

    def prepare(script, *typed):
        words = script_words(FOLDER / script, *typed, *size, cwd=tmp_path)
        return program.prepare(*words)

    return prepare


@pytest.mark.parametrize("script", RUNS)
def test_every_script_takes_its_settings_a_shorter_video_and_a_target(prepared, script):
    sampler = prepared(script).sampler
    name = script.removeprefix("run_").removesuffix(".sh").partition("_")[0]
    assert sampler.method == name
    assert (sampler.model.video.inference_steps, sampler.model.video.ar_step) == (50, 5)
    assert sampler.model.video.num_frames == (377 if "streaming" in script else 177)
    short = prepared(script, "--num_frames", 9, "--base_num_frames", 17).sampler.model.video
    assert (short.num_frames, short.overlap_history, short.causal_block_size) == (9, None, 3)
    job = prepared(script, "--target_speedup", 2)
    assert str(job.tuning.target) == "2x"
    assert job.sampler.method == "flowcache"
    assert job.sampler.model.video.streaming == ("streaming" in script)


@pytest.mark.parametrize("script", RUNS)
def test_a_typed_method_overrides_every_script(prepared, script):
    for flags in (["--method", "vanilla"], ["--teacache"]):
        sampler = prepared(script, *flags).sampler
        assert sampler.method == flags[-1].removeprefix("--")
        assert (sampler.config.compression, sampler.model.video.streaming) == (None, False)
    cache = prepared(script, "--method", "causal").sampler.config
    assert (cache.policy, cache.compression is None) == ("none", "--use_compress" not in _text(script))


def test_typed_options_override_the_preset_and_the_budget_of_a_script(prepared):
    assert prepared("run_flowcache_fast.sh", "--interval", 3).sampler.config.interval == 3
    cache = prepared("run_flowcache_kvcompress.sh", "--use_kvrange", "--kvrange", 2).sampler.config
    assert (cache.compression, cache.clean_range) == (None, 2)
    assert prepared("run_flowcache_slow.sh", "--method", "flowcache").sampler.config == (
        prepared("run_flowcache_slow.sh").sampler.config
    )


def test_typed_settings_that_exclude_each_other_are_refused_with_a_script_too(prepared):
    with pytest.raises(ValueError, match="target_speedup and preset exclude"):
        prepared("run_flowcache_fast.sh", "--target_speedup", 2, "--preset", "turbo")
    with pytest.raises(ValueError, match="target_speedup needs method flowcache, got causal"):
        prepared("run_flowcache_fast.sh", "--target_speedup", 2, "--method", "causal")
    with pytest.raises(ValueError, match="use_compress"):
        prepared("run_vanilla.sh", "--use_compress")
    with pytest.raises(ValueError, match="causal_block_size must be at most"):
        prepared("run_vanilla.sh", "--num_frames", 9, "--causal_block_size", 5)


@pytest.mark.parametrize(("benchmark", "frames"), [("vbench", 177), ("physicsiq", None)])
def test_sampling_scripts_set_the_benchmark(benchmark, frames, monkeypatch, tmp_path):
    words = script_words(FOLDER / f"sample_{benchmark}.sh", "--ar_step", 2, cwd=tmp_path)
    args = Program(FOLDER / "sample_video.py", monkeypatch).module.build_parser().parse_args(words)
    assert (args.benchmark, args.num_frames, args.ar_step) == (benchmark, frames, 2)
    assert (args.inference_steps, args.overlap_history, args.addnoise_condition) == (50, 17, 20)
    assert args.typed == {"ar_step"}


def _text(script: str) -> str:
    return (FOLDER / script).read_text()
