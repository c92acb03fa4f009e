"""Which process this is among those that share a benchmark's work, and the device that it takes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rank:
    """A process among those that torchrun or ``accelerate launch`` started, on one machine or on many.

    Attributes:
        index: 0 to ``count`` - 1.
        count: processes on all machines.
        local: which one of its machine's it is.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Rank:
        """As the launcher's variables say; one process where there are none.

        Raises:
            ValueError: they are no numbers or do not fit each other.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        texts = [environment.get(name, default) for name, default in zip(names, "010", strict=True)]
        if not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(texts[1]):
            told = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
            raise ValueError(f"RANK must be a number below WORLD_SIZE, as torchrun sets them; got {told}.")
        return cls(*map(int, texts))


def list_devices(name: str, text: str) -> list[str]:
    """Devices of this machine that are to work.

    Args:
        name: where the text is from, for messages.
        text: numbers of GPUs, ``0,1,3``; ``cpu``; or nothing for all GPUs, and the CPU where there is none.

    Raises:
        ValueError: the text is no such list, or names a GPU that is not there.
    """
    text, found = text.strip(), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "cpu" or (not text and not found):
        return ["cpu"]
    numbers = [word.strip() for word in text.split(",")] if text else [str(n) for n in range(found)]
    if not all(re.fullmatch(r"\d{1,4}", number) for number in numbers):
        raise ValueError(f"{name} must be cpu or numbers of GPUs, such as 0,1,3, got {text!r}.")
    if len({int(number) for number in numbers}) < len(numbers):
        raise ValueError(f"{name} names a GPU twice, got {text!r}.")
    absent = [number for number in numbers if int(number) >= found]
    if absent:
        raise ValueError(f"{name} names GPU {absent[0]}, but PyTorch finds {found}, counted from 0.")
    return [f"cuda:{int(number)}" for number in numbers]


def device_of(rank: Rank, devices: Sequence[str]) -> str:
    """The device of a process; the CPU serves any number of them.

    Raises:
        ValueError: the machine has more processes than devices.
    """
    if devices[0] == "cpu":
        return "cpu"
    if rank.local >= len(devices):
        raise ValueError(
            f"the launcher starts more processes on this machine than GPUs are named ({len(devices)}); "
            "start fewer, or name more."
        )
    return devices[rank.local]


def starts_others(environment: Mapping[str, str], devices: Sequence[str]) -> bool:
    """Whether a process that no launcher started has several devices to serve."""
    return "WORLD_SIZE" not in environment and len(devices) > 1


def start_on_all(devices: Sequence[str], command: Sequence[str]) -> None:
    """Become torchrun with a process for each device, each running a Python command; does not return."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    os.execv(sys.executable, [*launcher, f"--nproc_per_node={len(devices)}", *command])
