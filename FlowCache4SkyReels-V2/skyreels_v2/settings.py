"""Settings of a SkyReels-V2 video, checked before any weight is read."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flowcache.files import shipped
from flowcache.model_files import DEFAULTS_FILE, read_config
from flowcache.noise import NoiseOrigin
from flowcache.registry import check_options, check_pixels, option, plain_rate
from flowcache.wan.sizes import SPATIAL_STRIDE, TEMPORAL_STRIDE, latent_frames, pixel_frames
from flowcache.wan.text import NEGATIVE_PROMPT

#: The small checkpoint of this repository.
SMALL = shipped("assets/skyreels_v2_small")

#: Height and width of the named resolutions.
RESOLUTIONS = {"540P": (544, 960), "720P": (720, 1280)}

#: Windows of a video; planning more takes seconds.
MAX_WINDOWS = 10**4

#: Defaults of the original program.
OFFICIAL_DEFAULTS = {
    "prompt": "A serene lake surrounded by towering mountains, with a few swans gracefully gliding across "
    "the water and sunlight dancing on the surface.",
    "negative_prompt": NEGATIVE_PROMPT,
    "num_frames": 97,
    "fps": 24,
    "guidance_scale": 6.0,
    "shift": 8.0,
    "causal_block_size": 1,
}


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """One video. Frames are pixel frames unless stated otherwise.

    Args:
        height, width: pixels, multiples of 16.
        num_frames: frames of the whole video, ``4 k + 1``.
        base_num_frames: frames of one window, ``4 k + 1``; longer videos are made of several windows.
        overlap_history: frames that a window takes over from the one before it, ``4 k + 1``; needed for
            videos longer than a window and to extend a video.
        streaming: make a video of any length as one staircase of blocks instead of overlapping windows;
            needs ``ar_step``, and a method whose cache is bounded (``check_streaming``).
        ar_step: steps by which a block lags behind the one before it; 0 denoises all together.
        causal_block_size: latent frames of a block.
        inference_steps: denoising steps of a block.
        guidance_scale: weight of classifier-free guidance; 1 switches it off.
        shift: flow shift of the noise grid; 8 for text, 5 for image-to-video in the original.
        fps: frames per second of the file, a number or a fraction as text.
        addnoise_condition: noise mixed into frames that are taken over, in thousandths.
        seed: seed of the noise.
        noise: where it is drawn: portable (on the host, the same on every device) or original (on the device, in
            bf16, as the original draws it; not with streaming).
    """

    height: int = option(544, 0, 2**14)
    width: int = option(960, 0, 2**14)
    num_frames: int = option(97, 1, 10**6)
    base_num_frames: int = option(97, 1, 10**6)
    overlap_history: int | None = option(None, 1, 10**6)
    streaming: bool = False
    ar_step: int = option(0, 0, 1000)
    causal_block_size: int = option(5, 1, 1000)
    inference_steps: int = option(30, 1, 1000)
    guidance_scale: float = option(6.0, 1, 1000)
    # In fp32, a larger shift would round the first noise level to 1.
    shift: float = option(8.0, 0.001, 1000)
    fps: float = 24
    addnoise_condition: int = option(0, 0, 999)
    seed: int = option(0, 0, 2**63 - 1)
    noise: NoiseOrigin = "portable"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", plain_rate(self.fps))
        check_options(self)
        for name in ("height", "width"):
            if (value := getattr(self, name)) <= 0 or value % SPATIAL_STRIDE:
                raise ValueError(f"{name}: expected a positive multiple of 16, got {value}.")
        for name in ("num_frames", "base_num_frames", "overlap_history"):
            value = getattr(self, name)
            if value is not None and value % TEMPORAL_STRIDE != 1:
                nearest = max(1, round((value - 1) / TEMPORAL_STRIDE) * TEMPORAL_STRIDE + 1)
                raise ValueError(f"{name}: expected 4 k + 1 (1, 5, 9, ...), got {value}; try {nearest}.")
        check_pixels(self.num_frames, self.height, self.width)
        if self.streaming and self.ar_step == 0:
            raise ValueError("streaming needs ar_step of at least 1, or all blocks are live at once; try 5.")
        if self.streaming and self.noise == "original":
            raise ValueError(
                "noise: expected portable with streaming, which the original does not have, got original."
            )
        overlap, base, total = self.overlap_history, self.base_num_frames, self.num_frames
        if (block := self.causal_block_size) > (window := latent_frames(min(total, base))):
            raise ValueError(f"causal_block_size: expected at most the window's {window} latents, got {block}.")
        if overlap is not None and overlap >= base:
            raise ValueError(f"overlap_history: expected less than base_num_frames ({base}), got {overlap}.")
        if self.streaming or total <= base:
            return
        if overlap is None:
            raise ValueError(
                f"overlap_history is needed because num_frames ({total}) exceeds base_num_frames ({base}); "
                "17 and 37 are usual. Or use streaming."
            )
        if total > MAX_WINDOWS * (base - overlap):
            raise ValueError(
                f"num_frames ({total}) needs more than {MAX_WINDOWS} windows of {base - overlap} new frames, "
                "as overlap_history leaves; use streaming."
            )

    @property
    def moves_together(self) -> bool:
        """Whether all blocks of a window take the same steps: without a lag, or as it is a single block."""
        frames = latent_frames(min(self.num_frames, self.base_num_frames))
        return not self.streaming and (self.ar_step == 0 or frames <= self.causal_block_size)

    @property
    def last_chunk_frame(self) -> int:
        """Pixel frame with which the last block of the last window starts."""
        total, base, start = latent_frames(self.num_frames), latent_frames(self.base_num_frames), 0
        if total > base and not self.streaming:
            new = base - latent_frames(self.overlap_history)
            start = -(-(total - base) // new) * new
        return pixel_frames(total - 1 - (total - 1 - start) % self.causal_block_size)

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    def check_negative_prompt(self, prompt: str | None) -> None:
        """Raise ValueError for a negative prompt without guidance, which nothing reads."""
        if prompt and not self.is_guided:
            raise ValueError("negative_prompt: expected guidance_scale above 1, got 1; leave one out.")


def read_defaults(folder: Path) -> dict[str, Any]:
    """Read ``defaults.json`` of a model folder, if any; UnreadableFile names a wrong key."""
    path = folder / DEFAULTS_FILE
    like = {**asdict(VideoSettings()), **OFFICIAL_DEFAULTS, "reuse_coefficients": [0.0]}
    return read_config(path, like) if path.is_file() else {}


def default_settings(location: str | Path) -> dict[str, Any]:
    """Default settings of a model (folder or Hub id): its ``defaults.json``, then the original's."""
    height, width = RESOLUTIONS["720P" if "720P" in str(location) else "540P"]
    return {**OFFICIAL_DEFAULTS, "height": height, "width": width, **read_defaults(Path(location))}


def make_settings(defaults: dict[str, Any], **given: Any) -> VideoSettings:
    """Video settings from a model's defaults and the given fields; None leaves a field at its default.

    A default ``causal_block_size`` is never larger than the window. Errors are those of ``VideoSettings``.
    """
    known = {field.name: defaults.get(field.name, field.default) for field in fields(VideoSettings)}
    chosen = known | {name: value for name, value in given.items() if value is not None}
    frames = (chosen["num_frames"], chosen["base_num_frames"])
    if given.get("causal_block_size") is None and all(isinstance(n, int) and n > 0 for n in frames):
        chosen["causal_block_size"] = min(chosen["causal_block_size"], latent_frames(min(frames)))
    return VideoSettings(**chosen)
