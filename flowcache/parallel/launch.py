"""The process among those that a launcher started, and its device."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rank:
    """A process among ``count`` that a launcher started; ``local`` among ``local_count`` on its machine."""

    index: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Rank:
        """Read the launcher's variables; without any, there is one process."""
        texts = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        texts |= {name: environment[name] for name in texts if name in environment}
        if not all(map(str.isdecimal, texts.values())) or int(texts["RANK"]) >= int(texts["WORLD_SIZE"]):
            got = ", ".join(f"{name}={text}" for name, text in texts.items())
            raise ValueError(f"RANK: expected a number below WORLD_SIZE, as torchrun sets them, got {got}.")
        return cls(*map(int, texts.values()))

    @property
    def is_first(self) -> bool:
        return self.index == 0


#: The rank of a single process.
ALONE = Rank()


def list_devices(gpus: str) -> list[str]:
    """Devices that ``--gpus`` or DEVICES asks for: ``0,1,3``, ``cpu``, or, if empty, all GPUs, else the CPU."""
    text = os.environ.get("DEVICES", "").strip()
    name, text = ("DEVICES", text) if text else ("gpus", gpus.strip())
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "cpu" or (not text and not found):
        return ["cpu"]
    words = text.split(",") if text else [str(number) for number in range(found)]
    if not all(re.fullmatch(r"\s*\d{1,4}\s*", word) for word in words):
        raise ValueError(f"{name}: expected cpu or numbers of GPUs, such as 0,1,3, got {text!r}.")
    numbers = [int(word) for word in words]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name}: expected each GPU once, got {text!r}.")
    if max(numbers) >= found:
        raise ValueError(f"{name}: PyTorch finds {found} GPUs, counted from 0, got GPU {max(numbers)}.")
    return [f"cuda:{number}" for number in numbers]


def select_device(rank: Rank, devices: Sequence[str]) -> str:
    """The device of a process; the CPU serves any number of processes."""
    if devices[0] == "cpu":
        return "cpu"
    if rank.local >= len(devices):
        wanted = f"less than {len(devices)}, the number of GPUs"
        raise ValueError(f"LOCAL_RANK: expected {wanted}, got {rank.local}; start fewer processes.")
    return devices[rank.local]


def choose_own_device(rank: Rank, device: str) -> str:
    """The device of a process: of several with ``cuda``, the one at its place on the machine."""
    if rank.count == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise ValueError(f"device: expected cpu or cuda with several processes, got {device}; leave it out.")
    return select_device(rank, [f"cuda:{number}" for number in range(torch.cuda.device_count())])


def start_on_all(devices: Sequence[str]) -> None:
    """Become torchrun with a process for each device, running this program; returns if none is needed."""
    if "WORLD_SIZE" not in os.environ and len(devices) > 1:
        module = sys.modules["__main__"].__spec__
        program = sys.argv[:1] if module is None else ["-m", module.name.removesuffix(".__main__")]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        processes = f"--nproc_per_node={len(devices)}"
        os.execv(sys.executable, [*launcher, processes, *program, *sys.argv[1:]])
