"""MAGI-1 for the programs: its options, settings and videos."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from flowcache.adapter import Adapter, Start
from flowcache.files import shipped
from flowcache.fingerprint import array_digest
from flowcache.loading import LoadOptions
from flowcache.methods import make_config
from flowcache.options import Given
from flowcache.parallel.layout import SINGLE
from flowcache.parallel.world import Connection
from flowcache.pipeline import STAGED
from flowcache.registry import check_number, described
from flowcache.video import last_frames, to_float

from .captions import CaptionSwitches, SpecialTokens, clean_prompt, read_switch
from .chunk_model import transformer_flops
from .config import DISTRIBUTED, FRAMES, PIXELS, EngineSection, MagiConfig, ModelSection, RuntimeSection
from .conversion import lora_names
from .guidance import PREVIOUS_WEIGHT
from .methods import TRAITS
from .model_source import SMALL, ModelSource, new_components, resolve_model
from .pipeline import MagiPipeline, load_pipeline

logger = logging.getLogger(__name__)

FOLDER = shipped("FlowCache4MAGI-1")
CONFIG_FILE = "config/single_run/4.5B_distill.json"
#: Place of the table of special tokens in the official code.
SPECIAL_TOKENS = Path("example/assets/special_tokens.npz")
#: Methods by the original's key ``reuse_strategy``.
STRATEGIES = {"chunkwise": "flowcache", "all": "teacache", "none": "vanilla", "original": "vanilla"}
#: Keys of users' files that the original reads nowhere.
IGNORED = ("budget_cache_chunk_nums", "budget_chunk_nums", "budget_cache_len", "debug")
#: The original's environment variables by the component that each of them offloads.
OFFLOAD = {"text_encoder": "OFFLOAD_T5_CACHE", "vae": "OFFLOAD_VAE_CACHE"}

PREFIX_SECONDS = 5  # of a video that is continued


@dataclass(frozen=True, kw_only=True)
class MagiOptions:
    """Options of MAGI-1 beside the keys of its configuration."""

    config_file: Path = described("configuration in three sections, JSON", Path(CONFIG_FILE))
    weights: Literal["auto", "official", "small"] = described(
        "auto (the configuration's on CUDA or with --load, otherwise small), official, or small", "auto"
    )
    mode: Literal["t2v", "i2v", "v2v"] = described(
        "t2v, i2v (needs --image_path) or v2v (needs --prefix_video_path) (default: by what is given)", "t2v"
    )
    special_tokens: Path | None = described(
        "special_tokens.npz of the official code; switches PAD_HQ and PAD_DURATION on"
    )
    discard_nearly_clean_chunk: bool = described(
        "no extra forward pass without context of a nearly clean chunk", False
    )
    log: bool = described("ignored; accepted for compatibility", False)
    print_peak_memory: bool = described("ignored; accepted for compatibility", False)


@dataclass(frozen=True, kw_only=True)
class Magi1(Adapter):
    """MAGI-1 with the settings of its videos."""

    title = "MAGI-1"
    package = "magi1"
    inputs: ClassVar = {"image": ("image_path",), "video_path": ("prefix_video_path",)}
    lacks = frozenset({"kv_range", "retention", "causal_attention"})
    size_options: ClassVar = ("video_size_h", "video_size_w")
    traits = TRAITS
    saving = ("--offload", "--compress_kv_cache", "--kv_bits 8", "--quantize int8", "--num_frames 96")
    option_files: ClassVar = {
        "generate": FOLDER / "yaml_config/single_run/config.yaml",
        "sample": FOLDER / "yaml_config/sample/flowcache_vbench.yaml",
    }
    shipped: ClassVar = {
        path.stem: f"--config_file {path} --load sand-ai/MAGI-1/ckpt/magi/{path.stem}"
        for path in sorted((FOLDER / CONFIG_FILE).parent.glob("*.json"))
    }
    lengths: ClassVar = {count: f"--num_frames {count}" for count in (48, 96, 192, 384)}
    clean_prompt, translate_lora = staticmethod(clean_prompt), staticmethod(lora_names)
    transformer_flops = staticmethod(transformer_flops)
    default_prompt = "a red circle moves right over a dark background"

    source: ModelSource  # weights and configuration
    # Arguments of ``MagiPipeline.stream`` about special tokens and guidance.
    extras: dict[str, Any] = field(default_factory=dict)
    offload: frozenset[str] = frozenset()  # components in host memory while they are idle
    loading: LoadOptions = LoadOptions()

    video = property(lambda self: self.source.config.runtime_config)
    staged = property(lambda self: self.offload - self.on_host)
    on_host = property(lambda self: frozenset({"text_encoder"} if self.video.t5_device == "cpu" else ()))
    size = property(lambda self: (self.video.video_size_h, self.video.video_size_w))
    num_steps = property(lambda self: self.video.num_steps)
    shape = property(lambda self: f"{self.video.window_size} chunks at once")
    profile_word = property(lambda self: f"window{self.video.window_size}")
    location = property(lambda self: self.video.load)
    folders = property(lambda self: self.source.folders)
    is_small = property(lambda self: self.video.load == str(SMALL))

    @property
    def heads(self):
        sizes = self.source.config.model_config
        return sizes.num_attention_heads, sizes.num_query_groups

    @property
    def connection(self):
        engine = self.source.config.engine_config
        return Connection(engine.distributed_backend, timedelta(minutes=engine.distributed_timeout_minutes))

    @classmethod
    def add_flags(cls, parser, program):
        hidden = {"mode"} if program == "sample" else ()
        tokens = {"special_tokens": f"SPECIAL_TOKEN_PATH, or {SPECIAL_TOKENS} if it exists"}
        parser.add_fields("model", MagiOptions, {"weights": ("model",)}, hidden, tokens)
        parser.add_fields("loading", LoadOptions, defaults={"offload": "by OFFLOAD_T5_CACHE, OFFLOAD_VAE_CACHE"})
        shown = dict.fromkeys(MagiConfig.keys(), "the configuration's")
        parser.add_fields("video", RuntimeSection, defaults=shown)
        parser.add_fields("transformer", ModelSection, defaults=shown)
        parser.add_fields("engine", EngineSection, defaults=shown)
        if program == "sample":
            parser.add_option(
                "reuse_strategy", str, "the original's name of the method (default: none)", choices=STRATEGIES
            )
        parser.ignore(IGNORED if program == "sample" else (*IGNORED, "reuse_strategy"))

    @classmethod
    def translate(cls, given):
        strategy = given.get("reuse_strategy")
        if strategy in STRATEGIES and "method" not in given.values:
            given.values["method"] = STRATEGIES[strategy]

    @classmethod
    def resolve(cls, given, device, info, seconds):
        if seconds is None:
            _check_mode(given)
        file = given.get("config_file", Path(CONFIG_FILE))
        overrides = given.pick(MagiConfig.keys())
        file = file if file.is_file() else FOLDER / file
        source = resolve_model(file, overrides, given.get("weights", "auto"), device)
        model = cls(source=source)
        if seconds is not None:
            wanted, frames = math.ceil(seconds * model.video.fps), overrides.get("num_frames")
            if frames is not None and frames < wanted:
                needed = f"{wanted} for physicsiq, {seconds:g} s"
                raise ValueError(f"num_frames: expected at least {needed}, got {frames}.")
            model = model.with_video(num_frames=frames or wanted)
        switches, tokens = _read_special_tokens(given.get("special_tokens"), model)
        extras = {"switches": switches, "special_tokens": tokens}
        extras["discard_nearly_clean"] = given.get("discard_nearly_clean_chunk", False)
        given.refuse_unread(_find_unread(model.video, extras["discard_nearly_clean"]))
        extras["previous_weight"] = _previous_weight(os.environ)
        loading = LoadOptions(**given.pick(LoadOptions))
        for name in ("quantize", "lora") if source.config.engine_config.fp8_quant else ():
            if getattr(loading, name):
                raise ValueError(f"{name}: expected a checkpoint of plain weights, got one in fp8 (fp8_quant).")
        offload = STAGED if loading.offload else [k for k, name in OFFLOAD.items() if read_switch(name)]
        return replace(model, extras=extras, offload=frozenset(offload), loading=loading)

    def settings(self, with_folders=True):
        config = asdict(self.source.config)
        for name in ("seed", *(() if with_folders else self.folders)):
            del config["runtime_config"][name]
        # The number of processes does not change a video.
        config["engine_config"] |= {name: getattr(EngineSection, name) for name in DISTRIBUTED}
        extras, tokens = dict(self.extras), self.extras.get("special_tokens")
        extras["switches"] = asdict(extras["switches"])
        extras["special_tokens"] = tokens and {name: array_digest(rows) for name, rows in vars(tokens).items()}
        return {**config, **extras, **self.loading.settings()}

    def check_processes(self, count):
        size = self.source.config.engine_config.cp_size
        if size != count:
            remedy = f"start torchrun with --nproc_per_node {size}, or set cp_size to {count}"
            raise ValueError(f"cp_size must be the number of processes ({count}), got {size}; {remedy}.")
        super().check_processes(count)

    def choose_processes(self, count):
        return self.source.config.engine_config.cp_size

    def configure(self, options):
        total, live = options.total or TRAITS.total, self.video.window_size
        if options.compress and options.budget is None and total <= live:
            raise ValueError(f"total: expected more than the {live} live chunks (window_size), got {total}.")
        offload = options.kv_offload or self.source.config.engine_config.kv_offload
        return make_config(replace(options, kv_offload=offload), TRAITS)

    def continue_from(self, history):
        # the last whole seconds, at most five; of a shorter video, all whole latent frames
        fps = self.video.fps
        frames, count = last_frames(history, max(round(PREFIX_SECONDS * fps), FRAMES), fps, self.size)
        seconds = min(int(count / fps), PREFIX_SECONDS)
        kept = max(round(seconds * fps), FRAMES) if seconds else count
        return Start(to_float(frames[-max(min(kept, count) // FRAMES * FRAMES, 1) :]))

    def load(self, device, group=SINGLE.world):
        pipeline = load_pipeline(self.source, device, group=group, **{**vars(self.loading), "offload": self.offload})
        pipeline.parallelize(group)
        return pipeline

    def skeleton(self, device):
        return MagiPipeline(**new_components(self.source, torch.device(device), self.loading))

    def rehearse(self, pipeline, start, config, trace):
        tokens = torch.zeros(1, self.source.config.model_config.caption_max_length, dtype=torch.int64, device="meta")
        with trace.timer("text"):
            (embeds,) = pipeline.text_encoder(tokens).last_hidden_state
        given = (None, self.source.config, config, start.prefix, trace)
        yield from pipeline.stream(*given, **self.extras, prompt_embeds=embeds)

    def rehearse_decoding(self, pipeline, group):
        vae, width, size = pipeline.vae, self.video.chunk_width, [side // PIXELS for side in self.size]
        chunks, rest = divmod(-(-self.video.num_frames // FRAMES), width)
        done = []

        def decode_tile(tile: torch.Tensor) -> torch.Tensor:
            done.append(tile.numel())
            frames, *sides = tile.shape[2:]
            return tile.new_empty(1, vae.config.in_chans, frames * FRAMES, *(side * PIXELS for side in sides))

        vae.decoder.forward = decode_tile
        for frames, times in ((width, chunks), (rest, 1)):
            if frames and times:
                done.clear()
                latents = torch.empty(1, vae.config.z_chans, frames, *size, dtype=vae.dtype, device="meta")
                vae.decode(latents, still=False, group=group)
                yield times, sum(done)

    def stream(self, pipeline, prompt, start, config, trace, state, on_step_end=None):
        given = (self.source.config, config, start.prefix, trace, state)
        return pipeline.stream(prompt, *given, on_step_end=on_step_end, **self.extras)

    def with_video(self, **changes):
        config = self.source.config
        config = replace(config, runtime_config=replace(config.runtime_config, **changes))
        return replace(self, source=replace(self.source, config=config))

    def pilot(self):
        longest = (self.video.window_size + 1) * self.video.chunk_width * FRAMES
        return self.with_video(num_frames=min(self.video.num_frames, longest), seed=0)


def _find_unread(video: RuntimeSection, discards: bool) -> dict[str, str]:
    """Why options have no effect, by name."""
    if video.cfg_number == 1:
        unread = dict.fromkeys(("cfg_t_range", "prev_chunk_scales", "text_scales"), "it needs cfg_number 3")
    else:
        needed = ("discard_nearly_clean_chunk", "distill_nearly_clean_chunk_threshold")
        unread = dict.fromkeys(needed, "it needs cfg_number 1")
    if discards:
        unread["distill_nearly_clean_chunk_threshold"] = "discard_nearly_clean_chunk is true"
    return unread | ({} if video.num_steps == 12 else {"shortcut_mode": "it needs num_steps 12"})


def _check_mode(given: Given) -> None:
    """Refuse an image or a video that does not go with the mode; the mode follows from what is given."""
    paths = {"i2v": "image", "v2v": "video_path"}
    mode = given.get("mode") or next((m for m, name in paths.items() if given.get(name)), "t2v")
    for wanted, name in paths.items():
        if (mode == wanted) != (given.get(name) is not None):
            verb = "needs" if mode == wanted else "does not take"
            raise ValueError(f"mode {mode} {verb} {given.spelled[name]}.")


def _read_special_tokens(path: Path | str | None, model: Magi1) -> tuple[CaptionSwitches, SpecialTokens | None]:
    typed = path is not None
    path = path or os.environ.get("SPECIAL_TOKEN_PATH")
    if not path and SPECIAL_TOKENS.is_file():
        path = SPECIAL_TOKENS
    switches = CaptionSwitches.from_environment(usual=typed or bool(path and not model.is_small))
    if not switches.any:
        if not path and not model.is_small:
            logger.info("special tokens: none, their table was not found; --special_tokens names it")
        return switches, None
    if not path:
        raise ValueError(
            "special_tokens: the environment asks for them (PAD_HQ and such), but there is no table; set "
            "special_tokens or SPECIAL_TOKEN_PATH to special_tokens.npz of the official code."
        )
    logger.info("special tokens: %s, from %s", switches, path)
    channels = model.source.config.model_config.caption_channels
    return switches, SpecialTokens.from_file(Path(path).expanduser(), channels)


def _previous_weight(environment: Mapping[str, str]) -> float:
    """Value of the original's variable."""
    text = environment.get("prev_chunks_scale", "").strip()
    try:
        weight = float(text) if text else PREVIOUS_WEIGHT
    except ValueError as error:
        raise ValueError(f"prev_chunks_scale: expected a number, got {text!r}.") from error
    check_number("the environment's prev_chunks_scale", weight, -1000, 1000)
    return weight
