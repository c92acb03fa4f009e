"""Cutting a window into chunks."""

import pytest
import torch

from flowcache import cut_window
from flowcache.noise import BlockNoise
from flowcache.window import with_condition_noise

NOISE = torch.randn(4, 13, 2, 2)


def latents(window):
    """All latents of a window, in order of time."""
    chunks = sorted(range(len(window.chunks)), key=lambda chunk: window.chunks[chunk].start)
    return torch.cat([window.latents(chunk) for chunk in chunks], dim=1)


def spans(window):
    return [(span.start, span.frames, span.held) for span in window.chunks]


def test_no_tail_frame_is_lost():
    assert spans(cut_window(NOISE, 5)) == [(0, 5, 0), (5, 5, 0), (10, 3, 0)]


def test_whole_chunks_of_a_prefix_are_given_and_the_rest_is_held():
    prefix = torch.ones(4, 7, 2, 2)
    window = cut_window(NOISE, 5, prefix)
    assert window.num_given == 1
    assert spans(window) == [(0, 5, 0), (5, 5, 2), (10, 3, 0)]
    assert window.num_prefix == 7
    assert torch.equal(latents(window)[:, :7], prefix)
    assert torch.equal(latents(window)[:, 7:], NOISE[:, 7:])


def test_a_last_frame_enters_first():
    last = torch.ones(4, 1, 2, 2)
    window = cut_window(NOISE, 5, prefix=torch.zeros(4, 1, 2, 2), last=last)
    assert window.num_given == 1
    assert spans(window) == [(12, 1, 0), (0, 5, 1), (5, 5, 0), (10, 2, 0)]
    assert [window.num_prefix_of(chunk) for chunk in range(4)] == [0, 1, 0, 0]
    assert torch.equal(window.latents(0), last)
    assert torch.equal(latents(window)[:, 1:12], NOISE[:, 1:12])


def test_a_prefix_must_leave_something():
    with pytest.raises(ValueError, match="prefix of 13"):
        cut_window(NOISE, 5, prefix=NOISE)


def test_condition_noise_touches_given_frames_alone():
    window = cut_window(NOISE, 5, prefix=torch.ones(4, 2, 2, 2))
    noisy = with_condition_noise(window, [0, 1], 0.25, torch.full((4, 2, 2, 2), 5.0))
    assert torch.equal(noisy[0][:, :2], torch.full((4, 2, 2, 2), 2.0))
    assert torch.equal(noisy[0][:, 2:], window.latents(0)[:, 2:])
    assert torch.equal(noisy[1], window.latents(1))
    assert torch.equal(window.latents(0)[:, :2], torch.ones(4, 2, 2, 2))


def test_condition_noise_leaves_the_last_frame_clean():
    """Its chunk comes first in the window, before those of the prefix."""
    window = cut_window(NOISE, 2, prefix=torch.zeros(4, 3, 2, 2), last=torch.zeros(4, 1, 2, 2))
    noise = torch.arange(3.0).view(1, 3, 1, 1).expand(4, 3, 2, 2)
    noisy = with_condition_noise(window, [0, 1, 2], 0.5, noise)
    assert [noisy[chunk][0, :, 0, 0].tolist() for chunk in (0, 1)] == [[0], [0, 0.5]]
    assert noisy[2][0, 0, 0, 0] == 1.0


def test_a_window_holds_the_chunks_in_use_alone():
    window = cut_window(NOISE, 5)
    assert window.held_chunks == []
    for chunk in range(3):
        window.latents(chunk).fill_(1)
        window.drop(chunk - 1)
        assert window.held_chunks == [chunk]
    assert not (NOISE == 1).any(), "the noise is the caller's"


@pytest.mark.parametrize("frames", [7, 8, 20])
def test_a_window_of_one_block_gets_the_noise_of_one_draw(frames):
    shape = (4, frames, 3, 3)
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    noise = BlockNoise(torch.Generator().manual_seed(5), shape, block_frames=20)
    parts = [noise.frames(start, min(frames, start + 3)) for start in range(0, frames, 3)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("step", [1, 3, 4, 7, 9])
def test_noise_does_not_depend_on_how_it_is_asked_for(step):
    def draw(step):
        noise = BlockNoise(torch.Generator().manual_seed(5), (2, 40, 2, 2), block_frames=4)
        held = []
        parts = []
        for start in range(0, 40, step):
            parts.append(noise.frames(start, min(40, start + step)))
            held.append(sum(block.shape[1] for block in noise._blocks))
        assert max(held) <= step + 2 * 4, "blocks behind are gone"
        return torch.cat(parts, dim=1)

    assert torch.equal(draw(step), draw(40))


def test_noise_that_is_gone_is_not_made_up():
    noise = BlockNoise(torch.Generator(), (2, 40, 2, 2), block_frames=4)
    noise.frames(20, 22)
    with pytest.raises(ValueError, match="before 20 is gone; 3 was asked for"):
        noise.frames(3, 5)


def test_a_window_goes_on_from_a_state():
    def cut():
        noise = BlockNoise(torch.Generator().manual_seed(5), (4, 40, 2, 2), block_frames=9)
        return cut_window(noise, 4, prefix=torch.ones(4, 6, 2, 2))

    stopped, goes_on = cut(), cut()
    stopped.latents(0)
    stopped.latents(1).add_(1)
    stopped.drop(0)
    goes_on.load_state_dict(stopped.state_dict())
    assert goes_on.held_chunks == [1]
    for chunk in range(1, 10):
        assert torch.equal(goes_on.latents(chunk), stopped.latents(chunk))
