"""The command line from the outside, on a tiny checkpoint in the official layout with random weights."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from reference import ROOT
from safetensors.torch import save_file
from tiny import TEXT_SIZES, tiny_tokenizer
from transformers import T5Config, T5EncoderModel

from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from magi1.checkpoint import new_transformer
from magi1.config import EngineSection, MagiConfig, ModelSection, RuntimeSection
from magi1.conversion import official_shapes
from magi1.model_source import T5_FOLDER
from magi1.vae import AutoencoderKLMagi

FOLDER = ROOT / "FlowCache4MAGI-1"
MODEL = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2}
MODEL |= {"num_query_groups": 1, "kv_channels": 16, "caption_channels": 16, "caption_max_length": 60}
VIDEO = {"video_size_h": 32, "video_size_w": 32, "num_frames": 32, "num_steps": 8, "chunk_width": 2}
QUICK = ["--warmup_steps", 1, "--rel_l1_thresh", 0.2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of a transformer, a VAE and a text encoder, as the official ones lie."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    section = ModelSection(**MODEL, in_channels=4, out_channels=4)
    tensors = {
        name: torch.randn(shape) * 0.2 for name, shape in official_shapes(new_transformer(section)).items()
    }
    folder = root / "magi" / "inference_weight.distill"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    AutoencoderKLMagi(
        video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1
    ).save_pretrained(root / "vae")
    t5, tokenizer = root / "t5" / T5_FOLDER, tiny_tokenizer()
    tokenizer.save_pretrained(t5)
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **TEXT_SIZES)).save_pretrained(t5)
    config = MagiConfig(
        model_config=section,
        runtime_config=RuntimeSection(
            **VIDEO,
            load=str(root / "magi"),
            vae_pretrained=str(root / "vae"),
            t5_pretrained=str(root / "t5"),
        ),
        engine_config=EngineSection(distill=True),
    )
    path = root / "config.json"
    path.write_text(json.dumps(asdict(config)))
    return path


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The program, run in an empty folder."""
    spec = importlib.util.spec_from_file_location("generate_video", FOLDER / "generate_video.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generate_video", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    for name in ("PAD_HQ", "PAD_DURATION"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["generate_video.py", *map(str, arguments)])
        try:
            return module.main()
        except SystemExit as stop:
            return stop.code

    run.module = module
    return run


@pytest.mark.parametrize("method", ["vanilla", "teacache", "flowcache"])
def test_writes_video_trace_and_map(front, weights, tmp_path, capsys, method):
    code = front("--config_file", weights, "--prompt", "a red circle", "--method", method, *QUICK)
    assert code == 0, capsys.readouterr().err
    (video,) = (tmp_path / "outputs" / "magi1").glob("*.mp4")
    assert re.fullmatch(rf"a_red_circle_t2v_{method}_seed1234_steps8", video.stem)
    assert read_video(video)[0].shape == (32, 32, 32, 3)
    assert Trace.load(video.with_suffix(".trace.json")).method == method
    assert Image.open(video.with_suffix(".reuse.png")).size[0] > 300
    assert "reuse ratio" in capsys.readouterr().out.splitlines()[-1]


def test_starts_from_an_image_or_a_video(front, weights, tmp_path):
    Image.new("RGB", (40, 30), "red").save("first.png")
    with VideoWriter("in.mp4", 8) as writer:
        writer.write(np.full((21, 32, 32, 3), 90, np.uint8))
    common = ["--config_file", weights, "--prompt", "a", *QUICK]
    assert front(*common, "--mode", "i2v", "--image_path", "first.png", "--output_path", "i.mp4") == 0
    assert len(read_video("i.mp4")[0]) == 36, "the given frame and what was asked for"
    assert front(*common, "--mode", "v2v", "--prefix_video_path", "in.mp4", "--output_path", "v.mp4") == 0
    assert len(read_video("v.mp4")[0]) == 32


BAD = {
    "there is no num_step; did you mean num_steps": ["--num_step", 8],
    "num_steps must be a multiple of 4": ["--num_steps", 10],
    "rel_l1_thresh must be a finite number": ["--rel_l1_thresh", ".nan"],
    "total_cache_chunk_nums must be above window_size (4)": [
        *("--compress_kv_cache", "true", "--total_cache_chunk_nums", 4)
    ],
    "nothing.json cannot be read": ["--config_file", "nothing.json"],
    "mode i2v needs image_path": ["--mode", "i2v"],
    "mode t2v does not take image_path": ["--image_path", "a.png"],
    "image_path: a.png does not exist": ["--mode", "i2v", "--image_path", "a.png"],
    "pairs of --key value": ["--num_steps"],
    "argument --method": ["--method", "magic"],
    "prompt must not be empty": ["--prompt", " "],
    "output_path": ["--output_path", "/proc/nowhere/a.mp4"],
    "has no folder inference_weight.fp8.distill": ["--fp8_quant", "true"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(front, weights, capsys, monkeypatch, message):
    monkeypatch.setattr(front.module, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    code = front("--config_file", weights, "--prompt", "a", *BAD[message])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert message in line


def test_special_tokens_need_their_table(front, weights, capsys, monkeypatch):
    monkeypatch.setenv("PAD_HQ", "1")
    assert front("--config_file", weights, "--prompt", "a") == 2
    assert "special_tokens.npz" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "config").rglob("*.json")))
def test_shipped_configurations_are_valid(name):
    (path,) = (FOLDER / "config").rglob(name)
    config = MagiConfig.from_file(path)
    assert config.model_config.num_layers == 34
