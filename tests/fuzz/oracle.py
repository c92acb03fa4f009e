"""What counts as a fault: simple rules that know nothing of the programs' own checks."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .documents import Damaged
from .programs import Outcome

#: Sizes and counts beyond this are slips of the keyboard.
MOST = 10**6
#: Numbers other than 0 that are nearer to it than this are, too.
LEAST = 1e-6
#: May be as large as 64 bits hold.
UNBOUNDED = frozenset({"seed", "end"})
#: May be as near to 0 as anyone likes.
BOUNDS = frozenset(
    {"threshold", "rel_l1_thresh", "teacache_thresh", "tolerance", "target_psnr", "mix_lambda"}
    | {"text_scales", "prev_chunk_scales", "cfg_t_range"}
)
#: May be -1.
NEGATIVE = frozenset({"seed", "clean_chunk_kvrange"})
#: Times, of which any finite one has a meaning; and what has no effect.
ANY = frozenset({"distill_nearly_clean_chunk_threshold", "distributed_timeout_minutes"})
ANY |= {"pp_size", "cp_size", "ulysses_overlap_degree"}
#: Say where the results go; jobs that differ in nothing else are the same.
PLACES = frozenset({"outdir", "expname", "output_path", "base_save_path", "output"})

#: Fields of jobs that hold them.
_PLACE_FIELDS = frozenset({"output", "folder", "resume"})

PACKAGES = ("flowcache", "magi1", "skyreels_v2", "fuzzed_", "argparse")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault of one input.

    Attributes:
        kind: ``traceback``, ``code``, ``message``, ``hang``, ``crash``, ``nonsense``, ``ignored``, ``files``.
        key: what faults of the same cause share.
        detail: what was seen.
    """

    kind: str
    key: str
    detail: str


def judge_ending(outcome: Outcome, named: Sequence[str], depth: str) -> list[Fault]:
    """Faults of how a program ended.

    Args:
        outcome: of the run.
        named: names of arguments, and files, of which a refusal must name one.
        depth: it was run to.
    """
    if outcome.broke:
        return [Fault("traceback", outcome.place, outcome.broke[-1500:])]
    if outcome.code not in (None, 0, 1, 2):
        return [Fault("code", f"exit code {outcome.code!r}", outcome.errors[-500:])]
    if outcome.code == 1 and depth == "check":
        return [Fault("code", "refused only behind the checks", outcome.errors[-500:])]
    if outcome.code in (1, 2):
        return _judge_message(outcome, named)
    return []


def _judge_message(outcome: Outcome, named: Sequence[str]) -> list[Fault]:
    lines = [line for line in re.split(r"[\r\n]", outcome.errors) if line.strip()]
    sentences = [line for line in lines if line.startswith("error: ")]
    if len(sentences) != 1:
        return [Fault("message", f"{len(sentences)} sentences", outcome.errors[-500:])]
    (sentence,) = sentences
    listed = [line for line in lines if re.match(r"  \S.*: ", line)]  # of samples, below the sentence
    if outcome.code == 2 and len(lines) > 1 + len(listed):
        return [Fault("message", "several lines", outcome.errors[-500:])]
    if len(sentence) > 12_000:
        return [Fault("message", "longer than any screen", sentence[:300])]
    said = sentence.lower()
    if outcome.code == 2 and not any(name and name.lower() in said for name in named):
        return [Fault("message", f"names no argument: {_form(sentence)}", sentence[:500])]
    return []


def _form(sentence: str) -> str:
    """A sentence without numbers, names and paths, so that those of one cause look the same."""
    return re.sub(r"'[^']*'|\S*/\S*|[-\d.]+", "…", sentence)[:80]


def judge_values(typed: Mapping[str, Sequence[str]], kinds: Mapping[str, str]) -> list[Fault]:
    """Nonsense among the values of an accepted command line."""
    found = []
    for name, words in typed.items():
        for word in words:
            reason = _nonsense(name, word, kinds.get(name, "text"))
            if reason:
                found.append(Fault("nonsense", f"{name}: {reason}", f"--{name} {word[:80]!r} was accepted"))
    return found


def judge_settings(*documents: Damaged) -> list[Fault]:
    """Nonsense among the numbers of accepted files of settings."""
    found = []
    for damaged in documents:
        value = damaged.value
        value = _number(value) if isinstance(value, str) else value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            reason = number_fault(damaged.name, value)
            if reason:
                found.append(Fault("nonsense", f"{damaged.name}: {reason}", f"{damaged.what} was accepted"))
    return found


def _nonsense(name: str, word: str, kind: str) -> str | None:
    """Why nobody can mean that value; None: somebody may."""
    if kind in ("int", "float"):
        value = _number(word)
        return None if value is None else number_fault(name, value)
    if name == "prompt" and not word.strip():
        return "empty"
    return None


def number_fault(name: str, value: float) -> str | None:
    """Why nobody can mean that number; None: somebody may."""
    if not math.isfinite(value):
        return "not finite"
    if name in ANY:
        return None
    if value < 0 and not (name in NEGATIVE and value == -1):
        return "negative"
    if value > (2**63 - 1 if name in UNBOUNDED else MOST):
        return "huge"
    if 0 < value < LEAST and name not in BOUNDS:
        return "tiny"
    return None


def _number(word: str) -> int | float | None:
    text = word.strip().lower().lstrip(".") if word.strip().lower() in (".nan", ".inf", "-.inf") else word
    for kind in (int, float):
        try:
            return kind(text)
        except (ValueError, OverflowError):
            continue
    return None


def is_same(words: Sequence[str], others: Sequence[str]) -> bool:
    """Whether words mean the same, as text or as numbers."""
    return [_number(word) or word for word in words] == [_number(word) or word for word in others]


def canonical(value: Any, with_places: bool = False, depth: int = 0) -> Any:
    """What a checked job holds, as plain values that can be compared.

    Args:
        value: a job, or a part of it.
        with_places: take in where results go.
    """
    if depth > 40:
        return "deep"
    again = lambda item: canonical(item, with_places, depth + 1)  # noqa: E731
    if isinstance(value, torch.Tensor):
        return again(value.detach().cpu().float().numpy())
    if isinstance(value, np.ndarray):
        return value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return sorted((str(key), again(item)) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [again(item) for item in value]
    if type(value).__module__.startswith(PACKAGES):
        found = vars(value) if hasattr(value, "__dict__") else {}
        if dataclasses.is_dataclass(value):
            found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)} | found
        if not with_places:
            found = {key: item is not None if key in _PLACE_FIELDS else item for key, item in found.items()}
        return type(value).__name__, again(found)
    return value if isinstance(value, (str, int, bool, type(None), bytes)) else str(value)
