"""Settings of all tests, and the tiny checkpoints of both models."""

import os
from pathlib import Path

# MKL reads it when PyTorch loads. Without it, products on AMD processors depend on where in memory a matrix lies.
os.environ.setdefault("MKL_CBWR", "AVX2")

import pytest
import torch

# The tensors are tiny: threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_gradients(request):
    """Off in the tests of modules of a model, which the pipeline calls without gradients."""
    with torch.set_grad_enabled(request.path.parent.name not in ("magi1", "skyreels_v2", "self_forcing")):
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Configuration of a tiny MAGI-1, with folders as the official ones."""
    from tiny import write_tiny_magi

    return write_tiny_magi(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Folder of a tiny SkyReels-V2 in the layout of diffusers."""
    from tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
