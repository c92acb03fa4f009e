"""Locks between processes."""

import subprocess
import sys
from pathlib import Path

from flowcache.benchmark import locks
from flowcache.benchmark.locks import lock, locked

#: Without its package, which imports PyTorch.
HOLD = f"import pathlib, sys; sys.path.insert(0, {str(Path(locks.__file__).parent)!r})\n"
HOLD += "from locks import locked; folder = pathlib.Path(sys.argv[1])\n"
HOLD += "with locked(folder / 'door', 'a'): print('held', flush=True); sys.stdin.read()"


def test_a_killed_process_frees_its_locks_and_the_file_keeps_its_content(tmp_path):
    door = tmp_path / "door"
    door.write_text("content")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with locked(door, "a", wait=False) as free, locked(door, "b", wait=False) as another:
            assert (free, another) == (False, True)
        other.kill()
        with locked(door, "a"), locked(door, "b", wait=False) as free:
            assert free
            door.open().close()  # which frees no lock
            with locked(door, "a", wait=False) as taken:
                assert not taken
    assert door.read_text() == "content"


def test_a_shared_lock_becomes_exclusive_for_the_last_one(tmp_path):
    with (tmp_path / "door").open("a+b") as one:
        with (tmp_path / "door").open("a+b") as other:
            assert lock(one, "process", shared=True) and lock(other, "process", shared=True)
            assert not lock(one, "process", wait=False)
        assert lock(one, "process", wait=False)
