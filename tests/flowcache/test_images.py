"""Images as users have them: transparent, of other modes and depths, damaged."""

import numpy as np
import pytest
from PIL import Image
from reference import FAULTS

from flowcache.video import read_image, to_float


def test_what_an_image_hides_is_black(caplog):
    pixels = read_image(FAULTS / "rgba_hidden_green.png")
    with Image.open(FAULTS / "rgba_hidden_green.png") as image:
        hidden = np.asarray(image)[..., 3] == 0
    assert hidden.any()
    assert (pixels[hidden] == 0).all()
    assert pixels[~hidden].any()
    assert "black" in caplog.text


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
    assert (pixels[:4] == 204).all()
    assert (pixels[4:] == 0).all()
    assert "black" in caplog.text


def test_half_transparent_is_half_as_bright(tmp_path):
    Image.new("RGBA", (4, 4), (200, 100, 50, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [100, 50, 25]


def test_an_opaque_image_needs_no_word(tmp_path, caplog):
    Image.new("RGBA", (4, 4), (200, 100, 50, 255)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [200, 100, 50]
    assert not caplog.text


def test_floats_from_0_to_1_keep_their_shades():
    with Image.open(FAULTS / "float01.tif") as image:
        values = np.asarray(image)
    pixels = read_image(FAULTS / "float01.tif")
    assert np.abs(pixels - values[..., None] * 255).max() <= 0.5
    assert pixels.max() > 200


@pytest.mark.parametrize("low, high", [(0, 255), (-1, 1), (0, np.nan), (0, np.inf)])
def test_floats_of_another_range_are_refused(tmp_path, low, high):
    Image.fromarray(np.array([[low, high]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


def test_whole_numbers_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif .*32 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_keep_their_shades(tmp_path, name):
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(tmp_path / name)
    assert read_image(tmp_path / name)[0, :, 1].tolist() == [0, 100, 255]


def test_ink_is_converted(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = read_image(tmp_path / "a.jpg")[0, 0].astype(int)
    assert np.abs(red - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(tmp_path, kind, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    path = tmp_path / f"a.{kind.lower()}"
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(path)[0, 0].tolist() == [250, 0, 0]
    assert "first" in caplog.text


KINDS = ("PNG", "JPEG", "WEBP", "GIF", "ICO", "AVIF", "DDS", "TIFF", "BMP", "JPEG2000", "TGA", "PPM")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_named(tmp_path, kind):
    """Cut anywhere or with bytes changed: a picture or one sentence, never another exception."""
    random = np.random.default_rng(0)
    path = tmp_path / f"a.{kind.lower()}"
    Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path, format=kind)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    damaged = [whole[: int(len(whole) * share)] for share in (0.02, 0.1, 0.5, 0.95)]
    for _ in range(20):
        changed = whole.copy()
        changed[random.integers(0, min(len(whole), 400), 8)] = random.integers(0, 256, 8)
        damaged.append(changed)
    refused = 0
    for content in damaged:
        path.write_bytes(content.tobytes())
        try:
            assert read_image(path).shape[2] == 3
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path} cannot be read as an image: ")
            assert "\n" not in str(error)
    assert refused >= 2


def test_drawings_are_refused(tmp_path):
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    with pytest.raises(ValueError, match=r"a\.svg cannot be read as an image"):
        read_image(tmp_path / "a.svg")


@pytest.mark.filterwarnings("error")
def test_image_goes_into_a_tensor_without_warning(tmp_path):
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    assert to_float(read_image(tmp_path / "a.png")[None]).shape == (3, 1, 32, 64)
