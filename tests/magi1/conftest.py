"""Fixtures of the MAGI-1 tests."""

import pytest
import torch
from programs import Program
from reference import ROOT
from tiny import write_tiny_magi


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Configuration of a tiny model, with folders as the official ones."""
    return write_tiny_magi(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The program for one video, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Program(ROOT / "FlowCache4MAGI-1" / "generate_video.py", monkeypatch)


@pytest.fixture
def prepared(front, weights):
    """Make the job of some arguments, with the tiny weights for the official ones."""
    return lambda *words: front.prepare("--config_file", weights, "--model", "official", *words)
