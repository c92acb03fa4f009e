"""Tiny models: that of the references, and whole checkpoints with random weights."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from cases import SIZES as MAGI_SIZES
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from reference import Case
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from flowcache.wan.conversion import transformer_config
from magi1.checkpoint import T5_FOLDER, new_transformer
from magi1.config import EngineSection, MagiConfig, ModelSection, RuntimeSection
from magi1.conversion import official_shapes
from magi1.vae import AutoencoderKLMagi
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

#: Sizes of a text encoder with one layer, for the tokens of `tiny_tokenizer`.
TEXT_SIZES = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1}
MAGI_VIDEO = {"video_size_h": 32, "video_size_w": 32, "num_frames": 32, "num_steps": 8, "chunk_width": 2}
#: Sizes of a transformer of SkyReels-V2.
SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
SIZES |= {"text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of three words; the others are unknown to it."""
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "circle"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=8, **names)


def tiny_transformer(folder: Path, knows_fps: bool = True) -> SkyReelsV2Transformer3DModel:
    """The transformer that the references were made with, sizes from the sidecar."""
    case = Case(folder, "weights_diffusers")
    sizes = transformer_config(Case(folder, "weights").info["config"]) | {"inject_sample_info": knows_fps}
    transformer = SkyReelsV2Transformer3DModel(**sizes)
    weights = {k: v for k, v in case.tensors.items() if knows_fps or not k.startswith("fps_")}
    transformer.load_state_dict(weights, strict=True)
    return transformer.eval()


def write_tiny_checkpoint(folder: Path) -> Path:
    """A whole checkpoint in diffusers' layout with random weights and few layers; returns the folder."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = UMT5Config(vocab_size=len(tokenizer), **TEXT_SIZES)
    transformer = SkyReelsV2Transformer3DModel(**SIZES)
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    parts = (tokenizer, UMT5EncoderModel(text), transformer, vae, scheduler)
    FlowCacheSkyReelsV2Pipeline(*parts).save_pretrained(folder)
    return folder


def write_tiny_magi(root: Path) -> Path:
    """Folders of a transformer, a VAE and a text encoder; returns the configuration that names them."""
    torch.manual_seed(0)
    section = ModelSection(**{**MAGI_SIZES, "num_layers": 2, "caption_max_length": 60})
    tensors = {name: torch.randn(shape) * 0.2 for name, shape in official_shapes(new_transformer(section)).items()}
    folder = root / "magi" / "inference_weight.distill"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    vae = AutoencoderKLMagi(video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1)
    vae.save_pretrained(root / "vae")
    t5, tokenizer = root / "t5" / T5_FOLDER, tiny_tokenizer()
    tokenizer.save_pretrained(t5)
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **TEXT_SIZES)).save_pretrained(t5)
    folders = {"load": "magi", "vae_pretrained": "vae", "t5_pretrained": "t5"}
    runtime = RuntimeSection(**MAGI_VIDEO, **{part: str(root / name) for part, name in folders.items()})
    path = root / "config.json"
    config = MagiConfig(model_config=section, runtime_config=runtime, engine_config=EngineSection(distill=True))
    path.write_text(json.dumps(asdict(config)))
    return path
