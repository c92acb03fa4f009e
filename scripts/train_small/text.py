"""Tokenizer and text encoder for the captions of moving shapes."""

from __future__ import annotations

import torch
from moving_shapes import BACKGROUNDS, COLOURS, FORMS, MOTIONS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

TEXT_LENGTH = 32


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer over the words of the captions; other words become ``<unk>``."""
    phrases = [*COLOURS, *FORMS, *MOTIONS, *BACKGROUNDS, "a", "an", "and", "over", "background"]
    words = sorted({word for phrase in phrases for word in phrase.split()})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )


def build_text_encoder(vocab_size: int, width: int = 64) -> UMT5EncoderModel:
    """An encoder of the same kind as the official one, with two layers."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=width,
            d_kv=16,
            num_heads=4,
            d_ff=128,
            num_layers=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def build_t5_encoder(vocab_size: int, width: int = 64) -> T5EncoderModel:
    """An encoder of the kind that MAGI-1 reads, with two layers."""
    sizes = {"d_model": width, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2}
    return T5EncoderModel(T5Config(vocab_size=vocab_size, dropout_rate=0.0, **sizes))


def embed_captions(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, captions: list[str]
) -> Tensor:
    """Embeddings ``[captions, 32, width]`` as the pipeline makes them: zero behind the end of the caption."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return torch.where(tokens.attention_mask.bool().unsqueeze(-1), hidden, 0.0)
