"""States of the parts of a run, returned by ``state_dict``, and parts of a video with the state behind them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Numbers, text, None, tensors, and dicts, lists and tuples of these: what ``torch.load`` reads safely.
State = dict[str, Any]


@dataclass(frozen=True)
class VideoPart:
    """New frames of a video."""

    frames: Tensor  # ``[3, frames, height, width]`` in [-1, 1]
    latents: Tensor  # of those frames, ``[channels, frames', h, w]``
    # Gives the state from which the stream resumes behind this part; to be called, and its result saved, before the
    # next part is requested. None where the stream cannot resume.
    state: Callable[[], State] | None = None


def on_device(state: Any, device: torch.device | str) -> Any:
    return _map_tensors(state, lambda tensor: tensor.to(device))


def on_host(state: Any) -> Any:
    """The same state with its tensors in host memory; views are cloned, so that they save alone."""
    return _map_tensors(state, _compact)


def _compact(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _map_tensors(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: _map_tensors(value, change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_map_tensors(value, change) for value in state)
    return state
