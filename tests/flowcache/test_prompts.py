"""What of a prompt does not reach the text encoder, and what is said of it."""

import logging

import pytest
from tiny import tiny_tokenizer

from flowcache.prompts import PromptWarnings, check_prompt, find_losses


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [("一只猫", ""), ("一只猫。", "。"), ("\ud800 a", "a"), ("&nbsp;", ""), ("\u200b", "\u200b")],
)
def test_a_prompt_of_which_nothing_is_left_is_refused(prompt, cleaned):
    with pytest.raises(ValueError, match=r"^prompt: .*"):
        check_prompt("prompt", prompt, lambda _: cleaned)


@pytest.mark.parametrize(("prompt", "cleaned"), [("", ""), ("a", "a"), ("猫", "猫"), ("?", "?")])
def test_others_are_accepted(prompt, cleaned):
    check_prompt("prompt", prompt, lambda _: cleaned)


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
    tokenizer, warnings = tiny_tokenizer(), PromptWarnings()
    for prompt in ("a zebra", "a zebra", "a lion"):
        warnings.warn("negative_prompt", {"unknown": prompt.split()[1:]}, tokenizer)
    first, second = caplog.records
    assert first.levelno == logging.WARNING
    for word in ("negative_prompt", "zebra", "circle"):
        assert word in first.message
    assert "<pad>" not in first.message
    assert "lion" in second.message


def test_a_run_of_many_prompts_warns_once_of_a_kind(caplog):
    tokenizer, warnings = tiny_tokenizer(), PromptWarnings(once_a_kind=True)
    for word in ("zebra", "lion"):
        warnings.warn("prompt", {"unknown": [word], "cut": word}, tokenizer)
    assert len(caplog.records) == 2
    assert "lion" not in caplog.text
