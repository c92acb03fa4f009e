"""Captions of the transformer: cleaned prompts, special tokens for quality and duration, the null caption."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from torch import Tensor

from flowcache.user_files import reading

#: The time of the cleaning grows with the square of the prompt's length.
MAX_CHARACTERS = 10_000
#: Rows of the null caption that the transformer reads.
NULL_TOKENS = 50

#: Rows of the table of special tokens; a duration's row depends on the chunk.
_ROWS = {"static": 2, "dynamic": 3, "borderness": 4, "high_quality": 1, "three_d_model": 15}
_ROWS |= {"two_d_anime": 16, "duration": None}
_NUM_ROWS, _FIRST_DURATION, _NUM_DURATIONS = 17, 7, 8
_BORDER_ROW, _TRANSITION_ROW = 4, 0

#: The original's environment variable of each switch, and the switches that all of its scripts set.
_VARIABLES = {name: f"PAD_{name.upper()}" for name in _ROWS}
_VARIABLES |= {"high_quality": "PAD_HQ", "negative": "NEG_PROMPT"}
_USUAL = ("high_quality", "duration")
_ON = ("1", "true", "yes", "y", "on", "enabled")
_OFF = ("", "0", "false", "no", "n", "off", "disabled")


class _Cleaning:
    """PixArt's cleaning of captions, which MAGI-1 was trained with, too."""

    bad_punct_regex = PixArtAlphaPipeline.bad_punct_regex
    _clean_caption = PixArtAlphaPipeline._clean_caption
    clean = PixArtAlphaPipeline._text_preprocessing


@lru_cache(maxsize=16)
def clean_prompt(prompt: str) -> str:
    """Return the part of a prompt that is tokenized; refuse one that is too long to clean (ValueError)."""
    if len(prompt) > MAX_CHARACTERS:
        raise ValueError(f"prompt: expected at most {MAX_CHARACTERS} characters, got {len(prompt)}; shorten it.")
    return _Cleaning().clean(prompt, clean_caption=True)[0]


def read_switch(variable: str, usual: bool = False, environment: Mapping[str, str] = os.environ) -> bool:
    """Read a variable of the environment that is on or off; unset, it is as usual."""
    word = environment.get(variable, "1" if usual else "0").strip().lower()
    if word not in (*_ON, *_OFF):
        raise ValueError(f"{variable}: expected 1 or 0, got {word!r}.")
    return word in _ON


@dataclass(frozen=True, kw_only=True)
class CaptionSwitches:
    """Special tokens before a caption, or before the null caption (``negative``: subtitles, logos, cuts).

    ``duration`` stands for the number of following chunks, and so differs from chunk to chunk.
    """

    static: bool = False
    dynamic: bool = False
    borderness: bool = False
    high_quality: bool = False
    three_d_model: bool = False
    two_d_anime: bool = False
    duration: bool = False
    negative: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, usual: bool = False) -> CaptionSwitches:
        """Read the original's variables: ``PAD_HQ=1``, ``PAD_DURATION=1``, ..., ``NEG_PROMPT=1``.

        ``usual`` switches on what the original's scripts do, unless a variable says otherwise.
        """
        usually = {name: usual and name in _USUAL for name in _VARIABLES}
        return cls(**{k: read_switch(name, usually[k], environment) for k, name in _VARIABLES.items()})

    def __str__(self) -> str:
        return ", ".join(name for name, on in vars(self).items() if on) or "none"

    @property
    def any(self) -> bool:
        """Whether the table of special tokens is needed."""
        return any(vars(self).values())

    @property
    def num_tokens(self) -> int:
        """Special tokens before a caption; those before the null caption do not count."""
        return sum(getattr(self, name) for name in _ROWS)


@dataclass(frozen=True)
class SpecialTokens:
    """Tables of special tokens: ``others [rows, channels]``, ``caption`` and ``logo [1, channels]``."""

    others: Tensor
    caption: Tensor
    logo: Tensor

    @classmethod
    def from_file(cls, path: str | Path, channels: int | None = None) -> SpecialTokens:
        """Read the official ``special_tokens.npz``; ``channels``: of the text encoder, None for any."""
        found = {}
        remedy = "give special_tokens.npz of the official code, or switch the tokens off"
        with reading(path, "special_tokens", remedy):
            if Path(path).is_file() and not is_zipfile(path):
                raise ValueError("it is no npz archive")
            with np.load(path) as tables:
                for name, rows in (("other_tokens", _NUM_ROWS), ("caption_token", 1), ("logo_token", 1)):
                    table = torch.from_numpy(tables[name].astype(np.float16)).float()  # as the original
                    if table.ndim != 2 or len(table) < rows or channels not in (None, table.shape[1]):
                        wanted = f"[{rows} or more, {channels or 'channels'}]"
                        raise ValueError(f"{name}: expected shape {wanted}, got {list(table.shape)}")
                    found[name] = table
        return cls(*found.values())

    def before(self, switches: CaptionSwitches, following: int) -> Tensor:
        """Tokens ``[tokens, channels]`` before a caption whose chunk that many chunks follow."""
        duration = _FIRST_DURATION + min(following, _NUM_DURATIONS - 1)
        rows = [duration if row is None else row for name, row in _ROWS.items() if getattr(switches, name)]
        return self.others[rows[::-1]]

    def before_null(self) -> Tensor:
        """Tokens before the null caption, ``[4, channels]``."""
        return torch.cat([self.others[[_BORDER_ROW, _TRANSITION_ROW]], self.logo, self.caption])


@dataclass(frozen=True)
class Captions:
    """Different captions of a video, ``[tokens, channels]`` each without padding, and the null caption.

    ``of_chunk`` is the index in ``texts`` for each chunk; given chunks run with the null caption anyway.
    """

    texts: Sequence[Tensor]
    of_chunk: Sequence[int]
    null: Tensor


def make_captions(
    caption: Tensor,
    null_caption: Tensor,
    num_chunks: int,
    num_given: int = 0,
    switches: CaptionSwitches | None = None,
    tokens: SpecialTokens | None = None,
) -> Captions:
    """Captions of a video's chunks.

    Args:
        caption: from the text encoder, ``[tokens, channels]`` without padding; the null caption if empty.
        null_caption: learned, ``[max_length, channels]``; longer captions are cut to ``max_length``.
        num_chunks, num_given: chunks of the video, given ones included, and given chunks.
        switches, tokens: special tokens, and their table, which they need.
    """
    switches = switches or CaptionSwitches()
    if switches.any and tokens is None:
        raise ValueError("special_tokens: expected their table, got None; give SpecialTokens.")
    longest, null = len(null_caption), null_caption
    if switches.negative:
        null = torch.cat([tokens.before_null().to(null), null])
    null = null[:NULL_TOKENS]
    if len(caption) == 0 or not switches.any:
        return Captions([caption[:longest] if len(caption) else null], [0] * num_chunks, null)
    # The duration alone differs between chunks, and only between the last ones of a video.
    different = min(num_chunks - num_given, _NUM_DURATIONS) if switches.duration else 1
    texts = [
        torch.cat([tokens.before(switches, following).to(caption), caption])[:longest]
        for following in reversed(range(different))
    ]
    return Captions(texts, [max(0, different - num_chunks + chunk) for chunk in range(num_chunks)], null)
