"""Fixtures of the SkyReels-V2 tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference import skyreels_reference


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    return skyreels_reference()
