"""Benchmarks whose videos are each made by a group of processes."""

from functools import partial

import pytest
from launched import launch
from programs import Program, assert_refused
from synthetic_run import read_manifest

from flowcache.sampler import Sampler

PROMPTS = ("a red circle", "a circle", "red")
WORDS = (
    "--benchmark",
    "prompts",
    "--data_path",
    "prompts.txt",
    "--gpus",
    "cpu",
    "--num_frames",
    17,
    "--height",
    64,
    "--width",
    64,
)


@pytest.fixture
def sample(program, tmp_path):
    """The program of SkyReels-V2."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    front = program("skyreels_v2", "sample")
    front.first += WORDS
    return front


def run(front: Program, words: tuple, _: int):
    return front(*words)


def run_failing(front: Program, words: tuple, _: int):
    """Run where the first prompt cannot be made."""
    write = Sampler.write

    def fail(self, prompt, *arguments, **options):
        if prompt == PROMPTS[0]:
            raise ValueError("it cannot be made")
        write(self, prompt, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "write", fail)
        return front(*words)


def read_videos(folder):
    return {record["prompt"]: (folder / record["file"]).read_bytes() for record in read_manifest(folder)}


def test_groups_make_the_videos_of_one_process(sample, tmp_path):
    assert sample("--base_save_path", "alone") == 0
    # Products of this tiny model round differently with one guidance branch than with both.
    words = ("--use_usp", "--usp_size", 2, "--cfg_size", 1, "--base_save_path", "shared")
    ended = launch(tmp_path / "said", partial(run, sample, words), count=4)
    assert [each.code for each in ended] == [0] * 4, ended
    made = read_videos(tmp_path / "shared")
    assert made == read_videos(tmp_path / "alone") and made.keys() == set(PROMPTS)
    assert {record["rank"] for record in read_manifest(tmp_path / "shared")} <= {0, 2}


def test_a_video_that_fails_in_all_of_a_group_leaves_the_others(sample, tmp_path):
    words = ("--use_usp", "--base_save_path", "shared")
    first, second = launch(tmp_path / "said", partial(run_failing, sample, words))
    assert (first.code, second.code) == (1, 0), first.err
    assert "it cannot be made" in first.err
    assert read_videos(tmp_path / "shared").keys() == set(PROMPTS[1:])


def test_processes_that_no_group_takes_are_refused(sample, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert_refused(sample("--use_usp", "--usp_size", 2), "processes multiple 2 got 3", capsys)
    assert_refused(sample("--usp_size", 2), "usp_size use_usp", capsys)
