"""What to generate: every setting of a video, checked before any weight is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flowcache.limits import check_limits, check_pixels
from flowcache.rates import plain_rate

TEMPORAL_STRIDE = 4  # pixel frames per latent frame of the Wan VAE, after the first
SPATIAL_STRIDE = 16  # pixels per token side: VAE 8, patch 2

#: Height and width of the named resolutions.
RESOLUTIONS = {"540P": (544, 960), "720P": (720, 1280)}

#: Least and most of each number. The first noise level must stay below 1 in fp32, which limits the shift.
LIMITS = {
    "height": (0, 2**14),
    "width": (0, 2**14),
    "num_frames": (1, 10**6),
    "overlap_history": (1, 10**6),
    "base_num_frames": (1, 10**6),
    "ar_step": (0, 1000),
    "causal_block_size": (1, 1000),
    "inference_steps": (1, 1000),
    "guidance_scale": (1, 1000),
    "shift": (0.001, 1000),
    "addnoise_condition": (0, 999),
    "seed": (0, 2**63 - 1),
}

#: Of a video; planning more takes seconds.
MAX_WINDOWS = 10**4

#: File beside the weights with the settings that suit a model.
DEFAULTS_FILE = "defaults.json"

#: What the original runs with, unless told otherwise; a model's own ``defaults.json`` may say otherwise, too.
OFFICIAL_DEFAULTS = {
    "prompt": "A serene lake surrounded by towering mountains, with a few swans gracefully gliding across "
    "the water and sunlight dancing on the surface.",
    "negative_prompt": "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，"
    "整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，"
    "畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走",
    "num_frames": 97,
    "fps": 24,
    "guidance_scale": 6.0,
    "shift": 8.0,
    "causal_block_size": 1,
}


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """One video, as SkyReels-V2 counts it. Frames are pixel frames unless said otherwise.

    Args:
        height, width: pixels, multiples of 16.
        num_frames: frames of the whole video, ``4 k + 1``.
        base_num_frames: frames of one window, ``4 k + 1``; longer videos are made of several.
        overlap_history: frames that a window takes over from the one before it, ``4 k + 1``; needed for
            videos longer than a window and to extend a video.
        streaming: make a video of any length as one staircase of blocks instead, without windows that
            overlap; needs ``ar_step``, and a method whose cache does not grow (``check_streaming``).
        ar_step: steps by which a block lags behind the one before it; 0 denoises all together.
        causal_block_size: latent frames of a block.
        inference_steps: denoising steps of a block.
        guidance_scale: weight of classifier-free guidance; 1 switches it off.
        shift: flow shift of the noise grid; 8 for text, 5 for image-to-video in the original.
        fps: frames per second of the file, a number or a fraction as text.
        addnoise_condition: noise mixed into frames that are taken over, in thousandths.
        seed: of the noise.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """

    height: int = 544
    width: int = 960
    num_frames: int = 97
    base_num_frames: int = 97
    overlap_history: int | None = None
    streaming: bool = False
    ar_step: int = 0
    causal_block_size: int = 5
    inference_steps: int = 30
    guidance_scale: float = 6.0
    shift: float = 8.0
    fps: float = 24
    addnoise_condition: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", plain_rate(self.fps))
        check_limits(self, LIMITS)
        for name in ("height", "width"):
            _check(
                getattr(self, name) > 0 and getattr(self, name) % SPATIAL_STRIDE == 0,
                name,
                self,
                "a positive multiple of 16",
            )
        for name in ("num_frames", "base_num_frames"):
            _check_frames(name, getattr(self, name), least=1)
        check_pixels(self.num_frames, self.height, self.width)
        if self.streaming and self.ar_step == 0:
            raise ValueError(
                "streaming needs ar_step of at least 1, else all blocks are live at once; try 5."
            )
        self._check_window()

    def _check_window(self) -> None:
        window = latent_frames(min(self.num_frames, self.base_num_frames))
        if self.causal_block_size > window:
            raise ValueError(
                f"causal_block_size must be at most the window's {window} latent frames, "
                f"got {self.causal_block_size}."
            )
        if self.overlap_history is not None:
            _check_frames("overlap_history", self.overlap_history, least=1)
            if self.overlap_history >= self.base_num_frames:
                raise ValueError(
                    f"overlap_history must be smaller than base_num_frames ({self.base_num_frames}), "
                    f"got {self.overlap_history}."
                )
            new = self.base_num_frames - self.overlap_history
            if self.num_frames > MAX_WINDOWS * new and not self.streaming:
                raise ValueError(
                    f"num_frames ({self.num_frames}) needs more than {MAX_WINDOWS} windows, as "
                    f"overlap_history leaves {new} new frames in each; use streaming."
                )
        elif self.num_frames > self.base_num_frames and not self.streaming:
            raise ValueError(
                f"overlap_history is needed because num_frames ({self.num_frames}) exceeds base_num_frames "
                f"({self.base_num_frames}); 17 and 37 are usual. Or use streaming."
            )

    @property
    def sampling(self) -> dict[str, int | float]:
        """What bends the path of a block from noise to clean; plans are found by it."""
        return {
            "steps": self.inference_steps,
            "stride": self.ar_step,
            "shift": self.shift,
            "guidance": self.guidance_scale,
        }

    def check_negative_prompt(self, prompt: str | None) -> None:
        """Refuse a negative prompt that nothing reads.

        Raises:
            ValueError: guidance is off.
        """
        if prompt and self.guidance_scale == 1:
            raise ValueError("negative_prompt: expected guidance_scale above 1, got 1; leave one out.")

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, for logs and traces."""
        return asdict(self)


def latent_frames(num_frames: int) -> int:
    """Latent frames of that many pixel frames: the first stands alone, then four share one."""
    return (num_frames - 1) // TEMPORAL_STRIDE + 1


def pixel_frames(num_latent_frames: int) -> int:
    """Pixel frames of that many latent frames from the start of a video."""
    return max(0, (num_latent_frames - 1) * TEMPORAL_STRIDE + 1)


def _check(holds: bool, name: str, settings: VideoSettings, must_be: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {must_be}, got {getattr(settings, name)}.")


def _check_frames(name: str, value: int, least: int) -> None:
    if value < least or value % TEMPORAL_STRIDE != 1:
        nearest = max(least, round((value - 1) / TEMPORAL_STRIDE) * TEMPORAL_STRIDE + 1)
        raise ValueError(f"{name} must be 4 k + 1 (1, 5, 9, ...), got {value}; try {nearest}.")
