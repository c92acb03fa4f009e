"""Words of prompts that do not reach the text encoder."""

import html
import logging
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ftfy
from transformers import PreTrainedTokenizerBase

from .user_files import is_utf8

logger = logging.getLogger(__name__)

_LOSSES = {
    "removed": "the cleaning of captions removes these words",
    "cut": "too long for the text encoder; these words are cut",
    "unknown": "the text encoder does not know these words",
}
_MAX_LISTED = 100  # words of a vocabulary in a warning
_MAX_SHOWN = 300  # characters of a text in a warning; the trace has all of it


def check_prompt(name: str, prompt: str, clean: Callable[[str], str]) -> None:
    """Raise TypeError or ValueError unless a prompt is text of which ``clean`` leaves a letter or digit."""
    if not isinstance(prompt, str):
        hint = "; make one video for each prompt" if isinstance(prompt, list) else ""
        raise TypeError(f"{name}: expected str, got {type(prompt).__name__}{hint}.")
    if not is_utf8(prompt):
        raise ValueError(f"{name}: expected UTF-8, got {prompt[:_MAX_SHOWN]!r}; write it in UTF-8.")
    cleaned = clean(prompt)
    # characters of no width are what is left of some web pages
    if (prompt and not any(map(str.isprintable, cleaned))) or (_words(prompt) and not _words(cleaned)):
        raise ValueError(
            f"{name}: expected words that the cleaning of captions keeps, got {prompt[:_MAX_SHOWN]!r}, of "
            f"which {cleaned!r} is left; describe the video in English."
        )


def find_losses(prompt: str, cleaned: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> dict[str, Any]:
    """Find words that do not reach the text encoder, which reads ``max_tokens`` with the special ones.

    Returns, where not empty: ``removed``, words missing in ``cleaned``, the text that is tokenized; ``cut``,
    the text beyond ``max_tokens``; ``unknown``, words without a token.
    """
    readable = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    tokens = tokenizer(cleaned, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    kept = max_tokens - tokenizer.num_special_tokens_to_add()
    offsets = tokens.offset_mapping
    unknown = [
        cleaned[start:end].strip()
        for token, (start, end) in zip(tokens.input_ids[:kept], offsets, strict=False)
        if token == tokenizer.unk_token_id
    ]
    losses = {
        "removed": list(Counter(_words(readable)) - Counter(_words(cleaned))),
        "cut": cleaned[offsets[kept][0] :].strip(" ,.") if len(offsets) > kept else "",
        "unknown": [word for word in dict.fromkeys(unknown) if not set(word) <= set(string.punctuation)],
    }
    return {kind: lost for kind, lost in losses.items() if lost}


@dataclass
class PromptWarnings:
    """Warnings of lost words, each given once."""

    once_a_kind: bool = False  # warn only of the first prompt with each kind of loss
    _given: set[str] = field(default_factory=set, repr=False)

    def warn(self, name: str, losses: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        """Log ``losses``, found by ``find_losses``, of the argument ``name``."""
        for kind, lost in losses.items():
            lost = lost if isinstance(lost, str) else ", ".join(lost)
            text = f"{name}: {_LOSSES[kind]}: {lost[:_MAX_SHOWN]}{'...' * (len(lost) > _MAX_SHOWN)}."
            if kind == "unknown" and len(tokenizer) <= _MAX_LISTED:
                known = sorted(word for word in tokenizer.get_vocab() if word.isalnum())
                text += f" It knows: {', '.join(known)}."
            key = kind if self.once_a_kind else text
            if key not in self._given:
                self._given.add(key)
                more = " The traces list the losses of other prompts." if self.once_a_kind else ""
                logger.warning("%s%s", text, more)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())
