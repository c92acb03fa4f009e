"""The state that a run saves beside its video, when that is refused, and what identifies a run."""

import io
import random
import re
import resource

import numpy as np
import pytest
import torch
from resumed import kill_at, watched

from flowcache import Trace
from flowcache.adapter import Start
from flowcache.files import remove_leftovers
from flowcache.fingerprint import array_digest, folder_digest, video_name
from flowcache.resume import FORMAT_VERSION, ResumeFile
from flowcache.sampler import write_parts
from flowcache.state import VideoPart, on_host
from flowcache.trace import StepRecord
from flowcache.video import VideoWriter

RUN = {"prompt": "a red circle", "seed": 1, "video": {"steps": 8, "size": (32, 32)}}
LENGTHS = (5, 8, 8, 3)


def stream(trace: Trace, start: int, breaks_at: int | None):
    """Parts of a video after the first ``start``, counted by its state; each adds a step to the trace."""
    for place, length in enumerate(LENGTHS[start:], start + 1):
        trace.steps.append(StepRecord(0, place, []))
        if place == breaks_at:
            raise KeyboardInterrupt
        frames = torch.linspace(-1, 1, 3 * length * 16 * 16).view(3, length, 16, 16)
        yield VideoPart(
            frames * 0.9**place, torch.zeros(4, 1, 2, 2), lambda place=place: {"place": torch.tensor(place)}
        )


def make(path, run=RUN, breaks_at: int | None = None) -> Trace:
    """Make the video as a program does with ``--resume``; the trace."""
    trace, before = Trace(), path.parents[1] / "before.mp4"
    if not before.exists():
        with VideoWriter(before, 24) as writer:
            writer.write(np.full((2, 16, 16, 3), 90, np.uint8))
    with ResumeFile(path, run) as resume:
        state = resume.begin(trace)
        parts = stream(trace, int(state.pop("stream")["place"]) if state else 0, breaks_at)
        write_parts(parts, path, 24, (16, 16), Start(before=before, skip=7), trace, resume, state)
    return trace


def broken(folder, at=3):
    """Make a run that ends before a part; return the video's path."""
    with pytest.raises(KeyboardInterrupt):
        make(folder / "a.mp4", breaks_at=at)
    return folder / "a.mp4"


def test_killed_at_any_moment_it_resumes_to_the_same_video_and_leaves_nothing_else(tmp_path):
    path, steps = tmp_path / "a.mp4", [vars(step) for step in make(tmp_path / "whole.mp4").steps]
    with watched(-1, pytest.fail) as moments:
        make(path)
    for moment in random.Random(0).sample(range(next(moments)), 12):
        assert kill_at(moment, lambda: make(path))
        assert [vars(step) for step in make(path).steps] == steps
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "whole.mp4"], moment
        assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes(), moment
        path.unlink()


def test_another_run_is_refused_with_what_differs(tmp_path):
    path = broken(tmp_path)
    differs = r"seed was 1 and is 3 now, a was None and is 1 now, .*, and 2 more"
    with pytest.raises(ValueError, match=rf"a\.resume\.pt belongs to another run: {differs}"):
        make(path, RUN | {"seed": 3, **dict.fromkeys("abcd", 1)})
    make(path)


def stored(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


STATES = [{"trace": {"seconds": 3}}, {"run": []}, {"steps": {}}, {"steps": {"length": "1", "checksum": 2}}]
STATES += [{"state": {}}, {"state": torch.zeros(3)}, {"format": 0}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        # a bit among the numbers of a tensor, where no structure would notice
        lambda content: content.replace(b"\x02\0\0\0\0\0\0\0", b"\x03\0\0\0\0\0\0\0", 1),
        lambda content: stored({"format": FORMAT_VERSION, "run": re.compile("a")}),  # an object
        *(
            lambda content, change=change: stored(torch.load(io.BytesIO(content), weights_only=True) | change)
            for change in STATES
        ),
    ],
)
def test_a_damaged_state_is_refused(tmp_path, damage):
    path, state = broken(tmp_path), tmp_path / "a.resume.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.resume\.pt .*remove it"):
        make(path)


@pytest.mark.parametrize("name", ["a.part.mp4", "a.resume.jsonl"])
@pytest.mark.parametrize("end", [b"", b"x"])
def test_another_video_in_its_place_is_refused(tmp_path, name, end):
    path, other = broken(tmp_path), tmp_path / name
    other.write_bytes(other.read_bytes()[:-1] + end)
    with pytest.raises(ValueError, match=rf"a\.resume\.pt .*{name} is not the file"):
        make(path)


def test_without_the_video_it_starts_again(tmp_path, caplog):
    path = broken(tmp_path)
    (tmp_path / "a.part.mp4").unlink()
    with pytest.raises(KeyboardInterrupt):
        make(path, breaks_at=1)
    assert "a.part.mp4 is gone" in caplog.text
    assert len(make(path).steps) == len(LENGTHS)


def test_another_machine_is_a_warning(tmp_path, caplog):
    path = broken(tmp_path)
    state = torch.load(tmp_path / "a.resume.pt", weights_only=True)
    state["environment"]["torch"] = "1.0"
    torch.save(state, tmp_path / "a.resume.pt")
    make(path)
    assert "torch was '1.0' and is" in caplog.text


def test_two_runs_do_not_share_a_video(tmp_path):
    refused = pytest.raises(ValueError, match=r"a\.mp4 is being made by another process")
    with ResumeFile(tmp_path / "a.mp4", RUN), ResumeFile(tmp_path / "b.mp4", RUN), refused:
        ResumeFile(tmp_path / "a.mp4", RUN)
    make(tmp_path / "a.mp4")


def test_leftovers_are_those_of_that_name(tmp_path):
    others = [".a.abcdefgh.mp4", ".a[1].b.mp4", "a[1].abcdefgh.mp4"]
    for name in (".a[1].abcdefg_.mp4", *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a[1].mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == others


def test_states_take_no_more_than_their_numbers():
    whole = torch.arange(1000.0)
    state = on_host({"whole": whole, "view": [whole[:10], (whole[::100], None, "text")]})
    for view in (state["view"][0], state["view"][1][0]):
        assert view.untyped_storage().nbytes() == 40
    assert torch.equal(state["view"][1][0], whole[::100])


def test_digests_tell_runs_apart(tmp_path):
    one, other, moved = (tmp_path / name for name in ("one", "other", "moved"))
    for folder in (one, other, moved):
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(bytes(2**22 - 1) + (b"x" if folder is other else b"\0"))
        (folder / "notes.txt").write_text(folder.name)
    assert folder_digest(one) == folder_digest(moved) != folder_digest(other)
    before = folder_digest(moved)
    (moved / "vae").symlink_to(other)
    assert folder_digest(moved) != before, "linked components are parts of a model"
    pixels = np.zeros((2, 3), np.uint8)
    assert len({array_digest(of) for of in (None, pixels, pixels.T, pixels + 1, pixels.astype(float))}) == 5


@pytest.mark.parametrize("prompt", ["a" * 500, "早上好 " * 200, "é" * 300, "!", "a red circle"])
@pytest.mark.parametrize("words", [["flowcache"], ["teacache_thresh0.123457"] * 8])
def test_a_name_leaves_room_for_the_files_beside_it(prompt, words):
    stem = video_name(prompt, words, {}).removesuffix(".mp4")
    assert len(f".{stem}.trace.12345678.json".encode()) < 240
    assert all(word in stem for word in words)


def test_same_settings_share_a_name_and_others_do_not():
    names = [video_name("a", [], {"seed": 0, "sizes": sizes}) for sizes in ((1, 2), (1, 2), (2, 1))]
    assert names[0] == names[1] != names[2]
    assert video_name("a", [], {"a": 0, "b": 1}) == video_name("a", [], {"b": 1, "a": 0})


@pytest.mark.parametrize("size", [0, 1000, 2500, 4000])
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, size):
    """Writing fails at the most bytes that a file may have as it does on a full disk."""
    make(tmp_path / "whole.mp4")
    path, (soft, hard) = tmp_path / "a.mp4", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError) as found:
            make(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(found.value.filename).startswith(str(tmp_path / "a."))
    assert not list(tmp_path.glob(".*")), "no temporary file is left"
    state = tmp_path / "a.resume.pt"
    assert state.exists() == any(str(state) in note for note in getattr(found.value, "__notes__", ()))
    make(path)
    assert path.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "whole.mp4"]


def test_a_run_that_saved_nothing_leaves_nothing(tmp_path):
    broken(tmp_path, at=1)
    assert not list(tmp_path.glob("*.resume.*"))
