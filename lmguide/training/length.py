"""Trains models that say how many tokens remain, and has the recipe of the one for the bundled tales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig

from lmguide.sources.rewards.budget_model import LengthConfig, LengthModel
from lmguide.training.language_model import TALES, make_batch, make_tokenizer
from lmguide.training.trainer import IGNORED_LABEL, Recipe, Settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def length_loss(
    predictor: LengthModel, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, model: Any = None
) -> Tensor:
    """Negative log-likelihood of how many tokens remained, `-log Gamma(log(R + 1); shape_v, rate_v)`.

    Each token `v` of a span counts, with the law that the predictor gives it from the states in front of it. `R` is the
    number of tokens from `v` on, the span's end among them. The end itself is not learnt, because it is known.

    Args:
        predictor: What is trained, its reader too.
        input_ids: Texts, `[B, L]`.
        labels: The same on the tokens of the span and -100 elsewhere, `[B, L]`.
        attention_mask: 1 on tokens, `[B, L]`.
        model: The guided model, for a predictor without a reader; it gets no gradients.

    Returns:
        The mean over the tokens that count, in nats of `log(R + 1)`.

    Raises:
        ValueError: No model for a predictor without a reader.

    Example:
        >>> from lmguide.bundled import bundled
        >>> model, tokenizer = bundled("tales")
        >>> predictor = LengthModel(LengthConfig(vocab_size=len(tokenizer), hidden_size=model.config.hidden_size))
        >>> ids = tokenizer("A tale of the sea: The gull rowed.<|eos|>", return_tensors="pt").input_ids
        >>> length_loss(predictor, ids, ids, torch.ones_like(ids), model).backward()
    """
    if predictor.reader is None and model is None:
        raise ValueError("model: expected the guided model, got None. A predictor without a reader reads its states.")
    reader: Any = predictor.reader or model
    with torch.set_grad_enabled(predictor.reader is not None and torch.is_grad_enabled()):
        hidden = reader(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        states = torch.stack([hidden[layer] for layer in predictor.layers], -2)[:, :-1]
    tokens = labels[:, 1:]
    inside = tokens != IGNORED_LABEL
    remaining = inside.flip(1).cumsum(1).flip(1)
    counted = inside & (remaining > 1)
    shape, rate = predictor(states[counted], tokens[counted])
    log_likelihood: Tensor = torch.distributions.Gamma(shape, rate).log_prob(remaining[counted].log1p())
    return -log_likelihood.mean()


@dataclass(frozen=True)
class LengthSettings(Settings):
    """What determines the trained weights; sizes are those of the reader.

    Attributes:
        rank: Width between the two layers of the head.
    """

    rank: int = 32


def _make_model(settings: LengthSettings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    reader = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LengthConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        rank=settings.rank,
        reader=reader.to_diff_dict(),
        pad_token_id=tokenizer.pad_token_id,
    )
    return LengthModel(config)


def _loss(settings: Settings, model: Any, tokenizer: PreTrainedTokenizerFast, step: int) -> Tensor:
    batch = make_batch(settings, tokenizer, step)
    attention_mask = (batch["input_ids"] != tokenizer.pad_token_id).long()
    return length_loss(model, batch["input_ids"], batch["labels"], attention_mask)


TALES_LENGTH = Recipe(
    name="tales_length",
    settings=LengthSettings(
        steps=2500,
        batch_size=32,
        learning_rate=6e-3,
        null_share=TALES.settings.null_share,
        hidden_size=32,
        layers=2,
        max_length=TALES.settings.max_length,
    ),
    make_tokenizer=lambda _: make_tokenizer(TALES.settings),
    make_model=_make_model,
    loss=_loss,
    about="A model of {parameters} parameters (float16) that says, for each next token, how many tokens a tale will "
    "still have. For the guidance of `tales` by a budget.",
    corpus="lmguide/training/tales.py",
)
