"""Settings of a Self-Forcing video, checked before any weight is read; names are the original's."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from flowcache.files import shipped
from flowcache.model_files import DEFAULTS_FILE, read_config
from flowcache.noise import NoiseOrigin
from flowcache.registry import check_options, check_pixels, option, plain_rate
from flowcache.typed import as_type, field_types
from flowcache.user_files import parse_file
from flowcache.wan.sizes import SPATIAL_STRIDE, TEMPORAL_STRIDE, pixel_frames
from flowcache.wan.text import NEGATIVE_PROMPT

#: The small checkpoint of this repository, and the configurations of the originals.
SMALL, CONFIGS = shipped("assets/self_forcing_small"), shipped("FlowCache4SelfForcing/configs")

#: Defaults beside those of ``VideoSettings``.
DEFAULTS = {
    "prompt": "A serene lake surrounded by towering mountains, with a few swans gracefully gliding across "
    "the water and sunlight dancing on the surface.",
    "negative_prompt": NEGATIVE_PROMPT,
}
STEP_LISTS = ("denoising_step_list", "denoising_step_list_first_chunk")
MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """One video.

    Args:
        height, width: pixels, multiples of 16.
        num_output_frames: latent frames of the video, given ones included; the first is one frame, the others four.
        num_frame_per_block: latent frames of a chunk.
        independent_first_frame: the first chunk is one latent frame.
        denoising_step_list: steps of a distilled model, in thousandths, as [1000,750,500,250]; none, or [], is
            multi-step with guidance.
        denoising_step_list_first_chunk: steps of the first generated chunk (Causal-Forcing++).
        warp_denoising_step: the lists are of the clock before the shift.
        sampling_steps: denoising steps of a chunk without a step list.
        guidance_scale: weight of classifier-free guidance without a step list; 1 switches it off.
        timestep_shift: flow shift of the noise grid.
        context_noise: time of the pass that leaves a clean chunk's keys and values, in thousandths; without a step
            list, it is 0, as in the original.
        local_attn_size: latent frames in the KV cache, those of the running chunk included; -1: all.
        sink_size: first latent frames of the video that a rolling window keeps.
        retime_sink: turn the sink's keys to the frames right before the rest of the window (Deep Forcing).
        overlap_history: last frames of a video that is continued, ``4 k + 1``.
        fps: frames per second of the file, a number or a fraction as text.
        seed: seed of the noise.
        noise: where it is drawn: portable (on the host, the same on every device) or original (on the device, in
            bf16, as the original draws it for a single prompt).
    """

    height: int = option(480, 0, 2**14)
    width: int = option(832, 0, 2**14)
    num_output_frames: int = option(21, 1, 10**6)
    num_frame_per_block: int = option(3, 1, 1000)
    independent_first_frame: bool = False
    denoising_step_list: tuple[int, ...] | None = option(None, 1, 1000)
    denoising_step_list_first_chunk: tuple[int, ...] | None = option(None, 1, 1000)
    warp_denoising_step: bool = True
    sampling_steps: int = option(50, 1, 1000)
    guidance_scale: float = option(3.0, 1, 1000)
    timestep_shift: float = option(5.0, 0.001, 1000)
    context_noise: int = option(0, 0, 999)
    local_attn_size: int = option(-1, -1, 10**6)
    sink_size: int = option(0, 0, 10**6)
    retime_sink: bool = False
    overlap_history: int = option(33, 1, 10**6)
    fps: float = 16
    seed: int = option(0, 0, 2**63 - 1)
    noise: NoiseOrigin = "portable"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", plain_rate(self.fps))
        for name in STEP_LISTS:
            if isinstance(steps := getattr(self, name), list | tuple):
                object.__setattr__(self, name, tuple(steps) or None)
        check_options(self)
        for name in ("height", "width"):
            if (value := getattr(self, name)) <= 0 or value % SPATIAL_STRIDE:
                raise ValueError(f"{name}: expected a positive multiple of 16, got {value}.")
        if self.overlap_history % TEMPORAL_STRIDE != 1:
            raise ValueError(f"overlap_history: expected 4 k + 1 (1, 5, 9, ...), got {self.overlap_history}.")
        check_pixels(self.num_frames, self.height, self.width)
        steps, first = self.denoising_step_list, self.denoising_step_list_first_chunk
        for name, each in (("denoising_step_list", steps), ("denoising_step_list_first_chunk", first)):
            if each is not None and list(each) != sorted(set(each), reverse=True):
                raise ValueError(f"{name}: expected falling steps such as [1000,750,500,250], got {each}.")
        if first is not None and (steps is None or len(first) < len(steps)):
            expected = "at least as many steps as denoising_step_list, or none without it"
            raise ValueError(f"denoising_step_list_first_chunk: expected {expected}, got {first}.")
        needed = self.num_frame_per_block + self.sink_size
        if self.local_attn_size == -1 and self.sink_size:
            raise ValueError(f"sink_size: expected local_attn_size beside it, got {self.sink_size} alone; set both.")
        if self.retime_sink and not self.sink_size:
            raise ValueError("retime_sink: expected sink_size beside it, got none; set both or neither.")
        if self.local_attn_size != -1 and self.local_attn_size <= needed - (self.sink_size > 0):
            expected = f"more than a chunk ({self.num_frame_per_block}), and room for the sink ({self.sink_size})"
            raise ValueError(f"local_attn_size: expected {expected}, or -1 for all, got {self.local_attn_size}.")

    def first_frames(self, given: int) -> int:
        """Latent frames of the first chunk, where the first ``given`` ones of the video are chunks of their own."""
        block = self.num_frame_per_block
        return (given % block or block) if given else 1 if self.independent_first_frame else block

    def fitting_frames(self, given: int) -> int:
        """The nearest ``num_output_frames`` that leaves no part of a chunk over behind ``given`` latent frames."""
        block, first = self.num_frame_per_block, self.first_frames(given)
        # ``given`` is the end of a chunk, or 0.
        least = given + block if given else first
        return max(least, first + round((self.num_output_frames - first) / block) * block)

    def check_frames(self, given: int, in_pixels: bool = False) -> None:
        """Raise ValueError for a number of frames that ``fitting_frames`` would change.

        ``in_pixels``: the message counts pixel frames, as ``num_frames`` does.
        """
        if (fitting := self.fitting_frames(given)) == (total := self.num_output_frames):
            return
        name, first, block = "num_output_frames", self.first_frames(given), self.num_frame_per_block
        expected, chunks = "more than the given ones: " if total <= given else "", f"{block} (num_frame_per_block)"
        if in_pixels:
            name, chunks = "num_frames", str(TEMPORAL_STRIDE * block)
            first, total, fitting = map(pixel_frames, (first, total, fitting))
        raise ValueError(f"{name}: expected {expected}{first} and chunks of {chunks}, got {total}; try {fitting}.")

    @property
    def num_frames(self) -> int:
        """Pixel frames."""
        return pixel_frames(self.num_output_frames)

    @property
    def last_chunk_frame(self) -> int:
        """Pixel frame with which the last chunk starts."""
        return pixel_frames(self.num_output_frames - self.num_frame_per_block)

    @property
    def is_few_step(self) -> bool:
        return self.denoising_step_list is not None

    @property
    def num_steps(self) -> int:
        """Steps of every chunk but the first."""
        return self.sampling_steps if self.denoising_step_list is None else len(self.denoising_step_list)

    @property
    def clean_time(self) -> int:
        """Time of the pass that leaves a clean chunk's keys and values, in thousandths."""
        return self.context_noise if self.is_few_step else 0

    @property
    def is_guided(self) -> bool:
        return not self.is_few_step and self.guidance_scale > 1

    def check_negative_prompt(self, prompt: str | None) -> None:
        """Raise ValueError for a negative prompt without guidance, which nothing reads."""
        if prompt and not self.is_guided:
            raise ValueError("negative_prompt: expected guidance, of which a step list or guidance_scale 1 has none.")


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings of a configuration of the originals; keys of training are left out."""
    content = parse_file(path, yaml.safe_load, "YAML", most=MAX_CONFIG_BYTES)
    content = as_type({} if content is None else content, dict[str, Any], str(path))
    content |= as_type(content.get("model_kwargs") or {}, dict[str, Any], f"{path}: model_kwargs")
    kinds = field_types(VideoSettings) | {"negative_prompt": (str, None)}
    # The seed is that of training. A configuration without a list of steps is multi-step.
    found: dict[str, Any] = dict.fromkeys(STEP_LISTS)
    found |= {key: value for key, value in content.items() if key in kinds and key != "seed" and value is not None}
    if (shape := content.get("image_or_video_shape")) is not None:
        shape = as_type(shape, list[int], f"{path}: image_or_video_shape")
        if len(shape) != 5:
            raise ValueError(f"{path}: image_or_video_shape: expected 5 sizes, got {len(shape)}.")
        found = {"num_output_frames": shape[1], "height": 8 * shape[3], "width": 8 * shape[4]} | found
    for key, value in found.items():
        as_type(value, kinds[key][0], f"{path}: {key}", spelled=True)
    return found


def read_defaults(folder: Path) -> dict[str, Any]:
    """Read ``defaults.json`` of a model folder, if any; UnreadableFile names a wrong key."""
    path, like = folder / DEFAULTS_FILE, {**asdict(VideoSettings()), **DEFAULTS, **{key: [0] for key in STEP_LISTS}}
    return read_config(path, like) if path.is_file() else {}


def make_settings(defaults: Mapping[str, Any], **given: Any) -> VideoSettings:
    """Video settings from a model's defaults and the given fields; None leaves a field at its default."""
    known = {field.name: defaults.get(field.name, field.default) for field in fields(VideoSettings)}
    return VideoSettings(**known | {name: value for name, value in given.items() if value is not None})


def default_settings(location: str | Path, config: Path | None = None) -> dict[str, Any]:
    """Default settings of a model (folder or Hub id): of a configuration, else ``defaults.json`` of the folder."""
    own = read_defaults(Path(location))
    config = config or (None if own else CONFIGS / "self_forcing_dmd.yaml")
    return {**DEFAULTS, **own, **({} if config is None else read_yaml(config))}
