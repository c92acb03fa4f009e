"""Files of a user, damaged: one of them in a command line that is otherwise good."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load, save

from .command_lines import CommandLine, File, usual_line
from .documents import Damaged, damage_bytes, damage_json, damage_text, damage_yaml
from .oracle import Fault
from .programs import Outcome
from .sandbox import Sandbox

MODEL_FILES = {
    **{"model_index.json": damage_json, "scheduler/scheduler_config.json": damage_json},
    **{"transformer/config.json": damage_json, "vae/config.json": damage_json},
    **{"text_encoder/config.json": damage_json, "tokenizer/tokenizer.json": damage_json},
    **{"tokenizer/tokenizer_config.json": damage_json, "defaults.json": damage_json},
}
SKYREELS_WEIGHTS = ("transformer", "vae", "text_encoder")
MAGI_FILES = {
    **{"vae/config.json": damage_json, "t5/t5-v1_1-xxl/config.json": damage_json},
    **{"t5/t5-v1_1-xxl/tokenizer.json": damage_json, "t5/t5-v1_1-xxl/tokenizer_config.json": damage_json},
}
MAGI_WEIGHTS = (
    "magi/inference_weight.distill/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "t5/t5-v1_1-xxl/model.safetensors",
)
#: What ``defaults.json`` and a plan hold, of which the tiny models have none.
DEFAULTS = {"prompt": "a", "num_frames": 9, "fps": 24, "guidance_scale": 3.0, "shift": 8.0}
DEFAULTS |= {"height": 32, "width": 32, "causal_block_size": 2, "negative_prompt": ""}
PLANS = {"format": 1, "sampling": {}, "forecast": "linear_velocity", "steps": [[0, 2], [0, 1, 2]]}
PLANS |= {"times": [1.0, 0.75, 0.5, 0.25, 0.0], "amplification": [1.0, 1.0, 1.0, 1.0], "made": "here"}

PICTURES = ("image.png", "tall.jpg", "clear.png", "grey.png")
VIDEOS = ("in.mp4", "tall.mp4")


def draw_file_input(rng: Random, sandbox: Sandbox) -> CommandLine:
    """One of the files that the programs read, damaged."""
    return rng.choice(DRAWS)(rng, sandbox)


def _magi_configuration(rng: Random, sandbox: Sandbox) -> CommandLine:
    damaged = damage_json(rng, (sandbox.good / "magi1" / "config.json").read_bytes())
    name = rng.choice(("magi1", "magi1_samples"))
    return usual_line(
        name, "configuration", [File("mine.json", damaged, settings=True)], config_file="mine.json"
    )


def _magi_options(rng: Random, sandbox: Sandbox) -> CommandLine:
    damaged = damage_yaml(rng, (sandbox.good / "options.yaml").read_bytes())
    return usual_line(
        "magi1", "options", [File("mine.yaml", damaged, settings=True)], additional_config="mine.yaml"
    )


def _sampling_file(rng: Random, sandbox: Sandbox) -> CommandLine:
    kind = rng.choice(("vbench", "physicsiq"))
    damaged = damage_yaml(rng, (sandbox.good / f"{kind}.yaml").read_bytes())
    more = {"physicsiq_data_dir": "@/physics", "fps": "8", "vbench_prompt_dir": "@/prompts"}
    return usual_line(
        "magi1_samples",
        "sampling file",
        [File("mine.yaml", damaged, settings=True)],
        yaml_config="mine.yaml",
        **more,
    )


def _magi_model(rng: Random, sandbox: Sandbox) -> CommandLine:
    name = rng.choice(list(MAGI_FILES))
    damaged = MAGI_FILES[name](rng, (sandbox.good / "magi1" / name).read_bytes())
    return _with_magi(rng, File(f"model/{name}", damaged, "magi1", "model"), "model file")


def _with_magi(rng: Random, file: File, kind: str) -> CommandLine:
    places = {"load": "model/magi", "vae_pretrained": "model/vae", "t5_pretrained": "model/t5"}
    return usual_line("magi1", kind, [file], _depth(rng), **places)


def _depth(rng: Random) -> str:
    return rng.choice(("load", "load", "load", "run"))


def _skyreels_model(rng: Random, sandbox: Sandbox) -> CommandLine:
    name = rng.choice(list(MODEL_FILES))
    path = sandbox.good / "skyreels" / name
    good = path.read_bytes() if path.is_file() else json.dumps(DEFAULTS).encode()
    damaged = MODEL_FILES[name](rng, good)
    file = File(f"model/{name}", damaged, "skyreels", "model")
    kept = {} if name == "defaults.json" else {"height": "32"}
    return usual_line("skyreels", "model file", [file], _depth(rng), model_id="model", **kept)


def _weights(rng: Random, sandbox: Sandbox) -> CommandLine:
    """Weights with a damaged header, or with numbers that are none."""
    if rng.random() < 0.5:
        name = rng.choice(MAGI_WEIGHTS)
        damaged = _damage_weights(rng, (sandbox.good / "magi1" / name).read_bytes())
        line = _with_magi(rng, File(f"model/{name}", damaged, "magi1", "model"), "weights")
    else:
        folder = rng.choice(SKYREELS_WEIGHTS)
        (path,) = (sandbox.good / "skyreels" / folder).glob("*.safetensors")
        damaged = _damage_weights(rng, path.read_bytes())
        file = File(f"model/{folder}/{path.name}", damaged, "skyreels", "model")
        line = usual_line("skyreels", "weights", [file], _depth(rng), model_id="model")
    if damaged.what.startswith("not finite"):
        return replace(line, depth="run", also=_must_fail)
    return line


def _must_fail(outcome: Outcome) -> list[Fault]:
    return [Fault("nonsense", "a video of weights that are not finite", "")] if outcome.code == 0 else []


def _damage_weights(rng: Random, content: bytes) -> Damaged:
    if rng.random() < 0.5:
        size = int.from_bytes(content[:8], "little")
        damaged = damage_json(rng, content[8 : 8 + size])
        header = damaged.content
        length = len(header) if rng.random() < 0.8 else rng.choice((0, 1, 2**31, 2**63, size))
        whole = length.to_bytes(8, "little") + header + content[8 + size :]
        return Damaged(whole, f"header: {damaged.what}")
    if rng.random() < 0.3:
        return damage_bytes(rng, content)
    tensors = load(content)
    is_vae = any(name.startswith("decoder.") for name in tensors)
    unread = ("encoder.", "quant_conv.") if is_vae else ()  # by a run without a given image
    name = rng.choice([name for name in sorted(tensors) if not name.startswith(unread)])
    value = rng.choice((math.nan, math.inf, -math.inf))
    tensor = tensors[name]
    if not tensor.is_floating_point():
        return damage_bytes(rng, content)
    kind = rng.choice(("value", "value", "integers", "shape"))
    if kind == "integers":
        tensors[name] = tensor.to(torch.int32)
    elif kind == "shape":
        tensors[name] = tensor.unsqueeze(0).contiguous()
    else:
        tensors[name] = torch.full_like(tensor, value)
    what = {"value": f"not finite: {name} = {value}"}.get(kind, f"{name}: {kind}")
    return Damaged(save(tensors, {"format": "pt"}), what)


def _plan(rng: Random, sandbox: Sandbox) -> CommandLine:
    sampling = {"steps": 4, "stride": 1, "shift": 8.0, "guidance": 6.0}
    name = "plans/steps4_stride1_shift8_guidance6.json"
    damaged = damage_json(rng, json.dumps(PLANS | {"sampling": sampling}).encode())
    file = File(f"model/{name}", damaged, "skyreels", "model")
    return usual_line("skyreels", "plan", [file], model_id="model", plan="0.5")


def _profile(rng: Random, sandbox: Sandbox) -> CommandLine:
    name = rng.choice(("skyreels", "magi1"))
    damaged = damage_json(rng, (sandbox.good / f"{name}_profile.json").read_bytes())
    file = File("mine.json", damaged)
    typed = {**TARGETED[name], "profile": "mine.json"}
    return usual_line(name, "profile", [file], **typed)


#: Options of the runs that made the good profiles.
TARGETED = {
    "skyreels": {"target_speedup": "1.2", "inference_steps": "6"},
    "magi1": {"target_speedup": "1.2"},
}


def _prompts(rng: Random, sandbox: Sandbox) -> CommandLine:
    name = rng.choice(("magi1_samples", "skyreels_samples"))
    if rng.random() < 0.5:
        damaged = damage_json(rng, (sandbox.good / "full_info/VBench_full_info.json").read_bytes())
        file = File("lists/VBench_full_info.json", damaged)
    else:
        lines = rng.choice(
            ("a/b", "../x", ".hidden", "x" * 300, "é" * 200, "a\0b", "", "a\na", "中", "-", "\ufeffa")
        )
        damaged = damage_text(rng, f"{lines}\na circle\n".encode())
        if rng.random() < 0.5:
            damaged = Damaged(f"{lines}\na circle\n".encode(), f"first line {lines[:20]!r}")
        file = File("lists/scene.txt", damaged)
    depth = "run" if rng.random() < 0.1 else "check"
    return usual_line(name, "prompts", [file], depth, vbench_prompt_dir="lists", end="1")


def _physics(rng: Random, sandbox: Sandbox) -> CommandLine:
    damaged = damage_text(rng, (sandbox.good / "physics" / "descriptions.csv").read_bytes())
    file = File("mine.csv", damaged)
    typed = {"benchmark": "physicsiq", "physicsiq_data_dir": "@/physics", "descriptions_file": "mine.csv"}
    return usual_line(
        "skyreels_samples", "descriptions", [file], **typed, overlap_history="5", num_frames=None
    )


def _run_folder(rng: Random, sandbox: Sandbox) -> CommandLine:
    """A run's folder with one of its files damaged, read for tables, pictures or by more sampling."""
    run = sandbox.good / "run"
    names = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.suffix in (".json", ".jsonl"))
    name = rng.choice(names)
    content = (run / name).read_bytes()
    damage = damage_json if name.endswith(".json") else _damage_lines
    file = File(f"ran/{name}", damage(rng, content), "run", "ran")
    depth = "run" if rng.random() < 0.15 else "check"
    return usual_line(rng.choice(("tables", "plot")), "run folder", [file], depth, run_dir="ran")


def _damage_lines(rng: Random, content: bytes) -> Damaged:
    lines = content.splitlines()
    index = rng.randrange(len(lines))
    damaged = damage_json(rng, lines[index])
    lines[index] = damaged.content
    return Damaged(b"\n".join(lines) + b"\n", f"line {index}: {damaged.what}")


def _sampled_folder(rng: Random, sandbox: Sandbox) -> CommandLine:
    """A folder that sampling has filled, continued after damage."""
    name = rng.choice(("skyreels", "magi1"))
    folder = sandbox.good / f"{name}_sampled"
    names = ("manifest.jsonl", "settings.json")
    chosen = rng.choice(names)
    damage = damage_json if chosen == "settings.json" else _damage_lines
    damaged = damage(rng, (folder / chosen).read_bytes())
    file = File(f"out/{chosen}", damaged, folder.name, "out")
    return usual_line(f"{name}_samples", "sampled folder", [file], base_save_path="out")


def _picture(rng: Random, sandbox: Sandbox) -> CommandLine:
    name = rng.choice(PICTURES)
    damaged = damage_bytes(rng, (sandbox.good / name).read_bytes())
    path = rng.choice((name, name, "mine.svg", "mine.avif", "mine.dds", "mine"))
    file = File(path, damaged._replace(what=f"{name}, {damaged.what}"))
    if rng.random() < 0.5:
        return usual_line("magi1", "picture", [file], mode="i2v", image_path=path)
    more = {"end_image": path, "image": "@/image.png"} if rng.random() < 0.3 else {"image": path}
    return usual_line("skyreels", "picture", [file], **more)


def _video(rng: Random, sandbox: Sandbox) -> CommandLine:
    name = rng.choice(VIDEOS)
    damaged = damage_bytes(rng, (sandbox.good / name).read_bytes())
    path = rng.choice((name, name, "mine.avi", "mine"))
    file = File(path, damaged._replace(what=f"{name}, {damaged.what}"))
    kind = rng.randrange(3)
    if kind == 0:
        return usual_line("magi1", "video", [file], mode="v2v", prefix_video_path=path)
    if kind == 1:
        return usual_line("skyreels", "video", [file], video_path=path, overlap_history="5")
    return usual_line("metrics", "video", [file], "run", original_video=f"@/{name}", generated_video=path)


def _scored(rng: Random, sandbox: Sandbox) -> CommandLine:
    """Videos of Physics-IQ, one of them damaged."""
    (path,) = (sandbox.good / "continued").iterdir()
    damaged = damage_bytes(rng, path.read_bytes())
    file = File(f"videos/{path.name}", damaged)
    return usual_line("physics_iq", "scored video", [file], "run", generated_videos="videos")


def _special_tokens(rng: Random, sandbox: Sandbox) -> CommandLine:
    damaged = damage_bytes(rng, (sandbox.good / "tokens.npz").read_bytes())
    line = usual_line("magi1", "special tokens", [File("mine.npz", damaged)], special_tokens="mine.npz")
    return replace(line, environment={"PAD_HQ": "1"})


def _resumed(rng: Random, sandbox: Sandbox) -> CommandLine:
    """A run that was stopped, continued after one of its files was damaged."""
    name = rng.choice(("skyreels", "magi1"))
    folder = sandbox.good / f"{name}_stopped"
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".pt", ".jsonl", ".mp4"))
    path = rng.choice(paths)
    damaged = (damage_bytes if path.suffix != ".jsonl" else damage_text)(rng, path.read_bytes())
    file = File(
        f"outputs/{path.relative_to(folder / 'outputs')}", damaged, f"{folder.name}/outputs", "outputs"
    )
    line = usual_line(name, "resumed run", [file], "run", **STOPPED[name], resume=[])
    whole = (sandbox.good / f"{name}_whole.mp4").read_bytes()

    def same(outcome: Outcome) -> list[Fault]:
        if outcome.code != 0:
            return []
        (video,) = (p for p in Path("outputs").rglob("*.mp4") if ".part." not in p.name)
        if video.read_bytes() == whole:
            return []
        return [Fault("nonsense", "a resumed run made another video", str(video))]

    return replace(line, also=same)


#: Options of the runs that were stopped.
STOPPED = {"skyreels": {"num_frames": "17"}, "magi1": {}}


DRAWS = (
    *(_magi_configuration, _magi_configuration, _magi_options, _sampling_file, _magi_model, _skyreels_model),
    *(_skyreels_model, _weights, _plan, _profile, _prompts, _physics, _run_folder, _run_folder),
    *(_sampled_folder, _picture, _video, _scored, _special_tokens, _resumed),
)
