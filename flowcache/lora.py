"""LoRA weights, fused into a transformer by diffusers and peft when it is loaded."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from .registry import check_number
from .user_files import expand_path, reading
from .weight_files import read_tensors

#: File in a folder that diffusers saved.
WEIGHT_FILE = "pytorch_lora_weights.safetensors"

#: Translates the names of a file's tensors to those of a model, where it holds another program's; else identity.
Translate = Callable[[dict[str, Tensor]], dict[str, Tensor]]

_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
_FACTORS = {"lora_down": "lora_A", "lora_up": "lora_B"}


def parse_lora(text: str) -> tuple[Path, float]:
    """Read ``PATH`` or ``PATH:SCALE``, the path of a file or of a folder that diffusers saved."""
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        name, number = text, "1"
    path = expand_path(name, "lora")
    path = path / WEIGHT_FILE if path.is_dir() else path
    try:
        scale = float(number)
    except ValueError:
        raise ValueError(f"lora: expected PATH or PATH:SCALE with a number, got {text!r}.") from None
    if not path.is_file():
        raise ValueError(f"lora: expected a file, got {path}; give a .safetensors, or a folder with {WEIGHT_FILE}.")
    check_number("lora, scale", scale, -100, 100)
    return path, scale


def read_lora(path: Path, transformer: nn.Module, translate: Translate) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the factors of each layer, by its name in the transformer, and the settings that diffusers saves.

    Raises ValueError for a tensor of another model; the transformer may be on the meta device.
    """
    with reading(path, "LoRA weights"):
        settings = {}
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {_strip(name).replace(".default.", "."): tensor for name, _, tensor in read_tensors(path)}
        if any(name.endswith(".dora_scale") for name in tensors):  # which diffusers drops
            raise ValueError("it is a DoRA, whose magnitudes are not supported; use a LoRA without them")
        state = _plain_names(translate(tensors))
        layers = dict(transformer.named_modules())
        if not state:
            raise ValueError("it holds no tensor")
        _check_factors(state, layers)
    return state, {_strip(key): value for key, value in settings.items()}


def fuse_lora(transformer: Any, loras: Sequence[str], translate: Translate) -> None:
    """Add LoRA weights to a transformer's, one after another."""
    for path, scale in map(parse_lora, loras):
        state, settings = read_lora(path, transformer, translate)
        with reading(path, "LoRA weights"):
            transformer.load_lora_adapter(state, prefix=None, adapter_name="fused", metadata=settings or None)
            transformer.fuse_lora(lora_scale=scale, adapter_names=["fused"])
            transformer.unload_lora()


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as peft has them; the factors ``alpha / rank`` of other programs go into ``lora_B``."""
    state = {_strip(name): tensor for name, tensor in state.items()}
    alphas = {name.removesuffix(".alpha"): float(state.pop(name)) for name in [*state] if name.endswith(".alpha")}
    for old, new in _FACTORS.items():
        state = {re.sub(rf"\.{old}(?=\.)", f".{new}", name): tensor for name, tensor in state.items()}
    for layer, alpha in alphas.items():
        factor = state[f"{layer}.lora_B.weight"]
        state[f"{layer}.lora_B.weight"] = factor * (alpha / factor.shape[1])
    return state


def _check_factors(state: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        layer, dot, factor = name.partition(".lora_")
        if not dot or not isinstance(layers.get(layer), nn.Linear | nn.Conv3d):
            raise ValueError(f"{name}: the transformer has no such layer; use one made for this model")
        if factor not in ("A.weight", "B.weight", "B.bias"):
            raise ValueError(f"{name}: expected lora_A or lora_B")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected floating-point numbers, got {tensor.dtype}")
        found.setdefault(layer, {})[factor] = tensor
    for layer, factors in found.items():
        if missing := sorted({"A.weight", "B.weight"} - factors.keys()):
            raise ValueError(f"{layer}: expected two factors, got one; lora_{missing[0]} is missing")
        rows, columns, *_ = layers[layer].weight.shape
        rank = len(factors["A.weight"])
        for factor, shape in {"A.weight": (rank, columns), "B.weight": (rows, rank), "B.bias": (rows,)}.items():
            if factor in factors and (got := tuple(factors[factor].shape))[:2] != shape:
                raise ValueError(f"{layer}.lora_{factor}: expected shape {list(shape)}, got {list(got)}")
