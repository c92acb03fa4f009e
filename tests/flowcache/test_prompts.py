"""What of a prompt does not reach the text encoder, and what is said of it."""

import logging

import pytest
from tiny import tiny_tokenizer

from flowcache.prompts import PromptWarnings, check_prompt, find_losses


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
