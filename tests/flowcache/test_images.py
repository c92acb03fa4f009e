"""Images as users have them: transparent, turned, of other modes and depths, damaged."""

import numpy as np
import pytest
from PIL import Image
from reference import FAULTS

from flowcache.video import read_image, to_float


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "RGB", "L"])
def test_each_kind_of_transparency_is_composed_over_black(tmp_path, mode, caplog):
    path = tmp_path / ("a.tiff" if mode == "PA" else "a.png")
    image = Image.new("RGB", (8, 8), (0, 255, 0))
    image.paste((204, 204, 204), (0, 0, 8, 4))
    if mode in ("LA", "PA"):
        alpha = Image.new("L", (8, 8))
        alpha.paste(255, (0, 0, 8, 4))
        image = image.convert(mode[0])
        image.putalpha(alpha)
        image.save(path)
    else:
        image = image.convert(mode)
        image.save(path, transparency=image.getpixel((0, 7)))
    with Image.open(path) as saved:
        assert saved.mode == mode
    pixels = read_image(path)
    assert (pixels[:4] == 204).all() and (pixels[4:] == 0).all()
    assert "black" in caplog.text


@pytest.mark.parametrize(("alpha", "shown"), [(128, [100, 50, 25]), (255, [200, 100, 50])])
def test_half_transparent_is_half_as_bright(tmp_path, caplog, alpha, shown):
    Image.new("RGBA", (4, 4), (200, 100, 50, alpha)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == shown
    assert bool(caplog.text) == (alpha < 255)


def test_floats_from_0_to_1_keep_their_shades():
    with Image.open(FAULTS / "float01.tif") as image:
        values = np.asarray(image)
    pixels = read_image(FAULTS / "float01.tif")
    assert np.abs(pixels - values[..., None] * 255).max() <= 0.5
    assert pixels.max() > 200


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        *(((0, high), np.float32) for high in (255, np.nan, np.inf)),
        ((-1, 1), np.float32),
        ((0, 7e4), np.int32),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path, values, kind):
    Image.fromarray(np.array([values], kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_keep_their_shades(tmp_path, name):
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(tmp_path / name)
    assert read_image(tmp_path / name)[0, :, 1].tolist() == [0, 100, 255]


@pytest.mark.filterwarnings("error")
def test_ink_becomes_rgb_and_turned_images_upright(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg")[0, 0].astype(int) - (255, 0, 0)).max() <= 2
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.new("RGB", (64, 32))
    image.paste((200, 0, 0), (0, 0, 32, 32))
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (64, 32, 3) and (pixels[:32, :, 0] == 200).all() and (pixels[32:] == 0).all()
    assert to_float(pixels[None]).shape == (3, 1, 64, 32)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(tmp_path, kind, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "a", format=kind, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / "a")[0, 0].tolist() == [250, 0, 0]
    assert "first" in caplog.text


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "WEBP", "GIF", "ICO", "AVIF", "DDS", "TIFF", "BMP", "TGA", "PPM"]
)
def test_damaged_files_are_named(tmp_path, kind):
    """Cut anywhere or with bytes changed: a picture or one sentence, never another exception."""
    random, path = np.random.default_rng(0), tmp_path / "a"
    Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path, format=kind)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    damaged = [whole[: int(len(whole) * share)] for share in (0.02, 0.1, 0.5, 0.95)]
    for _ in range(20):
        changed = whole.copy()
        changed[random.integers(0, min(len(whole), 400), 8)] = random.integers(0, 256, 8)
        damaged.append(changed)
    refused = []
    for content in damaged:
        path.write_bytes(content.tobytes())
        try:
            assert read_image(path).shape[2] == 3
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 2
    assert all(
        text.startswith(f"{path} cannot be read as an image: ") and "\n" not in text for text in refused
    )
