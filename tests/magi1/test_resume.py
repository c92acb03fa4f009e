"""A resumed video is that of a run that was not killed."""

import errno

import pytest
import torch
from programs import Program
from reference import ROOT
from resumed import check_stream, kill_at, stop_at

from magi1 import adapter, load_pipeline, resolve_model
from magi1.config import MagiConfig
from magi1.methods import method_config

COMPRESSED = {"compress_kv_cache": True, "total_cache_chunk_nums": 5}
CASES = {
    "reuse": ("flowcache", {"rel_l1_thresh": 0.2, "warmup_steps": 1}, {}),
    "at intervals": ("flowcache", {}, {}),
    "together": ("teacache", {"rel_l1_thresh": 0.2, "warmup_steps": 1}, {}),
    "compressed": ("flowcache", COMPRESSED, {}),
    "compressed, in eight bits": ("vanilla", COMPRESSED | {"kv_bits": 8}, {}),
    "the newest, in four bits": ("flowcache", {"kv_bits": 4}, {"noise2clean_kvrange": [3, 2]}),
}


@pytest.fixture(scope="module")
def pipeline(weights):
    pipeline = load_pipeline(resolve_model(weights, model="official"), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("name", "frames"), [*((name, 0) for name in CASES), ("reuse", 1), ("compressed", 12)])
def test_a_stream_resumes_from_any_part(pipeline, weights, name, frames):
    method, options, changes = CASES[name]
    prefix = torch.rand(3, frames, 32, 32, generator=torch.Generator().manual_seed(0)) if frames else None
    config = MagiConfig.from_file(weights, {"num_frames": 44, **changes})
    given = ("a red circle", config, method_config(method, **options), prefix)
    check_stream(lambda trace, state: pipeline.stream(*given, trace, state), f"{name}{frames}")


FLAGS = ["--model", "official", "--output_path", "a.mp4", "--num_frames", 44, "--compress_kv_cache", "true"]
FLAGS += ["--total_cache_chunk_nums", 5, "--kv_bits", 8]


@pytest.fixture
def front(monkeypatch, tmp_path, weights, pipeline):
    """The program with weights that are read already, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pipeline)
    program = Program(ROOT / "FlowCache4MAGI-1" / "generate_video.py", monkeypatch)
    return lambda *more: program("--config_file", weights, *FLAGS, *more)


STOPS = [((KeyboardInterrupt,), 130), ((KeyboardInterrupt, 15), 143), ((OSError, errno.ENOSPC, "full"), 1)]


@pytest.mark.parametrize(("failure", "code"), STOPS)
def test_a_run_that_stops_names_its_state(front, tmp_path, capsys, failure, code):
    for moment in (5, 58, 30):
        assert stop_at(moment, failure, lambda: front("--resume")) == code
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        saved = (tmp_path / "a.resume.pt").exists()
        assert saved == ("a.resume.pt" in line), line
        assert saved == (moment > 5)
        assert not list(tmp_path.glob(".*")), "nothing is half-written"
    assert front("--resume") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a.trace.json", "a.reuse.png"}


def test_a_state_of_another_prompt_or_setting_is_refused(front, monkeypatch, capsys):
    assert kill_at(60, lambda: front("--resume"))
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    for flags, message in (
        (["--prompt", "a"], "prompt was 'a red circle moves right"),
        (["--num_steps", 16, "--seed", 7], "runtime_config.num_steps was 8 and is 16 now, seed was 1234"),
        (["--kv_bits", 4], "reuse.storage.bits was 8 and is 4 now"),
    ):
        assert front("--resume", *flags) == 2
        assert f"a.resume.pt belongs to another run: {message}" in capsys.readouterr().err
    monkeypatch.setattr("flowcache.sampler.folder_digest", lambda folder: "another")
    assert front("--resume") == 2
    assert "a.resume.pt belongs to another run: weights.load was" in capsys.readouterr().err
