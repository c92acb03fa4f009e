"""Contact sheets."""

import numpy as np
import pytest

from flowcache.video import contact_sheet, read_image


def test_contact_sheet_shows_evenly_spaced_frames(tmp_path):
    ramp = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20
    frames = np.broadcast_to(ramp, (9, 16, 24, 3))
    contact_sheet({"a": frames, "b": frames[:2]}, tmp_path / "sheet.png", columns=3, scale=1)
    sheet = read_image(tmp_path / "sheet.png")
    rows = [[sheet[top, 8 + column * 27 + 12, 0] for column in range(3)] for top in (32, 80)]
    assert rows == [[0, 80, 160], [0, 20, 255]]
    assert sheet.shape == (96, 2 * 8 + 3 * 27 - 3, 3)


def test_rows_that_look_the_same_get_a_difference_map(tmp_path):
    frames = np.full((2, 16, 24, 3), 100, np.uint8)
    near, far = frames + np.uint8(3), frames + np.uint8(90)
    videos = {"a": frames, "near": near, "same": frames.copy(), "far": far}
    contact_sheet(videos, tmp_path / "sheet.png", scale=1, differences=True)
    sheet = read_image(tmp_path / "sheet.png")
    assert [int(pixel) for pixel in sheet[32::48, 20, 0]] == [100, 103, 3 * 64, 100, 0, 190]


@pytest.mark.parametrize("videos", [{}, {"a": np.zeros((0, 8, 8, 3), np.uint8)}])
def test_contact_sheet_of_nothing_is_refused(tmp_path, videos):
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet(videos, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []
