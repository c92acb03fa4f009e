"""The settings that options, files and shell scripts of both models come to, and the names of the videos."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import FOLDERS, Program, cases, script_words

from flowcache import KVCompressionConfig
from flowcache.video import VideoWriter
from magi1.config import MagiConfig

MAGI, SKYREELS = FOLDERS["magi1"], FOLDERS["skyreels_v2"]
RETENTION = "--preset paper-fast --use_ret_steps --teacache_thresh 1"
#: Model, options, and parts of the configuration.
READ = [
    ("magi1", "--preset quality", {"scale": 0.3}),
    ("magi1", "--preset paper-fast --rel_l1_thresh 1e-2", {"threshold": 0.01, "forecast": "hold_displacement"}),
    ("magi1", "--policy chunkwise --policy_option final_steps=3", {"final_steps": 3}),
    ("skyreels_v2", "--use_ret_steps --teacache_thresh 0.1", {"warmup_steps": 5, "policy": "chunkwise"}),
    ("skyreels_v2", RETENTION, {"warmup_steps": 5, "threshold": 1}),
    ("skyreels_v2", "--method teacache --forecast hold_velocity", {"forecast": "hold_velocity"}),
    ("skyreels_v2", "--use_kvrange --kvrange 2", {"clean_range": 2, "compression": None}),
]


@pytest.mark.parametrize(("model", "flags", "expected"), READ)
def test_an_option_overrides_the_preset(program, model, flags, expected):
    config = program(model).prepare(*flags.split()).sampler.config.as_dict()
    assert {name: config[name] for name in expected} == expected


def test_options_of_compression(magi, skyreels):
    keys = ["--score_weighting_method", "upper_convex_polynomial", "--power", 2, "--preset", "paper-fast"]
    config = magi.prepare("--method", "vanilla", "--compress_kv_cache", "true", *keys).sampler.config
    original = config.compression.original
    assert (original.weighting, original.power, original.best_first) == ("upper_convex_polynomial", 2, True)
    name = magi.prepare("--compress_kv_cache", "true", "--total_cache_chunk_nums", 5).output.name
    assert name.startswith("a_t2v_flowcache_fast_total5_")
    for made in (magi.prepare("--compress_kv_cache", "true"), skyreels.prepare("--use_compress")):
        values = made.sampler.config.compression.as_dict()
        assert (values["scorer"], values["compactor"], values["query_granularity"]) == ("spread", "matched", "live")
    compression = skyreels.prepare("--use_compress", "--scorer", "recency").sampler.config.compression
    assert type(compression.scorer).__name__ == "Recency"
    causal = skyreels.prepare("--method=causal", "--use_compress", "--preset=paper-fast").sampler.config
    compression = causal.compression
    assert (compression.query_granularity, compression.max_queries) == ("chunk", None)


def test_keys_of_a_file_that_the_method_does_not_read_are_left_alone(magi, program):
    content = (MAGI / "yaml_config" / "single_run" / "config.yaml").read_text()
    Path("mine.yaml").write_text(content.replace("no_weight", "gaussian") + "warmup_steps: 5\nrel_l1_thresh: 0.1\n")
    for method, policy in (("vanilla", "none"), ("teacache", "teacache"), ("flowcache", "chunkwise")):
        config = magi.prepare("--additional_config", "mine.yaml", "--method", method).sampler.config
        assert (config.compression, config.as_dict()["policy"]) == (None, policy)
    assert config.policy.threshold == 0.1
    Path("mine.yaml").write_text("rel_l1_thresh: 0.1\n")
    Path("scene.txt").write_text("a red circle\n")
    flags = ["--vbench_prompt_dir", ".", "--base_save_path", "out"]
    for method in ("--method", "--ways"):
        _, work = program("magi1", "sample").prepare(*flags, "--yaml_config", "mine.yaml", method, "vanilla")
        (sampler,) = work.samplers.values()
        assert sampler.config.as_dict()["policy"] == "none"


def test_keys_of_the_original_mean_what_they_say(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    content = "gpus: 0\ndimension: scene\nreuse_strategy: all\nend: 4\n"
    Path("mine.yaml").write_text(content + "rel_l1_thresh: 0.02\nbudget_cache_chunk_nums: 1\n")
    given = Program(MAGI / "sample_video.py", monkeypatch).read(
        "mine.yaml", "--end", 9, "--warmup_steps", 3, "--num_steps", 8
    )
    expected = {"method": "teacache", "gpus": "0", "dimension": "scene", "end": 9, "threshold": 0.02}
    assert given.pick(expected) == expected
    assert given.pick(("warmup_steps", "num_steps")) == {"warmup_steps": 3, "num_steps": 8}
    assert "budget_cache_chunk_nums is ignored" in caplog.text


def test_switches_need_no_value(magi):
    given = magi.read("--log", "--print_peak_memory", "--log", "false")
    assert given.pick(("log", "print_peak_memory")) == {"log": False, "print_peak_memory": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"runtime_config": {"num_step": 16}}', "num_step; did you mean num_steps?"),
        ('{"runtime": {}}', "runtime; did you mean runtime_config?"),
        ('{"runtime_config": 3}', "named values"),
        ("[1]", "named values"),
        ("{", "JSON"),
    ],
)
def test_wrong_configurations_are_refused_by_the_key(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f".*{re.escape(message)}.*$"):
        MagiConfig.from_file(path)


def test_keys_of_any_section_can_be_overridden_and_some_have_no_effect(weights):
    keys = {"num_steps": 16, "hidden_size": 64, "kv_offload": True, "clean_t": "1e-2"}
    keys |= {"enable_cuda_graph": True, "ulysses_overlap_degree": 2, "cp_size": 2, "cp_strategy": "cp_ulysses"}
    config = MagiConfig.from_file(weights, keys)
    runtime, engine = config.runtime_config, config.engine_config
    assert (runtime.num_steps, config.model_config.hidden_size, runtime.clean_t) == (16, 64, 0.01)
    assert engine.kv_offload and engine.cp_size == 2


@pytest.mark.parametrize("name", sorted(path.name for path in (MAGI / "config").rglob("*.json")))
def test_shipped_configurations_are_valid(name):
    (path,) = (MAGI / "config").rglob(name)
    assert MagiConfig.from_file(path).model_config.hidden_size in (3072, 6144)


@pytest.mark.parametrize("file", sorted(MAGI.glob("yaml_config/sample/*.yaml")), ids=lambda path: path.name)
def test_shipped_files_are_valid(file, monkeypatch):
    given = Program(MAGI / "sample_video.py", monkeypatch).read("--yaml_config", file)
    assert given.get("benchmark") in file.name and given.get("method", "flowcache") in file.name
    assert (MAGI / given.get("config_file")).is_file()
    assert given.get("threshold") is None, "the preset's"


def test_previous_weight_is_that_of_the_environment(magi, monkeypatch):
    for text, weight in (("", 0.7), ("0.5", 0.5)):
        monkeypatch.setenv("prev_chunks_scale", text)
        assert magi.prepare().sampler.model.extras["previous_weight"] == weight


@pytest.mark.parametrize("fps", [8, 24])
def test_a_prefix_is_the_end_of_the_video_at_the_rate_of_the_new_one(magi, clip, fps):
    prefix = magi.prepare(*clip, "--fps", fps).start.prefix
    levels = (prefix.mean(dim=(0, 2, 3)) + 1) * 127.5
    assert torch.allclose(levels, (torch.arange(2, 7) * 30.0).repeat_interleave(fps), atol=3)


def test_an_option_is_for_those_of_several_methods_that_have_it(program):
    Path("scene.txt").write_text("a red circle\n")

    def prepare(*words):
        flags = ["--vbench_prompt_dir", ".", "--base_save_path", "out", "--methods", "vanilla", "causal"]
        _, work = program("skyreels_v2", "sample").prepare(*flags, *words)
        return [sampler.config for sampler in work.samplers.values()]

    configs = prepare("teacache", "flowcache:fast", "--interval", 2)
    assert [config.as_dict()["policy"] for config in configs] == ["none", "none", "teacache", "interval"]
    configs = prepare("teacache", "--use_compress", "--forecast", "hold_velocity")
    assert [config.compression is None for config in configs] == [True, False, True]
    for words, named in (
        (("teacache:paper-fast", "--interval", 2), "vanilla computes every step, .*teacache takes"),
        (("--forecast", "hold_velocity"), "forecast"),
        (("--method", "causal"), "methods and method"),
    ):
        with pytest.raises(ValueError, match=named):
            prepare(*words)


NAMES = """
t2v_flowcache_fast:
i2v_flowcache: --image first.png --end_image first.png
v2v_flowcache_fast: --video_path in.mp4 --overlap_history 5
t2v_flowcache_teacache_thresh0.1: --teacache_thresh 0.1
t2v_flowcache_fast_budget2: --use_compress --budget_block 2
t2v_flowcache_fast_budget1_streaming: --use_compress --streaming --base_num_frames 5
t2v_flowcache_fast_kvrange0: --use_kvrange
t2v_flowcache: --negative_prompt "a circle"
t2v: --num_frames 13
t2v_vanilla_seed0: --method vanilla
t2v_flowcache_interval3: --interval 3
t2v_flowcache_chunkwise: --policy chunkwise
t2v_flowcache_paper-fast_teacache_thresh0.25: --preset paper-fast --teacache_thresh 0.25
t2v_flowcache_35dB: --target_psnr 35
t2v_flowcache_turbo_kvrange2_kv8bits_kvoffload: --preset turbo --use_kvrange --kvrange 2 --kv_bits 8 --kv_offload
"""


def test_other_settings_have_other_names(skyreels):
    Image.new("RGB", (32, 32), "red").save("first.png")
    with VideoWriter("in.mp4", 24) as writer:
        writer.write(np.full((5, 32, 32, 3), 200, dtype=np.uint8))
    names = set()
    for start, flags in cases(NAMES):
        name = skyreels.prepare(*flags).output.name
        assert name.startswith(f"a_{start}")
        names.add(name)
    assert len(names) == len(cases(NAMES))


def test_a_name_is_that_of_the_content_and_not_of_paths(skyreels, checkpoint, tmp_path):
    def name(image, model=checkpoint):
        return skyreels.prepare("--model_id", model, "--image", image).output.name

    Image.new("RGB", (32, 32), "red").save("first.png")
    red = name("first.png")
    Image.new("RGB", (32, 32), "red").save("other.png")
    assert name(tmp_path / "other.png") == name("first.png", shutil.copytree(checkpoint, "moved")) == red
    Image.new("RGB", (32, 32), "blue").save("first.png")
    assert name("first.png") != red
    weights = Path("moved") / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert name("other.png", "moved") != red


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The words that a script, started from another folder, gives to its program; typed ones override its own."""
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


@pytest.mark.parametrize("script", sorted(path.name for path in MAGI.glob("scripts/single_run/*_?2v.sh")))
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


@pytest.mark.parametrize("script", sorted(path.name for path in MAGI.glob("scripts/sample/*_*.sh")))
def test_every_sampling_script_names_its_file_and_takes_another(read, script, tmp_path):
    given = read(f"sample/{script}", "--end", "3", "--num_steps", "16")
    name = script.replace("_paper", "").replace(".sh", ".yaml")
    assert given.get("yaml_config") == MAGI / "yaml_config" / "sample" / name
    assert (given.get("end"), given.get("num_steps")) == (3, 16)
    (tmp_path / "own.yaml").write_text("reuse_strategy: original\nsamples: 2\n")
    given = read(f"sample/{script}", tmp_path / "own.yaml", "--num_steps", "16")
    assert (given.get("samples"), given.get("method")) == (2, "vanilla")


@pytest.mark.parametrize("benchmark", ["vbench", "physicsiq"])
def test_a_benchmark_compacts_as_its_preset_does(words, program, tmp_path, benchmark):
    (tmp_path / "scene.txt").write_text("a red circle\n")
    found = {}
    for script in ("flowcache", "flowcache_paper"):
        typed = ("--vbench_prompt_dir", ".", "--base_save_path", "out", "--benchmark", "vbench")
        _, work = program("magi1", "sample").prepare(*words(MAGI / f"scripts/sample/{script}_{benchmark}.sh", *typed))
        (sampler,) = work.samplers.values()
        values = sampler.config.compression.as_dict()
        found[script] = [values[name] for name in ("scorer", "compactor", "query_granularity")]
    assert found["flowcache"] == [KVCompressionConfig().as_dict()[name] for name in ("scorer", "compactor")] + ["live"]
    assert found["flowcache_paper"] == ["paper", "select", {"vbench": "chunk", "physicsiq": "token"}[benchmark]]


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
