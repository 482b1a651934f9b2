"""Small sentence-transformers models with random weights, which load in a moment. Their tokens are bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, models
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WIDTH = 32
LONGEST = 64


def save_encoder(
    folder: Path, *, seed: int = 0, normalise: bool = True, prompts: dict[str, str] | None = None, **options: Any
) -> Path:
    """Saves a two-layer BERT with mean pooling, and returns its folder."""
    vocabulary = ["[PAD]", "[UNK]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(vocabulary)}, [], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformer = folder.with_name(folder.name + "-transformer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LONGEST
    ).save_pretrained(transformer)
    torch.manual_seed(seed)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LONGEST,
        )
    ).save_pretrained(transformer)
    modules = [models.Transformer(str(transformer)), models.Pooling(WIDTH)]
    if normalise:
        modules.append(models.Normalize())
    model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, **options)
    model.save(str(folder), create_model_card=False)
    return folder


def save_static_encoder(folder: Path) -> Path:
    """Saves a model that knows the words "red" and "green", and makes a zero vector of all others."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "red": 1, "green": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    embedding = models.StaticEmbedding(tokenizer, embedding_weights=torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0]]))
    SentenceTransformer(modules=[embedding], device="cpu").save(str(folder), create_model_card=False)
    return folder
