"""Sampling against tensors of the original code: plain, and with reuse."""

from collections.abc import Callable
from itertools import accumulate, count, islice

import pytest
import torch
from cases import chunk_model, magi_case, relative_error, reuse_table
from random_model import denoised
from reference import Case, case_names
from torch import Tensor

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, Trace, cut_window
from flowcache.kv.scorers import ScoreInput
from flowcache.kv.selection import TokenSelector
from flowcache.methods import MethodOptions
from magi1.methods import TRAITS, method_config

RELATIVE = 1e-4

Choose = Callable[[TokenSelector, ScoreInput, int], Tensor]


def denoise(case: Case, cache: FlowCacheConfig, nearly_clean: bool = True) -> tuple[Tensor, list[int], Trace]:
    """Denoise a case: its latents, its given frames and the trace."""
    runtime = case.info["config"]["runtime_config"]
    noise, prefix = case.tensors["noise"][0], case.tensors.get("prefix_video")
    window = cut_window(noise, runtime["chunk_width"], None if prefix is None else prefix[0])
    stride = runtime["num_steps"] // runtime["window_size"]
    schedule = StaircaseSchedule(len(window.chunks), runtime["num_steps"], stride, window.num_given)
    model = chunk_model(case, noise, schedule, nearly_clean)
    denoiser = Denoiser(model, cache)
    latents = denoised(denoiser, window, schedule, model.timetable)
    return latents, list(range(window.num_prefix)), denoiser.trace


def assert_latents(case: Case, latents: Tensor, given: list[int]) -> None:
    """Equal wherever frames were not given; the original leaves something of its own in those."""
    expected = case.tensors["final_x"][0]
    made = [frame for frame in range(expected.shape[1]) if frame not in given]
    assert relative_error(latents[:, made], expected[:, made]) < RELATIVE


@pytest.mark.parametrize("name", case_names("sample_vanilla_", "magi1"))
def test_vanilla(name):
    case = magi_case(name)
    latents, given, _ = denoise(case, method_config("vanilla"))
    assert_latents(case, latents, given)


#: Scores closer than this come out in an order that rounding decides: they are about 0.01, and keys agree
#: to about 1e-5.
SCORE_ROUNDING = 1e-7


def checked_choose(case: Case, choose: Choose) -> Choose:
    """Choose tokens as the original did, and check that ours are the same, in the same order.

    Where two scores are equal up to rounding, the original's choice goes on.
    """
    layers = case.info["config"]["model_config"]["num_layers"]
    places = ((event, layer) for event in count() for layer in range(layers))

    def checked(selector: TokenSelector, tokens: ScoreInput, budget: int) -> Tensor:
        here = list(islice(places, len(tokens.keys)))  # layers are compressed together, and have one branch
        expected = torch.stack([case.tensors[f"ev{event}_layer{layer}_indices"].T for event, layer in here])
        chosen = choose(selector, tokens, budget)
        if not torch.equal(chosen, expected):
            scores = selector.scores(tokens)
            gaps = scores.gather(2, chosen) - scores.gather(2, expected)
            assert gaps.abs().max() < SCORE_ROUNDING, f"events and layers {here}"
        return expected

    return checked


@pytest.mark.parametrize("name", case_names("sample_flowcache_", "magi1"))
def test_flowcache(name, monkeypatch):
    case = magi_case(name)
    settings = case.info["flowcache"]
    if settings["compress_kv_cache"] and not settings["discard_nearly_clean_chunk"]:
        pytest.skip(
            "once compressed, the original lets the second run of a nearly clean chunk see all kept tokens, "
            "and scores by its queries as if it stood behind the newest chunk; ours sees itself alone"
        )
    named = settings | (settings.get("compression") or {})
    known = {TRAITS.names.get(key, key) for key in MethodOptions.__dataclass_fields__}
    cache = method_config("flowcache", "paper-fast", **{k: v for k, v in named.items() if k in known})
    monkeypatch.setattr(TokenSelector, "choose", checked_choose(case, TokenSelector.choose))
    latents, given, trace = denoise(case, cache, nearly_clean=not settings["discard_nearly_clean_chunk"])
    table = torch.full_like(reuse_table(case), -1)
    for record in trace.steps:
        for event in record.events:
            table[record.step, event.chunk] = int(event.reused)
    assert torch.equal(table, reuse_table(case))
    compressed = list(accumulate(e.chunks for record in trace.steps for e in record.compressions))
    assert compressed == [e["clean_chunk_ids"] for e in case.info.get("compression_events") or []]
    assert_latents(case, latents, given)
