"""Tiny random models of each supported family, made in code.

One line in `FAMILIES` puts a new one through the whole matrix (`tests/huggingface/test_matrix.py`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import tokenizers
import torch
import transformers as tf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Model: TypeAlias = Any
"""A model of transformers with `generate`, whose own annotations of it do not hold together."""
VOCAB = 120
PAD = 0
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.25,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
_IDS: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
_BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.2,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}

FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM, _LLAMA),
    "gpt2": (
        tf.GPT2Config,
        tf.GPT2LMHeadModel,
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "initializer_range": 0.25},
    ),
    "mistral_sliding": (tf.MistralConfig, tf.MistralForCausalLM, _LLAMA | {"sliding_window": 8}),
    "gemma3": (
        tf.Gemma3TextConfig,
        tf.Gemma3ForCausalLM,
        _LLAMA | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM, _LLAMA),
    "mixtral": (tf.MixtralConfig, tf.MixtralForCausalLM, _LLAMA | {"num_local_experts": 4, "sliding_window": None}),
    "opt": (
        tf.OPTConfig,
        tf.OPTForCausalLM,
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "init_std": 0.25,
            "max_position_embeddings": 128,
        },
    ),
    "qwen3_next": (
        tf.Qwen3NextConfig,
        tf.Qwen3NextForCausalLM,
        _LLAMA
        | _LINEAR
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "mamba": (
        tf.MambaConfig,
        tf.MambaForCausalLM,
        {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8, "initializer_range": 0.25},
    ),
    "mamba2": (
        tf.Mamba2Config,
        tf.Mamba2ForCausalLM,
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "initializer_range": 0.25,
        },
    ),
    "t5": (
        tf.T5Config,
        tf.T5ForConditionalGeneration,
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "initializer_factor": 2.0,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (tf.BartConfig, tf.BartForConditionalGeneration, _BART),
}
ENCODER_DECODERS = ("t5", "bart")
STATEFUL = ("qwen3_next", "mamba", "mamba2")


@cache
def tiny(family: str, seed: int = 0) -> Model:
    """The family's tiny model with random weights; no end-of-sequence token, so that every answer has full length."""
    return made(family, seed)


def made(family: str, seed: int = 0, **config: Any) -> Model:
    """The same, new, for a test that changes it or wants another configuration."""
    config_class, model_class, arguments = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Model = model_class(config_class(**arguments | _IDS | config)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.forced_eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def tokens(count: int, seed: int) -> list[int]:
    """Random ordinary token ids."""
    return torch.randint(2, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(rows: Sequence[Sequence[int]], right: bool = False) -> tuple[Tensor, Tensor]:
    """Token lists as a padded batch `[R, P]` and its mask."""
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    ids = [[*row, *gap] if right else [*gap, *row] for row, gap in zip(rows, fill, strict=True)]
    mask = [[1] * len(row) + gap if right else gap + [1] * len(row) for row, gap in zip(rows, fill, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


@cache
def words() -> Any:
    """A tokenizer for the tiny models: the word w7 is token 7; tokens 0 and 1 pad and begin."""
    vocabulary = {"<pad>": PAD, "<bos>": 1} | {f"w{index}": index for index in range(2, VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", padding_side="left"
    )


def text(ids: Sequence[int]) -> str:
    """Token ids as the text of `words`."""
    return " ".join(f"w{token}" for token in ids)
