"""Weight files of a model as people have them: found, checked against the model, and read."""

import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .files import shipped
from .typed import as_type
from .user_files import read_json, reading

logger = logging.getLogger(__name__)

#: Names of weight files of any model, as libraries write them; types in their names, the preferred first.
_STANDARD, _TYPES = ("diffusion_pytorch_model", "model", "pytorch_model"), ("fp32", "bf16", "fp16")
ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})")
_WEIGHT_FILE = re.compile(
    rf"(?P<stem>.+?)({_SHARD.pattern})?([._-](?P<type>fp32|bf16|fp16))?({_SHARD.pattern})?"
    r"\.(?P<ending>safetensors|bin|pth|pt)(?P<index>\.index(\.(?P<index_type>bf16|fp16))?\.json)?"
)
#: What wrappers of PyTorch put anywhere into names, and what training and ComfyUI put before all names of a file.
_WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_PREFIXES = ("module.", "model.", "diffusion_model.", "transformer.")
#: Keys under which training programs store a model's tensors.
_NESTED = ("state_dict", "model_state_dict", "module", "model", "generator", "generator_ema")

#: Tensors in files of a T5 that its encoder does not need: the decoder, and the tokenizer in ComfyUI's files.
BESIDE_ENCODER = r"decoder\.|lm_head\.|spiece_model$"


def find_weight_files(place: Path, default: str, beside: Collection[str] = ()) -> list[Path]:
    """Find the weight files of one part of a model; a shard that an index or another shard names may be missing.

    Of several forms, full precision comes before bf16 before fp16, and then safetensors before PyTorch's files.

    Args:
        place: a file, or a folder with the files.
        default: name of a file of the part, without which it is returned. In place of a name that libraries use
            for any model, the only weights of a folder can have any other.
        beside: names of files of other parts, which may be in the same folder.
    """
    if place.is_file():
        return [place]
    found = choose_forms(path.name for path in place.iterdir()) if place.is_dir() else {}
    part, others = _part_name(default), sorted(found.keys() - {"", *map(_part_name, beside)})
    if not part and part not in found and others:
        part, *more = others
        if more:
            got = ", ".join(found[other][0] for other in others)
            raise ValueError(f"{place}: expected {default}, or weights of one model, got {got}; leave one there.")
    return _list_whole(place, found.get(part, [default]))


def choose_forms(names: Iterable[str]) -> dict[str, list[str]]:
    """Choose the form of each part's weights among files of a folder, of which others are left out.

    Keys are the names of the parts without number of the shard, type and ending, ``""`` for names that libraries use.
    """
    forms: dict[str, dict[tuple[Any, ...], list[str]]] = {}
    for name in sorted(names):
        if match := _WEIGHT_FILE.fullmatch(name):
            kind = match["type"] or match["index_type"] or _TYPES[0]
            order = (_TYPES.index(kind), match["ending"] != "safetensors", match["stem"], match["ending"])
            forms.setdefault(_part_name(name), {}).setdefault(order, []).append(name)
    for found in forms.values():
        # Of another form, the index alone may have been downloaded.
        if whole := {order for order, files in found.items() if not all(name.endswith(".json") for name in files)}:
            for order in found.keys() - whole:
                del found[order]
    return {part: found[min(found)] for part, found in forms.items()}


def drop_other_forms(paths: Iterable[str]) -> list[str]:
    """Leave out weight files of forms that ``choose_forms`` does not choose; ``paths`` are of a repository."""
    folders: dict[PurePosixPath, list[str]] = {}
    for path in map(PurePosixPath, paths):
        folders.setdefault(path.parent, []).append(path.name)
    kept = []
    for folder, names in folders.items():
        chosen = {*chain.from_iterable(choose_forms(names).values())}
        kept += [str(folder / name) for name in names if name in chosen or not _WEIGHT_FILE.fullmatch(name)]
    return kept


def has_header(path: Path) -> bool:
    """Whether names and shapes can be read alone; a file of PyTorch's older format is pickled as a whole."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(1) != b"\x80"


def list_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def list_tied(model: nn.Module) -> set[str]:
    """Names of tensors of which one is enough. Older versions of transformers list only some of them."""
    tied = getattr(model, "_tied_weights_keys", None) or {}
    return {*tied, *(tied.values() if isinstance(tied, dict) else ())}


def read_weights(
    files: Sequence[Path],
    shapes: Mapping[str, tuple[int, ...]],
    rename: Callable[[str], str] = str,
    tied: Collection[str] = (),
    unused: str = "",
    key: str = "",
) -> dict[str, Tensor]:
    """Read a model's tensors; ValueError names one that is unknown, missing, misshapen or stored twice.

    Prefixes that training or another program put before all names of a file are removed.

    Args:
        rename: from names of another format to the model's; applied unless the files have the model's.
        tied: tensors that are equal, so that one is enough.
        unused: pattern of the starts of names of tensors to leave out.
        key: as of ``read_tensors``.
    """
    stored = [(path, *row) for path in files for row in read_tensors(path, key)]
    stored = [row for row in stored if not (unused and re.match(unused, row[1]))]
    renamed = [key for _, key, _, _ in stored]
    if not shapes.keys() >= {*renamed}:
        # Both formats have some names in common, which can mean different tensors.
        translated = list(map(rename, renamed))
        renamed = max(translated, renamed, key=lambda keys: sum(key in shapes for key in keys))
    found: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for key, (path, _, name, tensor) in zip(renamed, stored, strict=True):
        shape = tuple(tensor.shape)
        if key not in shapes:
            raise ValueError(f"{path} holds {name}, which the model does not have.")
        if key in found:
            raise ValueError(f"{path} holds {name}, which {places[key].name} holds, too.")
        if shape != shapes[key]:
            raise ValueError(f"{path} holds {name} with shape {shape}, not {shapes[key]}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{path} holds {name}: expected floating-point numbers, got {tensor.dtype}.")
        found[key], places[key] = tensor, path
    spared = () if found.keys().isdisjoint(tied) else tied
    if missing := sorted(shapes.keys() - found.keys() - set(spared)):
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(f"{files[0].parent if files[1:] else files[0]} lacks {missing[0]}{others}.")
    return found


@dataclass(frozen=True)
class WeightFiles:
    """A part of a model, on the meta device, and its files; the other fields as of ``read_weights``."""

    name: str
    model: nn.Module
    files: Sequence[Path]
    rename: Callable[[str], str] = str
    unused: str = ""
    key: str = ""

    def read(self) -> dict[str, Tensor]:
        shapes, tied = list_shapes(self.model), list_tied(self.model)
        return read_weights(self.files, shapes, self.rename, tied, self.unused, self.key)

    def check(self) -> None:
        """Refuse weights that do not fit (ValueError), unless that would read them as a whole."""
        if all(map(has_header, self.files)):
            self.read()

    def load(self, dtype_of: Callable[[str], torch.dtype]) -> nn.Module:
        """Give the model its weights in the types of their names, and return it in evaluation mode."""
        log_files(self.name, self.files)
        weights = self.read()
        for key, tensor in weights.items():
            weights[key] = tensor.to(dtype_of(key))
        tied = list_tied(self.model)
        for key in tied - weights.keys():
            weights[key] = next(weights[other] for other in tied if other in weights)
        self.model.load_state_dict(weights, assign=True)
        if tied:
            self.model.tie_weights()
        return self.model.eval()


def log_files(name: str, files: Sequence[Path]) -> None:
    more = f" and {len(files) - 1} more" if files[1:] else ""
    level = logging.DEBUG if shipped("assets") in files[0].parents else logging.INFO
    logger.log(level, "%s: weights from %s%s", name, files[0], more)


def _part_name(name: str) -> str:
    stem = _WEIGHT_FILE.fullmatch(name)["stem"]
    return "" if stem in _STANDARD else stem


def _list_whole(folder: Path, names: Sequence[str]) -> list[Path]:
    """List the files of one form: those of an index, or a single file, or all shards of the number in a name."""
    if index := next((name for name in names if name.endswith(".json")), None):
        with reading(folder / index, "an index of weight files"):
            content = read_json(folder / index, dict[str, Any], "an index of weight files")
            listed = as_type(content.get("weight_map"), dict[str, str], "weight_map").values()
            return sorted({folder / name for name in listed})
    if single := next((name for name in names if not _SHARD.search(name)), None):
        return [folder / single]
    before, count, after = _SHARD.split(names[0])
    return [folder / f"{before}-{number + 1:05d}-of-{count}{after}" for number in range(int(count))]


def read_tensors(path: Path, key: str = "") -> list[tuple[str, str, Tensor]]:
    """Read a file's tensors with their names without prefixes and in the file; mapped ones are read when used.

    ``key`` is that of the tensors to read among others in a training program's PyTorch file.
    """
    with reading(path, "a weight file"):
        tensors = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path, key)
        names = {name: _WRAPPERS.sub("", name) for name in tensors}
        while prefix := next((p for p in _PREFIXES if names and all(n.startswith(p) for n in names.values())), ""):
            names = {name: key.removeprefix(prefix) for name, key in names.items()}
        return [(key, name, tensors[name]) for name, key in names.items()]


def list_nested(path: Path) -> list[str]:
    """Keys of the models in a training program's PyTorch file; none in other files."""
    if path.suffix == ".safetensors" or not path.is_file():
        return []
    with reading(path, "a weight file"):
        content = _unpickle(path)
        return [key for key, held in content.items() if isinstance(held, dict)] if isinstance(content, dict) else []


def _load_pickled(path: Path, key: str = "") -> dict[str, Tensor]:
    """Load the tensors of a file of ``torch.save``, also from a training program's nested state; runs no code."""
    content = _unpickle(path)
    if key and (not isinstance(content, dict) or key not in content):
        held = ", ".join(list(map(str, content))[:3]) if isinstance(content, dict) else "no names"
        raise ValueError(f"expected {key} in it, got {held}")
    for name in (key,) if key else _NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("it holds more than tensors by name; save its tensors alone, as safetensors")
    return content


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it holds {code[1]}, and code is not run" if code else "it is damaged or no file of tensors"
        raise ValueError(f"{found}; save its tensors alone, as safetensors") from error
