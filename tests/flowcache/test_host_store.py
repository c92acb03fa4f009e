"""The store in host memory with streams that are simulated: copies run as early or as late as CUDA allows."""

import math
from types import SimpleNamespace

import pytest
import torch
from cached import TIMES, run
from torch.utils._python_dispatch import TorchDispatchMode

from flowcache import KVCompressionConfig, KVStorageConfig
from flowcache.kv.quantized import QuantizedRows, group_size
from flowcache.kv.storage import HostStore, PlainRows, RowStore
from research.gpu.bench import Bench
from research.gpu.kernels import read_and_write

aten = torch.ops.aten


class Streams(TorchDispatchMode):
    """Two streams: work on the computing one is done at once, copies on the other wait until they are waited for."""

    def __init__(self, monkeypatch, late):
        super().__init__()
        self.late, self.copying, self.waiting = late, False, []
        computing = SimpleNamespace(wait_stream=lambda other: self.finish())
        copying = SimpleNamespace(wait_stream=lambda other: None, synchronize=self.finish, device="cpu")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: copying)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self.Copying(self))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        monkeypatch.setattr(KVStorageConfig, "make_store", make_host_store)

    class Copying:
        def __init__(self, streams):
            self.streams = streams

        def __enter__(self):
            self.streams.copying = True

        def __exit__(self, *_):
            self.streams.copying = False

    def finish(self):
        waiting, self.waiting = self.waiting, []
        for func, args in waiting:
            func(*args)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)  # needs a driver
        if self.late and self.copying and func is aten.copy_.default:
            self.waiting.append((func, args))
            return args[0]
        return func(*args, **kwargs)


def make_host_store(config, layout, rows, unit):
    form = PlainRows() if config.bits is None else QuantizedRows(config.bits, group_size(unit))
    return (HostStore if config.offload else RowStore)(layout, rows, form)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize(("original", "clean_pass"), TIMES)
@pytest.mark.parametrize("budget", [None, 2])
def test_videos_are_those_of_a_store_on_the_device(monkeypatch, late, bits, original, clean_pass, budget):
    options = {"clean_pass": clean_pass, "clean_range": 3}
    if budget:
        options["compression"] = KVCompressionConfig(budget=budget, original=original)
    expected, _ = run(**options, storage=bits and KVStorageConfig(bits=bits))
    with Streams(monkeypatch, late):
        latents, trace = run(**options, storage=KVStorageConfig(bits=bits, offload=True))
    assert trace.windows[0].kv_host_bytes > 0
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_rows_of_several_layers_are_read_ahead(monkeypatch, late, bits):
    with Streams(monkeypatch, late):
        row = {}
        read_and_write(Bench("cpu", True, math.inf), bits, row)
    assert row["largest difference"] == 0 and row["MiB in host memory"] > 0
