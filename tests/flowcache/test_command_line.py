"""What all programs share: where they write, and how they end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from flowcache.command_line import writable_folder


def test_processes_that_check_one_folder_at_once_find_it_writable(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: writable_folder("outdir", tmp_path / "out"), range(2000))) == {
            tmp_path / "out"
        }


def test_a_check_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / ".flowcache").write_text("mine")
    writable_folder("outdir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".flowcache"]
