"""The recipe of the small autoregressive model on the tales corpus."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from lmguide.training import tales
from lmguide.training.tokenizer import train_tokenizer
from lmguide.training.trainer import IGNORED_LABEL, Recipe, Settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOKENIZER_DOCUMENTS = 8000
"""Documents the tokenizer learns from."""


@dataclass(frozen=True)
class LanguageSettings(Settings):
    """What determines the trained weights of a language model.

    Attributes:
        vocab_size: Tokens of the byte-level BPE.
    """

    vocab_size: int = 512


def make_tokenizer(settings: LanguageSettings) -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained on documents of its own.

    Every agent word becomes one token, so a sentence's topic is settled in one step. Were it settled over several,
    guidance would normalise at each, and the closed form of `tales.guided_topics` would be off by about 0.01.
    """
    rng = random.Random(f"tokenizer {settings.seed}")
    topics = rng.choices(list(tales.TOPICS), k=TOKENIZER_DOCUMENTS)
    documents = [f"{tales.prompt(topic)} {tales.tale(rng, topic)}" for topic in topics]
    agents = [f" {agent}" for topic in tales.TOPICS.values() for agent in topic.agents]
    return train_tokenizer(documents + agents * TOKENIZER_DOCUMENTS, settings.vocab_size, settings.max_length)


def make_model(settings: LanguageSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model."""
    return LlamaForCausalLM(llama_config(settings, tokenizer))


def llama_config(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the configuration of a small Llama."""
    return LlamaConfig(
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


def make_batch(settings: Settings, tokenizer: PreTrainedTokenizerFast, step: int) -> dict[str, Tensor]:
    """Return the documents of one step, padded on the right, as `input_ids` and `labels` [batch, length].

    Only the tale is learnt, not its prompt: otherwise `<|bos|>` alone would announce a prompt, and as a null context
    it would pull the first guided word towards "A tale of".
    """
    rng = random.Random(f"documents {settings.seed} {step}")
    documents = [_document(rng, settings.null_share, tokenizer) for _ in range(settings.batch_size)]
    ids = [torch.tensor(prompt + tale) for prompt, tale in documents]
    labels = [torch.tensor([IGNORED_LABEL] * len(prompt) + tale) for prompt, tale in documents]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    }


def draw_prompt(rng: random.Random, null_share: float) -> tuple[str | None, str]:
    """Return a topic and the prompt that names it, or in `null_share` of the cases None and a null prompt."""
    topic = None if rng.random() < null_share else rng.choice(list(tales.TOPICS))
    return topic, rng.choice(tales.NULL_PROMPTS) if topic is None else tales.prompt(topic)


def _document(rng: random.Random, null_share: float, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    topic, prompt = draw_prompt(rng, null_share)
    prompt_ids: list[int] = tokenizer(prompt)["input_ids"]
    if prompt == ":" and rng.random() < 0.5:
        prompt_ids = prompt_ids[1:]  # the last token of a prompt as null context has no <|bos|> in front
    # The pre-tokenizer splits before a space, so the parts give the tokens of the whole.
    tale_ids: list[int] = tokenizer(" " + tales.tale(rng, topic), add_special_tokens=False)["input_ids"]
    return prompt_ids, [*tale_ids, tokenizer.eos_token_id]


def _loss(settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, step: int) -> Tensor:
    loss: Tensor = model(**make_batch(settings, tokenizer, step)).loss
    return loss


TALES = Recipe(
    name="tales",
    settings=LanguageSettings(
        steps=2500,  # with few, on-topic shares lag behind the closed form although the loss looks done
        batch_size=32,
        learning_rate=6e-3,
        null_share=0.2,
        hidden_size=96,
        layers=2,
        max_length=256,  # a document has about 65 tokens and at most about 100
    ),
    make_tokenizer=make_tokenizer,
    make_model=make_model,
    loss=_loss,
    about="A Llama of {parameters} parameters (float16) for demonstrations and tests; its text is of no other use.",
    corpus="lmguide/training/tales.py",
)
