"""Put the trained parts together as a checkpoint in diffusers' layout, with the record of their training."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from record import forget_origins, write_record
from skyreels_transformer import WindowTransformer
from text import build_text_encoder, build_tokenizer

from flowcache.files import write_atomically
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

logger = logging.getLogger("export_skyreels")

#: Settings that suit the small model; scripts and Python front take them unless told otherwise.
DEFAULTS = {
    "prompt": "a red circle moves right over a dark background",
    "negative_prompt": "",
    "height": 64,
    "width": 64,
    "fps": 24,
    "num_frames": 97,
    "guidance_scale": 3.0,
    "shift": 8.0,
    "causal_block_size": 5,
}


def export(vae_folder: Path, run: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the folder; parts of an earlier one are replaced one after the other."""
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    _pipeline(vae_folder, run / "weights.pt", dtype).save_pretrained(draft)
    forget_origins(draft)
    out.mkdir(parents=True, exist_ok=True)
    for part in draft.iterdir():
        target = out / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    draft.rmdir()
    write_atomically(out / "defaults.json", (json.dumps(DEFAULTS, indent=2) + "\n").encode())
    write_record({"train_vae.py": vae_folder, "train_skyreels.py": run}, out)


def _pipeline(vae_folder: Path, weights: Path, dtype: torch.dtype) -> FlowCacheSkyReelsV2Pipeline:
    vae = AutoencoderKLWan.from_pretrained(vae_folder)
    tokenizer = build_tokenizer()
    model, encoder = WindowTransformer(vae.config.z_dim), build_text_encoder(len(tokenizer))
    state = torch.load(weights, weights_only=True, map_location="cpu")
    model.core.load_state_dict(state["transformer"])
    encoder.load_state_dict(state["text_encoder"])
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=DEFAULTS["shift"]
    )
    parts = tokenizer, encoder.to(dtype), model.core.to(dtype), vae.to(dtype), scheduler
    return FlowCacheSkyReelsV2Pipeline(*parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="output folder of train_vae.py")
    parser.add_argument("--run", type=Path, required=True, help="output folder of train_skyreels.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="float16")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(args.vae, args.run, args.out, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
