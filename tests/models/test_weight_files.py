"""Weights in the forms in which people have them give the same model, and what cannot be read is named."""

import argparse
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import assert_refused
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowcache.weight_files import choose_forms, drop_other_forms
from magi1 import model_source
from magi1.checkpoint import T5_FOLDER
from skyreels_v2 import checkpoint as skyreels_checkpoint
from skyreels_v2.checkpoint import resolve_model

PARTS = {
    "magi1": ("magi/inference_weight.distill/model", "vae/diffusion_pytorch_model", f"t5/{T5_FOLDER}/model"),
    "skyreels_v2": (
        "transformer/diffusion_pytorch_model",
        "vae/diffusion_pytorch_model",
        "text_encoder/model",
    ),
}
MODULES = ("transformer", "vae", "text_encoder")


def load(model: str, root: Path) -> dict[str, nn.Module]:
    if model == "skyreels_v2":
        parts = skyreels_checkpoint.load_components(resolve_model(str(root)))
    else:
        places = zip(("load", "vae_pretrained", "t5_pretrained"), ("magi", "vae", "t5"), strict=True)
        keys = {key: str(root / place) for key, place in places}
        parts = model_source.load_components(model_source.resolve_model(root / "config.json", keys, "official", "cpu"))
    return {name: parts[name] for name in MODULES}


def values(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value for part in MODULES for name, value in parts[part].state_dict().items()}


@pytest.fixture(scope="module")
def roots(weights, checkpoint) -> dict[str, Path]:
    """Folders of the tiny models."""
    return {"magi1": weights.parent, "skyreels_v2": checkpoint}


@pytest.fixture(scope="module")
def plain(roots) -> dict[str, dict[str, Tensor]]:
    """The weights of the tiny models."""
    return {model: values(load(model, root)) for model, root in roots.items()}


@pytest.fixture
def copy(roots, tmp_path) -> Callable[[str], Path]:
    """A copy of a tiny model whose weight files can be replaced."""
    return lambda model: shutil.copytree(roots[model], tmp_path / "m")


def save_index(path: Path, shards: Mapping[str, dict[str, Tensor]]) -> None:
    path.write_text(json.dumps({"weight_map": {key: name for name, part in shards.items() for key in part}}))


def save_shards(stem: Path, ending: str, tensors: dict[str, Tensor], index: str | None = None) -> None:
    """Save three shards, named as ``ending`` has it, and an index with another ending."""
    names = sorted(tensors)
    shards = {
        f"{stem.name}{ending.format(f'-0000{n + 1}-of-00003')}": {k: tensors[k] for k in names[n::3]} for n in range(3)
    }
    for name, part in shards.items():
        save_file(part, stem.with_name(name)) if name.endswith("s") else torch.save(part, stem.with_name(name))
    if index:
        save_index(stem.with_name(f"{stem.name}{index}"), shards)


def half(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def prefixed(prefix: str) -> Callable[[Path, dict[str, Tensor]], None]:
    return lambda stem, tensors: save_file(
        {prefix + name: tensor for name, tensor in tensors.items()}, f"{stem}.safetensors"
    )


def save_old(stem: Path, tensors: dict[str, Tensor]) -> None:
    state = {"epoch": 3, "state_dict": tensors, "callbacks": {"a": [1]}}
    torch.save(state, f"{stem}.pt", _use_new_zipfile_serialization=False)


def save_beside_fp16(stem: Path, tensors: dict[str, Tensor]) -> None:
    """Full precision in PyTorch's file and half precision in safetensors."""
    torch.save(tensors, f"{stem}.bin")
    save_file(half(tensors), f"{stem}.fp16.safetensors")


def save_torn(stem: Path, tensors: dict[str, Tensor]) -> None:
    """Safetensors beside a damaged file of PyTorch."""
    save_file(tensors, f"{stem}.safetensors")
    stem.with_suffix(".bin").write_bytes(b"damaged")


#: By name: the type in which the weights are stored, and how.
FORMS: dict[str, tuple[torch.dtype, Callable[[Path, dict[str, Tensor]], Any]]] = {
    "bin": (torch.float32, lambda stem, t: torch.save(t, stem.with_name("pytorch_model.bin"))),
    "pth": (torch.float32, lambda stem, t: torch.save(t, f"{stem}.pth")),
    "training state": (torch.float32, save_old),
    "fp16": (torch.float16, lambda stem, t: save_file(half(t), f"{stem}.fp16.safetensors")),
    "bf16 bin": (torch.bfloat16, lambda stem, t: torch.save(half(t, torch.bfloat16), f"{stem}.bf16.bin")),
    "full before fp16": (torch.float32, save_beside_fp16),
    "safetensors before bin": (torch.float32, save_torn),
    "any name": (torch.float32, lambda stem, t: save_file(t, stem.with_name("mine-v2.safetensors"))),
    "index": (torch.float32, lambda stem, t: save_shards(stem, ".part{}.bin", t, ".bin.index.json")),
    "fp16 index": (
        torch.float16,
        lambda stem, t: save_shards(stem, "{}.fp16.safetensors", half(t), ".safetensors.index.fp16.json"),
    ),
    "shards": (torch.float32, lambda stem, t: save_shards(stem, "{}.safetensors", t)),
    "fp16 shards": (torch.float16, lambda stem, t: save_shards(stem, ".fp16{}.bin", half(t))),
    "compiled blocks": (
        torch.float32,
        lambda stem, t: torch.save({k.replace(".0.", ".0._orig_mod."): t[k] for k in t}, f"{stem}.bin"),
    ),
    **{
        f"{prefix}.": (torch.float32, prefixed(f"{prefix}."))
        for prefix in ("module", "_orig_mod", "module._orig_mod", "model.diffusion_model", "model", "transformer")
    },
}


@pytest.mark.parametrize("model", PARTS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_weights(copy, plain, caplog, model, form):
    root, (dtype, save) = copy(model), FORMS[form]
    for name in PARTS[model]:
        path = root / f"{name}.safetensors"
        tensors = load_file(path)
        path.unlink()
        save(root / name, tensors)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found = values(load(model, root))
    assert found.keys() == plain[model].keys()
    for name, value in found.items():
        expected = plain[model][name]
        assert value.dtype == expected.dtype and torch.equal(value, expected.to(dtype).to(value.dtype)), name
    logged = [record.getMessage() for record in caplog.records if ": weights from " in record.getMessage()]
    assert [line.partition(":")[0] for line in logged] == list(MODULES)
    if form in ("full before fp16", "safetensors before bin"):
        assert all(line.endswith({"f": ".bin", "s": ".safetensors"}[form[0]]) for line in logged)


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


#: What stands in the only file of a part's weights, by its name, and words of the error.
UNREADABLE: list[tuple[str, Callable[[Path, dict], Any], str]] = [
    ("code.bin", lambda path, t: torch.save({**t, "hook": Code()}, path), "exec code is not run safetensors"),
    ("code.pt", lambda path, t: torch.save({**t, "args": argparse.Namespace()}, path), "Namespace code is not run"),
    ("list.bin", lambda path, t: torch.save(list(t.values()), path), "tensors by name"),
    ("numbers.pth", lambda path, t: torch.save({**t, "step": 3}, path), "tensors by name"),
    ("junk.pt", lambda path, t: path.write_bytes(b"\xff" * 99), "damaged"),
    ("short.bin", lambda path, t: path.write_bytes(b""), "cannot be read"),
    ("whole.safetensors", lambda path, t: save_file({**half(t), "extra": torch.zeros(1)}, path), "holds extra"),
    ("mixed.bin", lambda path, t: torch.save({**prefix_half(t)}, path), "holds module."),
    ("a-00001-of-00002.bin", lambda path, t: torch.save(t, path), "lacks a-00002-of-00002.bin"),
]


def prefix_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before every second name."""
    return {("module." if n % 2 else "") + name: tensor for n, (name, tensor) in enumerate(tensors.items())}


@pytest.mark.parametrize("model", PARTS)
@pytest.mark.parametrize(("name", "save", "words"), UNREADABLE, ids=[row[0] for row in UNREADABLE])
def test_what_cannot_be_read_is_named(program, copy, capsys, unread, model, name, save, words):
    root = copy(model)
    for part in PARTS[model]:
        tensors = load_file(root / f"{part}.safetensors")
        path = (root / part).with_name(name)
        (root / f"{part}.safetensors").rename(root / "aside")
        save(path, tensors)
        flags = ["--model_id", root]
        if model == "magi1":
            flags = ["--load", root / "magi", "--vae_pretrained", root / "vae", "--t5_pretrained", root / "t5"]
        shown = str(path) if "lacks" not in words else str(root)
        assert_refused(program(model)(*flags), f"{shown} {words}", capsys)
        path.unlink()
        (root / "aside").rename(root / f"{part}.safetensors")


def test_several_models_in_a_folder_are_refused(copy):
    for model, folder in (("magi1", "magi/inference_weight.distill"), ("skyreels_v2", "vae")):
        root = copy(model)
        (path,) = (root / folder).glob("*.safetensors")
        shutil.copy(path, path.with_name("one.safetensors"))
        load(model, root)
        path.rename(path.with_name("two.safetensors"))
        with pytest.raises(ValueError, match=r"one\.safetensors, two\.safetensors"):
            load(model, root)
        shutil.rmtree(root)


def test_one_form_is_chosen():
    names = ["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors", "model.bf16.pt"]
    names += [
        "Wan2.1_VAE.pth",
        "enc-bf16.pth",
        "enc-fp16.safetensors",
        "config.json",
        "model.safetensors.index.fp16.json",
    ]
    assert choose_forms(names) == {"": names[2:3], "Wan2.1_VAE": names[3:4], "enc": names[4:5]}
    assert choose_forms([*names[:2], "model.safetensors.index.json"]) == {"": names[:2]}, "an index alone"
    paths = [f"{folder}{name}" for folder in ("", "a/b/") for name in names]
    kept = {names[n] for n in (2, 3, 4, 6)}
    assert drop_other_forms(paths) == [path for path in paths if path.rpartition("/")[2] in kept]
