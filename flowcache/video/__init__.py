"""Videos and images in and out, through PyAV and Pillow."""
# ruff: noqa: F401

from .frames import Frames, read_image, resize_and_crop, scale_frames, to_float, to_pixels, to_uint8
from .reading import VideoInfo, last_frames, probe_video, read_video, stream_video
from .sheets import contact_sheet
from .writing import VideoWriter, enlarge_video, part_path
