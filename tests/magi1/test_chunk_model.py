"""The chunks of a window: branches, context, attention, FLOPs, and how often the loop waits."""

import pytest
import torch
from cases import SIZES, random_model
from random_model import denoised
from torch.nn.functional import gelu, layer_norm, silu
from torch.overrides import TorchFunctionMode

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, cut_window
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import CacheLayout, ChunkKVCache
from flowcache.reuse.chunkwise import ChunkwiseReuse
from flowcache.reuse.policy import Decision, ReusePolicy
from flowcache.reuse.teacache import TeaCache
from magi1 import attention
from magi1.attention import PackedSegments, Segment, TextBank
from magi1.captions import make_captions
from magi1.chunk_model import GIVEN_REACH, KVRange, MagiChunkModel, Sampling
from magi1.guidance import DistilledGuidance, ThreeWayGuidance
from magi1.layers import rotate
from magi1.schedule import Timetable
from magi1.transformer import MagiBlock, MagiTransformer3DModel


@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_only_the_oldest_live_chunk_runs_without_context(window):
    schedule = StaircaseSchedule(6, 16, 16 // window)
    model = random_model(schedule)
    for live in schedule:
        chunks = [ChunkInput(chunk, chunk, torch.zeros(4, 1, 4, 4), (0.0,), step) for chunk, step in live.items()]
        runs = {chunk.chunk: len(model._branches(chunk)) for chunk in chunks}
        nearly_clean = model.timetable.timestep(max(live.values())) > 0.3
        assert runs == {c: 2 if nearly_clean and c == min(live) else 1 for c in live}


def test_context_of_clean_and_given_chunks():
    model = random_model(StaircaseSchedule(12, 16, 4, first_chunk=2), KVRange((), 1))
    assert [model.reach(step) for step in (0, 15, 16, None)] == [None, None, None, 1]
    assert KVRange().reach(None, 16) == GIVEN_REACH
    assert KVRange((4, 2), 1).reach(16, 16) == KVRange((4, 2), 1).reach(None, 16) == 1


def test_turned_keys_are_those_of_later_frames():
    """In fp32, to 1e-5."""
    model, keys = random_model(StaircaseSchedule(6, 16, 4)), torch.randn(10, 4, 1, 16)

    def place(start):
        return rotate(keys, model._find_rotary([(start, start + 10)])).flatten(0, 1)[None]

    for frames in (0, 1, 60):
        turned = model.retime(place(5), torch.full((1, 40, 1), frames))
        assert torch.allclose(turned, place(5 + frames), rtol=0, atol=1e-5)


def test_an_unknown_indicator_is_refused():
    model = random_model(StaircaseSchedule(2, 16, 4))
    with pytest.raises(ValueError, match="indicator"):
        MagiChunkModel(model.transformer, model._captions, (4, 4), model.sampling, "latent")


def bf16_block(**sizes) -> MagiBlock:
    """A block with random weights in the types of the original's production."""
    torch.manual_seed(0)
    model = MagiTransformer3DModel(**{**SIZES, **sizes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(torch.bfloat16).blocks[0]


def test_queries_and_keys_are_rounded_once():
    layer, hidden = bf16_block().attention, torch.randn(5, 32, dtype=torch.bfloat16)
    rotary = torch.randn(5, 1, 12)
    query, _, _, cross = layer(hidden, rotary)
    normed = layer.norm(hidden)
    projected = layer.to_q(normed).unflatten(1, (2, 16))
    assert torch.equal(query, rotate(layer.norm_q(projected.float()), rotary).to(torch.bfloat16))
    # The gain of cross attention's norms is a sum in bf16.
    norm = layer.norm_q_cross
    gain = (norm.weight.float() + 1).to(torch.bfloat16)
    projected = layer.to_q_cross(normed).unflatten(1, (2, 16))
    assert norm.weight.dtype == cross.dtype == torch.bfloat16
    assert torch.equal(cross, layer_norm(projected, (16,), gain, norm.bias, norm.eps))


@pytest.mark.parametrize("gated", [False, True])
def test_updates_are_rounded_once(gated):
    block = bf16_block(gated_linear_unit=gated)
    hidden, condition = torch.randn(2, 5, 32, dtype=torch.bfloat16), torch.randn(2, 8, dtype=torch.bfloat16)
    video, text = torch.randn(2, 2, 5, 32, dtype=torch.bfloat16)
    gates = block.gates(silu(condition)).tanh().float().unsqueeze(1).chunk(2, dim=-1)
    attended = block.attention.project(video, text, torch.bfloat16)
    expected = (hidden + block.attention_norm(gates[0] * attended)).to(torch.bfloat16)
    inner = block.feed_forward.up(block.feed_forward.norm(expected))
    if gated:
        gate, value = inner.chunk(2, dim=-1)
        inner = silu(gate) * value
    else:
        inner = gelu(inner)
    added = block.feed_forward.down(inner)
    expected = (expected + block.feed_forward_norm(gates[1] * added.float())).to(torch.bfloat16)
    assert torch.equal(block.update(hidden, video, text, condition), expected)


def test_sinusoids_are_rounded_to_the_type_of_the_model():
    model = MagiTransformer3DModel(**SIZES).to(torch.bfloat16)
    embed, times = model.time_embed, torch.tensor([0.1, 0.9])
    rounded = embed.sinusoids(times).to(torch.bfloat16)
    assert embed.linear_1.weight.dtype == torch.float32 and not torch.equal(rounded.float(), embed.sinusoids(times))
    expected = embed.linear_2(silu(embed.linear_1(rounded.float()))) + model.caption_embed.condition(True)
    assert torch.equal(model.condition(times, [True, True]), expected.to(torch.bfloat16))


def test_segments_attend_to_the_cache_and_neighbours_of_one_caption_in_one_call(monkeypatch):
    torch.manual_seed(0)
    layout = CacheLayout(num_layers=1, num_branches=1, num_heads=2, head_dim=8)
    cache, text = ChunkKVCache(layout, 12), TextBank([torch.randn(5, 16), torch.randn(3, 16)])
    for chunk in range(3):
        cache.enter(chunk, 4)
    cache.write(0, 0, *torch.randn(2, 4, 2, 8), branch=0)
    captions = (0, 0, 1, 0)
    segments = [
        Segment(1, 4, 0, 0),
        Segment(2, 4, 0, 0, first_chunk=1),
        Segment(1, 4, 1, None),
        Segment(2, 4, 0, None),
    ]
    query, key, value = torch.randn(16, 4, 8), torch.randn(16, 2, 8), torch.randn(16, 2, 8)
    calls, plain = [], attention.attend
    monkeypatch.setattr(attention, "attend", lambda *each: calls.append(len(each[0][0])) or plain(*each))

    def project(caption):
        return caption.unflatten(1, (2, 8)), caption.flip(1).unflatten(1, (2, 8))

    def expect(seen):
        return [
            plain(*(x.unsqueeze(0) for x in (own, *pair)))[0] for own, pair in zip(query.split(4), seen, strict=True)
        ]

    packed = PackedSegments(segments, cache, text)
    video = packed.attend_video(0, query, key, value)
    stored = (torch.cat([old, new[:8]]) for old, new in zip(cache.read(0, 0, None, 0), (key, value), strict=True))
    (keys, values), own = stored, list(zip(key.split(4), value.split(4), strict=True))
    assert torch.equal(video, torch.cat(expect([(keys[:8], values[:8]), (keys[4:], values[4:]), *own[2:]])))
    assert calls == [4, 4, 4, 4]
    calls.clear()
    words = packed.attend_text(0, query, project)
    assert torch.allclose(words, torch.cat(expect([project(text.captions[i]) for i in captions])), atol=1e-6)
    assert calls == [8, 4, 4]


STEPS = 4

#: Calls for which the host waits for a device: to get a value or the size of a result.
WAITING = {"item", "tolist", "numpy", "cpu", "equal", "allclose", "is_nonzero"}
WAITING |= {"__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "unique"}


class EveryOther(ReusePolicy):
    """Reuses each chunk at every other of its steps; reads the indicators, but not on the host."""

    needs_indicator = True

    def decide(self, step, num_steps, live, indicators):
        assert all(indicators[chunk].isfinite().all().ndim == 0 for chunk in live)
        return {chunk: Decision(reuse=local_step % 2 == 1) for chunk, local_step in live.items()}


class Waits(TorchFunctionMode):
    """Names of the calls that wait."""

    names: tuple[str, ...] = ()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        masked = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
        if name in WAITING or masked:
            self.names += (name,)
        if name == "tolist" and args[0].is_meta:
            return [0.0] * len(args[0])
        return function(*args, **(kwargs or {}))

    def take(self) -> tuple[str, ...]:
        names, self.names = self.names, ()
        return names


@pytest.mark.parametrize(
    ("policy", "forecast", "distilled", "most"),
    [
        (EveryOther(), "hold_displacement", True, 0),
        (EveryOther(), "linear_residual", True, 0),
        (EveryOther(), "linear_velocity", False, 0),
        (TeaCache(threshold=0.3, warmup_steps=1), "hold_velocity", True, 1),
        (ChunkwiseReuse(threshold=0.3, warmup_steps=1), "hold_velocity", True, 1),
    ],
)
def test_a_step_waits_for_the_decision_alone(policy, forecast, distilled, most):
    """Three chunks behind a given one and a held frame."""
    torch.manual_seed(0)
    # Tensors of the meta device hold no values: a request for one would fail.
    device = "cpu" if most else "meta"
    window = cut_window(torch.randn(4, 8, 4, 4, device=device), 2, torch.randn(4, 3, 4, 4, device=device))
    schedule = StaircaseSchedule(len(window.chunks), STEPS, 1, window.num_given)
    guidance = None if distilled else ThreeWayGuidance([0.0, 0.3], [1.5, 1.0], [7.5, 0.0])
    model = random_model(schedule, KVRange((4, 3), 2), guidance, device=device)
    loop, steps = Denoiser(model, FlowCacheConfig(policy=policy, forecast=forecast, clean_pass=True)), []
    with Waits() as waits:
        loop.on_step = lambda: steps.append(waits.take())
        at_clean = [waits.take() for _ in loop.run(window, schedule, model.timetable)]
    assert sum(len(record.events) for record in loop.trace.steps) == 3 * STEPS
    assert max(map(len, steps)) == most
    assert {name for step in steps for name in step} <= {"tolist"}
    assert at_clean == 3 * [("tolist",)], "one check for finite latents as each chunk is handed over"


@torch.inference_mode()  # as in the pipeline; a compiler distinguishes views by their bases otherwise
def test_a_second_video_compiles_nothing():
    torch._dynamo.reset()
    graphs, sizes = [], ((2, 3, 5), (4, 2, 3))  # chunks, frames of each and tokens of the caption
    transformer = random_model(StaircaseSchedule(2, STEPS, 1), num_layers=3).transformer

    def run(seed: int, num_chunks: int, frames: int, tokens: int) -> torch.Tensor:
        torch.manual_seed(seed)
        window = cut_window(torch.randn(4, num_chunks * frames, 4, 4), frames)
        schedule, table = StaircaseSchedule(num_chunks, STEPS, 1), Timetable(STEPS, distilled=True)
        captions = make_captions(torch.randn(tokens, 16), transformer.caption_embed.null_caption, num_chunks)
        model = MagiChunkModel(transformer, captions, (4, 4), Sampling(table, DistilledGuidance(), schedule))
        return denoised(Denoiser(model, FlowCacheConfig(policy=EveryOther())), window, schedule, table)

    expected = [run(seed, *each) for seed, each in enumerate(sizes)]
    transformer.compile_repeated_blocks(backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    assert torch.equal(run(0, *sizes[0]), expected[0])
    # One before attention and one after it; a second of these where sizes of the first call happen to be equal.
    assert len(graphs) in (2, 3)
    count = len(graphs)
    assert torch.equal(run(1, *sizes[1]), expected[1])
    assert len(graphs) == count
