"""What all programs share: where they write, and how they end."""

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from programs import assert_refused
from reference import ROOT
from synthetic_run import make_trace

from flowcache.cli import main
from flowcache.command_line import Parser, output_file, writable_folder
from flowcache.running import run_checked, summary
from flowcache.trace import find_trace


def test_many_check_a_folder_at_once_and_leave_it_as_it_was(tmp_path):
    folder = tmp_path / "out"
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: writable_folder("outdir", folder), range(2000))) == {folder}
    (folder / ".flowcache").write_text("mine")
    writable_folder("outdir", folder)
    assert [path.name for path in folder.iterdir()] == [".flowcache"]


@pytest.mark.parametrize("path", ["x" * 240 + ".mp4", "x" * 300 + ".mp4", "y" * 300 + "/a.mp4", "a/" * 2000 + "a.mp4"])
def test_a_name_needs_room_for_what_is_written_beside_it(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="output_path"):
        output_file("output_path", Path(path))
    assert output_file("output_path", Path("x" * 230 + ".mp4"))


@pytest.mark.parametrize(
    "word", [b"--outdir=~nosuch_user/out", b"--outdir=\xff", b"--outdir=a\0b", b"--prompt=\xe9", b"--out=a"]
)
def test_paths_are_expanded_and_other_words_are_refused(word, monkeypatch, capsys):
    parser = Parser()
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    parser.add_argument("--prompt")
    monkeypatch.setenv("HOME", "/home/me")
    assert parser.parse_args(["--outdir=~/out"]).outdir == Path("/home/me/out")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([os.fsdecode(word)])
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_the_summary_compares_with_vanilla_where_that_ran(tmp_path):
    trace, vanilla = make_trace("flowcache:paper-fast", seconds=4.0), make_trace("vanilla", seconds=16.0)
    vanilla.save(tmp_path / "a_t2v_vanilla_seed0.trace.json")
    (tmp_path / "b_t2v_vanilla_seed0.trace.json").write_text("{")
    _, found = find_trace(tmp_path, "vanilla", trace)
    assert found == vanilla and "4.00x less processor time of denoising" in summary(trace, 9.0, found)
    assert "1.0 MiB; vanilla, which runs the whole window, keeps none;" in summary(trace, 9.0, found)
    alike = replace(trace, flops={**trace.flops, "live_only": trace.flops["vanilla"]})  # vanilla has a cache, too
    assert "1.0 MiB (1.0 MiB in vanilla);" in summary(alike, 9.0, found)
    assert "of denoising" not in summary(trace, 9.0, replace(found, environment={}))
    assert find_trace(tmp_path, "vanilla", replace(trace, settings={"prompt": "another"})) is None


@pytest.mark.parametrize("server", ["demo", "serve --model magi1"])
def test_a_port_in_use_is_named(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = [*server.split(), "--port", str(other.getsockname()[1])]
        assert_refused(main(words), "port", capsys)
    assert_refused(main([*server.split(), "--host", "nowhere.invalid"]), "host", capsys)
    assert not list(tmp_path.iterdir())


def test_a_failure_shows_its_notes(capsys):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error.add_note("run it again")
    assert run_checked(lambda: None, Mock(side_effect=error)) == 1
    assert capsys.readouterr().err == "error: No space left on device; run it again.\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line(capsys, request, number, code):
    # the shell's background jobs ignore SIGINT
    before = signal.signal(number, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(number, before))
    for prepare, run in ((signal.raise_signal, None), (lambda _: number, signal.raise_signal)):
        assert run_checked(lambda prepare=prepare: prepare(number), run) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert "interrupted" in line
    assert signal.getsignal(number) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(request):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert run_checked(lambda: signal.raise_signal(signal.SIGINT), lambda _: "done") == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize("program", ["FlowCache4MAGI-1/generate_video.py", "FlowCache4SkyReels-V2/sample_video.py"])
def test_an_interrupted_import_leaves_no_traceback(program):
    command, default = [sys.executable, ROOT / program, "--device", "none"], (signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(*default))
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")


def test_a_report_needs_no_reader_and_no_characters(monkeypatch, capsys):
    def report(stream, text="video: a.mp4"):
        monkeypatch.setattr(sys, "stdout", stream)
        return run_checked(lambda: None, lambda _: text)

    for encoding in ("ascii", "latin-1"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        assert report(stream, "video: 红色.mp4") == 0
        assert stream.buffer.getvalue() == b"video: \\u7ea2\\u8272.mp4\n"
    assert report(None) == 0
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:  # closing writes again, as Python does at its end
        assert report(pipe, "x" * 10**6) == 0
    with open("/dev/full", "w") as full:
        assert report(full) == 1
    assert "No space left on device" in capsys.readouterr().err
