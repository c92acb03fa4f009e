"""Fixtures of the SkyReels-V2 tests."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layouts import write_original
from reference import Case, present, reference_dir

from flowcache.wan import conversion
from skyreels_v2.checkpoint import load_pipeline


@pytest.fixture(scope="session")
def reference() -> Path:
    return present(reference_dir() / "skyreels_v2")


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    pipeline = load_pipeline(str(checkpoint), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folders(reference, tmp_path_factory) -> Iterator[dict[str, Path]]:
    """The same tiny model in both layouts; the sizes of encoder and VAE fit the reference transformer."""
    weights = Case(reference, "weights")
    config = weights.info["config"]
    text = {"vocab_size": 6, "d_model": config["text_dim"], "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "UMT5_XXL", {**conversion.UMT5_XXL, **text})
        width = config["in_dim"]
        latents = {"latents_mean": [0.0] * width, "latents_std": [1.0] * width}
        patch.setattr(conversion, "WAN_VAE", {"base_dim": 4, "z_dim": width, **latents})
        write_original(root / "original", weights)
        load_pipeline(str(root / "original"), "cpu").save_pretrained(root / "diffusers")
        (root / "diffusers" / "defaults.json").write_text('{"height": 64}')
        yield {name: root / name for name in ("original", "diffusers")}


@pytest.fixture
def copy(folders, tmp_path) -> Callable[[str], Path]:
    """A copy of one layout to damage."""
    return lambda layout: shutil.copytree(folders[layout], tmp_path / layout)
