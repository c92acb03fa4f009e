"""Pieces of an mp4 are the same whenever the same frames are encoded."""

import random
from collections import defaultdict
from fractions import Fraction

import numpy as np

from flowcache.video.writing import FragmentEncoder


def test_the_same_frames_give_the_same_bytes_in_any_state_of_the_heap():
    """Small flat frames over memory that held bytes of 255, as numbers NaN: the worst case of x264."""
    videos = [np.full((2, 16, 16, 3), 90, np.uint8), np.full((8, 32, 32, 3), 140, np.uint8)]
    random_numbers, held, found = random.Random(1), [], defaultdict(set)
    for _ in range(200):
        for _ in range(random_numbers.randrange(6)):
            held.append(np.full(int(2 ** random_numbers.uniform(4, 22)), 255, np.uint8))
        while len(held) > 60:
            held.pop(random_numbers.randrange(len(held)))
        for frames in videos:
            size = frames.shape[1:3]
            found[size].add(FragmentEncoder("libx264", Fraction(24), *size).encode(frames))
    assert [len(files) for files in found.values()] == [1, 1]
