"""Hardware, versions and optional packages, and the peak memory of a device."""

import logging
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import psutil
import torch

from . import __version__

#: Packages that change what runs or how fast, beside those of ``describe_environment``.
_PACKAGES = ("transformers", "av", "safetensors", "huggingface_hub", "numpy", "torchao", "peft", "flash-attn")


def describe_environment(device: torch.device | str) -> dict[str, str]:
    hardware = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        hardware = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    if _is_cuda(device):
        hardware = torch.cuda.get_device_name(device)
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "diffusers": version("diffusers"),
        "device": str(device),
        "hardware": hardware,
        "threads": str(torch.get_num_threads()),
    }


def describe_installation() -> str:
    """What a report of an error needs, line by line: versions, hardware and devices, but no name and no path."""
    lines = {"flowcache": f"{__version__}, commit {repository_commit()}"}
    lines["system"] = f"{platform.system()} {platform.machine()}"
    lines |= describe_environment(choose_device())
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            lines[name] = version(name)
    lines["memory"] = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    lines["CUDA"] = f"{torch.version.cuda}, {torch.cuda.device_count()} devices"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        lines[f"cuda:{index}"] = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {found.major}.{found.minor}"
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device, or else CUDA where there is any."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def repository_commit() -> str:
    """Return this code's commit, with ``-dirty`` if files differ; ``unknown`` outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def prepare_device(device: torch.device | str) -> None:
    """Choose a program's arithmetic; make a CUDA device the current one, on which some kernels run in any case.

    Products of fp32 matrices are exact to fp32: the few there are carry times and modulation. fp32 convolutions, the
    VAE's, may use TF32, which is finer than the originals' bf16. cuDNN takes deterministic algorithms and searches for
    none, so that a resumed video equals an uninterrupted one and no trial needs memory.
    """
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = True, True, False
    if _is_cuda(device) and torch.device(device).index is not None:
        torch.cuda.set_device(device)


def synchronize(device: torch.device | str) -> None:
    """Wait for a CUDA device, so that a clock read next is right."""
    if _is_cuda(device):
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device | str) -> int:
    """Return the peak memory: allocated on a CUDA device, else resident in this process."""
    if _is_cuda(device):
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def restart_peak_memory(device: torch.device | str) -> None:
    """Restart ``peak_memory_bytes``, where the system can."""
    if _is_cuda(device):
        return torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux has it, if it is allowed
        Path("/proc/self/clear_refs").write_text("5")


def _is_cuda(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Within the block, drop warnings: optional packages log kernels that they cannot load and do not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class Unavailable(RuntimeError):
    """A package or a download is missing; the message is one sentence."""


def require(module: str, purpose: str, extra: str) -> ModuleType:
    """Import an optional module of the project's ``extra``; ``purpose`` is the subject of the error."""
    try:
        return import_module(module)
    except ImportError as error:
        remedy = f"pip install -e '.[{extra}]' in this project"
        raise Unavailable(f"{purpose} needs {module}: {remedy}.") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise Unavailable(f"{purpose} needs {module}, which cannot be loaded here: {reason}") from error
