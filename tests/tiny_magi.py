"""A tiny MAGI-1 with random weights, in the official layout."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import TEXT_SIZES, tiny_tokenizer
from transformers import T5Config, T5EncoderModel

from magi1.checkpoint import T5_FOLDER, new_transformer
from magi1.config import EngineSection, MagiConfig, ModelSection, RuntimeSection
from magi1.conversion import official_shapes
from magi1.vae import AutoencoderKLMagi

MODEL = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2}
MODEL |= {"num_query_groups": 1, "kv_channels": 16, "caption_channels": 16, "caption_max_length": 60}
VIDEO = {"video_size_h": 32, "video_size_w": 32, "num_frames": 32, "num_steps": 8, "chunk_width": 2}


def write_tiny_magi(root: Path) -> Path:
    """Folders of a transformer, a VAE and a text encoder; returns the configuration that names them."""
    torch.manual_seed(0)
    section = ModelSection(**MODEL, in_channels=4, out_channels=4)
    tensors = {name: torch.randn(shape) * 0.2 for name, shape in official_shapes(new_transformer(section)).items()}
    folder = root / "magi" / "inference_weight.distill"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    AutoencoderKLMagi(video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1).save_pretrained(
        root / "vae"
    )
    t5, tokenizer = root / "t5" / T5_FOLDER, tiny_tokenizer()
    tokenizer.save_pretrained(t5)
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **TEXT_SIZES)).save_pretrained(t5)
    config = MagiConfig(
        model_config=section,
        runtime_config=RuntimeSection(
            **VIDEO, load=str(root / "magi"), vae_pretrained=str(root / "vae"), t5_pretrained=str(root / "t5")
        ),
        engine_config=EngineSection(distill=True),
    )
    path = root / "config.json"
    path.write_text(json.dumps(asdict(config)))
    return path
