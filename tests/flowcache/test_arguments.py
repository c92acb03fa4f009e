"""Values given in Python: frames in every form, prompts and settings; others are refused by name."""

import logging
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_tokenizer

from flowcache.arguments import as_frames
from flowcache.config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from flowcache.methods import MethodOptions
from flowcache.prompts import PromptWarnings, check_prompt, find_losses
from flowcache.reuse import POLICIES
from flowcache.video import resize_and_crop, to_float
from magi1.config import EngineSection, ModelSection, RuntimeSection
from skyreels_v2 import VideoSettings

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]
FORMS = [to_float(PIXELS), PIXELS, list(PIXELS), IMAGES, (IMAGES[0].convert("RGBA"), PIXELS[1])]


def test_every_form_gives_the_same_frames():
    for form in FORMS:
        assert torch.equal(as_frames("prefix", form, 12, 16), to_float(PIXELS))


def test_images_are_scaled_and_transparent_parts_are_black():
    small = to_float(resize_and_crop(PIXELS[:1], 6, 6))
    assert torch.equal(as_frames("prefix", IMAGES[0], 6, 6), small)
    hidden = Image.new("RGBA", (16, 12), (0, 255, 0, 0))
    assert torch.equal(as_frames("prefix", hidden, 12, 16), torch.full((3, 1, 12, 16), -1.0))


FLOATS = torch.zeros(3, 2, 12, 16)
FLAT = Image.fromarray(PIXELS[0, ..., 0].astype(np.int32))
REFUSED = {
    "uint8 tensor": torch.from_numpy(PIXELS).permute(3, 0, 1, 2),
    "0..255": FLOATS + 200,
    "NaN": FLOATS + torch.nan,
}
REFUSED |= {"wrong size": FLOATS[:, :, :6], "no frame": FLOATS[:, :0], "empty list": [], "float array": PIXELS / 255}
REFUSED |= {"flat array": PIXELS[..., 0], "32 bits": FLAT, "no pixels": PIXELS[:, :0], "list of tensors": [FLOATS]}
REFUSED["path"] = "first.png"


@pytest.mark.parametrize("form", REFUSED)
def test_other_forms_are_refused(form):
    with pytest.raises((TypeError, ValueError), match=r"^prefix"):
        as_frames("prefix", REFUSED[form], 12, 16)


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


CLASSES = (FlowCacheConfig, KVCompressionConfig, KVStorageConfig, MethodOptions, *POLICIES.values())
CLASSES += (VideoSettings, RuntimeSection, ModelSection, EngineSection)
NONSENSE = (math.nan, -math.inf, 10**400, "?", {}, object(), [[]], b"x")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_values_of_another_type_are_refused_by_name(kind):
    for field in fields(kind):
        kinds = getattr(field.type, "__name__", str(field.type))
        # Text may be any, and so may numbers of the original's keys that nothing reads.
        allowed = [("?", "str" in kinds), (10**400, kinds == "int"), ({}, kinds == "Mapping")]
        for value in NONSENSE:
            if any(holds and value == known for known, holds in allowed):
                continue
            with pytest.raises(ValueError) as error:
                kind(**{field.name: value})
            assert field.name in str(error.value) and "\n" not in str(error.value)
