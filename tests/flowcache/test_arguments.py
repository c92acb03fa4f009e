"""Frames of conditions in every form, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowcache.arguments import as_frames
from flowcache.video import resize_and_crop, to_float

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]
FORMS = [to_float(PIXELS), PIXELS, list(PIXELS), IMAGES, (IMAGES[0].convert("RGBA"), PIXELS[1])]


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_every_form_gives_the_same_frames(form):
    assert torch.equal(as_frames("prefix", FORMS[form], 12, 16), to_float(PIXELS))


def test_images_are_scaled_and_transparent_parts_are_black():
    small = to_float(resize_and_crop(PIXELS[:1], 6, 6))
    assert torch.equal(as_frames("prefix", IMAGES[0], 6, 6), small)
    hidden = Image.new("RGBA", (16, 12), (0, 255, 0, 0))
    assert torch.equal(as_frames("prefix", hidden, 12, 16), torch.full((3, 1, 12, 16), -1.0))


FLOATS = torch.zeros(3, 2, 12, 16)
REFUSED = {
    "uint8 tensor": torch.from_numpy(PIXELS).permute(3, 0, 1, 2),
    "0..255": FLOATS + 200,
    "NaN": FLOATS + torch.nan,
    "wrong size": FLOATS[:, :, :6],
    "no frame": FLOATS[:, :0],
    "empty list": [],
    "float array": PIXELS / 255,
    "flat array": PIXELS[..., 0],
    "32 bits": Image.fromarray(PIXELS[0, ..., 0].astype(np.int32)),
    "no pixels": PIXELS[:, :0],
    "list of tensors": [FLOATS],
    "path": "first.png",
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_forms_are_refused(form):
    with pytest.raises((TypeError, ValueError), match=r"^prefix"):
        as_frames("prefix", REFUSED[form], 12, 16)
