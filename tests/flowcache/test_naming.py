"""Names of videos whose path the user leaves open."""

import pytest

from flowcache import FlowCacheConfig
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.naming import setting_words, video_name
from flowcache.tuning import Target

PLAIN = FlowCacheConfig()


@pytest.mark.parametrize("prompt", ["a" * 500, "早上好 " * 200, "é" * 300, "!", "a red circle"])
@pytest.mark.parametrize("words", [["flowcache"], ["teacache_thresh0.123457"] * 8])
def test_a_name_leaves_room_for_what_is_written_beside_it(prompt, words):
    stem = video_name(prompt, words, {}).removesuffix(".mp4")
    assert len(f".{stem}.trace.12345678.json".encode()) < 240
    assert all(word in stem for word in words)


def test_same_settings_share_a_name_and_others_do_not():
    names = [video_name("a", [], {"seed": 0, "sizes": sizes}) for sizes in ((1, 2), (1, 2), (2, 1))]
    assert names[0] == names[1] != names[2]
    assert video_name("a", [], {"a": 0, "b": 1}) == video_name("a", [], {"b": 1, "a": 0})


def test_settings_are_readable():
    def words(method="flowcache", preset=None, target=None, cache=PLAIN, **options):
        return "_".join(setting_words(method, preset, options, target, cache))

    assert words() == "flowcache_fast"
    assert words("vanilla") == "vanilla"
    assert words(preset="turbo") == "flowcache_turbo"
    assert words(interval=3, plan=None) == "flowcache_interval3"
    assert words(preset="paper-fast", threshold=0.25) == "flowcache_paper-fast_threshold0.25"
    assert words(preset=None, target=Target(psnr=35)) == "flowcache_35dB"
    budget, total = KVCompressionConfig(budget=4), KVCompressionConfig(total=8)
    assert words(cache=FlowCacheConfig(compression=budget)) == "flowcache_fast_budget4"
    stored = KVStorageConfig(bits=8, offload=True)
    assert words(cache=FlowCacheConfig(compression=total, storage=stored)).endswith(
        "total8_kv8bits_kvoffload"
    )
    assert words(cache=FlowCacheConfig(clean_range=2)) == "flowcache_fast_kvrange2"
