"""Locks between processes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowcache.benchmark import locks
from flowcache.benchmark.locks import Locks

#: Without its package, which imports PyTorch.
OPEN = f"import pathlib, sys; sys.path.insert(0, {str(Path(locks.__file__).parent)!r})\n"
OPEN += "from locks import Locks; folder = pathlib.Path(sys.argv[1])\n"
OPEN += "locks = Locks(folder / 'locks', folder / 'door', folder / 'scratch')\n"
HOLD = OPEN + "with locks, locks.hold('a'): print('held', flush=True); sys.stdin.read()"
#: Enters, adds to the number in a file under a lock, and leaves, a hundred times.
COUNT = OPEN + "for turn in range(100):\n with locks, locks.hold('count'):\n  number = folder / 'number'\n"
COUNT += "  number.write_text(str(int(number.read_text()) + 1))\n"


@pytest.fixture(name="locks")
def new_locks(tmp_path):
    return Locks(tmp_path / "locks", tmp_path / "door", tmp_path / "scratch")


def start(script, folder, **options):
    return subprocess.Popen([sys.executable, "-c", script, str(folder)], text=True, **options)


def test_a_killed_process_frees_its_locks_and_the_last_one_removes_the_files_of_all(locks, tmp_path):
    (tmp_path / "scratch").mkdir()
    with start(HOLD, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "held\n"
        with locks, locks.hold("a", wait=False) as free, locks.hold("b", wait=False) as another:
            assert (free, another) == (False, True)
        assert (tmp_path / "scratch").is_dir() and (tmp_path / "locks").is_dir(), "the other is at work"
        with locks:
            other.kill()
            with locks.hold("a"), locks.hold("b", wait=False) as free:
                assert free
    assert [path.name for path in tmp_path.iterdir()] == ["door"]


def test_no_process_enters_while_the_last_one_removes(tmp_path):
    (tmp_path / "number").write_text("0")
    others = [start(COUNT, tmp_path) for _ in range(3)]
    deadline = time.monotonic() + 60
    assert [other.wait(max(0, deadline - time.monotonic())) for other in others] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "300"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door", "number"]
