"""Put the trained parts of MAGI-1 together in the official layout, with the record of their training."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from magi_transformer import CHUNK, CONFIG
from record import forget_origins, write_record
from safetensors.torch import save_file
from text import build_t5_encoder, build_tokenizer

from flowcache.files import write_atomically
from magi1.config import EngineSection, MagiConfig, ModelSection, RuntimeSection
from magi1.conversion import official_key
from magi1.text_encoder import T5_FOLDER
from magi1.vae import AutoencoderKLMagi

logger = logging.getLogger("export_magi")


def export(vae_folder: Path, run: Path, out: Path) -> None:
    """Write the folder, weights in fp16."""
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    state = torch.load(run / "weights.pt", weights_only=True, map_location="cpu")
    weights = draft / "inference_weight.distill"
    weights.mkdir(parents=True)
    tensors = {official_key(name): tensor.half() for name, tensor in state["transformer"].items()}
    save_file(tensors, weights / "model.safetensors")
    tokenizer = build_tokenizer()
    encoder = build_t5_encoder(len(tokenizer))
    encoder.load_state_dict(state["text_encoder"])
    encoder.half().save_pretrained(draft / "t5" / T5_FOLDER)
    tokenizer.save_pretrained(draft / "t5" / T5_FOLDER)
    vae = AutoencoderKLMagi.from_pretrained(vae_folder)
    vae.half().save_pretrained(draft / "vae")
    forget_origins(draft)
    config = json.dumps(asdict(_config(vae)), indent=2)
    write_atomically(draft / "config.json", f"{config}\n".encode())
    write_record({"train_vae.py": vae_folder, "train_magi.py": run}, draft)
    shutil.rmtree(out, ignore_errors=True)
    draft.replace(out)


def _config(vae: AutoencoderKLMagi) -> MagiConfig:
    return MagiConfig(
        model_config=ModelSection(**CONFIG, params_dtype="torch.float16"),
        runtime_config=RuntimeSection(
            clean_t=0.9999,
            video_size_h=64,
            video_size_w=64,
            chunk_width=CHUNK,
            scale_factor=vae.config.scaling_factor,
        ),
        engine_config=EngineSection(distill=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="output folder of train_vae.py --model magi")
    parser.add_argument("--run", type=Path, required=True, help="output folder of train_magi.py")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(args.vae, args.run, args.out)


if __name__ == "__main__":
    main()
