"""Fixtures of the SkyReels-V2 tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference import skyreels_reference
from tiny import write_tiny_checkpoint


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    return skyreels_reference()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
