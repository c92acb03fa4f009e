"""The method on SkyReels-V2: thresholds, fitted polynomials, and the model's names of options."""

from dataclasses import replace
from typing import Any

from flowcache import FlowCacheConfig
from flowcache.methods import METHODS, ModelTraits

__all__ = ["METHODS", "TRAITS", "method_config", "traits_for"]

#: TeaCache's fitted polynomials, highest power first: over the modulation (with retention steps) and over
#: the time embedding (without), for the two sizes of the model.
COEFFICIENTS = {
    "1.3B": {
        True: (-5.21862437e4, 9.23041404e3, -5.28275948e2, 13.6987616, -4.99875664e-2),
        False: (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 0.137887774),
    },
    "14B": {
        True: (-3.03318725e5, 4.90537029e4, -2.65530556e3, 58.7365115, -0.315583525),
        False: (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    },
}

TRAITS = ModelTraits(
    thresholds={"paper-slow": 0.1, "paper-fast": 0.15},
    whole_window=True,
    clean_pass=False,
    final_steps=1,
    paper_forecast="hold_residual",
    paper_within_step=True,
    query_granularity="chunk",
    indicator_without_retention="timestep_embedding",
    names={
        "threshold": "teacache_thresh",
        "retention": "use_ret_steps",
        "compress": "use_compress",
        "budget": "budget_block",
        "kv_range": "kvrange",
    },
)


def traits_for(family: str | None) -> ModelTraits:
    """Traits with the polynomials of a family (``1.3B``, ``14B``); others take the distance itself."""
    return replace(TRAITS, coefficients=COEFFICIENTS.get(family, {}))


def method_config(*chosen: str | None, family: str | None = None, **named: Any) -> FlowCacheConfig:
    """``ModelTraits.configure`` with the polynomials of a family."""
    return traits_for(family).configure(*chosen, **named)
