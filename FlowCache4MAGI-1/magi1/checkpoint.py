"""Loads the official MAGI-1 checkpoints, strictly: each tensor exists, is known and has the right shape.

What a function here refuses is a ValueError that names the file and the tensor or key.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from flowcache import model_files
from flowcache.user_files import reading
from flowcache.weight_files import (
    BESIDE_ENCODER,
    ENDINGS,
    WeightFiles,
    find_weight_files,
    has_header,
    log_files,
    read_weights,
)

from .config import FRAMES, PIXELS, EngineSection, MagiConfig, ModelSection
from .conversion import dequantise, official_key, official_shapes, quantised_state
from .transformer import MagiTransformer3DModel
from .vae import AutoencoderKLMagi

logger = logging.getLogger(__name__)

#: Keys of the official VAE's configuration that can have one value only.
_ALWAYS = {"conv_last_layer": True, "double_z": True, "norm_code": False, "use_rope": False, "with_cls_token": True}

#: The official repository on the Hub, and its folders: weights of each size, and the parts beside them.
REPOSITORY, _FOLDER = "sand-ai/MAGI-1", "ckpt/magi"
_OFFICIAL = [f"{size}_{kind}" for size in ("4.5B", "24B") for kind in ("distill", "distill_quant", "base")]
SMALLEST, BESIDE = f"{_FOLDER}/{_OFFICIAL[0]}", {"vae_pretrained": "ckpt/vae", "t5_pretrained": "ckpt/t5"}

#: The official encoder's folder, inside the one that ``t5_pretrained`` names.
T5_FOLDER = "t5-v1_1-xxl"

#: Sizes of the official encoder.
_T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}

#: Of each of these, one file is needed; without a vocabulary, transformers would make a tokenizer that knows no word.
_NEEDED = (("config.json",), ("spiece.model", "tokenizer.json"))


def new_transformer(section: ModelSection, fp8: bool = False) -> MagiTransformer3DModel:
    """The transformer of a configuration, on the meta device; ``fp8``: for quantised weights."""
    known = MagiTransformer3DModel._get_init_keys(MagiTransformer3DModel)
    with torch.device("meta"):
        return MagiTransformer3DModel(**{k: v for k, v in asdict(section).items() if k in known}, fp8_quant=fp8)


def weight_folder_name(engine: EngineSection) -> str:
    """The folder, inside a checkpoint's, with the weights of a configuration."""
    return "inference_weight" + ".fp8" * engine.fp8_quant + ".distill" * engine.distill


def weight_folder(load: str | Path, engine: EngineSection) -> Path:
    """The folder with the weights of a configuration, or the file that ``load`` names."""
    name = weight_folder_name(engine)
    if str(load).endswith(ENDINGS) and (file := Path(load).expanduser()).is_file():
        return file
    folder = Path(load).expanduser() / name
    if not folder.is_dir():
        kind = "distill_quant" if engine.fp8_quant else "distill" if engine.distill else "base"
        official = f"{_FOLDER}/{folder.parent.name if folder.parent.name in _OFFICIAL else f'4.5B_{kind}'}"
        wanted = " ".join(f'--include "{inside}/*"' for inside in (f"{official}/{name}", *BESIDE.values()))
        raise ValueError(
            f"load: expected a weight file, or a folder with weights in {name}, got {load}; set load to "
            f"{REPOSITORY}/{official}, which is downloaded at the first run or before by "
            f"`hf download {REPOSITORY} {wanted}`."
        )
    return folder


def check_transformer(load: str | Path, config: MagiConfig) -> None:
    """Refuse weights that do not fit a configuration; reads only the headers of their files."""
    if all(map(has_header, _find_transformer(load, config))):
        _read_transformer(load, config, new_transformer(config.model_config))


def load_transformer(
    load: str | Path, config: MagiConfig, dtype: torch.dtype | None = None, keep_fp8: bool = False
) -> MagiTransformer3DModel:
    """Load the transformer of a configuration from a checkpoint's folder.

    Args:
        dtype: of the weights, except for those that stay in fp32; None: the configuration's ``params_dtype``.
        keep_fp8: leave quantised weights in fp8, for devices that multiply them (``multiplies_fp8``); False
            converts them, with a warning.
    """
    plain, fp8 = new_transformer(config.model_config), config.engine_config.fp8_quant
    dtype = dtype or config.model_config.dtype
    if fp8 and not keep_fp8:
        logger.warning(
            "fp8 weights are turned into %s, as the device does not multiply in fp8 (GPUs from compute "
            "capability 8.9 on do): they need more memory, and are no faster than plain ones.",
            str(dtype).removeprefix("torch."),
        )
    log_files("transformer", _find_transformer(load, config))
    tensors = _read_transformer(load, config, plain)
    state = {}
    for name in plain.state_dict():
        official = official_key(name)
        quantised = quantised_state(tensors, official) if keep_fp8 else None
        if quantised is None:
            kept = torch.float32 if plain.keeps_fp32(name) else dtype
            state[name] = dequantise(tensors, official).to(kept)
        else:
            state |= {f"{name.removesuffix('weight')}{part}": value for part, value in quantised.items()}
        del tensors[official]  # The weights would be in memory twice.
    model = new_transformer(config.model_config, fp8 and keep_fp8)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _find_transformer(load: str | Path, config: MagiConfig) -> list[Path]:
    return _find_files("load", weight_folder(load, config.engine_config), "model.safetensors")


def _read_transformer(load: str | Path, config: MagiConfig, plain: MagiTransformer3DModel) -> dict[str, Tensor]:
    return read_weights(_find_transformer(load, config), official_shapes(plain, config.engine_config.fp8_quant))


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKLMagi:
    """Load the official VAE, ``config.json`` and weights beside it."""
    return _find_vae(folder, new_vae(folder)).load(lambda _: dtype).requires_grad_(False)


def _find_vae(folder: Path, vae: AutoencoderKLMagi) -> WeightFiles:
    return WeightFiles("vae", vae, _find_files("vae_pretrained", folder, "diffusion_pytorch_model.safetensors"))


def check_vae(folder: Path, config: MagiConfig) -> None:
    """Refuse a VAE that does not fit the transformer; reads only the headers of its weight files."""
    vae, section = new_vae(folder), config.model_config
    wanted = {"patch_size": PIXELS, "patch_length": FRAMES}
    wanted["z_chans"] = section.in_channels // (2 if section.half_channel_vae else 1)
    for name, value in wanted.items():
        if vae.config[name] != value:
            raise ValueError(f"vae_pretrained: expected {name} {value}, got {vae.config[name]} in {folder}.")
    _find_vae(folder, vae).check()


def new_text_encoder(t5_pretrained: Path | None) -> T5EncoderModel:
    """The text encoder of a folder, or the official one, on the meta device."""
    with torch.device("meta"):
        if t5_pretrained is None:
            return T5EncoderModel(T5Config(**_T5_XXL, feed_forward_proj="gated-gelu"))
        return T5EncoderModel(T5Config.from_pretrained(t5_pretrained / T5_FOLDER, local_files_only=True))


def check_text_encoder(t5_pretrained: Path, config: MagiConfig) -> None:
    """Refuse a folder without a T5 as wide as the captions and its tokenizer; reads no weights."""
    folder, width = t5_pretrained / T5_FOLDER, config.model_config.caption_channels
    for names in _NEEDED:
        if not any(path for name in names for path in folder.glob(name)):
            raise ValueError(f"t5_pretrained: {folder} lacks {' or '.join(names)}.")
    model_files.read_config(folder / "config.json", {"model_type": ""})
    with reading(folder / "config.json", "a configuration"):
        encoder = new_text_encoder(t5_pretrained)
    sizes = encoder.config
    if sizes.d_model != width:
        raise ValueError(
            f"t5_pretrained: expected d_model {width}, as caption_channels, got {sizes.d_model} in {folder}."
        )
    model_files.load_tokenizer(folder, sizes.vocab_size)
    _find_text_encoder(folder, encoder).check()


def load_text_encoder(
    t5_pretrained: Path, with_weights: bool = True
) -> tuple[PreTrainedTokenizerBase, T5EncoderModel | None]:
    """Load the tokenizer, and the encoder in fp32; ``with_weights`` False: the tokenizer alone."""
    folder = t5_pretrained / T5_FOLDER
    tokenizer = model_files.load_tokenizer(folder)
    if not with_weights:
        return tokenizer, None
    encoder = _find_text_encoder(folder, new_text_encoder(t5_pretrained))
    return tokenizer, encoder.load(lambda _: torch.float32)


def _find_text_encoder(folder: Path, encoder: T5EncoderModel) -> WeightFiles:
    files = _find_files("t5_pretrained", folder, "model.safetensors")
    return WeightFiles("text_encoder", encoder, files, unused=BESIDE_ENCODER)


#: Keys of the configuration that name folders of weights, and the checks of their files.
FOLDERS = {"load": check_transformer, "vae_pretrained": check_vae, "t5_pretrained": check_text_encoder}


def new_vae(folder: Path | None) -> AutoencoderKLMagi:
    """The VAE that a folder's ``config.json`` describes, or the official one, on the meta device."""
    if folder is None:
        with torch.device("meta"):
            return AutoencoderKLMagi()
    path, known = folder / "config.json", model_files.default_arguments(AutoencoderKLMagi)
    like = known | _ALWAYS
    content = model_files.read_config(path, like | {"ddconfig": like})
    if content.get("_class_name") not in ("ViTVAE", "AutoencoderKLMagi"):
        raise ValueError(f"{path} describes a {content.get('_class_name')}, not a ViTVAE.")
    described = content.get("ddconfig", content)
    for key, value in described.items():
        if value != _ALWAYS.get(key, value):
            raise ValueError(f"{path}: {key}: expected {json.dumps(_ALWAYS[key])}, got {json.dumps(value)}.")
        if key not in like and not key.startswith("_"):
            logger.warning("%s: %s is ignored: the autoencoder does not know it.", path, key)
    with reading(path, "an autoencoder"), torch.device("meta"):
        return AutoencoderKLMagi(**{key: value for key, value in described.items() if key in known})


def _find_files(key: str, place: Path, default: str) -> list[Path]:
    files = find_weight_files(place, default)
    for path in files:
        if not path.is_file():
            packed = path.with_name(f"{path.name}.zst")
            hint = f"; unpack it first: zstd -d {packed}" if packed.is_file() else "."
            raise ValueError(f"{key}: {place} lacks {path.name}{hint}")
    return files
