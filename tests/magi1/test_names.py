"""Names of the videos that the program makes without ``--output_path``."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

NAMES = {
    "t2v_flowcache_fast_seed1234_steps8": [],
    "t2v_flowcache_fast_seed1234_steps16": ["--num_steps", 16],
    "t2v_flowcache_fast_seed7": ["--seed", 7],
    "t2v_flowcache_turbo": ["--preset", "turbo"],
    "t2v_flowcache_interval3": ["--interval", 3],
    "t2v_flowcache_fast_total6": ["--compress_kv_cache", "true", "--total_cache_chunk_nums", 6],
    "t2v_flowcache_fast_kv8bits": ["--kv_bits", 8],
    "t2v_flowcache_fast_kvoffload": ["--kv_offload", "true"],
    "t2v_teacache": ["--method", "teacache"],
    "t2v_vanilla": ["--method", "vanilla"],
    "t2v_flowcache": ["--num_frames", 64],
    "t2v_flowcache_fast": ["--video_size_w", 64],
    "t2v": ["--noise2clean_kvrange", "[2, 2]"],
    "i2v_flowcache_fast": ["--mode", "i2v", "--image_path", "red.png"],
    "i2v_flowcache": ["--mode", "i2v", "--image_path", "blue.png"],
}


def test_other_settings_have_other_names(prepared):
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(f"{colour}.png")
    names = set()
    for start, flags in NAMES.items():
        path = prepared("--prompt", "a", *flags).output
        assert path.parent == Path("outputs") / "magi1"
        assert path.name.startswith(f"a_{start}")
        names.add(path.name)
    assert len(names) == len(NAMES)


def test_a_name_is_that_of_the_content_and_not_of_paths(prepared, weights):
    def name(image, **folders):
        flags = [word for key, path in folders.items() for word in (f"--{key}", path)]
        return prepared("--mode", "i2v", "--image_path", image, *flags).output.name

    for path in ("first.png", "other.png"):
        Image.new("RGB", (32, 32), "red").save(path)
    moved = {"load": "moved", "vae_pretrained": "vae"}
    for key, path in moved.items():
        shutil.copytree(weights.parent / {"load": "magi"}.get(key, path), path)
    assert name("first.png") == name("other.png") == name("first.png", **moved)
