"""Schedules of prompts as typed, and the text of each chunk."""

from types import SimpleNamespace

import pytest

from flowcache import PromptSchedule
from flowcache.prompt_schedule import PromptTrack
from flowcache.wan.sizes import first_latent, pixel_frames
from self_forcing import VideoSettings as SelfForcingSettings
from skyreels_v2 import VideoSettings

READ = {
    "0: a red circle; 5s: it turns blue": [(0, "a red circle"), (5, "it turns blue")],
    "0s:a;\n2.5 s : b; .5x; c: d ;10:e;": [(0, "a"), (2.5, "b; .5x; c: d"), (10, "e")],
}
WRONG = [
    "",
    "a red circle",
    "0: ",
    "1: a",
    "0: a; 0: b",
    "0: a; 3: b; 2: c",
    "0: a; 1:30: b",
    "0: a; -1: b",
    "0: a; 5:",
]


@pytest.mark.parametrize("text", READ)
def test_a_schedule_is_read_as_typed(text):
    schedule = PromptSchedule.parse(text)
    assert list(schedule.entries) == READ[text]
    assert PromptSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_schedule_is_named(text):
    with pytest.raises(ValueError, match=r"^prompt_schedule: expected"):
        PromptSchedule.parse(text)


@pytest.mark.parametrize("entries", [5, ("a", "b"), ((None, "a"),), ((0, "a"), (float("nan"), "b"))])
def test_wrong_entries_are_named(entries):
    with pytest.raises(ValueError, match=r"^prompt_schedule: expected"):
        PromptSchedule(entries)


def test_a_prompt_that_no_chunk_reads_is_refused():
    video = SimpleNamespace(fps=30, num_frames=90, last_chunk_frame=33)
    PromptSchedule.parse("0: a; 1.1: b").check(str, video)  # 33.000000000000004 frames
    with pytest.raises(ValueError, match=r"up to 1\.1 s.*got 1\.2 s in a video of 3 s"):
        PromptSchedule.parse("0: a; 1.2: b").check(str, video)
    with pytest.raises(ValueError, match="prompt_schedule: expected words"):
        PromptSchedule.parse("0: a; 1: b").check(lambda text: text.strip("b"), video)


def test_last_chunks_start_where_windows_say():
    sizes = {"num_frames": 177, "causal_block_size": 5, "ar_step": 5}
    for changes, latent in (({"overlap_history": 17}, 40), ({"streaming": True}, 40), ({"overlap_history": 37}, 40)):
        assert VideoSettings(**sizes, **changes).last_chunk_frame == pixel_frames(latent)
    assert VideoSettings(num_frames=9, causal_block_size=3).last_chunk_frame == 0
    assert SelfForcingSettings(num_output_frames=21).last_chunk_frame == pixel_frames(18)


def test_chunks_have_the_text_that_holds_where_they_start():
    schedule = PromptSchedule.parse("0: a; 1: b; 2: a")
    track = PromptTrack(schedule, 8, first_latent)
    # Frame 8 is the last of latent frame 2; frame 16 of 4.
    assert [track.find(start) for start in range(7)] == [0, 0, 0, 1, 1, 0, 0]
    assert track.prompts == ["a", "b"], "equal prompts are one text"
    assert [first_latent(pixel_frames(latent)) for latent in range(9)] == [*range(9)]
    track.offset = 2  # a later window
    assert [track.find(start) for start in (-9, 0, 1, 2, 3)] == [0, 0, 1, 1, 0]
    assert track.switch("c", 2) and not track.switch("b", 3), "texts that are known are not embedded again"
    later = PromptTrack(schedule, 8, first_latent, offset=2)
    later.load_state_dict(track.state_dict())
    assert [later.find(start) for start in (0, 1, 2, 3, 9)] == [0, 1, 2, 1, 1], "what was sent replaces the rest"
