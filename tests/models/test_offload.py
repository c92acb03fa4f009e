"""Components that are on the device for their stage only; ``cpu:0``, where copies are new, stands for a GPU."""

import numpy as np
import pytest
import torch

from flowcache.environment import prepare_device
from flowcache.metrics.similarity import psnr
from flowcache.offload import HostWeights
from flowcache.pipeline import STAGED

SIZE = {"height": 32, "width": 32, "num_frames": 33, "num_inference_steps": 4, "output_type": "pt"}
OPTIONS = {"magi1": {}, "skyreels_v2": {"ar_step": 2, "base_num_frames": 17, "overlap_history": 5}}


@pytest.fixture(params=OPTIONS)
def run(pipelines, request):
    """The pipeline of a model, and a function that makes a video with it."""
    pipeline, image = pipelines[request.param], np.zeros((1, 32, 32, 3), np.uint8)
    yield pipeline, lambda **own: pipeline("a circle", image=image, **SIZE, **OPTIONS[request.param], **own).frames
    vars(pipeline).pop("_staged", None), vars(pipeline).pop("_stage_device", None)


@pytest.fixture
def moves(monkeypatch):
    """Names of what arrives on the device, in order."""
    names, enter = [], HostWeights.__enter__

    def watched(self):
        names.extend([] if self._users else [type(self.module).__name__])
        enter(self)

    monkeypatch.setattr(HostWeights, "__enter__", watched)
    return names


@pytest.mark.parametrize("name", ["enable_stage_offload", "enable_model_cpu_offload"])
def test_offload_changes_no_frame_and_copies_nothing_back(run, moves, name):
    pipeline, generate = run
    plain, parts = generate(), [getattr(pipeline, name) for name in STAGED]
    places = [[weight.data_ptr() for weight in part.parameters()] for part in parts]
    seen, hooks = [], []
    for part, own in zip(parts, places, strict=True):
        watched = getattr(part, "blocks", getattr(part, "decoder", part))
        watched = watched[0] if hasattr(watched, "__getitem__") else watched

        def see(*_, part=part, own=own):
            seen.append(all(p.data_ptr() != there for p, there in zip(part.parameters(), own, strict=True)))

        hooks.append(watched.register_forward_pre_hook(see))
    getattr(pipeline, name)(device="cpu:0")
    assert torch.equal(generate(), plain)
    for hook in hooks:
        hook.remove()
    assert all(seen) and len(seen) > len(parts)
    assert places == [[weight.data_ptr() for weight in part.parameters()] for part in parts]
    text_encoder, transformer, vae = (type(part).__name__ for part in parts)
    assert moves.count(text_encoder) == moves.count(transformer) == 1 < moves.count(vae)


@pytest.mark.parametrize("name", ["enable_sequential_cpu_offload", "enable_group_offload"])
def test_other_offload_is_refused(run, name):
    with pytest.raises(NotImplementedError, match="enable_stage_offload"):
        getattr(run[0], name)(torch.device("cpu"))


def test_a_failed_copy_leaves_nothing_on_the_device():
    module = torch.nn.Linear(2, 2)
    weights, moved = HostWeights(module, torch.device("meta")), module.weight.data_ptr()
    with pytest.raises(RuntimeError), weights:  # tensors do not become meta tensors
        pass
    assert module.weight.data_ptr() == moved and module.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("", set()), ("OFFLOAD_T5_CACHE", {"text_encoder"}), ("OFFLOAD_VAE_CACHE", {"vae"}), ("--offload", {*STAGED})],
)
def test_offload_of_magi(magi, monkeypatch, words, expected):
    for name in words.split() if words.isupper() else ():
        monkeypatch.setenv(name, "true")
    arguments = words.split() if words.startswith("--") else ()
    model = magi.prepare("--output_path", "x.mp4", *arguments).sampler.model
    assert model.offload == expected
    assert set(model.load("cpu")._staged) == expected


@pytest.mark.parametrize("model", OPTIONS)
def test_a_vae_in_bf16_costs_nothing_visible(program, tmp_path, model):
    """PSNR of a video that the small checkpoint decodes in bf16, to fp32; ``pytest -s`` shows it."""
    words, videos = ("--weights", "small", "--output_path", tmp_path / "x.mp4", "--vae_dtype"), []
    for dtype in ("fp32", "bf16"):
        pipeline = program(model).prepare(*words, dtype).sampler.model.load("cpu")
        pipeline.set_progress_bar_config(disable=True)
        given = {"height": 32, "width": 32, "num_inference_steps": 4, "output_type": "pt"}
        # CPUs without instructions for bf16 take long.
        videos.append(pipeline("a red circle grows", num_frames=13, **given).frames[0].permute(0, 2, 3, 1))
    found = psnr(*videos)[0]
    print(model, f"{found:.1f} dB")
    assert 55 < found < 100


def test_programs_choose_deterministic_convolutions(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(cudnn, "deterministic", False)
    prepare_device("cpu")
    assert (cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision()) == (False, True, "highest")


@pytest.mark.parametrize(("helpful", "offloaded"), [(["--kv_bits 8"], False), (["--offload", "--kv_bits 8"], True)])
def test_a_small_gpu_turns_offload_on(skyreels, monkeypatch, tmp_path, helpful, offloaded):
    made = []
    monkeypatch.setattr("flowcache.cli.log_needs", lambda *_: helpful)
    monkeypatch.setattr("flowcache.cli.Job.run", lambda job, _: made.append(job.sampler.model.loading.offload) or "")
    assert skyreels("--outdir", tmp_path, "--resume", "--defaults", "--prompt", "a red circle") == 0
    assert made == [offloaded]
