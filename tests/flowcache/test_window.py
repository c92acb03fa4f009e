"""Cutting a window into chunks."""

import pytest
import torch

from flowcache import cut_window
from flowcache.window import with_condition_noise

NOISE = torch.randn(4, 13, 2, 2)


def spans(window):
    return [(span.start, span.frames, span.held) for span in window.chunks]


def test_no_tail_frame_is_lost():
    assert spans(cut_window(NOISE, 5)) == [(0, 5, 0), (5, 5, 0), (10, 3, 0)]


def test_whole_chunks_of_a_prefix_are_given_and_the_rest_is_held():
    prefix = torch.ones(4, 7, 2, 2)
    window = cut_window(NOISE, 5, prefix)
    assert window.num_given == 1
    assert spans(window) == [(0, 5, 0), (5, 5, 2), (10, 3, 0)]
    assert window.given_frames == list(range(7))
    assert torch.equal(window.latents[:, :7], prefix)
    assert torch.equal(window.latents[:, 7:], NOISE[:, 7:])


def test_a_last_frame_enters_first():
    last = torch.ones(4, 1, 2, 2)
    window = cut_window(NOISE, 5, prefix=torch.zeros(4, 1, 2, 2), last=last)
    assert window.num_given == 1
    assert spans(window) == [(12, 1, 0), (0, 5, 1), (5, 5, 0), (10, 2, 0)]
    assert window.given_frames == [0, 12]
    assert torch.equal(window.latents[:, 12:], last)


def test_a_prefix_must_leave_something():
    with pytest.raises(ValueError, match="prefix of 13"):
        cut_window(NOISE, 5, prefix=NOISE)


def test_condition_noise_touches_given_frames_alone():
    window = cut_window(NOISE, 5, prefix=torch.ones(4, 2, 2, 2))
    noisy = with_condition_noise(window, 0.25, torch.full((4, 2, 2, 2), 5.0))
    assert torch.equal(noisy[:, :2], torch.full((4, 2, 2, 2), 2.0))
    assert torch.equal(noisy[:, 2:], window.latents[:, 2:])
    assert torch.equal(window.latents[:, :2], torch.ones(4, 2, 2, 2))
