"""Fixtures of the MAGI-1 tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
