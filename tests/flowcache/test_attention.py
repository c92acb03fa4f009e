"""The choice of the attention kernel, with candidates and times of our own."""

import logging

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn.functional import scaled_dot_product_attention

from flowcache import attention
from flowcache.attention import BACKEND_VARIABLE, attend, choose_backend, list_backends, pick_fastest

NATIVE, CUDNN = AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_CUDNN
FLASH, FLASH_3 = AttentionBackendName.FLASH, AttentionBackendName._FLASH_3


@pytest.fixture(autouse=True)
def no_backend_named(monkeypatch):
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)


@pytest.mark.parametrize("groups", [2, 4])
def test_attention_on_a_cpu_is_pytorchs(groups):
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 5, 4, 8), torch.randn(2, 2, 7, groups, 8)
    assert choose_backend(query, key) is NATIVE
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), enable_gqa=groups < 4)
    assert torch.equal(attend(query, key, value), expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("times", "fastest"),
    [
        ({"a": 2.0, "b": 1.0, "c": 3.0}, "b"),
        ({"a": 1.04, "b": 1.0}, "a"),  # within the margin, the first
        ({"a": None, "b": 9.0}, "b"),
        ({"a": None}, None),
        ({}, None),
    ],
)
def test_the_fastest_that_runs_is_picked(times, fastest):
    def measure(run):
        if (time := run()) is None:
            raise RuntimeError("head_dim")
        return time

    found = pick_fastest({name: lambda time=time: time for name, time in times.items()}, measure)
    assert found == (fastest, {name: time for name, time in times.items() if time is not None})


def test_backends_that_are_installed(monkeypatch):
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: True)
    monkeypatch.setattr(attention, "is_flash_attn_available", lambda: True)
    for version, capability, found in (
        (True, (9, 0), [FLASH_3, FLASH]),
        (False, (9, 0), [FLASH_3]),
        (True, (8, 0), [FLASH]),
    ):
        monkeypatch.setattr(attention, "is_flash_attn_version", lambda *_, version=version: version)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, capability=capability: capability)
        assert list_backends(torch.device("cuda")) == [NATIVE, *found, CUDNN]


def test_a_cuda_device_is_timed_once_for_similar_lengths(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    times = {NATIVE: 3.0, CUDNN: 1.0}
    ran = []
    monkeypatch.setattr(attention, "list_backends", lambda device: list(times))
    monkeypatch.setattr(attention, "measure_on_cuda", lambda device, run: times[run()])
    monkeypatch.setattr(attention, "dispatch_attention_fn", lambda *each, backend, **_: ran.append(each) or backend)
    monkeypatch.setattr(torch, "Generator", lambda device: torch.default_generator)
    monkeypatch.setattr(torch, "randn", lambda shape, generator, dtype, device: torch.empty(shape, device="meta"))
    attention._time_backends.cache_clear()

    class OnCuda:
        def __init__(self, tokens, heads, dtype=torch.bfloat16):
            self.shape, self.dtype, self.device = (1, tokens, heads, 64), dtype, torch.device("cuda")

    with torch.random.fork_rng():
        assert choose_backend(OnCuda(9000, 4), OnCuda(40000, 2)) is CUDNN
        assert choose_backend(OnCuda(8000, 4), OnCuda(17000, 2)) is CUDNN
    assert [tuple(x.shape for x in each) for each in ran] == 2 * [((1, 4096, 4, 64), *2 * [(1, 16384, 2, 64)])]
    (record,) = caplog.records
    assert "_native_cudnn for" in record.message and "native 3.000 ms" in record.message
    times[NATIVE] = 0.5
    with torch.random.fork_rng():
        assert choose_backend(OnCuda(9000, 4), OnCuda(500, 2)) is NATIVE, "another length is timed"
    assert choose_backend(OnCuda(9000, 4, torch.float32), OnCuda(500, 2)) is NATIVE
    monkeypatch.setenv(BACKEND_VARIABLE, "flash")
    assert choose_backend(OnCuda(9000, 4), OnCuda(500, 2)) is None
    attention._time_backends.cache_clear()


def test_kernels_are_timed_on_the_stream_of_their_own_device(monkeypatch):
    recorded = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            recorded.append(stream)

        def synchronize(self): ...

        def elapsed_time(self, end):
            return 10.0 - len(recorded)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    found = attention.measure_on_cuda(torch.device("cuda:1"), lambda: recorded.append("run"), repeats=1)
    assert recorded == 3 * ["stream of cuda:1", "run", "stream of cuda:1"]
    assert found == 10.0 - len(recorded)
