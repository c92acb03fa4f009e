"""What pipelines on Wan's parts share beside the stream: prompts, default settings, sharing and saving."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from ..config import FlowCacheConfig
from ..environment import describe_environment
from ..finite import check_finite
from ..model_files import DEFAULTS_FILE
from ..parallel import Layout
from ..pipeline import FlowCachePipeline
from ..prompt_schedule import PromptSchedule, PromptTrack
from ..state import State
from ..trace import Trace
from .sizes import first_latent
from .text import MAX_TEXT


class WanChunkPipeline(FlowCachePipeline):
    """Mixin of diffusers pipelines with a umT5 text encoder, Wan's VAE and transformer."""

    #: Default settings of the model: ``defaults.json`` and the negative prompt.
    model_defaults: dict[str, Any]
    #: Default settings of a model at a folder or Hub id.
    default_settings: ClassVar[Callable[[str | Path], dict[str, Any]]]

    clean_prompt = staticmethod(prompt_clean)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **named: Any) -> Self:
        """Share the components of another pipeline, in their types; diffusers would cast them to fp32.

        A pipeline that diffusers offloads is refused (ValueError), as its hooks do not see all that chunks run.
        """
        if any(hasattr(part, "_hf_hook") for part in pipeline.components.values()):
            remedy = "call its remove_all_hooks, and enable_stage_offload of this one"
            raise ValueError(f"pipeline: expected one without diffusers' offload, got its hooks; {remedy}.")
        names, _ = cls._get_signature_keys(cls)
        made = cls(**{name: part for name, part in pipeline.components.items() if name in names} | named)
        defaults = cls.default_settings(pipeline.config.get("_name_or_path") or "")
        made.model_defaults = getattr(pipeline, "model_defaults", defaults)
        return made

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, with the model's default settings."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if "model_defaults" in vars(self):
            content = json.dumps(self.model_defaults, indent=2, ensure_ascii=False)
            (Path(save_directory) / DEFAULTS_FILE).write_text(f"{content}\n", encoding="utf-8")

    @property
    def default_negative_prompt(self) -> str:
        """Negative prompt of calls that pass none."""
        return self.model_defaults.get("negative_prompt", "")

    @property
    def text_length(self) -> int:
        """Tokens to which prompts are padded: the tokenizer's limit, at most the model's 512."""
        return min(MAX_TEXT, self.tokenizer.model_max_length) if self.tokenizer else MAX_TEXT

    def _begin(
        self,
        trace: Trace,
        settings: Any,
        cache: FlowCacheConfig,
        num_steps: int,
        prompts: tuple[str | PromptSchedule | None, str | None],
        embeds: tuple[Tensor | None, Tensor | None],
        state: State | None,
    ) -> tuple[PromptTrack, list[Tensor], Layout]:
        """Note in the trace what a stream does, embed its texts, and divide it over the processes.

        ``prompts`` and ``embeds``: the prompt and the negative one, for which None is the model's default; ``embeds``
        replace them. ``state``: of the stream to continue. Returns the prompts; for each, embeddings ``[texts, tokens,
        text_dim]``, with guidance of the negative one, too; and the processes.
        """
        settings.check_negative_prompt(prompts[1])
        if isinstance(prompts[0], PromptSchedule):
            prompts[0].check(self.clean_prompt, settings)
        track = PromptTrack(prompts[0], settings.fps, first_latent)
        if state is not None:
            track.load_state_dict(state["prompts"])
        heads = self.transformer.config.num_attention_heads
        processes = Layout.plan(self.process_group, heads, heads, settings.is_guided, self.cfg_size)
        trace.settings |= {"prompt": prompts[0] and str(prompts[0]), "negative_prompt": prompts[1]}
        trace.settings |= {"video": asdict(settings), "reuse": cache.as_dict(num_steps)}
        trace.environment = describe_environment(self._execution_device)
        first, *others = track.prompts
        texts = {"prompt": (first, embeds[0])}
        if settings.is_guided:
            negative = self.default_negative_prompt if prompts[1] is None else prompts[1]
            texts["negative_prompt"] = (negative, embeds[1])
        is_text = bool(others) or any(given is None for _, given in texts.values())
        with self._stage("text", "text_encoder" if is_text else None, trace):
            both = self._share_text(lambda: self._embed_prompts(texts, trace))
            more = [self._embed_beside(both, f"prompt {i}", text, trace) for i, text in enumerate(others, 2)]
        return track, [both, *more], processes

    def _embed_beside(self, both: Tensor, name: str, prompt: str, trace: Trace) -> Tensor:
        """Embed another prompt, of a name in messages, in place of the first of ``both``."""
        own = self._share_text(lambda: self._embed_prompts({name: (prompt, None)}, trace, both.shape[1]))
        return torch.cat([own, both[1:]])

    def _latent_size(self, settings: Any) -> tuple[int, int]:
        """Height and width of latents; diffusers' pipelines infer a wrong stride for a VAE that cuts patches."""
        stride = self.vae.config.scale_factor_spatial
        return settings.height // stride, settings.width // stride

    def _embed_prompts(
        self, texts: dict[str, tuple[str | None, Tensor | None]], trace: Trace, length: int | None = None
    ) -> Tensor:
        """Embed the texts that come without an embedding; ``[texts, tokens, text_dim]``.

        ``length``: tokens; None: those of given embeddings, or as many as the model has.
        """
        lengths = [len(given) for _, given in texts.values() if given is not None] or [length or self.text_length]
        expected, embeds = [lengths[0], self.transformer.config.text_dim], []
        to = {"device": self._execution_device, "dtype": self.transformer.dtype}
        for name, (text, given) in texts.items():
            if given is None:
                self._clean(name, text, lengths[0], trace)
                options = {"do_classifier_free_guidance": False, "max_sequence_length": lengths[0]}
                (given,), _ = self.encode_prompt(text, **options, **to)
            elif list(given.shape) != expected:
                raise ValueError(f"{name}_embeds: expected {expected}, got {list(given.shape)}.")
            embeds.append(given.to(**to))
        return check_finite("text embeddings", torch.stack(embeds))
