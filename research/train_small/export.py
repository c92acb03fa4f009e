"""Assemble the trained parts of a small checkpoint in the official layout, and record their training."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from flowcache.files import write_json
from flowcache.plots.style import COMPUTED
from magi1.checkpoint import T5_FOLDER
from magi1.conversion import official_key
from magi1.vae import AutoencoderKLMagi
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

from ..compare import Line, draw_lines
from . import magi, skyreels
from .moving_shapes import ASSETS

#: Keys of configurations that say where a part was read from.
ORIGINS = {"_name_or_path", "is_local", "local_files_only"}

State = dict[str, dict[str, Tensor]]


def export_skyreels(vae_folder: Path, state: State, out: Path, dtype: torch.dtype) -> None:
    vae, small = AutoencoderKLWan.from_pretrained(vae_folder), ASSETS / "skyreels_v2_small"
    model, encoder = skyreels.new_transformer(), skyreels.new_encoder()
    model.load_state_dict(state["transformer"])
    encoder.load_state_dict(state["text_encoder"])
    scheduler = UniPCMultistepScheduler.from_pretrained(small / "scheduler")
    tokenizer = AutoTokenizer.from_pretrained(small / "tokenizer")
    parts = tokenizer, encoder.to(dtype), model.to(dtype), vae.to(dtype), scheduler
    FlowCacheSkyReelsV2Pipeline(*parts).save_pretrained(out)
    write_json(out / "defaults.json", json.loads((small / "defaults.json").read_text()))


def export_magi(vae_folder: Path, state: State, out: Path, dtype: torch.dtype) -> None:
    weights, text_folder = out / "inference_weight.distill", out / "t5" / T5_FOLDER
    weights.mkdir(parents=True, exist_ok=True)
    tensors = {official_key(name): tensor.to(dtype) for name, tensor in state["transformer"].items()}
    save_file(tensors, weights / "model.safetensors")
    encoder = magi.new_encoder()
    encoder.load_state_dict(state["text_encoder"])
    encoder.to(dtype).save_pretrained(text_folder)
    AutoTokenizer.from_pretrained(magi.TEXT_FOLDER).save_pretrained(text_folder)
    vae = AutoencoderKLMagi.from_pretrained(vae_folder)
    vae.to(dtype).save_pretrained(out / "vae")
    config = json.loads((ASSETS / "magi1_small/config.json").read_text())
    config["model_config"]["params_dtype"] = str(dtype)
    config["runtime_config"]["scale_factor"] = vae.config.scaling_factor
    write_json(out / "config.json", config)


def export(args: argparse.Namespace) -> None:
    """Write the checkpoint and the record of its training; parts of an earlier one are replaced."""
    state = torch.load(args.run / "weights.pt", weights_only=True, map_location="cpu")
    EXPORTERS[args.model](args.vae, state, args.out, getattr(torch, args.dtype))
    for path in args.out.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and ORIGINS & content.keys():
            write_json(path, {key: value for key, value in content.items() if key not in ORIGINS})
    record = {}
    for name, run in (("vae", args.vae), ("transformer", args.run)):
        arguments = json.loads((run / "arguments.json").read_text())
        record[name] = {key: value for key, value in arguments.items() if key not in ("vae", "out")}
    write_json(args.out / "training.json", record)
    losses = json.loads((args.run / "losses.json").read_text())
    draw_losses(losses, args.out / "loss_curve.png")


def draw_losses(losses: list[float], path: Path) -> None:
    window = min(50, len(losses))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    labels = {"xlabel": "step", "ylabel": f"velocity error, mean of {window} steps", "yscale": "log"}
    line = Line("loss", np.arange(len(smooth)) + window, smooth, {"color": COMPUTED, "linewidth": 1})
    draw_lines(path, [(labels, [line])], 7)


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
