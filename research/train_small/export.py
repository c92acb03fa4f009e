"""Assemble the trained parts of a small checkpoint in the official layout, and record their training."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor

from flowcache.files import write_atomically
from flowcache.plots.style import COMPUTED, save_figure
from magi1.config import EngineSection, MagiConfig, ModelSection, RuntimeSection
from magi1.conversion import official_key
from magi1.text_encoder import T5_FOLDER
from magi1.vae import AutoencoderKLMagi
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

from ..compare import style_axis
from ..runs import PROMPT
from . import magi
from .skyreels import new_transformer
from .text import build_t5, build_tokenizer, build_umt5

#: Settings that suit the small SkyReels-V2, the defaults of programs and Python calls.
SKYREELS_DEFAULTS = {
    "prompt": PROMPT,
    "negative_prompt": "",
    "height": 64,
    "width": 64,
    "fps": 24,
    "num_frames": 97,
}
SKYREELS_DEFAULTS |= {"guidance_scale": 3.0, "shift": 8.0, "causal_block_size": 5}
State = dict[str, dict[str, Tensor]]


def export_skyreels(vae_folder: Path, state: State, out: Path, dtype: torch.dtype) -> None:
    """Write the parts in diffusers' layout."""
    vae, tokenizer = AutoencoderKLWan.from_pretrained(vae_folder), build_tokenizer()
    model, encoder = new_transformer(vae.config.z_dim), build_umt5(len(tokenizer))
    model.load_state_dict(state["transformer"])
    encoder.load_state_dict(state["text_encoder"])
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    scheduler = UniPCMultistepScheduler(**flow, flow_shift=SKYREELS_DEFAULTS["shift"])
    parts = tokenizer, encoder.to(dtype), model.to(dtype), vae.to(dtype), scheduler
    FlowCacheSkyReelsV2Pipeline(*parts).save_pretrained(out)
    _write_json(out / "defaults.json", SKYREELS_DEFAULTS)


def export_magi(vae_folder: Path, state: State, out: Path, dtype: torch.dtype) -> None:
    """Write the parts in the official layout of MAGI-1."""
    weights, text_folder = out / "inference_weight.distill", out / "t5" / T5_FOLDER
    tokenizer = build_tokenizer()
    weights.mkdir(parents=True)
    tensors = {official_key(name): tensor.to(dtype) for name, tensor in state["transformer"].items()}
    save_file(tensors, weights / "model.safetensors")
    encoder = build_t5(len(tokenizer))
    encoder.load_state_dict(state["text_encoder"])
    encoder.to(dtype).save_pretrained(text_folder)
    tokenizer.save_pretrained(text_folder)
    vae = AutoencoderKLMagi.from_pretrained(vae_folder)
    vae.to(dtype).save_pretrained(out / "vae")
    runtime = {"clean_t": 0.9999, "video_size_h": 64, "video_size_w": 64, "chunk_width": magi.CHUNK}
    config = MagiConfig(
        model_config=ModelSection(**magi.CONFIG, params_dtype=str(dtype)),
        runtime_config=RuntimeSection(**runtime, scale_factor=vae.config.scaling_factor),
        engine_config=EngineSection(distill=True),
    )
    _write_json(out / "config.json", asdict(config))


def export(args: argparse.Namespace) -> None:
    """Write the folder; each part replaces that of an earlier export."""
    draft = args.out.with_name(f".{args.out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    state = torch.load(args.run / "weights.pt", weights_only=True, map_location="cpu")
    EXPORTERS[args.model](args.vae, state, draft, getattr(torch, args.dtype))
    for path in draft.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            _write_json(path, content)  # without the folder that a part was read from
    runs = {"vae": args.vae, "transformer": args.run}
    _write_json(draft / "training.json", {name: _read_arguments(run) for name, run in runs.items()})
    draw_losses(json.loads((args.run / "losses.json").read_text()), draft / "loss_curve.png")
    args.out.mkdir(parents=True, exist_ok=True)
    for part in draft.iterdir():
        target = args.out / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    draft.rmdir()


def _read_arguments(run: Path) -> dict[str, Any]:
    arguments = json.loads((run / "arguments.json").read_text())
    return {name: value for name, value in arguments.items() if name not in ("vae", "out")}


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, f"{json.dumps(content, indent=2)}\n".encode())


def draw_losses(losses: list[float], path: Path, window: int = 50) -> None:
    """Save a PNG of the running mean of the loss."""
    window = min(window, len(losses))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.plot(np.arange(len(smooth)) + window, smooth, color=COMPUTED, linewidth=1)
    style_axis(axis, xlabel="step", ylabel=f"velocity error, mean of {window} steps", yscale="log")
    save_figure(figure, path)


EXPORTERS = {"skyreels": export_skyreels, "magi": export_magi}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", choices=EXPORTERS, default="skyreels", help="default: skyreels")
    add("--vae", type=Path, required=True, help="output folder of research.train_small.vae")
    add("--run", type=Path, required=True, help="output folder of the transformer's training")
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    add("--dtype", choices=["bfloat16", "float16", "float32"], default="float16", help="default: float16")
    export(parser.parse_args())


if __name__ == "__main__":
    main()
