"""The transformer, its schedule, sampling and the autoencoder against tensors and tables of the original code."""

import ast
import re
from collections.abc import Callable
from itertools import accumulate, count, islice

import pytest
import torch
from cases import chunk_model, guidance_of, load_transformer, magi_case, pick_known, relative_error
from random_model import denoised
from reference import Case, case_names
from safetensors.torch import load_file
from torch import Tensor

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, Trace, cut_window
from flowcache.kv.cache import CacheLayout, ChunkKVCache
from flowcache.kv.scorers import ScoreInput
from flowcache.kv.selection import TokenSelector
from flowcache.methods import MethodOptions
from magi1.attention import PackedSegments, Segment, TextBank
from magi1.chunk_model import KVRange
from magi1.guidance import Branch, DistilledGuidance, ThreeWayGuidance
from magi1.layers import rotary_table
from magi1.methods import TRAITS, method_config
from magi1.schedule import Timetable
from magi1.vae import AutoencoderKLMagi, Tiling

RELATIVE = 1e-4


class Replay:
    """One recorded call: its chunks, each in the branches that it ran in, against the cache before it."""

    def __init__(self, case: Case) -> None:
        self.case, self.tensors, call = case, case.tensors, case.info["call"]
        self.flags = ast.literal_eval(call.split("**")[1].rstrip(")"))
        self.width, self.first = self.flags["chunk_width"], self.flags["slice_point"]
        self.extra, self.length = self.flags["fwd_extra_1st_chunk"], case.info["tokens_per_chunk"]
        self.x, self.times = self.tensors["x"][0], self.tensors["t"][0].tolist()
        self.count = len(self.times)
        self.transformer, self.guidance = load_transformer(case), DistilledGuidance(threshold=None)
        if "forward_dispatcher" in call:
            self.guidance = guidance_of(case, self.flags.get("distill_nearly_clean_chunk", False))
        self.cache = self._make_cache()

    def run(self) -> tuple[Tensor, Tensor]:
        """Velocity of the whole call, and the condition of each segment."""
        jobs = [(i, branch) for i in range(self.count) for branch in self._branches(i)]
        tokens = self.transformer.embed(self.x).split(self.length)
        starts = [(self.first + i) * self.width for i, _ in jobs]
        times = torch.cat([torch.arange(start, start + self.width) for start in starts])
        y, mask = self.tensors["y"][:, 0], self.tensors["xattn_mask"][:, 0].bool()
        texts = [self.transformer.caption_embed(row[shown]) for row, shown in zip(y, mask, strict=True)]
        segments = [
            Segment(
                chunk=self.first + i,
                length=self.length,
                text=i if branch.text else self.count + i,
                slot=branch.slot,
                first_chunk=self.tensors["kv_range"][i, 0].item() // self.length,
            )
            for i, branch in jobs
        ]
        condition = self.transformer.condition(
            torch.tensor([self.times[i] for i, _ in jobs]),
            [branch.text and "[True]" not in self.case.info["call"] for _, branch in jobs],
            self._step_sizes(len(jobs)),
        )
        hidden = self.transformer(
            torch.cat([tokens[i] for i, _ in jobs]),
            condition,
            self.transformer.rotary(times, *self.x.shape[2:]),
            PackedSegments(segments, self.cache, TextBank(texts)),
        )
        size = (self.width, *self.x.shape[2:])
        heads = [self.transformer.head(part, *size) for part in hidden.split(self.length)]
        velocities = []
        for i, known in enumerate(self.x.split(self.width, dim=1)):
            own = torch.stack([h for h, (j, _) in zip(heads, jobs, strict=True) if j == i])
            # The original hands a clean chunk's latents on in place of a velocity.
            passes = i == 0 and self.extra and isinstance(self.guidance, ThreeWayGuidance)
            velocities.append(known if passes else self.guidance.mix(self.times[i], own))
        return torch.cat(velocities, dim=1), condition

    def _branches(self, i: int) -> list[Branch]:
        # The original's flag says by itself that the oldest chunk, the extra one aside, is nearly clean.
        branches = self.guidance.branches(1.0, oldest=i == int(self.extra))
        return [b for b in branches if b.slot is not None or not (i == 0 and self.extra)]

    def _step_sizes(self, count: int) -> Tensor | None:
        if not self.case.info["config"]["engine_config"]["distill"]:
            return None
        steps = self.flags["num_steps"]
        is_first = self.flags["distill_interval"] == 2 or steps != 12
        return torch.full((count,), Timetable(steps, distilled=True).step_size(0 if is_first else 1))

    def _make_cache(self) -> ChunkKVCache:
        config, slots, total = self.transformer.config, self.guidance.num_slots, self.first + self.count
        layout = CacheLayout(config.num_layers, slots, config.num_query_groups, config.kv_channels)
        cache = ChunkKVCache(layout, total * self.length)
        for chunk in range(total):
            cache.enter(chunk, self.length)
        if not self.first:
            return cache
        short = re.search(r"(?:cache of|of dit_forward_)\s*([a-z]\d)", self.case.info["note"])[1]
        (before,) = (n for n in case_names("dit_forward_", "magi1") if n.startswith(f"dit_forward_{short}_"))
        for layer in range(config.num_layers):
            stored = magi_case(before).tensors[f"kv_cache_layer{layer}"].split(self.length)[: self.first]
            for chunk, part in enumerate(stored):
                for slot in range(slots):
                    cache.write(layer, chunk, *part.chunk(2, dim=-1), slot)
        return cache


@pytest.mark.parametrize("name", case_names("dit_forward_", "magi1"))
def test_forward(name):
    case = magi_case(name)
    replay = Replay(case)
    velocity, condition = replay.run()
    assert relative_error(velocity, case.tensors["out"][0]) < RELATIVE
    if "forward_dispatcher" not in case.info["call"]:
        assert relative_error(condition, case.tensors["condition"][0]) < RELATIVE
    for layer in range(replay.transformer.config.num_layers):
        expected = case.tensors.get(f"kv_cache_layer{layer}")
        if expected is not None:
            actual = torch.cat([part[-1] for part in replay.cache.read(layer)], dim=-1)
            assert relative_error(actual, expected[: len(actual)]) < RELATIVE


def test_units():
    case = magi_case("dit_units")
    tensors, transformer = case.tensors, load_transformer(case)
    assert relative_error(transformer.time_embed.sinusoids(tensors["t"]), tensors["sinusoid"]) < 1e-3
    for name, table in tensors.items():
        if name.startswith("rope_"):
            frames, height, width = map(int, name.split("_")[1:])
            rotary = rotary_table(transformer.rotary_bands, torch.arange(frames), height, width).flatten(0, 2)
            cos, sin = rotary.chunk(2, dim=-1)
            assert relative_error(torch.cat([sin, cos], dim=-1), table) < RELATIVE


@pytest.fixture(scope="module")
def tables():
    return magi_case("schedule").info


def test_times(tables):
    for entry in tables["init_t"]:
        if entry["t_schedule_config"]:
            continue  # other curves, which no configuration file can ask for
        table = Timetable(entry["num_steps"], entry["shortcut_mode"] or "8,16,16")
        assert table.times == pytest.approx(entry["t"], abs=1e-7)
        first = next(step for step in range(entry["num_steps"] + 1) if table.timestep(step) > 0.3)
        assert first == entry["first_index_above_threshold_0_3"]


def test_step_sizes(tables):
    for entry in tables["init_intervel"]:
        if (steps := entry["num_steps"]) % 4:
            continue
        table = Timetable(steps, entry["shortcut_mode"] or "8,16,16", distilled=True)
        for step, interval in enumerate(entry["interval"]):
            assert table.step_size(step) == (2 * 4 / interval if steps == 12 else 2 * steps / 4)


def test_staircase(tables):
    for entry in tables["get_timestep"]:
        steps, window = entry["num_steps"], entry["window_size"]
        table = Timetable(steps, entry["shortcut_mode"] or "8,16,16")
        schedule = StaircaseSchedule(entry["chunk_num"], steps, steps // window, entry["chunk_offset"])
        for row, live in zip(entry["rows"], schedule, strict=True):
            assert list(live) == list(range(*row["chunks"]))
            times = row["t"][-len(live) :]  # behind that of a clean chunk that runs once more
            assert [table.timestep(k) for k in live.values()] == pytest.approx(times, abs=1e-7)


def test_ranges(tables):
    for entry in tables["kv_range"]:
        ranges = KVRange(tuple(entry["noise2clean_kvrange"]), entry["clean_chunk_kvrange"])
        tokens = entry["tokens_per_chunk"]
        for call in entry["denoise"]:
            seen = zip(call["denoise_step_of_each_chunk"], call["kv_range"], strict=False)
            for local_step, (start, end) in seen:
                reach = ranges.reach(local_step, entry["num_steps"])
                assert start // tokens == (0 if reach is None else max(0, end // tokens - reach))


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

    def checked(selector: TokenSelector, tokens: ScoreInput) -> Tensor:
        here = list(islice(places, len(tokens.keys)))  # layers are compressed together, and have one branch
        expected = torch.stack([case.tensors[f"ev{event}_layer{layer}_indices"].T for event, layer in here])
        chosen = choose(selector, tokens)
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
    known = {TRAITS.names.get(key, key): key for key in MethodOptions.__dataclass_fields__}
    options = {known[key]: value for key, value in named.items() if key in known}
    unread = TRAITS.translate({"preset": "paper-fast", **options}).unread(TRAITS)
    cache = method_config("flowcache", "paper-fast", **{k: v for k, v in options.items() if k not in unread})
    monkeypatch.setattr(TokenSelector, "choose", checked_choose(case, TokenSelector.choose))
    latents, given, trace = denoise(case, cache, nearly_clean=not settings["discard_nearly_clean_chunk"])
    expected = case.tensors["reuse"].to(torch.int8)
    table = torch.full_like(expected, -1)
    for record in trace.steps:
        for event in record.events:
            table[record.step, event.chunk] = int(event.reused)
    assert torch.equal(table, expected)
    compressed = list(accumulate(e.chunks for record in trace.steps for e in record.compressions))
    assert compressed == [e["clean_chunk_ids"] for e in case.info.get("compression_events") or []]
    assert_latents(case, latents, given)


def load_case(name: str) -> tuple[AutoencoderKLMagi, dict[str, Tensor]]:
    case = magi_case(name)
    vae = AutoencoderKLMagi(**pick_known(AutoencoderKLMagi, case.info["config"])).eval()
    inside = {k.removeprefix("w."): v for k, v in case.tensors.items() if k.startswith("w.")}
    vae.load_state_dict(inside or load_file(case.folder / case.info["weights"]))
    return vae, case.tensors


def clips(name: str) -> list[str]:
    case = magi_case(name)
    if not (case.folder / f"{name}.json").is_file():
        return ["absent"]
    return sorted(key.removesuffix("_x") for key in case.info["tensors"] if key.endswith("_x"))


@pytest.mark.parametrize("clip", clips("vae_encode_decode"))
def test_encode_and_decode(clip):
    vae, tensors = load_case("vae_encode_decode")
    posterior = vae.encode(tensors[f"{clip}_x"]).latent_dist
    assert relative_error(posterior.parameters, tensors[f"{clip}_moments"]) < RELATIVE
    assert relative_error(posterior.mode(), tensors[f"{clip}_z"]) < RELATIVE
    assert relative_error(vae.decode(tensors[f"{clip}_z"]), tensors[f"{clip}_dec"]) < RELATIVE


@pytest.mark.parametrize("clip", clips("vae_tiling"))
def test_tiles(clip):
    (vae, tensors), tiling = load_case("vae_tiling"), magi_case("vae_tiling").info["tiling"]
    size = None if "nosp" in clip else tiling["tile_px"]
    vae.enable_tiling(Tiling(size, tiling["tile_frames"], tiling["spatial_overlap"]))
    encoded = vae.encode(tensors[f"{clip}_x"]).latent_dist.mode()
    assert relative_error(encoded, tensors[f"{clip}_z"]) < RELATIVE
    decoded, known = vae.decode(tensors[f"{clip}_z"]), tensors[f"{clip}_dec"]
    assert decoded.shape == tensors[f"{clip}_x"].shape, "no frame of the last tile is lost"
    # The original loses frames of a last tile of one latent frame.
    assert relative_error(decoded[:, :, : known.shape[2]], known) < RELATIVE


def test_variant():
    vae, tensors = load_case("vae_variant_b")
    assert relative_error(vae.encode(tensors["x"]).latent_dist.mode(), tensors["z"]) < RELATIVE
    assert relative_error(vae.decode(tensors["z"]), tensors["dec"]) < RELATIVE


def test_official_names_and_shapes():
    listed = magi_case("keys_vae_unverified").info
    config = listed["assumed_config"]
    with torch.device("meta"):
        vae = AutoencoderKLMagi(**pick_known(AutoencoderKLMagi, config.get("ddconfig", config)))
    shapes = {key: list(tensor.shape) for key, tensor in vae.state_dict().items()}
    assert shapes == {key: tensor["shape"] for key, tensor in listed["tensors"].items()}
