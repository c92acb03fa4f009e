"""The shell scripts: their settings are defaults, and what is typed overrides them."""

import pytest
from programs import FOLDERS, Program, script_words

MAGI, SKYREELS = FOLDERS.values()
RUNS = sorted(path.name for path in (MAGI / "scripts" / "single_run").glob("*_?2v.sh"))
SAMPLES = sorted(path.name for path in (MAGI / "scripts" / "sample").glob("*_*.sh"))


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The words that a script, started from another folder, gives to its program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    return lambda script, *typed: script_words(script, *typed, cwd=tmp_path)


@pytest.fixture
def read(words, monkeypatch):
    """The options that a script of MAGI-1 comes to."""

    def read(script, *typed):
        command = "sample" if script.startswith("sample") else "generate"
        return Program(MAGI / f"{command}_video.py", monkeypatch).read(*words(MAGI / "scripts" / script, *typed))

    return read


@pytest.mark.parametrize("script", RUNS)
def test_every_script_of_magi_takes_its_settings_and_typed_ones(read, script):
    given = read(f"single_run/{script}", "--num_steps", "16", "--log")
    method, *paper, mode = script.removesuffix(".sh").split("_")
    assert given.pick(("method", "mode", "num_steps")) == {"method": method, "mode": mode, "num_steps": 16}
    assert given.get("preset") == ("paper-fast" if paper else None)
    assert given.get("config_file").is_file() and given.get("yaml_config").is_file()
    given = read(f"single_run/{script}", "--mode=t2v", "--method", "vanilla")
    assert (given.get("method"), given.get("mode")) == ("vanilla", "t2v")


@pytest.mark.parametrize("script", ["vanilla", "teacache", "flowcache", "flowcache_paper"])
def test_a_target_works_with_every_script(words, magi, weights, script):
    path = MAGI / "scripts" / "single_run" / f"{script}_t2v.sh"
    typed = ["--config_file", weights, "--model", "official", "--target_speedup", 2]
    job = magi.prepare(*words(path, *typed))
    assert (str(job.tuning.target), job.sampler.method) == ("2x", "flowcache")
    with pytest.raises(ValueError, match="target_speedup"):
        magi.prepare(*words(path, *typed, "--method", "vanilla"))


@pytest.mark.parametrize("script", SAMPLES)
def test_every_sampling_script_names_its_file_and_takes_another(read, script, tmp_path):
    given = read(f"sample/{script}", "--end", "3", "--num_steps", "16")
    assert given.get("yaml_config") == MAGI / "yaml_config" / "sample" / script.replace(".sh", ".yaml")
    assert (given.get("end"), given.get("num_steps")) == (3, 16)
    (tmp_path / "own.yaml").write_text("reuse_strategy: original\nsamples: 2\n")
    given = read(f"sample/{script}", tmp_path / "own.yaml", "--num_steps", "16")
    assert (given.get("samples"), given.get("method")) == (2, "vanilla")


@pytest.fixture
def prepared(words, checkpoint, monkeypatch):
    """The job that a script of SkyReels-V2 comes to on a tiny model."""
    plain = Program(SKYREELS / "generate_video_df.py", monkeypatch)
    size = ["--model_id", checkpoint, "--height", 32, "--width", 32]
    return lambda script, *typed: plain.prepare(*words(SKYREELS / script, *typed, *size))


@pytest.mark.parametrize("script", sorted(path.name for path in SKYREELS.glob("run_*.sh")))
def test_every_script_of_skyreels_takes_its_settings_and_typed_ones(prepared, script):
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
    assert (config.compression is None) == ("--use_compress" not in (SKYREELS / script).read_text())
    job = prepared(script, "--target_speedup", 2)
    assert (str(job.tuning.target), job.sampler.method) == ("2x", "flowcache")
    assert job.sampler.model.video.streaming == ("streaming" in script)


def test_typed_options_override_the_preset_and_the_budget_of_a_script(prepared):
    assert prepared("run_flowcache_fast.sh", "--interval", 3).sampler.config.policy.interval == 3
    config = prepared("run_flowcache_kvcompress.sh", "--use_kvrange", "--kvrange", 2).sampler.config
    assert (config.compression, config.clean_range) == (None, 2)
    for script, typed, named in (
        ("flowcache_fast", "--target_speedup 2 --preset turbo", "target_speedup and preset"),
        ("flowcache_fast", "--target_speedup 2 --method causal", "target_speedup.*method"),
        ("vanilla", "--use_compress", "use_compress"),
        ("vanilla", "--num_frames 9 --causal_block_size 5", "causal_block_size"),
    ):
        with pytest.raises(ValueError, match=named):
            prepared(f"run_{script}.sh", *typed.split())


@pytest.mark.parametrize(("benchmark", "frames"), [("vbench", 177), ("physicsiq", None)])
def test_sampling_scripts_of_skyreels_set_the_benchmark(words, benchmark, frames, monkeypatch):
    typed = words(SKYREELS / f"sample_{benchmark}.sh", "--ar_step", 2)
    given = Program(SKYREELS / "sample_video.py", monkeypatch).read(*typed)
    expected = {"benchmark": benchmark, "num_frames": frames, "ar_step": 2, "inference_steps": 50}
    expected |= {"overlap_history": 17, "addnoise_condition": 20}
    assert {name: given.get(name) for name in expected} == expected
    assert given.typed == {"ar_step"}
