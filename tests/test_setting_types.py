"""Settings made in Python: a value that a field cannot have is refused by the field's name."""

import math
from dataclasses import fields

import pytest

from flowcache.config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from flowcache.methods import MethodOptions
from flowcache.reuse import POLICIES
from magi1.config import EngineSection, FlowCacheOptions, ModelSection, RuntimeSection
from skyreels_v2 import VideoSettings

CLASSES = (
    VideoSettings,
    FlowCacheConfig,
    KVCompressionConfig,
    KVStorageConfig,
    MethodOptions,
    *POLICIES.values(),
    RuntimeSection,
    ModelSection,
    EngineSection,
    FlowCacheOptions,
)
NONSENSE = (math.nan, -math.inf, 10**400, "?", {}, object(), [[]], b"x")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_values_of_another_type_are_refused_by_name(kind):
    for field in fields(kind):
        for value in NONSENSE:
            kinds = str(field.type)
            if (value == "?" and "str" in kinds) or (value == 10**400 and kinds == "int"):
                continue  # text may be any, and keys of the original that nothing reads any number
            with pytest.raises(ValueError) as error:
                kind(**{field.name: value})
            assert field.name in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (VideoSettings, "inference_steps", None),
        (VideoSettings, "overlap_history", math.nan),
        (FlowCacheConfig, "clean_range", 1.5),
        (FlowCacheConfig, "compression", {"budget": 2}),
        (RuntimeSection, "video_size_w", 0.5),
        (FlowCacheOptions, "interval", 2**31),
    ],
)
def test_wrong_numbers_are_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=name):
        kind(**{name: value})
