"""Tokenizer and text encoders for the captions of moving shapes."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from .moving_shapes import BACKGROUNDS, COLOURS, FORMS, MOTIONS

TEXT_LENGTH = 32
SIZES = {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2, "dropout_rate": 0.0}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word tokenizer over the words of the captions; other words become ``<unk>``."""
    phrases = [*COLOURS, *FORMS, *MOTIONS, *BACKGROUNDS, "a", "an", "and", "over", "background"]
    words = sorted({word for phrase in phrases for word in phrase.split()})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=TEXT_LENGTH, **special)


def build_umt5(vocab_size: int) -> UMT5EncoderModel:
    """Build an encoder of the kind that SkyReels-V2 reads, with two layers."""
    return UMT5EncoderModel(UMT5Config(vocab_size=vocab_size, decoder_start_token_id=0, **SIZES))


def build_t5(vocab_size: int) -> T5EncoderModel:
    """Build an encoder of the kind that MAGI-1 reads, with two layers."""
    return T5EncoderModel(T5Config(vocab_size=vocab_size, **SIZES))


def embed_captions(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, captions: list[str]
) -> Tensor:
    """Embed captions as the pipeline does, ``[captions, 32, width]``: zero behind the end of each."""
    padding = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True}
    tokens = tokenizer(captions, return_tensors="pt", **padding).to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return torch.where(tokens.attention_mask.bool().unsqueeze(-1), hidden, 0.0)
