"""Damaged files of a model and numbers that are not finite: the error names the place, and no video is left."""

import json
import shutil
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import assert_refused
from safetensors.torch import load_file, save

from flowcache.wan.chunk_model import WanChunkModel
from magi1.checkpoint import T5_FOLDER

VAE, TOKENIZER_CONFIG, TOKENIZER = "vae/config.json", "tokenizer_config.json", "tokenizer.json"
T5, WEIGHTS = f"t5/{T5_FOLDER}", "magi/inference_weight.distill/model.safetensors"
REMOTE = {"auto_map": {"AutoTokenizer": ["a.B", None]}, "tokenizer_class": None}

#: Changes of files: the content (None: missing), new values of its keys, or a change of its tensors.
DAMAGE = {
    "magi1": {
        WEIGHTS: [b"", b"\xff" * 64, None],
        f"{WEIGHTS}.index.json": [b"", {"weight_map": {"rope.bands": 5}}],
        f"{T5}/config.json": [None, {"d_model": 32}, {"dense_act_fn": "x"}, {"vocab_size": 3}],
        f"{T5}/model.safetensors": [None, torch.Tensor.int],
        f"{T5}/{TOKENIZER}": [b"", None],
        f"{T5}/{TOKENIZER_CONFIG}": [b"[" * 10**5, {"model_max_length": -5}, REMOTE],
        VAE: [b"", None, {"depth": 1e300}, {"embed_dim": 2**62}, {"num_heads": "two"}, {"ddconfig": {"depth": 10**9}}],
        "vae/diffusion_pytorch_model.safetensors": [torch.Tensor.int],
    },
    "skyreels_v2": {
        "model_index.json": [b"5", {"_class_name": "SkyReelsV2ImageToVideoPipeline"}],
        "defaults.json": [b"[" * 10**5, {"height": 33}, {"reuse_coefficients": "steep"}],
        "scheduler/scheduler_config.json": [b"", {"num_train_timesteps": 10**15}],
        "text_encoder/config.json": [b"", {"vocab_size": 3}],
        "text_encoder/model.safetensors": [b"\xff" * 64],
        f"tokenizer/{TOKENIZER}": [b"", b"{}"],
        f"tokenizer/{TOKENIZER_CONFIG}": [b"[]", REMOTE],
        "transformer/config.json": [{"_class_name": "Wan"}, {"eps": np.nan}, {"patch_size": [2, 2, 2]}],
        "transformer/diffusion_pytorch_model.safetensors.index.json": [{"weight_map": {"proj_out.weight": 5}}],
        VAE: [b"", b"\xff\xfe", {"dim_mult": [10**9]}, {"z_dim": "16"}, {"patch_size": 0}],
    },
}
DAMAGED = [(model, name, change) for model, files in DAMAGE.items() for name in files for change in files[name]]


@pytest.fixture
def folders(weights, checkpoint, tmp_path):
    """Copy the folder of a model; the copy and the flags that name it."""

    def copy(model):
        folder = shutil.copytree({"magi1": weights.parent, "skyreels_v2": checkpoint}[model], tmp_path / "model")
        named = {"load": "magi", "vae_pretrained": "vae", "t5_pretrained": "t5"}
        magi = [word for key, part in named.items() for word in (f"--{key}", folder / part)]
        return folder, {"magi1": magi, "skyreels_v2": ["--model_id", folder]}[model]

    return copy


@pytest.mark.parametrize(("model", "name", "change"), DAMAGED)
def test_a_damaged_file_is_named(program, folders, unread, monkeypatch, capsys, model, name, change):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    folder, words = folders(model)
    path, started = folder / name, time.monotonic()
    named = path if isinstance(change, bytes) else folder
    if isinstance(change, dict):
        if name.startswith("transformer/") and "weight_map" in change:
            (path.parent / "diffusion_pytorch_model.safetensors").rename(path.parent / "a.safetensors")
        content = json.loads(path.read_text()) if path.exists() else {}
        content = {key: value for key, value in {**content, **change}.items() if value is not None}
        change = json.dumps(content).encode()
    if callable(change):
        change = save({name: change(tensor) for name, tensor in load_file(path).items()})
    path.write_bytes(change or b"")
    if change is None:
        path.unlink()
    assert_refused(program(model)(*words), str(named), capsys)
    assert time.monotonic() - started < 10


def test_a_damaged_tokenizer_model_is_named(skyreels, folders, capsys):
    folder, words = folders("skyreels_v2")
    (folder / "tokenizer" / TOKENIZER).unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"no model")
    (folder / "tokenizer" / TOKENIZER_CONFIG).write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    assert_refused(skyreels(*words), "spiece.model", capsys)


IMAGE, NORM = ["--mode", "i2v", "--image_path", "a.png"], "encoder.final_layer_norm.weight"
#: Model, folder, tensor, the part that is named, what is noticed where weights are not checked, flags.
NAN = [
    ("magi1", "magi", "1.mlp.linear_fc1.weight", "transformer: ", "latents of chunk 0 after its step 0", []),
    ("magi1", "t5", NORM, "text_encoder: ", "text embeddings", []),
    ("magi1", "vae", "decoder.proj_in.weight", "vae: ", "frames from the VAE", []),
    ("magi1", "vae", "encoder.patch_embed.proj.weight", "vae: ", "latents of the given frames", IMAGE),
    ("skyreels_v2", "text_encoder", NORM, "text_encoder: ", "text embeddings", []),
]


@pytest.mark.parametrize(("model", "part", "tensor", "named", "noticed", "flags"), NAN)
def test_damaged_weights_are_named(program, folders, monkeypatch, capsys, model, part, tensor, named, noticed, flags):
    folder, words = folders(model)
    (path,) = (folder / part).rglob("*.safetensors")
    tensors = load_file(path)
    next(tensors[name] for name in tensors if name.endswith(tensor)).view(-1)[0] = torch.nan
    path.write_bytes(save(tensors, {"format": "pt"}))
    Image.new("RGB", (32, 32), "red").save("a.png")

    def check(expected: str, *more) -> None:
        assert program(model)(*words, *flags, *more) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and expected in error
        assert all(path.stem.endswith(".part") for path in Path.cwd().rglob("*.mp4"))

    check(named)
    module = {"magi1": "magi1.model_source", "skyreels_v2": "flowcache.wan.loading"}[model]
    monkeypatch.setattr(f"{module}.check_finite_weights", lambda components: None)
    check(noticed)
    check(noticed, "--resume")


def test_a_model_that_breaks_once(skyreels, capsys, monkeypatch):
    """The run stops; started again, it continues from finite numbers."""
    flags = ["--num_frames", 17, "--inference_steps", 6, "--ar_step", 2, "--resume"]
    calls, plain = count(), WanChunkModel.head

    def head(model, inputs, outputs):
        velocities = plain(model, inputs, outputs)
        return [v * float("inf") for v in velocities] if next(calls) == 5 else velocities

    monkeypatch.setattr(WanChunkModel, "head", head)
    assert skyreels(*flags, "--outdir", "out") == 1
    assert "latents of chunk" in capsys.readouterr().err.splitlines()[-1]
    assert all(path.stem.endswith(".part") for path in Path("out").rglob("*.mp4"))
    assert skyreels(*flags, "--outdir", "out") == 0
    assert skyreels(*flags, "--outdir", "whole") == 0
    resumed, whole = (path.read_bytes() for name in ("out", "whole") for path in Path(name).rglob("*.mp4"))
    assert resumed == whole
