"""What the transformer is told: caption tokens, special tokens for quality and duration, the null caption."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

#: Rows of the null caption that are shown.
NULL_TOKENS = 50

#: Switches in the order in which their tokens are put in front, with their rows in the table.
_SWITCHES = {
    "static": ("PAD_STATIC", 2),
    "dynamic": ("PAD_DYNAMIC", 3),
    "borderness": ("PAD_BORDERNESS", 4),
    "high_quality": ("PAD_HQ", 1),
    "three_d_model": ("PAD_THREE_D_MODEL", 15),
    "two_d_anime": ("PAD_TWO_D_ANIME", 16),
    "duration": ("PAD_DURATION", None),
}
_FIRST_DURATION, _NUM_DURATIONS = 7, 8
_NEGATIVE_ROWS = {"transition": 0, "borderness": 4}
_NUM_ROWS = 1 + max(_FIRST_DURATION + _NUM_DURATIONS - 1, *(row or 0 for _, row in _SWITCHES.values()))

#: Switches that all scripts of the original set.
_USUAL = ("high_quality", "duration")

#: Values of the variables.
_ON = ("1", "true", "yes", "y", "on", "enabled")
_OFF = ("", "0", "false", "no", "n", "off", "disabled")


@dataclass(frozen=True, kw_only=True)
class CaptionSwitches:
    """Which special tokens stand before the caption.

    Attributes:
        static, dynamic: the first frames stand still, or move.
        borderness: the video has borders.
        high_quality: it looks good.
        three_d_model, two_d_anime: its style.
        duration: how many chunks are still to come, chunk by chunk.
        negative: before the null caption: subtitles, logos, cuts, borders.
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
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, usual: bool = False
    ) -> CaptionSwitches:
        """As the original's variables say: ``PAD_HQ=1``, ``PAD_DURATION=1``, ..., ``NEG_PROMPT=1``.

        Args:
            environment: the variables.
            usual: switch on what the original's scripts do, unless a variable says otherwise.

        Raises:
            ValueError: a variable is neither on nor off; it is named.
        """
        variables = {name: variable for name, (variable, _) in _SWITCHES.items()} | {"negative": "NEG_PROMPT"}
        on = {}
        for name, variable in variables.items():
            default = "1" if usual and name in _USUAL else "0"
            word = environment.get(variable, default).strip().lower()
            if word not in (*_ON, *_OFF):
                raise ValueError(f"the environment's {variable} must be 1 or 0, got {word!r}.")
            on[name] = word in _ON
        return cls(**on)

    def __str__(self) -> str:
        return ", ".join(name for name, on in vars(self).items() if on) or "none"

    @property
    def any(self) -> bool:
        """Whether any token is asked for, and the table is needed."""
        return self.negative or any(getattr(self, name) for name in _SWITCHES)


@dataclass(frozen=True)
class SpecialTokens:
    """The table of special tokens, ``[rows, channels]``, and the two that lie apart, ``[1, channels]``."""

    others: Tensor
    caption: Tensor
    logo: Tensor

    @classmethod
    def from_file(cls, path: str | Path, channels: int | None = None) -> SpecialTokens:
        """Read the ``special_tokens.npz`` that comes with the official code.

        Args:
            path: the file.
            channels: that the tokens must have: those of the text encoder. None: any.

        Raises:
            ValueError: the file is missing, lacks a table, or holds one of another shape.
        """
        shapes = {"other_tokens": (_NUM_ROWS, channels), "caption_token": (1, channels)}
        shapes |= {"logo_token": (1, channels)}
        try:
            with _open_tables(path) as tables:
                # The original rounds them to fp16.
                found = {name: torch.from_numpy(tables[name].astype(np.float16)).float() for name in shapes}
            for name, shape in shapes.items():
                _check_table(name, found[name], *shape)
        except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
            reason = str(error).rstrip(".")
            raise ValueError(
                f"special tokens are asked for, but {path} cannot be used: {reason}; "
                "give special_tokens.npz of the official code, or switch them off."
            ) from error
        return cls(*found.values())

    def before(self, switches: CaptionSwitches, chunks_to_come: int) -> Tensor:
        """Tokens in front of the caption of a chunk, ``[tokens, channels]``.

        Args:
            switches: which.
            chunks_to_come: chunks after this one.
        """
        rows = []
        for name, (_, row) in _SWITCHES.items():
            if getattr(switches, name):
                # each goes before those that are there already
                last = _FIRST_DURATION + min(chunks_to_come, _NUM_DURATIONS - 1)
                rows.insert(0, last if row is None else row)
        return self.others[rows]

    def before_null(self) -> Tensor:
        """Tokens in front of the null caption, ``[4, channels]``."""
        apart = [self.others[[row]] for row in reversed(_NEGATIVE_ROWS.values())]
        return torch.cat([*apart, self.logo, self.caption])


@dataclass(frozen=True)
class Captions:
    """Caption tokens, ``[tokens, channels]`` each, padding left out.

    Attributes:
        texts: different captions of a video.
        of_chunk: index in ``texts`` for each chunk; given chunks are shown none, whatever is said here.
        null: the null caption.
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
        caption: what the text encoder made of the prompt, ``[tokens, channels]`` without padding; an empty
            one stands for the null caption.
        null_caption: learned, ``[max_length, channels]``; nothing is longer than this.
        num_chunks: of the video, given ones included.
        num_given: given chunks.
        switches: special tokens; None: none.
        tokens: their table; needed if there are any.

    Raises:
        ValueError: special tokens are asked for without a table.
    """
    switches = switches or CaptionSwitches()
    if switches.any and tokens is None:
        raise ValueError("special tokens are asked for, but there is no table of them; give SpecialTokens.")
    longest = len(null_caption)
    null = null_caption
    if switches.negative:
        null = torch.cat([tokens.before_null().to(null), null])
    null = null[:NULL_TOKENS]
    if len(caption) == 0:
        return Captions([null], [0] * num_chunks, null)
    if not switches.any:
        return Captions([caption[:longest]], [0] * num_chunks, null)
    # Only the duration tells chunks apart, and only the last few of a video.
    different = min(num_chunks - num_given, _NUM_DURATIONS) if switches.duration else 1
    texts = [
        torch.cat([tokens.before(switches, to_come).to(caption), caption])[:longest]
        for to_come in reversed(range(different))
    ]
    of_chunk = [max(0, different - (num_chunks - chunk)) for chunk in range(num_chunks)]
    return Captions(texts, of_chunk, null)


def _open_tables(path: str | Path) -> np.lib.npyio.NpzFile:
    with open(path, "rb") as file:
        if not is_zipfile(file):
            raise ValueError("it is no npz archive")
    return np.load(path)


def _check_table(name: str, table: Tensor, rows: int, channels: int | None) -> None:
    if table.ndim != 2 or len(table) < rows or channels not in (None, table.shape[1]):
        wanted = "any number of" if channels is None else f"the text encoder's {channels}"
        raise ValueError(
            f"{name} must have at least {rows} rows and {wanted} channels, has shape {list(table.shape)}"
        )
