"""The distillation of the small Self-Forcing checkpoint."""

import runpy
import sys

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from research.train_small import self_forcing
from research.train_small.moving_shapes import ASSETS
from research.train_small.self_forcing import CHUNK, CausalModel


@pytest.fixture(scope="module")
def model():
    return CausalModel(self_forcing.load_transformer(self_forcing.BASE / "transformer"))


@pytest.fixture(scope="module")
def text():
    return self_forcing.Captions().embed(["a red circle moves right over a dark background"])


@pytest.fixture
def run(monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["self_forcing", *map(str, words)])
        monkeypatch.delitem(sys.modules, "research.train_small.self_forcing", raising=False)
        runpy.run_module("research.train_small.self_forcing", run_name="__main__")

    return run


def _latents(seed, chunks=3):
    return torch.randn(1, 16, CHUNK * chunks, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_all_chunks_in_one_call_see_what_each_sees_behind_kept_ones(model, text):
    clean, noisy, levels = _latents(0), _latents(1), torch.full((1, 3 * CHUNK), 0.7)
    together = self_forcing.force(model, clean, noisy, levels, text)
    model.clear()
    for frames in torch.arange(3 * CHUNK).split(CHUNK):
        alone = model.velocity(noisy[:, :, frames], levels[:, frames], text, frames)
        assert torch.allclose(alone, together[:, :, frames], atol=2e-5)
        model.keep(clean[:, :, frames], text, frames)
    model.clear()


@torch.no_grad()
def test_kept_frames_are_those_of_the_window(model, text):
    model.clear()
    for frames in torch.arange(24).split(CHUNK):
        model.keep(_latents(0, 1), text, frames)
    kept = model._attention[0].kept[0]
    assert kept.shape[2] == (self_forcing.WINDOW - CHUNK) * 16
    model.clear()


@torch.no_grad()
def test_path_passes_the_times_of_few_steps(model, text):
    model.clear()
    noise = _latents(0, 1)
    path = self_forcing.follow(model, noise, text, torch.arange(CHUNK), 4, 1.0)
    assert path.shape == (1, 5, *noise.shape[1:]) and torch.equal(path[:, 0], noise)
    velocity = model.velocity(noise, torch.ones(1, CHUNK), text, torch.arange(CHUNK))
    expected = noise + (self_forcing.FEW_STEPS[1] - 1) * velocity
    assert torch.allclose(path[:, 1], expected, atol=1e-6)


def test_stages_end_in_a_transformer_of_wan(run, tmp_path):
    data, out = tmp_path / "data", tmp_path / "student"
    run("clips", "--out", data, "--count", 1, "--batch", 1)
    for chunks in (1, 2):
        run("paths", "--out", data, "--count", 1, "--batch", 1, "--chunks", chunks, "--steps", 4, 4)
    run("train", "--data", data, "--out", out, "--batch", 1, "--minutes", 0.01)
    trained = WanTransformer3DModel.from_pretrained(out / "transformer")
    start = self_forcing.load_transformer(self_forcing.BASE / "transformer")
    assert trained.state_dict().keys() == start.state_dict().keys() and trained.config.num_layers == 6


@torch.no_grad()
def test_shipped_student_draws_the_caption(text):
    folder = ASSETS / "self_forcing_small"
    student = CausalModel(self_forcing.load_transformer(folder / "transformer"))
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    torch.manual_seed(0)
    for frames in torch.arange(2 * CHUNK).split(CHUNK):
        latents = self_forcing.sample(student, torch.randn(1, 16, CHUNK, 8, 8), text, frames, self_forcing.FEW_STEPS)
        student.keep(latents, text, frames)
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    red, green, blue = vae.decode(latents * std + mean).sample[0, :, -1]
    shape = (red > 0.4) & (green < 0) & (blue < 0)
    background = torch.stack((red, green, blue)).amax(0) < -0.5
    # a circle of radius 0.24 to 0.29 covers 18 to 26 %
    assert 0.1 < shape.float().mean() < 0.35 and background.float().mean() > 0.5
