"""ST-LPIPS with random weights in place of those of its package, and against the package where it is installed."""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.environment import Unavailable
from flowcache.metrics import load_st_lpips

#: Output and input channels, and kernel, of each convolution in the weight file.
SIZES = {"slice1.0": (64, 3, 11), "slice2.5": (192, 64, 5), "slice3.9": (384, 192, 3)}
SIZES |= {"slice4.11": (256, 384, 3), "slice5.13": (256, 256, 3)}
#: What the package imports and no distance needs.
UNUSED = {"IPython": ["embed"], "torchsummary": ["summary"], "torchvision": ["models"]}


def random_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.full((1, 3, 1, 1), 0.5)}
    for layer, (name, (out, channels, kernel)) in enumerate(SIZES.items()):
        weights[f"net.{name}.weight"] = torch.randn(out, channels, kernel, kernel) / (channels * kernel**2) ** 0.5
        weights[f"net.{name}.bias"] = 0.1 * torch.randn(out)
        weights[f"lin{layer}.model.1.weight"] = torch.rand(1, out, 1, 1)
    return weights


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Install a package with some content in place of the weights."""

    def write(content) -> None:
        path = tmp_path / "stlpips_pytorch" / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stlpips_pytorch" / "__init__.py").write_text("raise ImportError('torchvision')")
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    monkeypatch.syspath_prepend(tmp_path)
    return write


def random_pair(side: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    reference = torch.rand(3, side, side + 4, 3)
    return (reference + 0.1 * torch.randn(reference.shape)).clamp(0, 1), reference


def test_it_measures_without_importing_the_package(install):
    install(random_weights())
    metric, (noisy, reference) = load_st_lpips(), random_pair()
    levels = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1)
    mean, frames = metric(reference + levels * (noisy - reference), reference)
    assert frames[0] == 0 < frames[1] < frames[2] and mean == pytest.approx(frames.mean().item())
    small = torch.rand(1, 21, 21, 3)
    assert metric(small, small)[0] == 0
    with pytest.raises(ValueError, match="21 x 21"):
        metric(small[:, 1:], small[:, 1:])


def test_the_last_layer_is_a_weighted_distance_of_unit_vectors(install):
    """One convolution that passes the colour on: the distance follows by hand."""
    weights = {name: torch.zeros_like(tensor) for name, tensor in random_weights().items()}
    weights["scaling_layer.scale"] += 1
    weights["net.slice1.0.weight"][[0, 1, 2], [0, 1, 2], 5, 5] = 1
    weights["lin0.model.1.weight"][:, :3] = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    install(weights)
    ours, theirs = torch.tensor([0.9, 0.5, 0.7]), torch.tensor([0.6, 0.8, 0.4])
    units = [F.normalize((2 * colour - 1).relu(), dim=0) for colour in (ours, theirs)]
    expected = ((units[0] - units[1]).square() * torch.tensor([1.0, 2.0, 4.0])).sum().item()
    videos = [colour.expand(1, 24, 24, 3) for colour in (ours, theirs)]
    assert load_st_lpips()(*videos)[0] == pytest.approx(expected, rel=1e-5)


def test_what_is_missing_is_said_in_a_sentence(install, monkeypatch):
    for content, words in (
        (b"no weights", "stlpips-pytorch again"),
        ({"lin0.model.1.weight": torch.ones(1)}, "scaling"),
    ):
        install(content)
        with pytest.raises(Unavailable, match=rf"alex_shift_tolerant.pth cannot be read as weights.*{words}"):
            load_st_lpips()
    monkeypatch.setattr("flowcache.metrics.stlpips.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"ST-LPIPS needs .*: pip install stlpips-pytorch"):
        load_st_lpips()


@pytest.mark.parametrize("side", [24, 61, 64])
def test_it_agrees_with_the_package(monkeypatch, side):
    if find_spec("stlpips_pytorch") is None:
        pytest.skip("PACKAGE ABSENT: pip install stlpips-pytorch to compare ST-LPIPS with its own code")
    for name, members in UNUSED.items():
        stand_in = ModuleType(name)
        vars(stand_in).update(dict.fromkeys(members))
        monkeypatch.setitem(sys.modules, name, stand_in)
    theirs = importlib.import_module("stlpips_pytorch.stlpips").LPIPS(
        net="alex", variant="shift_tolerant", verbose=False
    )
    noisy, reference = random_pair(side)
    with torch.no_grad():
        images = [video.permute(0, 3, 1, 2).contiguous() for video in (noisy, reference)]
        expected = theirs(*images, normalize=True).flatten()
    torch.testing.assert_close(load_st_lpips()(noisy, reference)[1], expected, rtol=1e-5, atol=0)
