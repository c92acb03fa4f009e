"""``noise original``: the start of both models by the formulas of the originals, with a generator on the CPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowcache.memory import estimate
from flowcache.wan.chunk_model import WanChunkModel
from magi1.chunk_model import MagiChunkModel
from skyreels_v2 import method_config

SEED, FRAMES = 7, torch.rand(3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
SKYREELS = {"height": 32, "width": 32, "inference_steps": 3, "causal_block_size": 2, "noise": "original", "seed": SEED}


@pytest.fixture
def starts(monkeypatch):
    """Latents of each chunk as the model sees them first, by window in order of time."""
    windows: list[dict[int, Tensor]] = []

    def watch(kind: type) -> None:
        plain = kind.embed

        def embed(self, inputs):
            if not windows or self is not windows[-1]["model"]:
                windows.append({"model": self})
            fresh = {item.start_frame: item.latents.clone() for item in inputs if item.local_step == 0}
            windows[-1] = fresh | windows[-1]
            return plain(self, inputs)

        monkeypatch.setattr(kind, "embed", embed)

    watch(WanChunkModel)
    watch(MagiChunkModel)
    return lambda: [torch.cat([w[k] for k in sorted(k for k in w if k != "model")], dim=1) for w in windows]


def run(stream) -> None:
    for _ in stream:
        pass


@pytest.mark.parametrize("given", ["nothing", "an image", "an image and the last frame"])
def test_a_window_of_skyreels_starts_as_the_original(pipelines, starts, given):
    prefix, last = None if given == "nothing" else FRAMES[:, :1], FRAMES[:, 1:2] if "last" in given else None
    settings = {**SKYREELS, "num_frames": 17, "base_num_frames": 17, "prefix": prefix, "last": last}
    run(pipelines["skyreels_v2"].stream("a", cache=method_config("vanilla"), **settings))
    noise = torch.randn([4, 5, 4, 4], generator=torch.Generator().manual_seed(SEED), dtype=torch.bfloat16)
    kept = slice(0 if prefix is None else 1, 5)
    assert torch.equal(starts()[0][:, kept], noise[:, kept].float())


def test_later_windows_of_skyreels_continue_the_draws_whatever_the_condition_draws(pipelines, monkeypatch):
    drawn, plain = [], torch.randn

    def randn(shape, **options):
        drawn.append((plain(shape, **options), options["generator"]))
        return drawn[-1][0]

    monkeypatch.setattr(torch, "randn", randn)
    long = {"num_frames": 29, "base_num_frames": 17, "overlap_history": 5, "addnoise_condition": 20}
    run(pipelines["skyreels_v2"].stream("a", cache=method_config("vanilla"), **SKYREELS, **long))
    own = [noise for noise, generator in drawn if generator is drawn[0][1]]
    rest = [noise for noise, generator in drawn if generator is not drawn[0][1]]
    generator = torch.Generator().manual_seed(SEED)
    expected = [plain([4, n, 4, 4], generator=generator, dtype=torch.bfloat16) for n in (5, 5)]
    assert all(map(torch.equal, own, expected)) and len(own) == len(expected)
    assert [list(noise.shape) for noise in rest] == [[4, 2, 4, 4]] * 3, "condition noise at each row"
    assert {noise.dtype for noise in rest} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("num_frames", "prefix", "drawn"),
    [(32, 0, 8), (30, 0, 8), (24, 0, 6), (32, 1, 10), (31, 1, 8), (32, 8, 10)],  # chunks of 2 latent frames
)
def test_magi_starts_as_the_original(pipelines, starts, num_frames, prefix, drawn):
    settings = {"num_frames": num_frames, "noise": "original", "seed": SEED, "chunk_width": 2}
    settings |= {"prefix": FRAMES[:, :prefix] if prefix else None}
    run(pipelines["magi1"].stream("a", **settings))
    noise = torch.randn([1, 4, drawn, 4, 4], generator=torch.Generator().manual_seed(SEED))[0]
    (start,) = starts()
    held = -(-prefix // 4)
    first = held // 2 * 2  # whole chunks of the prefix are never at their first step
    assert torch.equal(start[:, held - first :], noise[:, held : first + start.shape[1]])


@pytest.mark.parametrize("model", ["magi1", "skyreels_v2"])
def test_the_option_decides_about_the_video(program, model):
    plain, original = (program(model).prepare("--noise", origin).sampler for origin in ("portable", "original"))
    assert (plain.model.video.noise, original.model.video.noise) == ("portable", "original")
    start = plain.model.start(None, None, None)
    changed = replace(original, device="cuda").identity("a", start)
    assert (
        len({str(identity) for identity in (plain.identity("a", start), original.identity("a", start), changed)}) == 3
    )
    needed = [estimate(each.model, each.config, start) for each in (plain, original)]
    assert needed[0].weights == needed[1].weights and needed[1].peak > 0
