"""Nodes of FlowCache by ComfyUI's contract; images are ``[frames, height, width, 3]`` in [0, 1], as ComfyUI's."""

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import flowcache
from flowcache import Trace
from flowcache.arguments import as_frames
from flowcache.cli import MODELS, find_model
from flowcache.environment import prepare_device
from flowcache.kv.scorers import SCORERS
from flowcache.methods import DEFAULT_PRESET, METHODS, PRESETS
from flowcache.options import Given
from flowcache.pipeline import FlowCachePipeline
from flowcache.plots import reuse_map
from flowcache.video import VideoWriter, to_uint8

CATEGORY = "FlowCache"
PREVIEW_SIZE = 512  # pixels of the longer side
#: Models that name their weights by another option than ``weights``.
WEIGHTS = {"magi1": "load"}
#: Models whose videos begin with the frames that they continue.
REPEATS_GIVEN = ("skyreels_v2", "self_forcing")
DEFAULT = "default"


class LoadModel:
    """Load a model once; it stays in memory as long as ComfyUI keeps the output of this node."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("FLOWCACHE_MODEL",), ("model",)

    @classmethod
    def INPUT_TYPES(cls):
        weights = {"default": "small", "tooltip": "small (the checkpoint of this project), a folder, or a Hub id"}
        return {
            "required": {
                "model": (list(MODELS),),
                "weights": ("STRING", weights),
                "offload": ("BOOLEAN", {"default": False, "tooltip": "idle components in host memory"}),
                "quantize": (["none", "int8", "fp8", "int4"],),
                "vae_dtype": (["auto", "bf16", "fp32"],),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, weights):
        if weights is None or weights.strip():  # None: another node gives it
            return True
        return "weights: expected small, a folder or a Hub id, got an empty text."

    def load(self, model: str, weights: str, offload: bool, quantize: str, vae_dtype: str) -> tuple[Any]:
        named = "weights" if weights == "small" else WEIGHTS.get(model, "weights")
        values = {named: weights, "offload": offload, "vae_dtype": vae_dtype}
        values |= {} if quantize == "none" else {"quantize": quantize}
        given = Given(values, typed=set(values), scripted=set(), spelled={name: name for name in values})
        device = str(comfy.model_management.get_torch_device())
        chosen = find_model(model).resolve(given, device, None, None)
        prepare_device(device)
        return (chosen.load(device),)


class Method:
    """Which steps a chunk reuses."""

    CATEGORY, FUNCTION = CATEGORY, "choose"
    RETURN_TYPES, RETURN_NAMES = ("FLOWCACHE_METHOD",), ("method",)

    @classmethod
    def INPUT_TYPES(cls):
        interval = {"default": 0, "min": 0, "max": 1000, "tooltip": "computed step every N steps; 0: the preset's"}
        return {
            "required": {
                "method": (list(METHODS), {"default": "flowcache"}),
                "preset": ([DEFAULT, *PRESETS], {"default": DEFAULT_PRESET}),
                "interval": ("INT", interval),
            }
        }

    def choose(self, method: str, preset: str, interval: int) -> tuple[dict[str, Any]]:
        preset = DEFAULT if preset == DEFAULT_PRESET else preset  # what is at its default is not refused
        chosen = {"method": method, "preset": preset, "interval": interval or None}
        return (_without_defaults(chosen),)


class KVCompression:
    """What the KV cache keeps of clean chunks."""

    CATEGORY, FUNCTION = CATEGORY, "choose"
    RETURN_TYPES, RETURN_NAMES = ("FLOWCACHE_KV",), ("kv",)

    @classmethod
    def INPUT_TYPES(cls):
        budget = {"default": 1, "min": 0, "max": 1000, "tooltip": "chunks' worth of tokens; 0: all tokens"}
        return {
            "required": {
                "budget": ("INT", budget),
                "bits": ([DEFAULT, "8", "4"], {"tooltip": "bits per number; default: the model's own type"}),
                "scorer": ([DEFAULT, *SCORERS],),
                "offload": ("BOOLEAN", {"default": False, "tooltip": "keys and values in host memory"}),
            }
        }

    def choose(self, budget: int, bits: str, scorer: str, offload: bool) -> tuple[dict[str, Any]]:
        chosen = {"kv_budget": budget or None, "kv_bits": bits if bits == DEFAULT else int(bits), "scorer": scorer}
        return (_without_defaults({**chosen, "kv_offload": offload or None}),)


class Sample:
    """Make a video from text, or from text and its first frame; each chunk is previewed when it is clean."""

    CATEGORY, FUNCTION = CATEGORY, "sample"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "FLOAT", "FLOWCACHE_TRACE"), ("images", "fps", "trace")

    @classmethod
    def INPUT_TYPES(cls):
        own = {"default": 0, "min": 0, "tooltip": "0: the model's own"}
        size, seed = {**own, "max": 4096, "step": 16}, {"min": 0, "max": 2**63 - 1}
        settings = "further settings of the model, as YAML: one NAME: VALUE on each line"
        return {
            "required": {
                "model": ("FLOWCACHE_MODEL",),
                "prompt": ("STRING", {"multiline": True}),
                "num_frames": ("INT", {**own, "max": 10**6}),
                "height": ("INT", size),
                "width": ("INT", size),
                "steps": ("INT", {**own, "max": 1000}),
                "seed": ("INT", {"default": 0, **seed, "control_after_generate": True}),
            },
            "optional": {
                "method": ("FLOWCACHE_METHOD",),
                "kv": ("FLOWCACHE_KV",),
                "image": ("IMAGE", {"tooltip": "first frame"}),
                "negative_prompt": ("STRING", {"multiline": True, "tooltip": "empty: the model's"}),
                "settings": ("STRING", {"multiline": True, "tooltip": settings}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, settings=""):
        try:
            _read_settings(settings or "")  # None: another node gives them
        except ValueError as error:
            return str(error)
        return True

    def sample(self, model: FlowCachePipeline, image: Tensor | None = None, **options: Any) -> tuple:
        given = {} if image is None else {"image": list(_to_pixels(image[:1]))}
        return _generate(model, given, **options)


class Extend(Sample):
    """Continue a video; returns it with the new frames behind it."""

    @classmethod
    def INPUT_TYPES(cls):
        types = super().INPUT_TYPES()
        del types["optional"]["image"]
        return {**types, "required": {"video": ("IMAGE",), **types["required"]}}

    def sample(self, model: FlowCachePipeline, video: Tensor, **options: Any) -> tuple:
        given = list(_to_pixels(video))
        images, fps, trace = _generate(model, {"video": given}, **options)
        before = as_frames("video", given, *images.shape[1:3])
        return torch.cat([_to_images(before), images]), fps, trace


class Save:
    """Write a video, its trace and its reuse map into ComfyUI's output folder."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "save", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE",),
                "fps": ("FLOAT", {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "trace": ("FLOWCACHE_TRACE",),
                "filename_prefix": ("STRING", {"default": "flowcache/video"}),
            }
        }

    def save(self, images: Tensor, fps: float, trace: Trace, filename_prefix: str) -> dict[str, Any]:
        height, width = images.shape[1:3]
        place = folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory(), width, height)
        folder, name, counter, subfolder, _ = place
        path = Path(folder) / f"{name}_{counter:05}_.mp4"
        with VideoWriter(path, fps) as writer:
            writer.write(_to_pixels(images))
        trace.save(path.with_suffix(".trace.json"))
        reuse_map(trace, path.with_suffix(".reuse.png"))
        saved = [{"filename": path.name, "subfolder": subfolder, "type": "output"}]
        return {"ui": {"images": saved, "animated": (True,)}}


def _generate(
    pipe: FlowCachePipeline,
    frames: dict[str, Any],
    *,
    prompt: str,
    num_frames: int,
    height: int,
    width: int,
    steps: int,
    seed: int,
    method: dict[str, Any] | None = None,
    kv: dict[str, Any] | None = None,
    negative_prompt: str = "",
    settings: str = "",
) -> tuple[Tensor, float, Trace]:
    """Make the new frames of a video that begins with ``frames``; returns them, their rate and the trace."""
    flowcache.enable(pipe, **{**(method or {}), **(kv or {})})
    sizes = {"num_frames": num_frames, "height": height, "width": width, "num_inference_steps": steps}
    named = {**sizes, "seed": seed}
    further = _read_settings(settings)
    if taken := further.keys() & {*named, "image", "video"}:
        raise ValueError(f"settings: {', '.join(sorted(taken))}: expected in the node's own input; leave it out.")
    asked = {name: size for name, size in sizes.items() if size}  # 0: the model's own
    with Given({}, typed=set(), scripted=set(), spelled={"num_inference_steps": "steps"}).naming():
        given, fps, _ = pipe.prepare(**frames, **asked, seed=seed, **further)
    video = given["settings"] if "settings" in given else given["config"].runtime_config
    if negative_prompt.strip():
        given["negative_prompt"] = negative_prompt
    trace, images = Trace(method=pipe.flowcache_method), []
    bar = comfy.utils.ProgressBar(video.num_frames)
    for part in pipe.stream(prompt, **given, seed=seed, trace=trace, on_step_end=_stop_if_interrupted):
        images.append(_to_images(part.frames))
        preview = Image.fromarray(to_uint8(part.frames)[-1])
        bar.update_absolute(sum(map(len, images)), video.num_frames, ("JPEG", preview, PREVIEW_SIZE))
    repeats = "video" in frames and type(pipe).__module__.partition(".")[0] in REPEATS_GIVEN
    return torch.cat(images)[given["prefix"].shape[1] if repeats else 0 :], float(fps), trace


def _stop_if_interrupted(*_: Any) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def _without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, DEFAULT)}


def _read_settings(text: str) -> dict[str, Any]:
    """Read settings in YAML; raises ValueError for text of another form."""
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"settings: expected YAML, got {text!r}; write one NAME: VALUE on each line.") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"settings: expected names and values, got {text!r}; write one NAME: VALUE on each line.")
    return content


def _to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Convert images, with or without alpha, to uint8 ``[frames, height, width, 3]``."""
    return (255 * images[..., :3].clamp(0, 1)).round().to(torch.uint8).cpu().numpy()


def _to_images(frames: Tensor) -> Tensor:
    """Convert ``[3, frames, height, width]`` in [-1, 1] to images on the host."""
    return ((frames.float() + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0).cpu()


NODE_CLASS_MAPPINGS = {
    "FlowCacheLoadModel": LoadModel,
    "FlowCacheMethod": Method,
    "FlowCacheKVCompression": KVCompression,
    "FlowCacheSample": Sample,
    "FlowCacheExtend": Extend,
    "FlowCacheSave": Save,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FlowCacheLoadModel": "FlowCache Load Model",
    "FlowCacheMethod": "FlowCache Method",
    "FlowCacheKVCompression": "FlowCache KV Compression",
    "FlowCacheSample": "FlowCache Sample",
    "FlowCacheExtend": "FlowCache Extend Video",
    "FlowCacheSave": "FlowCache Save Video",
}
