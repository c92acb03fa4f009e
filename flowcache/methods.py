"""Methods and presets of every model: one table, and what it makes of a user's choices."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from .kv.compactors import COMPACTORS
from .kv.original import WEIGHTINGS, OriginalCompression, Trigger
from .kv.scorers import SCORERS
from .registry import check_options, described, make_by_name
from .reuse import ALIASES, POLICIES, Interval, make_policy
from .reuse.forecast import FORECASTS
from .typed import check_keys

#: Interval between computed steps over the square root of a chunk's number of steps, by preset.
INTERVAL_SCALE = {"quality": 0.3, "balanced": 0.45, "fast": 0.75, "turbo": 1.0}

#: Presets of every model; those of the paper decide and forecast as the original FlowCache does.
PRESETS = (*INTERVAL_SCALE, "paper-slow", "paper-fast")
DEFAULT_PRESET = "fast"

METHODS = ("vanilla", "causal", "teacache", "flowcache")

#: Options that select a reuse policy in place of the preset's.
SELECTORS = ("threshold", "interval", "policy")

#: Bend of the interval (``Interval.bend``) where all chunks move together.
BEND = 0.9

#: Steps at a chunk's start that the originals always compute where distance decides.
RETENTION_STEPS = 5

_GRANULARITIES = ("token", "frame", "chunk")


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of the KV cache."""

    compress: bool = described("compressed KV cache, which keeps the best tokens of clean chunks", False)
    kv_range: int | None = described("newest clean chunks a chunk sees (default: all)", limits=(0, 10**6))
    kv_bits: int | None = described("bits of clean chunks' keys and values (default: all)", choices=(8, 4))
    kv_offload: bool = described("keys and values of clean chunks in host memory", False)
    prompt_switch: str | None = described(
        "keys and values of clean chunks when the prompt changes: keep, or recompute with the new prompt "
        "(default: keep)",
        choices=("keep", "recompute"),
    )


@dataclass(frozen=True, kw_only=True)
class CompressionOptions(CacheOptions):
    """Options of a compressed cache: fields of ``KVCompressionConfig`` or ``OriginalCompression`` of that name."""

    budget: int | None = described(
        "chunks' worth of tokens kept by compression (default: 1, or by total)", limits=(1, 10**6)
    )
    total: int | None = described("chunks in a compressed cache, live ones included", limits=(1, 10**6))
    strategy: str | None = described("unit of compression (default: token)", choices=_GRANULARITIES)
    query_granularity: str | None = described(
        "queries asked: newest of one chunk, or of all live chunks (default: live if matched, else the model's)",
        choices=(*_GRANULARITIES, "live"),
    )
    scorer: str | None = described(
        "score of tokens (default: paper with a paper preset, mix_lambda or query_granularity, else spread)",
        choices=tuple(SCORERS),
    )
    scorer_options: Mapping = described("option of the scorer, NAME=VALUE", dict)
    compactor: str | None = described(
        "what becomes of the kept tokens (default: select with a paper preset, scorer, mix_lambda or "
        "query_granularity, else matched)",
        choices=tuple(COMPACTORS),
    )
    compactor_options: Mapping = described("option of the compactor, NAME=VALUE", dict)
    mix_lambda: float | None = described(
        "weight of importance in the paper score, 0 to 1 (default: 0.07)", limits=(0, 1)
    )
    weighting: str | None = described(SUPPRESS, choices=WEIGHTINGS)
    power: float | None = described(SUPPRESS, limits=(0.001, 1000))


@dataclass(frozen=True, kw_only=True)
class MethodOptions(CompressionOptions):
    """A user's choices about the method, the same for every model.

    None and False leave a choice to the preset and the model. Flags and keys are made of the fields and their
    metadata: ``help``, ``limits``, ``choices``.
    """

    method: str = described("method that makes the video", "flowcache", choices=METHODS)
    preset: str | None = described(f"speed against quality (default: {DEFAULT_PRESET})", choices=PRESETS)
    policy: str | None = described("reuse policy (default: the preset's)", choices=(*POLICIES, *ALIASES))
    policy_options: Mapping = described("option of the reuse policy, NAME=VALUE", dict)
    threshold: float | None = described(
        "accumulated distance at which a chunk is computed (default: the preset's)", limits=(0, 1000)
    )
    interval: int | None = described("computed step every N steps (default: the preset's)", limits=(1, 1000))
    warmup_steps: int | None = described(
        f"first steps of a chunk that are always computed (default: {RETENTION_STEPS} with teacache and the "
        "paper presets, otherwise 1)",
        limits=(0, 1000),
    )
    retention: bool | None = described(
        f"where distance decides, {RETENTION_STEPS} warm-up steps and the polynomial fitted with them "
        "(default: with teacache and the paper presets)"
    )
    forecast: str | None = described("output of a reused chunk (default: the preset's)", choices=tuple(FORECASTS))
    causal_attention: bool = described("block-causal attention for vanilla and teacache", False)
    refresh_given: bool = False
    coefficients: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.coefficients, list):
            object.__setattr__(self, "coefficients", tuple(self.coefficients))
        check_options(self)

    @property
    def is_paper(self) -> bool:
        return (self.preset or DEFAULT_PRESET).startswith("paper")

    def pick(self, names: Iterable[str]) -> dict[str, Any]:
        """The options among ``names`` that are set."""
        values = {name: getattr(self, name) for name in names}
        return {name: v for name, v in values.items() if v is not None and v is not False and v != {}}

    @property
    def scores_only(self) -> bool:
        """Whether tokens are kept by their score, as they are: in the paper, and for its options alone."""
        asked = self.pick(("scorer", "scorer_options", "mix_lambda", "query_granularity"))
        weighted = self.weighting not in (None, "no_weight")
        as_they_are = self.compactor not in (None, "matched")
        return as_they_are or (self.compactor is None and (self.is_paper or weighted or bool(asked)))

    @property
    def scorer_name(self) -> str:
        by_score = self.scores_only and self.compactor is None
        return self.scorer or ("paper" if self.is_paper or by_score or self.mix_lambda is not None else "spread")

    def choose_policy(self) -> str:
        if self.method in ("vanilla", "causal", "teacache"):
            return "teacache" if self.method == "teacache" else "none"
        if self.policy is not None:
            return ALIASES.get(self.policy, self.policy)
        by_distance = self.threshold is not None or (self.is_paper and self.interval is None)
        return "chunkwise" if by_distance else "interval"

    def runs_jointly(self, traits: ModelTraits) -> bool:
        """Whether flowcache runs the whole window: all chunks move together, and no option needs the KV cache."""
        needs_cache = self.pick((*CacheOptions.__annotations__, "causal_attention", "refresh_given"))
        if self.prompt_switch == "keep":
            del needs_cache["prompt_switch"]
        return traits.together and self.method == "flowcache" and not (self.is_paper or needs_cache)

    def unread(self, traits: ModelTraits) -> dict[str, str]:
        """Why options have no effect on a model, because of the method or of other options, by name."""
        method, by_distance = self.method, self.choose_policy() in ("chunkwise", "teacache")
        computes_all, is_tea = method in ("vanilla", "causal"), method == "teacache"
        selected = list(self.pick(() if computes_all else ("threshold",) if is_tea else SELECTORS))
        has_cache = not (traits.whole_window and method in ("vanilla", "teacache"))
        compresses = has_cache and self.compress
        reads_preset = not (computes_all or is_tea or selected)
        if self.is_paper:
            reads_preset |= compresses or (by_distance and not (is_tea and selected))
        every = f"{method} computes every step"
        why_not = every if computes_all else f"{selected[0]} chooses the steps" if selected else ""
        if is_tea:
            why_not = "teacache reads threshold, or else paper-slow or paper-fast"
        needs_distance = "it needs threshold, paper-slow, paper-fast or method teacache"
        compression, place = CompressionOptions.__annotations__, ("weighting", "power")
        table = [
            ((*SELECTORS, "policy_options", "warmup_steps", "retention", "forecast"), computes_all, every),
            (("interval", "policy"), is_tea, "teacache takes threshold"),
            (("preset",), not reads_preset, why_not),
            (("retention",), not by_distance, needs_distance),
            ((*CacheOptions.__annotations__, *compression), not has_cache, f"{method} has no KV cache"),
            (compression, not compresses, "it needs compress"),
            (place, self.strategy not in (None, "token"), "it needs strategy token"),
            (("power",), "polynomial" not in (self.weighting or ""), "it needs a polynomial weighting"),
            (("mix_lambda",), self.scorer_name != "paper", "it needs scorer paper"),
        ]
        found = [(name, reason) for names, holds, reason in table if holds for name in names]
        return dict(reversed(found))


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """How the method differs on a model."""

    methods: tuple[str, ...] = METHODS
    thresholds: Mapping[str, float]  # of the paper presets
    whole_window: bool  # vanilla and teacache run the whole window at every computed step, without a KV cache
    together: bool = False  # all chunks of the video take the same steps, and the original attends to all of them
    clean_pass: bool  # a chunk runs once more when it is clean, but with the paper presets
    final_steps: int  # steps at a chunk's end that flowcache always computes
    final_window_steps: int = 0  # steps at the end of the staircase, where distance decides
    paper_forecast: str
    paper_compression: Trigger = "full"  # when the paper presets compress the cache
    query_granularity: str  # default of the option
    total: int | None = None  # default of the option; None: a budget of 1
    # Fitted polynomials over the distance, with retention steps (True) and without.
    coefficients: Mapping[bool, tuple[float, ...]] = field(default_factory=dict)
    indicator_without_retention: str | None = None  # of teacache
    names: Mapping[str, str] = field(default_factory=dict)  # the model's own names of options
    # Fields of ``FlowCacheConfig`` that must keep their defaults, with the reason.
    lacking: Mapping[str, str] = field(default_factory=dict)

    def configure(self, method: str = "flowcache", preset: str | None = None, **named: Any) -> FlowCacheConfig:
        """Configuration of a method of ``METHODS`` with a preset of ``PRESETS``; None: the default.

        ``named`` are fields of ``MethodOptions``, also under the model's own names.
        """
        return make_config(self.translate({"method": method, "preset": preset, **named}), self)

    def translate(self, named: Mapping[str, Any]) -> MethodOptions:
        """Options under their own names or those of the model; a budget alone compresses."""
        ours = {theirs: name for name, theirs in self.names.items()}
        check_keys(named, (*MethodOptions.__dataclass_fields__, *ours), "options of the method")
        options = {ours.get(name, name): value for name, value in named.items()}
        return MethodOptions(**{"compress": options.get("budget") is not None, **options})


def make_config(options: MethodOptions, traits: ModelTraits) -> FlowCacheConfig:
    """Configuration for a user's choices on a model.

    - ``vanilla``: the original model; every step is computed.
    - ``causal``: only live chunks run, against a KV cache; every step is computed.
    - ``teacache``: ``vanilla`` with one reuse decision for the whole window.
    - ``flowcache``: ``causal`` with reuse by a policy. The presets ``quality``, ``balanced``, ``fast`` and
      ``turbo`` compute all live chunks at an interval (``INTERVAL_SCALE``), extrapolate the velocity along a
      line, and correct skipped steps at the next computed one. The paper presets decide for each chunk by its
      accumulated distance, forecast as the original does and, with a budget, compress as it does.

    ``threshold``, ``interval`` or ``policy`` select a policy in place of the preset's. Where all chunks move together
    (``traits.together``), ``flowcache`` is ``vanilla`` with reuse, except with a paper preset or an option of the KV
    cache: chunks attend to the whole window, and computed steps lie denser at the end.
    """
    if options.method not in traits.methods:
        raise ValueError(f"method: expected one of {', '.join(traits.methods)}, got {options.method!r}.")
    if len(selecting := options.pick(SELECTORS)) > 1:
        raise ValueError(f"{' and '.join(selecting)}: options that select a reuse policy exclude each other.")
    unread = options.unread(traits)
    for name in options.pick(name for name in unread if name != "preset"):
        raise ValueError(f"{name}: no effect, as {unread[name]}; leave it out.")
    name, joint = options.choose_policy(), options.runs_jointly(traits)
    whole = joint or (traits.whole_window and options.method in ("vanilla", "teacache"))
    as_paper = options.is_paper and name == "chunkwise"
    # Where nothing is reused, the forecast that keeps least.
    ours = "hold_velocity" if name == "none" else FlowCacheConfig.forecast
    default_forecast = traits.paper_forecast if as_paper else ours
    stored = options.kv_bits is not None or options.kv_offload
    config = FlowCacheConfig(
        policy=make_policy(name, _policy_options(name, options, traits)),
        forecast=options.forecast or ("hold_residual" if name == "teacache" else default_forecast),
        whole_window=whole,
        bidirectional=whole and not options.causal_attention,
        refresh_given=options.refresh_given,
        clean_pass=traits.clean_pass and not as_paper,
        compression=_compression(options, traits),
        clean_range=options.kv_range,
        storage=KVStorageConfig(bits=options.kv_bits, offload=options.kv_offload) if stored else None,
        prompt_switch=options.prompt_switch or "keep",
    )
    check_config(config, traits)
    return config


def check_config(config: FlowCacheConfig, traits: ModelTraits) -> None:
    default = FlowCacheConfig()
    for name, reason in traits.lacking.items():
        expected, value = getattr(default, name), getattr(config, name)
        if value != expected:
            raise ValueError(f"cache.{name}: expected {expected}, got {value}; {reason}.")


def _policy_options(name: str, options: MethodOptions, traits: ModelTraits) -> dict[str, Any]:
    """Options of a policy: what the model and the preset give it, then the user's own."""
    preset, original = options.preset or DEFAULT_PRESET, name == "teacache" or options.is_paper
    warmup = options.warmup_steps
    given: dict[str, Any] = {"final_steps": 1 if name == "teacache" else traits.final_steps}
    if name in ("chunkwise", "teacache"):
        retention = original if options.retention is None else options.retention
        warmup = (RETENTION_STEPS if retention else 1) if warmup is None else warmup
        threshold = traits.thresholds.get(preset, traits.thresholds["paper-fast"])
        given["threshold"] = threshold if options.threshold is None else options.threshold
        fitted = traits.coefficients.get(options.retention is not False)
        given["coefficients"] = fitted if options.coefficients is None else options.coefficients
    if name == "chunkwise":
        given |= {"final_window_steps": traits.final_window_steps, "together": not options.is_paper}
    elif name == "teacache" and options.retention is False:
        # Without retention steps, TeaCache's polynomial is over this indicator; the original FlowCache
        # applies it to the default one all the same.
        given["indicator"] = traits.indicator_without_retention
    elif name == "interval":
        given |= {"interval": options.interval, "scale": INTERVAL_SCALE.get(preset, Interval.scale)}
        if options.runs_jointly(traits):  # no chunk reads keys of the last step
            given |= {"bend": BEND, "final_steps": 0}
    given["warmup_steps"] = max(1, warmup or 1)
    known = [each.name for each in fields(POLICIES[name])]
    return {key: value for key, value in given.items() if key in known} | dict(options.policy_options)


def _compression(options: MethodOptions, traits: ModelTraits) -> KVCompressionConfig | None:
    if not options.compress:
        return None
    given = {"query_granularity": traits.query_granularity if options.scores_only else "live"}
    given |= options.pick(CompressionOptions.__annotations__)
    by_name = {"scorer": (SCORERS, options.scorer_name)}
    by_name["compactor"] = (COMPACTORS, options.compactor or ("select" if options.scores_only else "matched"))
    for name, (registry, chosen) in by_name.items():
        given[name] = make_by_name(name, registry, chosen, given.pop(f"{name}_options", None))
    place = {"weighting": given.pop("weighting", "no_weight"), "power": given.pop("power", 3.0)}
    if place["weighting"] == "no_weight":
        place = {}
    if options.is_paper and options.scores_only:
        given["max_queries"] = None
    if options.is_paper or place:
        trigger = traits.paper_compression if options.is_paper else "clean"
        given["original"] = OriginalCompression(trigger=trigger, best_first=options.is_paper, **place)
    if "budget" not in given and "total" not in given:
        given["total"] = traits.total
    return KVCompressionConfig(**given)
