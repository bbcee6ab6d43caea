"""Tiny random classifiers, and calls for them to serve."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers as tf

from lmguide.sources.ids import Rows
from lmguide.sources.rewards.base import Generation
from tests.families import _IDS, _LLAMA, FAMILIES, PAD, VOCAB, padded, tiny, tokens, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CAUSAL: dict[str, type] = {
    "llama": tf.LlamaForSequenceClassification,
    "gpt2": tf.GPT2ForSequenceClassification,
    "qwen3": tf.Qwen3ForSequenceClassification,
    "opt": tf.OPTForSequenceClassification,
    "mistral_sliding": tf.MistralForSequenceClassification,
    "qwen3_next": tf.Qwen3NextForSequenceClassification,
}
PROMPTS = (9, 5, 7)


def made(family: str, **config: Any) -> Any:
    """A causal classifier of three classes in the vocabulary of the tiny models."""
    config_class, _, arguments = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = CAUSAL[family](config_class(**{**arguments, **_IDS, "num_labels": 3, **config}))
        torch.nn.init.normal_(model.score.weight, std=0.1)
    return model.eval()


@cache
def causal(family: str = "llama") -> Any:
    """The same, once."""
    return made(family)


@cache
def unpadded(family: str = "llama") -> Any:
    """The same without a padding token, so that it reads the last token even where that pads for others."""
    return made(family, pad_token_id=None)


def encoder(**config: Any) -> Any:
    """A bidirectional classifier of three classes in the same vocabulary."""
    settings: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 3, "initializer_range": 0.5}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return tf.BertForSequenceClassification(tf.BertConfig(**{**settings, **config})).eval()


TURNED = VOCAB + 11
"""Token t of the tiny models is token `TURNED - t` of `wide`."""


def wide() -> tuple[Any, Any]:
    """A causal classifier of another vocabulary than the tiny models', and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = tf.LlamaConfig(**{**_LLAMA, **_IDS, "vocab_size": TURNED, "num_labels": 3})
        model = tf.LlamaForSequenceClassification(config)
    vocabulary = {"<pad>": PAD, "<bos>": 1} | {f"w{index}": TURNED - index for index in range(2, VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return model.eval(), tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>")


BAG = torch.randn(VOCAB, 3, generator=torch.Generator().manual_seed(3))


def bag(texts: list[str]) -> Tensor:
    """Log-probabilities from the words of a text, whatever their order."""
    return torch.stack([BAG[[int(word[1:]) for word in each.split()]].mean(0) for each in texts]).log_softmax(-1)


def generation(prompts: Sequence[Sequence[int]], tokenizer: Any = None, total: int | None = 20) -> Generation:
    """A call of the tiny Llama with these prompts."""
    rows = Rows(*padded(prompts))
    return Generation(
        model=tiny("llama"),
        tokenizer=words() if tokenizer is None else tokenizer,
        prompts=rows,
        batch=len(prompts),
        vocab_size=VOCAB,
        device=torch.device("cpu"),
        total=total,
    )


def prompts() -> list[list[int]]:
    """Of several lengths."""
    return [tokens(length, seed) for seed, length in enumerate(PROMPTS)]


def scores(seed: int, rows: int = len(PROMPTS)) -> Tensor:
    """Random log-probabilities `[B, V]`."""
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)).mul(3).log_softmax(-1)


@torch.no_grad()
def alone(model: Any, ids: Sequence[int]) -> Tensor:
    """Logits `[C]` of one text, without cache or padding."""
    logits: Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits
