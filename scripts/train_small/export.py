"""Put the trained parts together as a checkpoint in diffusers' layout."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from text import build_text_encoder, build_tokenizer
from train_transformer import WindowTransformer

from flowcache.files import write_atomically
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

logger = logging.getLogger("export")

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
}


def export(vae_folder: Path, weights: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the folder; parts of an earlier one are replaced one after the other."""
    vae = AutoencoderKLWan.from_pretrained(vae_folder)
    tokenizer = build_tokenizer()
    model, encoder = WindowTransformer(vae.config.z_dim), build_text_encoder(len(tokenizer))
    state = torch.load(weights, weights_only=True)
    model.core.load_state_dict(state["transformer"])
    encoder.load_state_dict(state["text_encoder"])
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    pipeline = FlowCacheSkyReelsV2Pipeline(
        tokenizer, encoder.to(dtype), model.core.to(dtype), vae.to(dtype), scheduler
    )
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    pipeline.save_pretrained(draft)
    out.mkdir(parents=True, exist_ok=True)
    for part in draft.iterdir():
        target = out / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    draft.rmdir()
    write_atomically(out / "defaults.json", (json.dumps(DEFAULTS, indent=2) + "\n").encode())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    logger.info("wrote %s, %.1f MB", out, size / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="weights.pt of train_transformer.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="float16")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(args.vae, args.weights, args.out, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
