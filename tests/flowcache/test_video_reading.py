"""Videos and images as users have them: turned, of any rate, colours and depth, transparent, damaged."""

import struct
import time
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from PIL import Image
from reference import FAULTS

from flowcache.metrics.compare import check_alike
from flowcache.user_files import UnreadableFile
from flowcache.video import VideoWriter, last_frames, probe_video, read_image, read_video, stream_video


def write(path, pixels, rate=24, codec="libx264rgb", stamps=None, form="rgb24", **settings):
    """A file by PyAV alone, lossless by H.264; stamps are by default a frame's place at the rate."""
    frames = [av.VideoFrame.from_ndarray(array, format=form) for array in pixels]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"qp": "0"} if "264" in codec else {})
        stream.height, stream.width = frames[0].height, frames[0].width
        for name, value in {"pix_fmt": form, **settings}.items():
            setattr(stream.codec_context, name, value)
        for stamp, frame in zip(stamps or range(len(frames)), frames, strict=True):
            frame.pts, frame.time_base = stamp, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(count, height=16, width=16):
    """Frames of one grey each, ten levels apart."""
    greys = np.arange(count, dtype=np.uint8) * 10 % 250
    return np.broadcast_to(greys[:, None, None, None], (count, height, width, 3)).copy()


@pytest.mark.parametrize(("aspect", "shown"), [((2, 1), (32, 64)), ((1, 2), (32, 16)), ((1, 1), (32, 32))])
def test_pixels_are_shown_square(tmp_path, aspect, shown):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    frames[:, :, :16] = 200
    path = write(tmp_path / "a.mp4", frames, sample_aspect_ratio=Fraction(*aspect))
    info, pixels = probe_video(path), read_video(path)[0]
    assert (info.height, info.width) == pixels.shape[1:3] == shown
    assert pixels[0, 16, shown[1] // 4, 0] > 190 > 10 > pixels[0, 16, -shown[1] // 4, 0]


def test_a_rate_that_varies_is_resampled_by_time_stamps():
    frames, count = last_frames(FAULTS / "vfr.mp4", 1000, 24, (64, 96))
    assert count == len(frames) == 117, "up to the last time stamp"
    stored = read_video(FAULTS / "vfr.mp4")[0]
    changes = [place for place in range(1, count) if not np.array_equal(frames[place], frames[place - 1])]
    assert changes[:24] == list(range(1, 25)), "the first second keeps all its frames"
    assert set(np.diff(changes[24:]).tolist()) == {4}, "then each is shown four times as long"
    assert np.array_equal(frames[0], stored[0])


def test_sound_hdr_and_slow_rates_are_noticed(tmp_path, caplog):
    hdr = write(tmp_path / "a.mkv", levels(5), codec="libx264", pix_fmt="yuv420p10le", color_trc=16)
    for path, noticed in ((FAULTS / "audio.mp4", "sound"), (hdr, "HDR")):
        last_frames(path, 5, 24, (64, 96))
        assert noticed in caplog.text
    assert probe_video(FAULTS / "slow.mp4").fps == Fraction(1, 2)
    assert last_frames(FAULTS / "slow.mp4", 5, 24, (64, 96))[1] == 20 * 48


#: Orientations, and the grey of the stored corner that is shown at the top left.
UPRIGHT = {(0, 1, -1, 0): 100, (-1, 0, 0, -1): 200, (0, -1, 1, 0): 50, (-1, 0, 0, 1): 50}
UPRIGHT |= {(1, 0, 0, -1): 100, (0, 1, 1, 0): 0, (0, 0, 0, 0): 0}


@pytest.mark.parametrize("matrix", UPRIGHT)
def test_mirrored_and_turned_videos_are_upright(tmp_path, matrix):
    frames = np.full((2, 32, 64, 3), 200, np.uint8)
    frames[:, :16, :32], frames[:, :16, 32:], frames[:, 16:, :32] = 0, 50, 100
    content = bytearray(write(tmp_path / "a.mp4", frames).read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    info, (shown, _) = probe_video(tmp_path / "a.mp4"), read_video(tmp_path / "a.mp4")
    assert shown.shape[1:3] == (info.height, info.width) == ((64, 32) if matrix[1] else (32, 64))
    assert shown[0, 2, 2].tolist() == [UPRIGHT[matrix]] * 3


def test_hidden_frames_of_an_edit_list_do_not_count(tmp_path):
    content = bytearray(write(tmp_path / "a.mp4", levels(24)).read_bytes())
    place = content.index(b"elst") + 12
    duration, start = struct.unpack_from(">Ii", content, place)
    struct.pack_into(">Ii", content, place, duration // 2, start)
    (tmp_path / "a.mp4").write_bytes(content)
    write(tmp_path / "b.mp4", levels(12))
    assert probe_video(tmp_path / "a.mp4").num_frames is None
    check_alike(tmp_path / "a.mp4", tmp_path / "b.mp4")


def test_damaged_time_stamps_are_refused_at_once(tmp_path):
    started = time.perf_counter()
    for read in (probe_video, read_video, lambda path: list(stream_video(path, 24))):
        with pytest.raises(ValueError, match=r"timestamps\.avi .*time stamps"):
            read(FAULTS / "timestamps.avi")
    gap = write(tmp_path / "a.mp4", levels(4), stamps=(0, 1, 2, 24 * 86400))
    with pytest.raises(ValueError, match="time stamps"):
        list(stream_video(gap, 24))
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("matrix", [709, 601, None])
@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
def test_colours_are_those_of_the_exact_inverse(tmp_path, matrix, color_range):
    """H.273: luma weights of the tag, BT.601 where there is none; ten generations keep what one gives."""
    red, blue = (0.2126, 0.0722) if matrix == 709 else (0.299, 0.114)
    to_ypp = np.array([(red, 1 - red - blue, blue)] * 3)
    to_ypp[1:] = (np.eye(3)[[2, 0]] - to_ypp[1:]) / [[2 - 2 * blue], [2 - 2 * red]]
    limited = color_range == ColorRange.MPEG
    spans, zeros = ([219, 224, 224] if limited else 255), [16 * limited, 128, 128]
    stored = np.round(zeros + spans * (to_ypp @ [220 / 255, 30 / 255, 30 / 255]))
    expected = np.linalg.inv(to_ypp) @ ((stored - zeros) / spans) * 255
    planes = np.repeat(stored.astype(np.uint8), [64 * 64, 32 * 32, 32 * 32]).reshape(1, 96, 64)
    tags = {"color_range": color_range, "colorspace": {709: 1, 601: 6, None: 2}[matrix]}
    path = write(tmp_path / "a.mp4", planes, codec="libx264", form="yuv420p", **tags)
    for generation in range(11):
        frames, _ = read_video(path)
        assert np.abs(frames - expected).max() <= (2 if generation else 1)
        with VideoWriter(path, 24) as writer:
            writer.write(frames)


@pytest.mark.parametrize(("name", "codec", "form"), [("a.mov", "png", "rgba"), ("a.webm", "libvpx-vp9", "yuva420p")])
def test_what_a_video_hides_stays_hidden(tmp_path, caplog, name, codec, form):
    pixels = np.full((2, 32, 32, 4), (0, 255, 0, 0), np.uint8)
    pixels[:, :16] = (200, 100, 50, 255)
    path = write(tmp_path / name, pixels, codec=codec, form="rgba", pix_fmt=form)
    frames, count = last_frames(path, 5, 24, (32, 32))
    assert count == 2 and frames[0, 31, 0].tolist() == [0, 0, 0] and "alpha" in caplog.text
    assert np.abs(frames[0, 0, 0] - np.array([200, 100, 50])).max() <= 4


IMAGES = ("png", "jpeg", "webp", "gif", "ico", "avif", "dds", "tiff", "bmp", "tga", "ppm")


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "webm", *IMAGES])
def test_damaged_files_are_named(tmp_path, kind):
    """Cut or with bytes changed: pixels or one sentence, never another exception or an endless run."""
    random, path = np.random.default_rng(0), tmp_path / f"a.{kind}"
    if kind in IMAGES:
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path, format=kind)
    else:
        write(path, levels(12, 32, 32), codec="libvpx-vp9" if kind == "webm" else "mpeg4", pix_fmt="yuv420p")
    whole, started, refused = np.frombuffer(path.read_bytes(), np.uint8), time.perf_counter(), 0
    for share in (0, 0.02, 0.1, 0.5, 0.95, *[1] * 16):
        changed = whole[: int(share * len(whole))].copy()
        if len(changed):
            most = min(len(changed), 400 if kind in IMAGES else len(changed))
            changed[random.integers(0, most, 14)] = random.integers(0, 256, 14)
        path.write_bytes(changed.tobytes())
        try:
            assert len(read_image(path) if kind in IMAGES else last_frames(path, 5, 24, (32, 32))[0])
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path} cannot be read as a") and "\n" not in str(error)
    assert refused >= 2 and time.perf_counter() - started < 20


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    """A stream may change its size; every frame is shown in that of the first."""
    kind = {"codec": "mpeg2video", "pix_fmt": "yuv420p"}
    parts = [write(tmp_path / f"{side}.ts", levels(3, side, side), **kind) for side in (32, 64)]
    path = tmp_path / "http:a.ts"  # a colon in a name is no protocol
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read_video(path)[0].shape[1:3] == (32, 32)


@pytest.mark.parametrize(("stored", "asked", "count"), [(8, 24, 36), (24, 8, 4), (30, 24, 10)])
def test_frames_at_another_rate_are_those_shown_then(tmp_path, stored, asked, count):
    path = write(tmp_path / "a.mp4", levels(12), stored)
    frames = np.stack(list(stream_video(path, asked)))
    expected = levels(12)[np.floor(np.arange(count) / asked * stored + 1e-6).astype(int)]
    assert np.array_equal(frames, expected)


def test_other_files_are_named(tmp_path):
    (tmp_path / "text").write_text("a cat walks\n" * 50)
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(write(tmp_path / "a.mp4", levels(4)).read_bytes()[:400])
    with wave.open(str(tmp_path / "sound"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    for name in ("text", "empty", "cut", "sound", "missing"):
        for read in (read_video, probe_video, read_image):
            with pytest.raises(UnreadableFile, match=f"{name} (cannot be read as|does not exist)"):
                read(tmp_path / name)


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "RGB", "L"])
def test_each_kind_of_transparency_is_composed_over_black(tmp_path, mode, caplog):
    path = tmp_path / ("a.tiff" if mode == "PA" else "a.png")
    image = Image.new("RGB", (8, 8), (0, 255, 0))
    image.paste((204, 204, 204), (0, 0, 8, 4))
    image = image.convert(mode[0] if mode.endswith("A") else mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.repeat([255, 0], 32).astype(np.uint8).reshape(8, 8)))
    image.save(path, **({} if mode.endswith("A") else {"transparency": image.getpixel((0, 7))}))
    with Image.open(path) as saved:
        assert saved.mode == mode
    pixels = read_image(path)
    assert (pixels[:4] == 204).all() and (pixels[4:] == 0).all() and "black" in caplog.text
    Image.new("RGBA", (4, 4), (200, 100, 50, 128)).save(path)
    assert read_image(path)[0, 0].tolist() == [100, 50, 25], "half as bright"


def test_deep_images_keep_their_shades(tmp_path):
    with Image.open(FAULTS / "float01.tif") as image:
        values = np.asarray(image)
    assert np.abs(read_image(FAULTS / "float01.tif") - values[..., None] * 255).max() <= 0.5
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(tmp_path / name)
        assert read_image(tmp_path / name)[0, :, 1].tolist() == [0, 100, 255]
    for high, kind in ((255, "f4"), (np.nan, "f4"), (np.inf, "f4"), (-1, "f4"), (70000, "i4")):
        Image.fromarray(np.array([[0, high]], kind)).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"a\.tif"):
            read_image(tmp_path / "a.tif")


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


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(tmp_path, kind, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "a", format=kind, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / "a")[0, 0].tolist() == [250, 0, 0] and "first" in caplog.text
