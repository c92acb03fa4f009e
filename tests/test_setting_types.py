"""Settings made in Python: a value that a field cannot have is refused by the field's name."""

import math
from dataclasses import fields

import pytest

from flowcache.config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from flowcache.methods import MethodOptions
from flowcache.reuse import POLICIES
from magi1.config import EngineSection, ModelSection, RuntimeSection
from skyreels_v2 import VideoSettings

CLASSES = (FlowCacheConfig, KVCompressionConfig, KVStorageConfig, MethodOptions, *POLICIES.values())
CLASSES += (VideoSettings, RuntimeSection, ModelSection, EngineSection)
NONSENSE = (math.nan, -math.inf, 10**400, "?", {}, object(), [[]], b"x")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_values_of_another_type_are_refused_by_name(kind):
    for field in fields(kind):
        kinds = getattr(field.type, "__name__", str(field.type))
        # Text may be any, and so may numbers of the original's keys that nothing reads.
        allowed = [("?", "str" in kinds), (10**400, kinds == "int"), ({}, kinds == "Mapping")]
        for value in NONSENSE:
            if any(holds and value == known for known, holds in allowed):
                continue
            with pytest.raises(ValueError) as error:
                kind(**{field.name: value})
            assert field.name in str(error.value)
            assert "\n" not in str(error.value)
