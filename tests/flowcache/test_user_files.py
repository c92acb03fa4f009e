"""Files of users, of earlier runs and of the Hub, files written whole or not at all, optional packages."""

import json
import logging
import os
import socket
import time

import pytest
from huggingface_hub import close_session, constants

from flowcache.benchmark.prompts import read_full_info
from flowcache.benchmark.sample_folder import SampleFolder
from flowcache.benchmark.sampling import read_methods
from flowcache.environment import Unavailable, require
from flowcache.files import replaced_when_done, write_csv, write_json
from flowcache.hub import fetch_snapshot
from flowcache.kv.quantized import QuantizationEvent
from flowcache.trace import ChunkEvent, Trace, WindowRecord
from flowcache.tuning import Profile
from flowcache.user_files import UnreadableFile, read_text

#: Content that is not even JSON, or another value than an object or a list of them.
BROKEN = [b"", b"{", b"7", b"null", b"[3]", b'"a"', b"\xff\xfe{}", b"[" * 100_000]

SETTING = {"interval": 2, "speedup": 2.0, "psnr": 30.0, "seconds": 1.0}
PROFILE = {"format": 2, "key": {}, "settings": [SETTING], "seconds": 1.0, "environment": {}}
TRACE = {"format": 1, "windows": [{"num_steps": 4, "stride": 2, "first_chunk": 0, "chunk_frames": [2]}]}
EVENT = {"chunk": 0, "local_step": 0, "reused": False}
PROMPT = {"prompt_en": "a", "dimension": ["scene"]}
STEP = {"window": 0, "step": 0, "events": [EVENT]}

#: What reads a file, what it accepts, and changes that it must not accept with the words of the error.
READERS = {
    "a.trace.json": (
        Trace.load,
        TRACE | {"steps": [STEP]},
        [
            ({"steps": [3]}, r"steps\[0\]: expected an object, got 3"),
            ({"steps": 3}, "steps: expected a list"),
            ({"steps": [STEP | {"window": 1}]}, ""),
            ({"steps": [STEP | {"events": [EVENT | {"chunk": 5}]}]}, ""),
            ({"steps": [STEP | {"events": [EVENT | {"chunk": True}]}]}, r"\[0\].events\[0\].chunk: expected a whole"),
            ({"steps": [STEP | {"events": [EVENT | {"reused": 1}]}]}, "reused: expected true or false"),
            ({"steps": [{"window": 0}]}, "lacks step"),
            ({"format": 2}, ""),
            ({"unknown": 1}, "unknown field 'unknown'"),
            ({"seconds": {"denoise": "1"}}, "seconds.denoise"),
            ({"settings": {"video": 3}}, "settings.video"),
            ({"method": 3}, "method: expected text"),
        ],
    ),
    "profile.json": (
        Profile.load,
        PROFILE,
        [
            ({"settings": [SETTING | {"speedup": "2"}]}, "speedup"),
            ({"format": "1"}, "delete"),
            ({"seconds": None}, ""),
        ],
    ),
    "ways.json": (
        lambda path: read_methods(path.parent),
        {"model": "a", "settings": "b", "ways": ["vanilla"]},
        [({"ways": "vanilla"}, ""), ({"ways": [1]}, ""), ({"model": None}, "")],
    ),
    "full_info.json": (read_full_info, [PROMPT], [([PROMPT | {"prompt_en": 3}], ""), ([{}], "")]),
    "settings.json": (lambda path: SampleFolder(path.parent, {"steps": 8}), {"steps": 8}, []),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_kind_is_named(tmp_path, name):
    read, content, changes = READERS[name]
    path = tmp_path / name
    (tmp_path / "manifest.jsonl").write_text('{"name": "a"}\n')
    path.write_text(f"\ufeff{json.dumps(content)}", encoding="utf-8")
    assert read(path)
    for change, named in changes:
        path.write_text(json.dumps(content | change if isinstance(content, dict) else change))
        with pytest.raises(UnreadableFile, match=f"{name}.*{named}"):
            read(path)
    for broken in BROKEN:
        path.write_bytes(broken)
        with pytest.raises(UnreadableFile, match=name):
            read(path)


def test_a_trace_is_read_as_it_was_written(tmp_path):
    trace = Trace(method="flowcache", settings={"reuse": {"threshold": 0.1}})
    trace.begin_window(WindowRecord(3, 1, 0, [5, 5], 100))
    flops = {"actual": 1.0, "vanilla": 4.0}
    trace.add_step(0, [ChunkEvent(0, 0, False)], 0.5, 10, flops)
    assert not trace.has_distances
    events = [ChunkEvent(0, 1, True, 0.01, 0.02), ChunkEvent(1, 0, False)]
    trace.add_step(1, events, 0.5, 20, flops, quantizations=[QuantizationEvent([0], 0.01, 0.02)])
    for _ in range(2):
        with trace.timer("decode"):
            pass
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    assert trace.seconds["decode"] > 0 and trace.has_distances
    assert (trace.reuse_ratio, trace.flops) == (pytest.approx(1 / 3), {"actual": 2.0, "vanilla": 8.0})


def test_a_silent_hub_is_named_and_not_waited_for_long_nor_asked_in_vain(monkeypatch, tmp_path, caplog):
    snapshot, checked = tmp_path / "models--a--whole" / "snapshots" / ("0" * 40), []
    for folder in (snapshot, snapshot.parents[1] / "refs"):
        folder.mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:  # which lets connections wait
        server.setblocking(False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        close_session()
        assert fetch_snapshot("model_id", "a/whole", ["*"], checked.append) == snapshot
        with pytest.raises(BlockingIOError):
            server.accept()
        started = time.monotonic()
        with caplog.at_level(logging.INFO), pytest.raises(OSError, match=r"model_id: a/b could not be") as raised:
            fetch_snapshot("model_id", "a/b", ["*"], lambda folder: None)
        server.accept()[0].close()
    close_session()
    assert time.monotonic() - started < 10 and checked == [snapshot]
    (line,) = [record.message for record in caplog.records if record.name == "flowcache.hub"]
    assert "a/b" in line and constants.ENDPOINT in line
    assert "\n" not in str(raised.value)


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
