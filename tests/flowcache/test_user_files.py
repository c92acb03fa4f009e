"""Files of users and of earlier runs, files written whole or not at all, optional packages."""

import json
import os

import pytest
import torch

from flowcache.benchmark.prompts import read_full_info
from flowcache.benchmark.sample_folder import SampleFolder
from flowcache.benchmark.sampling import read_methods
from flowcache.environment import Unavailable, require
from flowcache.files import replaced_when_done, write_csv, write_json
from flowcache.resume import ResumeFile
from flowcache.trace import Trace
from flowcache.tuning import Profile
from flowcache.user_files import UnreadableFile, read_text

#: Content that is not even JSON, or another value than an object or a list of them.
BROKEN = [b"", b"{", b"7", b"null", b"[3]", b'"a"', b"\xff\xfe{}", b"[" * 100_000]

SETTING = {"interval": 2, "speedup": 2.0, "psnr": 30.0, "seconds": 1.0}
PROFILE = {"format": 2, "key": {}, "settings": [SETTING], "seconds": 1.0, "environment": {}}
TRACE = {"format": 1, "windows": [{"num_steps": 4, "stride": 2, "first_chunk": 0, "chunk_frames": [2]}]}
STEP = {"window": 0, "step": 0, "events": [{"chunk": 0, "local_step": 0, "reused": False}]}

#: What reads a file, what it accepts, and changes that it must not accept.
READERS = {
    "a.trace.json": (
        Trace.load,
        TRACE | {"steps": [STEP]},
        [
            *({"steps": [3]}, {"steps": [STEP | {"window": 1}]}, {"format": 2}, {"unknown": 1}),
            *({"seconds": {"denoise": "1"}}, {"settings": {"video": 3}}),
            {"steps": [STEP | {"events": [{"chunk": 5, "local_step": 0, "reused": False}]}]},
        ],
    ),
    "profile.json": (
        Profile.load,
        PROFILE,
        [{"settings": [SETTING | {"speedup": "2"}]}, {"settings": {}}, {"seconds": None}, {"format": "1"}],
    ),
    "ways.json": (
        lambda path: read_methods(path.parent),
        {"model": "a", "settings": "b", "ways": ["vanilla"]},
        [{"ways": "vanilla"}, {"ways": [1]}, {"model": None}],
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_kind_is_named(tmp_path, name):
    read, content, changes = READERS[name]
    path = tmp_path / name
    path.write_text(f"\ufeff{json.dumps(content)}", encoding="utf-8")
    assert read(path)
    for wrong in [*BROKEN, *(json.dumps(content | change).encode() for change in changes)]:
        path.write_bytes(wrong)
        with pytest.raises(UnreadableFile, match=name):
            read(path)


@pytest.mark.parametrize("wrong", [*BROKEN, b'[{"prompt_en": 3, "dimension": ["scene"]}]', b"[{}]"])
def test_prompts_and_settings_of_another_kind_are_named(tmp_path, wrong):
    (tmp_path / "manifest.jsonl").write_text('{"name": "a"}\n')
    (tmp_path / "settings.json").write_bytes(wrong)
    with pytest.raises(UnreadableFile, match=r"settings\.json"):
        read_full_info(tmp_path / "settings.json")
    with pytest.raises(UnreadableFile, match=r"settings\.json"):
        SampleFolder(tmp_path, {"steps": 8})


STATES = [{"trace": {"seconds": 3}}, {"run": []}, {"steps": {}}, {"steps": {"length": "1", "checksum": 2}}]
STATES += [{"state": {}}, {"state": torch.zeros(3)}]


@pytest.mark.parametrize("change", STATES)
def test_a_state_of_another_kind_is_named(tmp_path, change):
    part = {"length": 0, "checksum": 0}
    content = {"format": 1, "run": {}, "environment": {}, "trace": {}, "steps": part}
    content |= {"state": {"video": {"part": part}}}
    torch.save(content | change, tmp_path / "a.resume.pt")
    with pytest.raises(UnreadableFile, match=r"a\.resume\.pt .* remove it"):
        ResumeFile(tmp_path / "a.mp4", {})


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scene.txt")
    with pytest.raises(UnreadableFile, match=r"scene\.txt cannot be read as a list: it is a pipe"):
        read_text(tmp_path / "scene.txt", "a list")


def test_tables_and_json_are_written_whole_or_not_at_all(tmp_path):
    write_csv(tmp_path / "a.csv", ["name", "value"], [{"name": "a, b", "value": 1.5}, {"name": "c"}])
    assert (tmp_path / "a.csv").read_text() == 'name,value\n"a, b",1.5\nc,\n'
    path, content = tmp_path / "a.json", {"mean": None, "values": [0.1, 2]}
    write_json(path, content)
    with pytest.raises(ValueError):
        write_json(path, [float("inf")])
    with pytest.raises(KeyError), replaced_when_done(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert json.loads(path.read_text()) == content
    assert {other.name for other in tmp_path.iterdir()} == {"a.csv", "a.json"}


def test_an_optional_package_is_imported_or_named_with_its_remedy(tmp_path, monkeypatch):
    assert require("json", "A test", "dev") is json
    with pytest.raises(Unavailable, match=r"no_such_package: pip install .*\[metrics\]"):
        require("no_such_package", "A test", "metrics")
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('operator nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unavailable, match=r"operator nms does not exist$"):
        require("broken_package", "A test", "metrics")
