"""Options of the method that have no effect, because of the method or of other options."""

from collections.abc import Mapping
from typing import Any

from .methods import SELECTORS, ModelTraits

_COMPRESSION = ("budget", "total", "strategy", "query_granularity", "scorer", "scorer_options", "mix_lambda")
_PLACE = ("weighting", "power")
#: Options of the KV cache.
CACHE_OPTIONS = ("compress", *_COMPRESSION, *_PLACE, "kv_range", "kv_bits", "kv_offload")

_REUSE = (*SELECTORS, "policy_options", "warmup_steps", "retention", "forecast")


def unread_options(values: Mapping[str, Any], traits: ModelTraits) -> dict[str, str]:
    """Why options are not read, by name; ``values`` are the given fields of ``MethodOptions``."""
    method, preset, get = values["method"], values.get("preset") or "", values.get
    computes_all, is_tea = method in ("vanilla", "causal"), method == "teacache"
    read = () if computes_all else ("threshold",) if is_tea else SELECTORS
    selected = [name for name in read if get(name) is not None]
    has_cache = not (traits.whole_window and method in ("vanilla", "teacache"))
    compresses, paper = has_cache and bool(get("compress")), preset.startswith("paper")
    if not selected:
        by_distance = is_tea or paper
    else:
        by_distance = selected == ["threshold"] or get("policy") in ("chunkwise", "teacache")
    reads_preset = not (computes_all or is_tea or selected)
    if paper:
        reads_preset |= compresses or (by_distance and not computes_all and not (is_tea and selected))
    every = f"{method} computes every step"
    why_not = every if computes_all else f"{selected[0]} chooses the steps" if selected else ""
    if is_tea:
        why_not = "teacache reads threshold, or else paper-slow or paper-fast"
    needs_distance = "it needs threshold, paper-slow, paper-fast or method teacache"
    table = [
        (_REUSE, computes_all, every),
        (("interval", "policy"), is_tea, "teacache takes threshold"),
        (("preset",), not reads_preset, why_not),
        (("retention",), not computes_all and not by_distance, needs_distance),
        (("compress", "kv_range", "kv_bits", "kv_offload"), not has_cache, f"{method} has no KV cache"),
        ((*_COMPRESSION, *_PLACE), not compresses, "it needs compress"),
        (_PLACE, get("strategy", "token") != "token", "it needs strategy token"),
        (("power",), "polynomial" not in get("weighting", ""), "it needs a polynomial weighting"),
        (("mix_lambda",), get("scorer", "paper") != "paper", "it needs scorer paper"),
    ]
    found = [(name, reason) for names, holds, reason in table if holds for name in names]
    return dict(reversed(found))
