"""Weights in host memory that are on a device for a stage only."""

from contextlib import suppress
from itertools import chain

import torch
from torch import Tensor, nn

from .quantize import plain_parts


class HostWeights:
    """A module in host memory, which is on a device within ``with`` blocks, also nested ones.

    The first block copies parameters and buffers to the device, the last one drops these copies: nothing is copied
    back, so changes to weights in between are lost. For CUDA, the first copy pins the host memory.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self._device, self._users = module.to("cpu"), device, 0
        self._host: list[tuple[Tensor, Tensor]] = []
        self._quantised: list[tuple[nn.Module, str, nn.Parameter]] = []

    @torch.inference_mode(False)  # the copies are ordinary tensors whoever calls
    def __enter__(self) -> None:
        self._users += 1
        if self._users > 1:
            return
        try:
            for tensor in chain(self.module.parameters(), self.module.buffers()):
                for part in plain_parts(tensor):
                    if self._device.type == "cuda" and not part.is_pinned():
                        with suppress(RuntimeError):  # systems limit pinned memory
                            part.data = part.data.pin_memory()
                if plain_parts(tensor)[0] is tensor:
                    self._host.append((tensor, tensor.data))
                    tensor.data = tensor.data.to(self._device, non_blocking=True)
            for owner in self.module.modules():
                for name, tensor in owner._parameters.items():
                    # The parts of a quantised weight stay where they are if its data is replaced.
                    if tensor is not None and plain_parts(tensor)[0] is not tensor:
                        self._quantised.append((owner, name, tensor))
                        owner._parameters[name] = nn.Parameter(tensor.to(self._device, non_blocking=True), False)
        except BaseException:  # out of memory: the next video must not find half a module there
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            for tensor, data in self._host:
                tensor.data = data
            for owner, name, tensor in self._quantised:
                owner._parameters[name] = tensor
            self._host.clear()
            self._quantised.clear()
