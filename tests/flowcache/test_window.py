"""Which chunks move when, how a window is cut into chunks, and the noise that they start from."""

import pytest
import torch

from flowcache import StaircaseSchedule, cut_window
from flowcache.noise import BlockNoise, DeviceNoise, make_generator

NOISE = torch.randn(4, 13, 2, 2)
BAD_COUNTS = [("num_chunks", 0), ("num_steps", 0), ("stride", 7), ("stride", -1), ("first_chunk", 3), ("skipped", 3)]


@pytest.mark.parametrize(("name", "value"), BAD_COUNTS)
def test_bad_counts_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        StaircaseSchedule(**{"num_chunks": 3, "num_steps": 6, "stride": 2, name: value})


@pytest.mark.parametrize("stride", [0, 1, 3, 7])
@pytest.mark.parametrize("given", [0, 2])
def test_the_staircase(stride, given):
    schedule = StaircaseSchedule(9, 7, stride, given)
    chunks, made = range(given, 9), {chunk: [] for chunk in range(9)}
    for step in range(len(schedule) + 2):
        steps = {c: schedule.local_step(c, step) for c in chunks}
        assert schedule.live(step) == {c: k for c, k in steps.items() if 0 <= k < 7}
        assert list(schedule.finished(step)) == [c for c, k in steps.items() if k == 7]
        for bound in range(9):
            assert schedule.first_below(bound, step) == next((c for c in chunks if steps[c] < bound), 9)
    for live in schedule:
        for chunk, local_step in live.items():
            made[chunk].append(local_step)
    assert made == {chunk: list(range(7)) if chunk >= given else [] for chunk in range(9)}
    assert schedule.max_live == max(len(live) for live in schedule)
    assert schedule.live(len(schedule) - 1) and not schedule.live(len(schedule)), "no step without a chunk"


@pytest.mark.parametrize("given", [0, 2])
def test_only_the_first_chunk_takes_the_skipped_steps(given):
    schedule = StaircaseSchedule(given + 3, 4, stride=2, first_chunk=given, skipped=2)
    made = [(chunk - given, step) for live in schedule for chunk, step in live.items()]
    assert made == [*((0, step) for step in range(4)), (1, 2), (1, 3), (2, 2), (2, 3)]
    assert [list(schedule.finished(step)) for step in (3, 4, 6)] == [[], [given], [given + 1]]
    assert len(schedule) == 8 and schedule.max_live == 1


@pytest.mark.parametrize(
    ("prefix", "last", "num_given", "spans"),
    [
        (0, 0, 0, [(0, 5, 0), (5, 5, 0), (10, 3, 0)]),  # no frame is lost
        (7, 0, 1, [(0, 5, 0), (5, 5, 2), (10, 3, 0)]),  # whole chunks are given, the rest is held
        (1, 1, 1, [(12, 1, 0), (0, 5, 1), (5, 5, 0), (10, 2, 0)]),  # the last frame enters first
    ],
)
def test_chunks_of_a_window(prefix, last, num_given, spans):
    ones = torch.ones(4, 7, 2, 2)
    window = cut_window(NOISE, 5, ones[:, :prefix] if prefix else None, ones[:, :1] if last else None)
    assert [(span.start, span.frames, span.held) for span in window.chunks] == spans
    assert (window.num_given, window.num_prefix) == (num_given, prefix)
    in_order = sorted(range(len(spans)), key=lambda chunk: spans[chunk][0])
    whole = torch.cat([window.latents(chunk) for chunk in in_order], dim=1)
    assert torch.equal(whole[:, prefix : 13 - last], NOISE[:, prefix : 13 - last])
    assert (whole[:, :prefix] == 1).all() and (whole[:, 13 - last :] == 1).all()


@pytest.mark.parametrize(("prefix", "num_given"), [(0, 0), (1, 1), (6, 2)])
def test_first_chunk_of_another_size(prefix, num_given):
    window = cut_window(NOISE, 5, torch.ones(4, prefix, 2, 2) if prefix else None, first_frames=1)
    assert [(span.start, span.frames) for span in window.chunks] == [(0, 1), (1, 5), (6, 5), (11, 2)]
    assert window.num_given == num_given and not any(span.held for span in window.chunks)


def test_condition_noise_touches_the_prefix_alone():
    """The chunk of the last frame comes first in the window, before those of the prefix."""
    window = cut_window(NOISE, 2, prefix=torch.zeros(4, 3, 2, 2), last=torch.zeros(4, 1, 2, 2))
    noise = torch.arange(3.0).view(1, 3, 1, 1).expand(4, 3, 2, 2)
    noisy = [window.noised_latents(chunk, 0.5, noise) for chunk in (0, 1, 2)]
    assert [noisy[chunk][0, :, 0, 0].tolist() for chunk in (0, 1)] == [[0], [0, 0.5]]
    assert noisy[2][0, 0, 0, 0] == 1.0
    assert torch.equal(noisy[2][:, 1:], window.latents(2)[:, 1:])
    assert not window.latents(2)[:, :1].any(), "the window itself is unchanged"


def test_a_window_has_a_chunk_to_make_and_holds_those_in_use_alone():
    with pytest.raises(ValueError, match=r"prefix.*13"):
        cut_window(NOISE, 5, prefix=NOISE)
    window = cut_window(NOISE, 5)
    for chunk in range(3):
        window.latents(chunk).fill_(1)
        window.drop(chunk - 1)
        assert list(window._latents) == [chunk]
    assert not (NOISE == 1).any(), "the noise is the caller's"


@pytest.mark.parametrize("step", [1, 3, 4, 7, 9])
def test_noise_is_the_same_however_it_is_asked_for(step):
    def draw(step, block_frames=4):
        noise = BlockNoise(torch.Generator().manual_seed(5), (2, 40, 2, 2), block_frames)
        parts, held = [], []
        for start in range(0, 40, step):
            parts.append(noise.frames(start, min(40, start + step)))
            held.append(sum(block.shape[1] for block in noise.state_dict()["blocks"]))
        assert max(held) <= step + 2 * block_frames, "earlier blocks are dropped"
        return torch.cat(parts, dim=1)

    assert torch.equal(draw(step), draw(40))
    whole = torch.randn(2, 40, 2, 2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draw(step, block_frames=40), whole), "one block is one draw"


def test_noise_of_one_draw_continues_from_the_state_of_its_generator():
    def start(generator):
        return DeviceNoise(generator, (2, 9, 2, 2), num_drawn=7, device="cpu", dtype=torch.bfloat16)

    generator, expected = make_generator("original", 5, torch.device("cpu")), torch.Generator().manual_seed(5)
    noise, whole = start(generator), torch.randn(2, 7, 2, 2, generator=expected, dtype=torch.bfloat16).float()
    assert noise.shape[1] == 9 and torch.equal(noise.frames(2, 7), whole[:, 2:])
    noise.frames(0, 7).zero_()
    other = make_generator("original", 6, torch.device("cpu"))
    resumed = start(other)
    resumed.load_state_dict(noise.state_dict())
    assert torch.equal(resumed.frames(0, 7), whole)
    assert torch.equal(*(torch.randn(3, generator=each) for each in (generator, other))), "the next window's"
