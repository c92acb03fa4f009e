"""Names of videos whose path the user leaves open."""

import pytest

from flowcache import FlowCacheConfig
from flowcache.cli import setting_words
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.fingerprint import video_name
from flowcache.tuning import Target


@pytest.mark.parametrize("prompt", ["a" * 500, "早上好 " * 200, "é" * 300, "!", "a red circle"])
@pytest.mark.parametrize("words", [["flowcache"], ["teacache_thresh0.123457"] * 8])
def test_a_name_leaves_room_for_the_files_beside_it(prompt, words):
    stem = video_name(prompt, words, {}).removesuffix(".mp4")
    assert len(f".{stem}.trace.12345678.json".encode()) < 240
    assert all(word in stem for word in words)


def test_same_settings_share_a_name_and_others_do_not():
    names = [video_name("a", [], {"seed": 0, "sizes": sizes}) for sizes in ((1, 2), (1, 2), (2, 1))]
    assert names[0] == names[1] != names[2]
    assert video_name("a", [], {"a": 0, "b": 1}) == video_name("a", [], {"b": 1, "a": 0})


STORED = {"compression": KVCompressionConfig(total=8), "storage": KVStorageConfig(bits=8, offload=True)}


@pytest.mark.parametrize(
    ("name", "arguments", "config"),
    [
        ("flowcache_fast", ("flowcache", None, {}, None), {}),
        ("vanilla", ("vanilla", None, {"policy": None}, None), {}),
        ("flowcache_interval3", ("flowcache", None, {"interval": 3}, None), {}),
        ("flowcache_mine", ("flowcache", None, {"policy": "mine"}, None), {}),
        ("flowcache_paper-fast_t0.25", ("flowcache", "paper-fast", {"t": 0.25}, None), {}),
        ("flowcache_35dB", ("flowcache", None, {}, Target(psnr=35)), {}),
        ("flowcache_turbo_total8_kv8bits_kvoffload", ("flowcache", "turbo", {}, None), STORED),
        ("flowcache_fast_kvrange2", ("flowcache", None, {}, None), {"clean_range": 2}),
    ],
)
def test_settings_are_readable(name, arguments, config):
    assert "_".join(setting_words(*arguments, FlowCacheConfig(**config))) == name
