"""What of a prompt does not reach the text encoder, and names of videos whose path the user leaves open."""

import logging

import pytest
from tiny import tiny_tokenizer

from flowcache import FlowCacheConfig
from flowcache.cli import setting_words
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.fingerprint import video_name
from flowcache.prompts import PromptWarnings, check_prompt, find_losses
from flowcache.tuning import Target


def test_a_prompt_of_which_nothing_is_left_is_refused():
    for prompt, cleaned in {"一只猫": "", "一只猫。": "。", "\ud800 a": "a", "&nbsp;": "", "\u200b": "\u200b"}.items():
        with pytest.raises(ValueError, match=r"^prompt: .*"):
            check_prompt("prompt", prompt, lambda _, cleaned=cleaned: cleaned)
    for prompt in ("", "a", "猫", "?"):
        check_prompt("prompt", prompt, str)


@pytest.mark.parametrize(
    ("prompt", "cleaned", "losses"),
    [
        ("A red, circle", "a red circle", {}),
        ("猫 a red", "a red", {"removed": ["猫"]}),
        ("a red zebra", "a red zebra", {"unknown": ["zebra"]}),
        ("a 🐈 !", "a 🐈 !", {"unknown": ["🐈"]}),
        ("a red circle . a zebra", "a red circle . a zebra", {"cut": "a zebra"}),
        ("a" + " red" * 2, "a" + " red" * 2, {}),
    ],
)
def test_losses(prompt, cleaned, losses):
    assert find_losses(prompt, cleaned, tiny_tokenizer(), 5) == losses


def test_each_loss_is_a_warning_once(caplog):
    tokenizer, warnings, once = tiny_tokenizer(), PromptWarnings(), PromptWarnings(once_a_kind=True)
    for prompt in ("a zebra", "a zebra", "a lion"):
        warnings.warn("negative_prompt", {"unknown": prompt.split()[1:]}, tokenizer)
    first, second = caplog.records
    assert first.levelno == logging.WARNING
    assert all(word in first.message for word in ("negative_prompt", "zebra", "circle"))
    assert "<pad>" not in first.message and "lion" in second.message
    for word in ("zebra", "tiger"):
        once.warn("prompt", {"unknown": [word], "cut": word}, tokenizer)
    assert len(caplog.records) == 4 and "tiger" not in caplog.text


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
