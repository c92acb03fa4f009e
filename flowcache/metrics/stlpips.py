"""ST-LPIPS (Ghildyal and Liu 2022, arXiv 2207.13686): LPIPS that shifts by a pixel hardly change.

AlexNet, whose first convolution has stride 1, and which halves its resolution behind a low-pass filter each time
(Zhang 2019, arXiv 1904.11486). The trained weights are those of the package stlpips-pytorch. Its code, which needs
torchvision and more, is not imported.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..environment import Unavailable
from ..user_files import UnreadableFile, reading
from .similarity import Video, measure_frames

#: Convolutions of the network by their names in the weight file, and their padding.
CONVOLUTIONS = {"net.slice1.0": 2, "net.slice2.5": 2, "net.slice3.9": 1, "net.slice4.11": 1, "net.slice5.13": 1}
#: Tensors of the weight file that are read.
NAMES = ["scaling_layer.shift", "scaling_layer.scale", *(f"lin{i}.model.1.weight" for i in range(len(CONVOLUTIONS)))]
NAMES += [f"{name}.{kind}" for name in CONVOLUTIONS for kind in ("weight", "bias")]
#: Pixels of the shortest side that the network can halve three times.
LEAST = 21


def load_st_lpips(device: torch.device | str = "cpu") -> Callable[[Video, Video], tuple[float, Tensor]]:
    """Load ST-LPIPS: a function like ``psnr``; lower is closer. Unavailable without the package's weights."""
    package, remedy = find_spec("stlpips_pytorch"), "pip install stlpips-pytorch"
    if package is None:
        raise Unavailable(f"ST-LPIPS needs the weights of stlpips-pytorch: {remedy} (64 MB, no other packages).")
    path = Path(package.origin).parent / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    try:
        with reading(path, "weights of ST-LPIPS", f"{remedy} again"):
            content = torch.load(path, map_location=device, weights_only=True)
            weights = {name: content[name].float() for name in NAMES}
    except UnreadableFile as error:
        raise Unavailable(str(error)) from error

    def measure(ours: Tensor, theirs: Tensor) -> Tensor:
        # Frame by frame, as the first features have 64 channels at full resolution.
        pairs = zip(ours.to(device).split(1), theirs.to(device).split(1), strict=True)
        return torch.cat([compute_distance(weights, *pair) for pair in pairs])

    return lambda generated, reference: measure_frames(measure, generated, reference, LEAST)


def compute_distance(weights: Mapping[str, Tensor], ours: Tensor, theirs: Tensor) -> Tensor:
    """Distances ``[n]`` of images ``[n, 3, height, width]`` in [0, 1]: weighted means over channels and places."""
    pairs, distance = zip(_features(weights, ours), _features(weights, theirs), strict=True), ours.new_zeros(len(ours))
    for layer, pair in enumerate(pairs):
        a, b = (F.normalize(features, dim=1, eps=1e-10) for features in pair)
        distance += F.conv2d((a - b).square(), weights[f"lin{layer}.model.1.weight"]).mean((1, 2, 3))
    return distance


def _features(weights: Mapping[str, Tensor], images: Tensor) -> Iterator[Tensor]:
    """Features behind each convolution."""
    x = (2 * images - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
    for layer, (name, padding) in enumerate(CONVOLUTIONS.items()):
        if layer in (1, 2):
            x = _halve(F.max_pool2d(x, 3, stride=1))
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)
        x = F.relu(_halve(x) if layer == 0 else x)
        yield x


def _halve(images: Tensor) -> Tensor:
    """Halve the resolution behind a binomial filter; borders are reflected by two pixels, as in training."""
    row = images.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(row, row).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=images.shape[1])
