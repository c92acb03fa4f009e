"""All processes of a run: what they agree on before tensors travel, and how the end of one becomes that of all."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import psutil
import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..command_line import describe_error
from ..environment import Unavailable
from ..fingerprint import differences
from .group import Group
from .launch import Rank, choose_own_device

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Longest time for which a process waits for the others to start, and by default for a collective.
TIMEOUT = timedelta(minutes=15)
#: Time that the first process has to report a failure before the others end, and launchers end it.
REPORT = timedelta(seconds=10)

#: What a process can say of another one that said nothing.
LOST = "another process of the run failed or was killed"


@dataclass(frozen=True)
class Connection:
    """How tensors travel: nccl needs CUDA, gloo runs everywhere; ``timeout`` of a collective."""

    backend: Literal["nccl", "gloo"] = "nccl"
    timeout: timedelta = TIMEOUT


@dataclass
class World:
    """All processes of a run, and the launcher's store, through which they speak before and beside tensors.

    With one process nothing communicates.
    """

    rank: Rank = field(default_factory=Rank)
    agreed: bool = field(default=False, init=False)  # whether all processes fail for the same reason
    _store: dist.Store | None = field(default=None, init=False, repr=False)
    _exchanges: int = field(default=0, init=False, repr=False)

    @property
    def is_many(self) -> bool:
        return self.rank.count > 1

    def agree(self, work: Callable[[], Result], describe: Callable[[Result], Mapping[str, Any]]) -> Result:
        """Do work in every process; what fails in one fails in all, by ValueError with the first one's sentence.

        So does what ``describe`` gives of the results if it differs between processes.
        """
        if not self.is_many:
            return work()
        result, failure, said = None, None, io.StringIO()
        try:
            with ExitStack() as quiet:
                if not self.rank.is_first:
                    quiet.enter_context(redirect_stderr(said))
                    quiet.enter_context(redirect_stdout(said))
                result = work()
        except (ValueError, OSError, Unavailable, SystemExit) as error:
            failure = error
        if failure is not None and "MASTER_ADDR" not in os.environ:
            self.agreed = True
            raise failure
        ends = isinstance(failure, SystemExit)
        sentence = failure and (said.getvalue().removeprefix("error: ") if ends else describe_error(failure))
        outcomes = self.exchange([sentence, describe(result) if failure is None else None])
        self.agreed = any(reason is not None for reason, _ in outcomes)
        if failure is not None:
            raise failure
        for index, (reason, _) in enumerate(outcomes):
            if reason is not None:
                raise ValueError(f"rank {index}: {reason.strip()}")
        for index, (_, other) in enumerate(outcomes):
            if found := differences(outcomes[0][1], other, f"is {{}} on rank 0 and {{}} on rank {index}"):
                self.agreed = True
                raise ValueError(f"{found[0]}; start all processes with the same options and version.")
        return result

    def exchange(self, value: Any) -> list[Any]:
        """Plain values of all processes, in their order; through the store, and so in any state of the group."""
        if not self.is_many:
            return [value]
        store, turn = self._connect(), self._exchanges
        self._exchanges += 1
        store.set(f"exchange/{turn}/{self.rank.index}", json.dumps(value, default=str))
        return [json.loads(store.get(f"exchange/{turn}/{index}")) for index in range(self.rank.count)]

    def join(self, device: torch.device | str, connection: Connection = Connection()) -> Group:
        """Join the process group, of which tensors on the CPU always take gloo."""
        if not self.is_many:
            return Group()
        on_cuda = torch.device(device).type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if on_cuda and connection.backend == "nccl" else "gloo"
        store = dist.PrefixStore("group", self._connect())
        named = {"rank": self.rank.index, "world_size": self.rank.count, "timeout": connection.timeout}
        if on_cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=store, **named)
        return Group(self.rank.index, self.rank.count, dist.group.WORLD, timeout=connection.timeout)

    def leave(self) -> None:
        """Leave the process group, if it was joined, after the others are done with it."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def load_in_turn(self, nbytes: int) -> Iterator[None]:
        """Load weights within the block: all processes of a machine at once if its memory holds their copies of
        ``nbytes`` each, or else one after another.

        Files are mapped, so that processes at once share what they read in the page cache.
        """
        if not self.is_many:
            yield
            return
        rank, started = self.rank, time.perf_counter()
        at_once = all(self.exchange(rank.local_count * nbytes <= psutil.virtual_memory().available))
        place = f"loaded/{socket.gethostname()}"
        if not at_once and rank.local:
            self._connect().wait([f"{place}/{rank.local - 1}"], rank.local * TIMEOUT)
        yield
        self._connect().set(f"{place}/{rank.local}", "yes")
        self.exchange(None)
        how = "at once" if at_once else "one after another on each machine"
        logger.info("weights: %d processes, %s, in %.1f s", rank.count, how, time.perf_counter() - started)

    def post_failure(self, sentence: str) -> None:
        """Tell the first process why this one fails; the first failure counts."""
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.compare_set("failure", "", f"rank {self.rank.index}: {sentence}")

    def failure(self) -> str | None:
        """Why another process failed; None if none said so."""
        with suppress(RuntimeError, AttributeError):
            if self._store.check(["failure"]):
                return self._store.get("failure").decode()
        return None

    def lost(self, error: BaseException) -> bool:
        """Whether an error is the consequence of another process's end."""
        return self.is_many and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def report(self, write: Callable[[], Any]) -> None:
        """Write in the first process, or in another one if that is gone; the others wait until it is done.

        Launchers end all processes with the first that ends.
        """
        if not self.rank.is_first and self._store is not None:
            with suppress(RuntimeError):
                return self._store.wait(["reported"], REPORT)
        with suppress(RuntimeError):
            if self._store is not None and self._store.add("reporters", 1) > 1:
                return
        write()
        with suppress(RuntimeError):
            if self._store is not None:
                self._store.set("reported", "yes")

    def _connect(self) -> dist.Store:
        if self._store is None:
            if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
                raise ValueError(
                    "MASTER_ADDR, MASTER_PORT: expected the address of rank 0 with several processes, got none; "
                    f"start with torchrun --nproc_per_node {self.rank.count}."
                )
            store, *_ = next(iter(rendezvous("env://", self.rank.index, self.rank.count, timeout=TIMEOUT)))
            store.set_timeout(TIMEOUT)
            self._store = dist.PrefixStore("flowcache", store)
        return self._store


def join_processes(device: str | None = None) -> tuple[Group, str]:
    """Join all processes that a launcher started, for ``parallelize``; returns the group and this process's device.

    ``device`` is ``cpu`` or ``cuda``; None: cuda if there is a GPU.
    """
    rank = Rank.from_environment(os.environ)
    device = choose_own_device(rank, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return World(rank).join(device), device
