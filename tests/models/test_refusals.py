"""Bad input of the programs is refused in one line, before weights are read."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import assert_refused, cases
from reference import FAULTS, ROOT

#: A list of lists of the same lists: small to write, endless to show.
BOMB = f"[&a0 [1, 1], {', '.join(f'&a{i + 1} [*a{i}, *a{i}, *a{i}]' for i in range(60))}]"
VIDEO, TEXT = FAULTS / "vfr.mp4", ROOT / "pyproject.toml"

#: Words of the error, and arguments; NAME=VALUE is a variable, "KEY: VALUE" the content of a YAML file.
BAD = {
    ("magi1", "generate"): f"""
rel_l1_tresh rel_l1_thresh?: --rel_l1_tresh 0.1
num_steps multiple: --num_steps=10
num_steps whole: --num_steps many
cfg_number 3: --distill false --cfg_number 1
window_size: --window_size 3
noise2clean_kvrange: --noise2clean_kvrange "[1, 2, 3]"
noise2clean_kvrange: --noise2clean_kvrange "[[1]]"
text_scales: --distill false --cfg_number 3 --text_scales "[1]"
seed: --seed 1e400
noise portable original: --noise device
clean_chunk_kvrange: --clean_chunk_kvrange 0
t5_device cuda cpu: --t5_device tpu
num_query_groups: --num_query_groups 5
kv_channels: --kv_channels 20
caption_max_length: --caption_max_length 1
hidden_size: --hidden_size 1
distill: --distill_nearly_clean_chunk_threshold 1e4
rel_l1_thresh least: --rel_l1_thresh -1
rel_l1_thresh interval: --rel_l1_thresh 0.1 --interval 3
interval effect rel_l1_thresh: --interval 2 --method teacache
rel_l1_thresh effect vanilla: --rel_l1_thresh=0.1 --method vanilla
preset effect interval: --compress_kv_cache true --preset quality --interval 3
total_cache_chunk_nums effect compress_kv_cache: --total_cache_chunk_nums 6
score_weighting_method effect: --compress --compress_strategy frame --score_weighting_method gaussian
scorer: --compress_kv_cache true --scorer sink_window --scorer_option sinks=1
text_scales effect cfg_number: --text_scales "[0, 0, 0, 0, 0]"
shortcut_mode effect num_steps: --shortcut_mode 16,16,8
video_size_h 16: --video_size_h 40
video_size_w 16384: --video_size_w 160000
device: --device mps
output_path folder: --output_path .
output_path .mp4: --output_path a.avi
output_path written: --output_path /proc/nowhere/a.mp4
output_path: --output_path {"x" * 300}.mp4
num_frames most: --num_frames {10**15}
num_frames height width: --num_frames {10**6} --video_size_h {2**14} --video_size_w {2**14}
fps: --fps 1/0
bomb.yaml: --additional_config bomb.yaml
deep.json JSON: --config_file deep.json
/dev/zero YAML: --additional_config /dev/zero
config_file: --config_file ~nosuch_user/a.json
load folder: --load ""
load folder: --load {TEXT}
null_caption_embedding: --caption_channels 32
params_dtype: --params_dtype torch.foo
t_patch_size: --t_patch_size 2
cfg_t_range rise: --distill false --cfg_number 3 --cfg_t_range "[0.0, 0.3, 0.1, 0.5, 0.999]"
total_cache_chunk_nums window_size: --compress_kv_cache true --total_cache_chunk_nums 4
nothing.json read: --config_file nothing.json
i2v image_path: --mode i2v
t2v image_path: --mode t2v --image_path first.png
image_path exist: --mode i2v --image_path a.png
prefix_video_path: --mode v2v --prefix_video_path {FAULTS / "timestamps.avi"}
num_steps argument: --num_steps --fps 3
prompt empty: --prompt " "
prompt prompt_schedule: --prompt_schedule "0: a"
prompt_switch prompt_schedule: --prompt_switch keep
prompt: --prompt "一只猫在跑。"
prompt: --prompt https://example.com/a.png
prompt: --prompt {"a." * 10_000}
inference_weight.fp8.distill: --fp8_quant true
target_psnr rel_l1_thresh: --target_psnr 30 --rel_l1_thresh 0.1
target_speedup flowcache: --target_speedup 3 --method teacache
special_tokens: --model small --special_tokens special.npz
prev_chunks_scale: prev_chunks_scale=1e38
prev_chunks_scale: prev_chunks_scale=much
cp_size 2 1: RANK=1 WORLD_SIZE=2
cp_size 1 8 torchrun: --cp_size 8
pp_size cp_size 8: --pp_size 2 --cp_size 4
distributed_backend nccl: --distributed_backend mpi
device several: --cp_size 2 --device cuda:1 RANK=1 WORLD_SIZE=2
8 processes heads: --cp_size 8 RANK=0 WORLD_SIZE=8
SPECIAL_TOKEN_PATH: PAD_HQ=1
""",
    ("skyreels_v2", "generate"): f"""
model_id: --model_id Skywork/Nothing
model_id: --model_id {"x" * 300}
resolution: --resolution 1080P
num_frames: --num_frames 98
overlap_history: --num_frames 177
overlap_history less: --num_frames 177 --overlap_history 97
overlap_history windows: --overlap_history 5
addnoise_condition image: --addnoise_condition 20
teacache_thresh causal: --teacache_thresh 0.1 --method causal
policy chunkwise nonsense threshold: --policy chunkwise --policy_option nonsense=1
image missing.png: --image missing.png
video_path overlap_history: --video_path {VIDEO}
video_path read: --video_path {TEXT} --overlap_history 17
video_path: --video_path {FAULTS / "timestamps.avi"} --overlap_history 5
end_image image: --end_image missing.png
device cuda: --device cuda
shift most: --shift 1e9
--teacash --teacache?: --teacash
teacache causal: --teacache --method causal
use_usp torchrun: --use_usp
cfg_size use_usp: --cfg_size 2
--prompt_enhance longer: --prompt_enhance
causal_block_size window: --causal_block_size 5
budget_block use_compress: --budget_block 2
use_compress use_kvrange: --use_compress --use_kvrange
use_compress ar_step causal_block_size: --use_compress --ar_step 0
kv_bits ar_step: --kv_bits 8 --ar_step 0
kv_offload ar_step: --kv_offload --ar_step 0 --image first.png
kvrange use_kvrange: --kvrange 0
use_ret_steps paper-fast: --use_ret_steps --interval 3
preset vanilla: --preset fast --method vanilla
preset teacache_thresh: --preset quality --teacache_thresh 0.1
negative_prompt guidance_scale: --negative_prompt a --guidance_scale 1
streaming ar_step: --streaming --use_compress --ar_step 0
streaming use_compress: --streaming --ar_step 2
streaming cache method: --streaming --ar_step 2 --method teacache
noise streaming: --streaming --ar_step 2 --use_compress --noise original
streaming end_image: --streaming --ar_step 2 --use_compress --image first.png --end_image first.png
outdir long: --expname {"x" * 300}
profile long: --target_psnr 30 --profile {"x" * 250}
profile target_psnr: --profile a.json
fps: --fps 24/
fps: --video_path {VIDEO} --overlap_history 5 --fps=nan
height: --height 33
num_frames windows: --num_frames {10**6 - 3} --base_num_frames 5 --overlap_history 1 --causal_block_size 1
num_frames x height: --num_frames {10**6 - 3} --overlap_history 17 --height {2**14} --width {2**14}
target_speedup target_psnr: --target_speedup 3 --target_psnr 30
target_psnr flowcache teacache: --teacache --target_psnr 30
seed: --seed -1 --resume
torchrun --use_usp: RANK=0 WORLD_SIZE=2
MASTER_ADDR torchrun: --use_usp RANK=0 WORLD_SIZE=2
processes heads: --use_usp RANK=0 WORLD_SIZE=64
RANK WORLD_SIZE: RANK=2
cfg_size even: --use_usp --cfg_size 2 RANK=0 WORLD_SIZE=3
cfg_size guidance: --use_usp --cfg_size 2 --guidance_scale 1 RANK=0 WORLD_SIZE=2
""",
    ("magi1", "sample"): """
dimenson dimension?: "dimenson: scene"
dimensions dimension?: --dimensions scene
reuse_strategy chunkwise: "reuse_strategy: some"
base_save_path path: "base_save_path: ~nosuch_user/out"
vbench_prompt_dir nowhere: "vbench_prompt_dir: nowhere"
gpus a,b: --gpus a,b
processes 2 3: --cp_size 2 RANK=0 WORLD_SIZE=3
num_frames 120: "benchmark: physicsiq" "physicsiq_data_dir: ." --num_frames 8
""",
    ("skyreels_v2", "sample"): """
RANK WORLD_SIZE: RANK=3
processes 2 3: --use_usp --usp_size 2 RANK=0 WORLD_SIZE=3
vbench_prompt_dir:
dimension scenes: --vbench_prompt_dir . --dimension scenes
DEVICES: DEVICES=first
overlap_history 17: --benchmark physicsiq --physicsiq_data_dir .
num_frames 25: --benchmark physicsiq --overlap_history 5
unrecognized --prompt: --prompt a
""",
}
LISTED = [(*program, *case) for program, text in BAD.items() for case in cases(text)]


@pytest.mark.parametrize(("model", "command", "named", "arguments"), LISTED)
def test_bad_input_is_refused_in_one_line(
    program, unread, tmp_path, monkeypatch, capsys, model, command, named, arguments
):
    Image.new("RGB", (32, 32)).save("first.png")
    Path("scene.txt").write_text("a circle")
    Path("bomb.yaml").write_text(f"a: {BOMB}")
    Path("deep.json").write_text("[" * 100_000)
    np.savez("special.npz", **dict.fromkeys(("other_tokens", "caption_token", "logo_token"), np.ones((100, 16))))
    front, words = program(model, command), []
    for word in arguments:
        if re.match("([A-Z_]+|prev_chunks_scale)=", word):
            monkeypatch.setenv(*word.split("="))
        elif ": " in word:
            with Path("mine.yaml").open("a") as file:
                file.write(f"{word}\n")
        else:
            words.append(word)
    if Path("mine.yaml").exists():
        words += ["--yaml_config", "mine.yaml"]
    assert_refused(front(*words), named, capsys)
    assert not list(tmp_path.rglob("*.mp4"))


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has a total capacity")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate")


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["CUDA", "CPU", "Python"])
def test_exhausted_memory_is_one_sentence(magi, capsys, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr("magi1.adapter.load_pipeline", load)
    assert magi() == 1
    assert re.match("error: .*out of memory", capsys.readouterr().err.splitlines()[-1])
