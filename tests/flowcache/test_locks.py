"""Locks between processes."""

import subprocess
import sys

from flowcache.benchmark.locks import Locks

HOLD = "import sys, pathlib; from flowcache.benchmark.locks import Locks\n"
HOLD += "with Locks(pathlib.Path(sys.argv[1])).hold('a'): print('held', flush=True); sys.stdin.read()"


def test_a_lock_keeps_others_out_until_its_process_is_killed(tmp_path):
    locks = Locks(tmp_path / "locks")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "locks")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with locks.attempt("a") as free, locks.attempt("b") as another:
            assert (free, another) == (False, True)
        other.kill()
        with locks.hold("a"), locks.attempt("b") as free:
            assert free
