"""Scores and selection: against the originals, against their plain formulas, and in bounded memory."""

import math
from dataclasses import replace

import pytest
import torch
from reference import Case, reference_dir
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowcache.kv.compactors import COMPACTORS, Matched, Retimed, Select, matched
from flowcache.kv.config import KVCompressionConfig
from flowcache.kv.original import OriginalCompression, weight_by_place
from flowcache.kv.scorers import SCORERS, Importance, Paper, Redundancy, ScoreInput, attention
from flowcache.kv.scorers import importance as streamed
from flowcache.kv.scorers.spread import move_peak
from flowcache.kv.scorers.static_dynamic import similarity_to_next
from flowcache.kv.selection import TokenSelector, group_means, select


def tokens_of(keys, queries, values=None, chunk=1) -> ScoreInput:
    ages = torch.arange(len(keys)).flip(0).expand(keys.shape[1], -1)
    values, budget = keys if values is None else values, len(keys) // 2
    return ScoreInput(keys, values, queries, ages, chunk, budget, retime=turn)


def turn(keys, frames):
    """Turn the first two channels by a radian a frame."""
    first, second = keys[..., 0], keys[..., 1]
    turned = first * frames.cos() - second * frames.sin(), first * frames.sin() + second * frames.cos()
    return torch.cat([torch.stack(turned, dim=-1), keys[..., 2:]], dim=-1)


def random_tokens(count=300, heads=4, kv_heads=2, queries=70, dim=16, seed=0) -> ScoreInput:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(count, kv_heads, dim, generator=generator)
    return tokens_of(keys, torch.randn(queries, heads, dim, generator=generator), chunk=100)


def test_original_on_skyreels():
    case = Case(reference_dir() / "skyreels_v2", "compress_unit")
    for entry in case.info["cases"]:
        tensors, name = case.tensors, f"c{entry['case']}"
        tokens = tokens_of(tensors[f"{name}_k"], tensors[f"{name}_q"])
        mass, scores = streamed.attention_mass(tokens.queries, tokens.keys), Paper().score(tokens)
        found = {"attn_mean": mass, "attn_pooled": Importance().score(tokens), "score": scores}
        for key, value in {**found, "redundancy": -Redundancy().score(tokens)}.items():
            assert torch.allclose(value, tensors[f"{name}_{key}"], atol=1e-6), f"{name}_{key}"
        kept, expected = select(scores, entry["budget"]), tensors[f"{name}_kept"].long()
        assert torch.equal(kept.sort().values, expected.sort().values), name
        if entry["order_gap"] > 1e-6:
            assert torch.equal(kept, expected), name


def test_original_on_magi():
    case = Case(reference_dir() / "magi1", "kvcompress_unit")
    for entry in case.info["cases"]:
        tensors = case.tensors
        kind, strategy, granularity, rest = entry["name"].split("_", 3)
        weighting, power = rest.rsplit("_p", 1)
        frame, chunk = entry["H"] * entry["W"], entry["T"] * entry["H"] * entry["W"]
        shown = {"token": 50, "frame": frame, "chunk": chunk}[granularity]
        tokens = tokens_of(tensors[f"{kind}_key"], tensors[f"{kind}_query"][-shown:], chunk=chunk)
        assert torch.allclose(-Redundancy().score(tokens), tensors[f"{kind}_similarity"], atol=1e-6)
        scores = Paper(mix_lambda=entry["mix_lambda"], pool=entry["kernel_size"]).score(tokens)
        group = {"token": 1, "frame": frame, "chunk": chunk}[strategy]
        if group == 1:
            scores = weight_by_place(scores - scores.amin(dim=1, keepdim=True), weighting, float(power), chunk)
        shaped = scores if group == 1 else group_means(scores, group)
        assert torch.allclose(shaped, tensors[f"{entry['name']}_score"], atol=1e-6, rtol=1e-5), entry["name"]
        kept = select(scores, entry["budget"], group)
        assert torch.equal(kept.sort().values, tensors[f"{entry['name']}_indices"].T.sort().values), entry["name"]


class Watch(TorchDispatchMode):
    """Notes the largest tensor, and the types of all matrix products: left factor and product."""

    def __init__(self):
        super().__init__()
        self.largest, self.types = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(tensor.numel() for tensor in tree_leaves(out) if torch.is_tensor(tensor))])
        if func.overloadpacket is torch.ops.aten.bmm:
            self.types.add((args[0].dtype, out.dtype))
        return out


@pytest.mark.parametrize("blocks", [(256, 2048), (7, 11), (1000, 1)])
def test_streamed_attention_equals_its_definition(monkeypatch, blocks):
    monkeypatch.setattr(streamed, "QUERY_BLOCK", blocks[0])
    monkeypatch.setattr(streamed, "KEY_BLOCK", blocks[1])
    monkeypatch.setattr(attention, "KEY_BLOCK", blocks[1])
    tokens = random_tokens()
    groups = tokens.queries.shape[1] // tokens.keys.shape[1]
    keys = tokens.keys.double().repeat_interleave(groups, dim=1)
    logits = torch.einsum("nhd,thd->hnt", tokens.queries.double(), keys) / math.sqrt(keys.shape[-1])
    expected = logits.unflatten(0, (-1, groups)).amax(dim=1).softmax(dim=-1).mean(dim=1)
    assert torch.allclose(
        streamed.attention_mass(tokens.queries, tokens.keys).double(), expected, rtol=1e-5, atol=1e-9
    )
    weights, values = logits.softmax(dim=-1), keys.transpose(0, 1)  # the values are the keys
    distances = (values.unsqueeze(1) - (weights @ values).unsqueeze(2)).norm(dim=-1)
    moves = (weights * distances).unflatten(0, (-1, groups)).amax(dim=(1, 2))
    found = move_peak(*replace(tokens, values=tokens.keys).attention, tokens.keys.transpose(0, 1))
    assert torch.allclose(found.double(), moves, rtol=1e-5)


def test_a_gpu_multiplies_low_precision_as_it_is():
    """No GPU is needed: fake tensors have devices, types and shapes, and no numbers."""
    with FakeTensorMode(), Watch() as products:
        queries = torch.empty(2, 4, 300, 16, dtype=torch.bfloat16, device="cuda")
        keys = torch.empty(2, 4, 16, 2500, dtype=torch.bfloat16, device="cuda")
        logits = streamed._products(queries, keys, scale=4.0)
    assert (logits.shape, logits.dtype) == ((2, 4, 300, 2500), torch.float32)
    assert products.types == {(torch.bfloat16, torch.float32)}


def test_memory_does_not_hold_queries_times_keys():
    count, heads = 12_000, 2
    tokens = random_tokens(count, heads, 1, queries=10_000, dim=8)
    with Watch() as watch:
        Paper().score(tokens)
    assert watch.largest * 100 <= heads * count * len(tokens.queries)


@pytest.mark.parametrize("name", COMPACTORS)
def test_compactors_do_not_hold_queries_times_keys(name):
    tokens = batched(random_tokens(20_000, 2, 1, queries=100, dim=8))
    kept = torch.arange(10_000).expand(1, 1, -1)
    with Watch() as watch:
        COMPACTORS[name]().compact(tokens, kept)
    assert watch.largest <= max(2 * 100 * attention.KEY_BLOCK, tokens.keys.numel())


def batched(tokens: ScoreInput) -> ScoreInput:
    return replace(tokens, **{n: getattr(tokens, n).unsqueeze(0) for n in ("keys", "values", "queries", "ages")})


def attend(tokens: ScoreInput, keys, values):
    """Log of the mass and output of attention, by their definition: ``[kv_heads, groups * n, 1 and head_dim]``."""
    queries = attention.group_queries(tokens.queries[0].double(), keys.shape[2]) / keys.shape[-1] ** 0.5
    logits = queries @ keys[0].double().permute(1, 2, 0)
    return logits.logsumexp(dim=-1, keepdim=True), logits.softmax(dim=-1) @ values[0].double().transpose(0, 1)


def test_attention_over_matched_rows_is_that_over_all(monkeypatch):
    monkeypatch.setattr(attention, "KEY_BLOCK", 64)
    tokens, kept = batched(random_tokens(queries=40)), torch.arange(0, 300, 2).expand(1, 2, -1)
    mass, outputs = attend(tokens, tokens.keys, tokens.values)
    apart = {}
    for compactor in (Select(), Matched(), Matched(mass=None, values=None)):
        own_mass, own = attend(tokens, *compactor.compact(tokens, kept))
        apart[compactor] = torch.stack([(own_mass - mass).norm(), (own - outputs).norm()])
    select, matched_rows, untouched = apart.values()
    assert (matched_rows < 0.65 * select).all() and torch.allclose(untouched, select)


@pytest.mark.parametrize(("block", "step"), [(64, 2), (2048, 2), (2048, 10)])
def test_matched_rows_are_those_of_the_plain_regressions(monkeypatch, block, step):
    """One head at a time in fp64; the shift of keys from its primal problem, all numbers of all rows at once."""
    for module in (attention, matched):
        monkeypatch.setattr(module, "KEY_BLOCK", block)
    tokens, kept = batched(random_tokens(queries=20)), torch.arange(0, 300, step).expand(1, 2, -1)
    found = Matched(mass=0.5, values=0.2).compact(tokens, kept)
    for head in range(2):
        queries = tokens.queries[0, :, 2 * head : 2 * head + 2].double().transpose(0, 1).flatten(0, 1) / 4
        every = [rows[0, :, head].double() for rows in (tokens.keys, tokens.values)]
        keys, values = (rows[::step] for rows in every)
        logits, own = queries @ every[0].T, queries @ keys.T
        missing = logits.logsumexp(dim=-1) - own.logsumexp(dim=-1)
        # A row's own shift, and one that all share and that the penalty counts a tenth as much.
        design = (own.softmax(dim=-1).unsqueeze(-1) * queries.unsqueeze(1)).flatten(1)
        design = torch.cat([design, queries * (10 / len(keys)) ** 0.5], dim=1)
        penalty = 0.5 * design.square().sum() / len(queries)
        normal = design.T @ design + penalty * torch.eye(design.shape[1])
        shifts = torch.linalg.solve(normal, design.T @ missing)
        keys = keys + shifts[: keys.numel()].view_as(keys) + shifts[keys.numel() :] * (10 / len(keys)) ** 0.5
        weights = (queries @ keys.T).softmax(dim=-1)
        normal = weights.T @ weights + 0.2 * weights.square().sum() / len(queries) * torch.eye(len(keys))
        values = values + torch.linalg.solve(
            normal, weights.T @ (logits.softmax(dim=-1) @ every[1] - weights @ values)
        )
        for part, rows in zip(found, (keys, values), strict=True):
            assert torch.allclose(part[0, :, head].double(), rows, atol=1e-4)


@pytest.mark.parametrize("name", COMPACTORS)
def test_compactors_treat_each_head_and_branch_alone(name):
    alone = [batched(random_tokens(seed=seed)) for seed in range(2)]
    fields = ("keys", "values", "queries", "ages")
    both = replace(alone[0], **{field: torch.cat([getattr(one, field) for one in alone]) for field in fields})
    kept = torch.stack([torch.randperm(300)[:100] for _ in range(4)]).view(2, 2, -1)
    found = COMPACTORS[name]().compact(both, kept)
    for branch, head in ((0, 0), (1, 0), (1, 1)):
        one = replace(
            alone[branch],
            keys=alone[branch].keys[:, :, [head]],
            values=alone[branch].values[:, :, [head]],
            queries=alone[branch].queries[:, :, 2 * head : 2 * head + 2],
        )
        expected = COMPACTORS[name]().compact(one, kept[branch, head].view(1, 1, -1))
        for part, rows in zip(found, expected, strict=True):
            assert torch.allclose(part[branch, :, head], rows[0, :, 0], atol=1e-5)


def test_retimed_keys_are_those_of_the_frames_before_the_newest_with_no_gap():
    """Two compactions, against keys with the positions that they should have: 4 tokens a frame, 30 rows kept."""
    raw, places = torch.randn(1, 72, 2, 16), torch.arange(72).expand(2, -1)
    rows, keys = places[:, :0], raw[:, :0]
    for new in (slice(60), slice(60, 72)):
        rows = torch.cat([rows, places[:, new]], dim=1)
        keys = torch.cat([keys, turn(raw[:, new], places[:, new].mT[None] // 4)], dim=1)
        tokens = replace(batched(random_tokens(1)), keys=keys, values=keys, tokens_per_frame=4)
        kept = torch.stack([torch.randperm(keys.shape[1])[:30].sort().values for _ in range(2)])
        keys, values = Retimed().compact(tokens, kept[None])
        rows = rows.gather(1, kept)
        assert torch.equal(values, Select().compact(tokens, kept[None])[1])
        for head in range(2):
            for row in range(30):
                frame = (new.stop - 1) // 4 - (29 - row) // 4
                expected = turn(raw[0, rows[head, row], head], torch.tensor(frame))
                assert torch.allclose(keys[0, row, head], expected, atol=1e-5)


def test_rows_stay_as_they_are_where_nothing_can_be_solved():
    singular = torch.stack([torch.full((3, 3), math.nan), -torch.ones(3, 3), torch.eye(3)])
    found = matched.solve(singular, torch.ones(3, 3, 1), ridge=1.0)
    assert torch.equal(found.flatten(1), torch.tensor([[0.0] * 3, [0.0] * 3, [0.5] * 3]))


def test_spread_tokens_come_from_all_over_the_past_and_are_the_same_in_all_branches():
    alone = [random_tokens(seed=seed) for seed in range(2)]
    fields = ("keys", "values", "queries", "ages")
    both = ScoreInput(*(torch.stack([getattr(one, name) for one in alone]) for name in fields), 100, 75)
    scores = SCORERS["spread"]().score(both)
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores, SCORERS["spread"]().score(both))
    kept = select(SCORERS["spread"](power=0).score(both), 75).sort().values
    assert kept.diff().unique().tolist() == [4], "every fourth of 300"
    # Where a first compression left every fourth token, each but the oldest counts for four.
    ages = torch.cat([torch.arange(499, 99, -4), torch.arange(100).flip(0)]).expand(2, 2, -1)
    both = replace(both, keys=both.keys[:, :200], values=both.values[:, :200], ages=ages, budget=100)
    kept = select(SCORERS["spread"](power=0).score(both), 100)
    assert (kept < 100).sum(dim=-1).unique().tolist() == [79], "100 * 397 / 497"


@pytest.mark.parametrize("count", [51, 100, 4000, 12150])
def test_few_of_many_queries_are_asked_all_over(count):
    selector = TokenSelector(KVCompressionConfig(query_granularity="chunk", max_queries=50), 100, count)
    places = torch.arange(float(count)).reshape(1, -1, 1, 1).expand(2, -1, -1, -1)
    asked = selector.newest(places)
    assert asked.shape == (2, 50, 1, 1) and torch.equal(asked[0], asked[1])
    gaps = asked[0].flatten().sort().values.diff()
    assert gaps.min() > 0 and gaps.max() < 3 * count / 50
    for width in (8, 10, 16, 40, 80):
        columns = (asked[0].flatten() % width).long().bincount(minlength=width)
        assert columns.max() <= 3 * max(1, 50 / width), "no column of the frame is preferred"
    assert torch.equal(selector.newest(places[:, :50]), places[:, :50])


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "spread"])
def test_scores_are_finite_and_the_same_for_branches_together_as_alone(name):
    scorer = SCORERS[name]()
    alone = [random_tokens(seed=seed) for seed in range(2)]
    fields = ("keys", "values", "queries", "ages")
    sizes = {"tokens_per_chunk": 100, "budget": 150, "tokens_per_frame": 10}
    alone = [replace(one, **sizes) for one in alone]
    both = ScoreInput(*(torch.stack([getattr(one, name) for one in alone]) for name in fields), **sizes)
    expected = torch.stack([scorer.score(one) for one in alone])
    assert (expected.shape, expected.dtype) == ((2, 2, 300), torch.float32) and expected.isfinite().all()
    assert torch.allclose(scorer.score(both), expected, rtol=1e-5, atol=1e-9)
    assert torch.equal(expected[0], scorer.score(alone[0]))


def test_controls_keep_what_they_are_named_after():
    tokens = random_tokens()
    assert select(SCORERS["recency"]().score(tokens), 3)[0].tolist() == [299, 298, 297]
    assert sorted(select(SCORERS["sink_window"](sink=0.02).score(tokens), 4)[0].tolist()) == [0, 1, 298, 299]
    norms = tokens.keys[:, 0].norm(dim=-1)
    assert select(SCORERS["key_norm"]().score(tokens), 1)[0].item() == norms.argmin()


def test_participative_keeps_what_queries_point_at_between_the_first_and_the_newest():
    tokens = replace(random_tokens(count=60), budget=32)
    scores = SCORERS["participative"](sink=0.5, recent=0.25).score(tokens)
    for head, kept in enumerate(select(scores, 32).sort().values.tolist()):
        asking = [query[own] for query in tokens.queries for own in (2 * head, 2 * head + 1)]
        points = [sum(query @ key[head] for query in asking) for key in tokens.keys]
        top = sorted(range(16, 52), key=points.__getitem__)[-8:]
        assert kept == sorted([*range(16), *top, *range(52, 60)])
    with pytest.raises(ValueError, match="recent"):
        SCORERS["participative"](sink=0.8, recent=0.3)


def static_dynamic_tokens() -> ScoreInput:
    """Six frames of 12 tokens, two a chunk; of three heads, one attends to frame 3, one to 2 and one to 0.

    At each place keys are the same in all frames, but for three of four tokens of the second segment of frame 2.
    """
    frames, frame, dim = 6, 12, 16
    keys = torch.randn(frame, 1, dim, generator=torch.Generator().manual_seed(0)).repeat(frames, 3, 1)
    keys[..., :3] = 0
    keys[2 * frame + 4 : 2 * frame + 7] *= -1
    queries = torch.zeros(5, 3, dim)
    for head, seen in enumerate((3, 2, 0)):
        keys[seen * frame : (seen + 1) * frame, head, head] = 1
        queries[:, head, head] = 40
    return replace(tokens_of(keys, queries, chunk=2 * frame), budget=32, tokens_per_frame=frame)


def test_static_heads_keep_the_newest_and_dynamic_heads_the_segments_that_change():
    scorer = SCORERS["static_dynamic"](segments=3)
    static, dynamic, first = select(scorer.score(static_dynamic_tokens()), 32).sort().values.tolist()
    assert static == [*range(12), *range(52, 72)], "it attends to the frame before the newest chunk"
    assert dynamic == [*range(12), *range(16, 20), *range(28, 32), *range(60, 72)]
    assert first == static, "of what it attends to outside the first frame, three fifths are near"
    whole = select(replace(scorer, segments=1).score(static_dynamic_tokens()), 48).sort().values[1]
    assert whole.tolist() == [*range(36), *range(60, 72)], "frames before and after the change"
    every = replace(scorer, static=0).score(static_dynamic_tokens())
    assert select(every, 32).sort().values.tolist() == [static] * 3


def test_static_and_dynamic_heads_keep_the_newest_frame_and_then_the_first_whatever_the_groups():
    tokens, chunk = static_dynamic_tokens(), 24
    scores = SCORERS["static_dynamic"]().score(tokens)
    for head in scores:
        assert set(select(head, 12).tolist()) == set(range(60, 72))
        assert set(select(head, 24).tolist()) == {*range(12), *range(60, 72)}
        assert select(head, chunk, chunk).tolist() == [*range(48, 72)]
        assert set(select(head, 2 * chunk, chunk).tolist()) == {*range(24), *range(48, 72)}


def test_a_scorer_that_needs_the_order_of_time_gets_it():
    tokens = random_tokens()
    for name, sorted_by_time in (("paper", False), ("spread", True), ("static_dynamic", True)):
        config = KVCompressionConfig(scorer=name, compactor="select", original=OriginalCompression())
        kept = TokenSelector(config, 10, 100).choose(tokens)
        assert torch.equal(kept, kept.sort().values) == sorted_by_time, name


def test_keys_are_compared_with_the_next_that_was_kept_at_their_place():
    generator = torch.Generator().manual_seed(0)
    keys, kept = torch.randn(12, 2, 4, generator=generator), torch.tensor([0, 1, 2, 5, 6, 9, 10, 11])
    ages = torch.arange(12).flip(0)[kept].expand(2, -1)
    found = similarity_to_next(keys[kept], ages, 3)
    units, nexts = torch.nn.functional.normalize(keys, dim=-1), {0: 6, 1: 10, 2: 5, 5: 11, 6: 9}
    for row, place in enumerate(kept.tolist()):
        expected = (units[place] * units[nexts[place]]).sum(-1) if place in nexts else torch.ones(2)
        assert torch.allclose(found[:, row], expected, atol=1e-6), place


def test_selection_by_groups_keeps_whole_groups():
    scores = torch.tensor([[0.0, 1, 5, 5, 2, 2, 9]])
    assert select(scores, 5, group=2).tolist() == [[2, 3, 4, 5]] and select(scores, 99).shape == (1, 7)
    with pytest.raises(ValueError, match="budget"):
        select(scores, 3, group=4)
