"""Fixtures of the MAGI-1 tests."""

from __future__ import annotations

import pytest
import torch
from tiny_magi import write_tiny_magi


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Configuration of a tiny model, whose folders lie as the official ones."""
    return write_tiny_magi(tmp_path_factory.mktemp("weights"))
