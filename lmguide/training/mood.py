"""The recipes of two small guides for the mood of tales: a class-conditional language model, a classifier of prefixes.

Both read the tokens of the tales model. Tales whose mood is known are the documents of `lmguide.training.tales`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from lmguide.training import tales
from lmguide.training.language_model import TALES, draw_prompt, llama_config, make_tokenizer
from lmguide.training.losses import class_log_likelihoods, gedi_loss, prefix_loss
from lmguide.training.trainer import Recipe, Settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CODES = tuple(f" {mood}" for mood in tales.MOODS)
"""Control codes of the class-conditional model, as text: a space and the name of the mood."""

LOGIT_SCALE, BIAS = 1.0, (0.0,) * len(CODES)
"""Of the length-normalised posterior, where GeDi's training starts. Likelihood alone, which is learnt here, moves
neither. With the paper's 0.8 of likelihood and 0.2 of classification the evidence of a mood word comes out six times
too large, and Bayes' rule needs it as it is."""


def make_batch(settings: Settings, tokenizer: PreTrainedTokenizerFast, step: int) -> dict[str, Tensor]:
    """Return the documents of one step without `<|bos|>`, padded on the right.

    A document is a prompt, one in `null_share` of them a null prompt, and a tale of one mood.

    Returns:
        `input_ids` and `attention_mask`, `[batch, length]`; `labels`, `[batch]`, the places of the moods in
        `tales.MOODS`.
    """
    rng = random.Random(f"documents {settings.seed} {step}")
    moods = list(tales.MOODS)
    texts, labels = [], []
    for _ in range(settings.batch_size):
        topic, prompt = draw_prompt(rng, settings.null_share)
        mood = rng.choice(moods)
        # The pre-tokenizer splits before a space, so prompt and tale give their own tokens here as apart.
        texts.append(f"{prompt} {tales.tale(rng, topic, mood)}")
        labels.append(moods.index(mood))
    ids = [
        torch.tensor([*tokens, tokenizer.eos_token_id])
        for tokens in tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": torch.tensor(labels),
    }


def _gedi(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = llama_config(settings, tokenizer)
    config.gedi = {"codes": list(CODES), "logit_scale": LOGIT_SCALE, "bias": list(BIAS)}
    return LlamaForCausalLM(config)


def _gedi_loss(settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, step: int) -> Tensor:
    batch = make_batch(settings, tokenizer, step)
    log_likelihoods, counts = class_log_likelihoods(
        model,
        tokenizer(list(CODES), add_special_tokens=False)["input_ids"],
        batch["input_ids"],
        batch["attention_mask"],
        bos=tokenizer.bos_token_id,
        only=batch["labels"],
    )
    scale, bias = torch.tensor(LOGIT_SCALE), torch.tensor(BIAS)
    return gedi_loss(log_likelihoods, counts, batch["labels"], gen_weight=1.0, logit_scale=scale, bias=bias)


def _classifier(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForSequenceClassification:
    config = llama_config(settings, tokenizer)
    config.id2label = dict(enumerate(tales.MOODS))
    config.label2id = {mood: index for index, mood in enumerate(tales.MOODS)}
    return LlamaForSequenceClassification(config)


def _prefix_loss(settings: Settings, model: Any, tokenizer: PreTrainedTokenizerFast, step: int) -> Tensor:
    batch = make_batch(settings, tokenizer, step)
    ids = pad(batch["input_ids"], (1, 0), value=tokenizer.bos_token_id)
    mask = pad(batch["attention_mask"], (1, 0), value=1)
    states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    return prefix_loss(model.score(states), batch["labels"], mask)


MOOD_GEDI = Recipe(
    name="mood_gedi",
    settings=Settings(
        steps=1500,
        batch_size=32,
        learning_rate=6e-3,
        null_share=TALES.settings.null_share,
        hidden_size=64,
        layers=2,
        max_length=TALES.settings.max_length,
    ),
    make_tokenizer=lambda _: make_tokenizer(TALES.settings),
    make_model=_gedi,
    loss=_gedi_loss,
    about="A Llama of {parameters} parameters (float16) that writes tales of the mood its control code names, "
    "` glad` or ` grim`:\nthe guide of GeDi for `tales`.",
    corpus="lmguide/training/tales.py",
)
MOOD_CLASSIFIER = Recipe(
    name="mood_classifier",
    settings=Settings(
        steps=3000,  # with few it counts mood words well and adds them up badly: sure too late and never sure enough
        batch_size=32,
        learning_rate=3e-3,
        null_share=TALES.settings.null_share,
        hidden_size=40,
        layers=2,
        max_length=TALES.settings.max_length,
    ),
    make_tokenizer=lambda _: make_tokenizer(TALES.settings),
    make_model=_classifier,
    loss=_prefix_loss,
    about="A causal classifier of {parameters} parameters (float16), a Llama, that says after every token how likely "
    "a tale will be\nglad or grim: the judge of FUDGE and CAIF for `tales`.",
    corpus="lmguide/training/tales.py",
)
