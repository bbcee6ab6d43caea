"""The recipes of the two small masked-diffusion models: tales with fixed slots, and sudoku."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

from lmguide.training import slots, sudoku, tales
from lmguide.training.tokenizer import word_tokenizer
from lmguide.training.trainer import IGNORED_LABEL, Recipe, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

RULED_OUT = -100.0
"""The bias of a token that is never to be written, out of reach of any guidance scale."""


@dataclass(frozen=True)
class Task:
    """A corpus of prompts and answers that are as long as all others.

    Attributes:
        vocabulary: Every token, special ones aside.
        unanswered: Those of them that stand in no answer.
        token: Regular expression of one token.
        spaced: Whether a decoded text has spaces.
        prompt_length: Tokens of a prompt; the answer takes the rest of `Settings.max_length`.
        draw: A source of randomness, and whether the prompt will be masked → a prompt and an answer.
    """

    vocabulary: tuple[str, ...]
    unanswered: tuple[str, ...]
    token: str
    spaced: bool
    prompt_length: int
    draw: Callable[[random.Random, bool], tuple[str, str]]


def make_tokenizer(task: Task, settings: Settings) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the task's words."""
    return word_tokenizer(task.vocabulary, task.token, settings.max_length, spaced=task.spaced)


def make_model(task: Task, settings: Settings, tokenizer: PreTrainedTokenizerFast) -> RobertaPreLayerNormForMaskedLM:
    """Return the untrained model: full attention, learned positions, layer norm before each part of a block.

    Tokens that stand in no answer are ruled out from the start. Learnt, their probabilities would be small but noisy,
    and guidance multiplies noise: `(c / u)^γ` of two small numbers can be anything.
    """
    config = RobertaPreLayerNormConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        # This family counts positions from behind the id of the padding token.
        max_position_embeddings=settings.max_length + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        layer_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        **{"mask_token_id": tokenizer.mask_token_id},
    )
    model = RobertaPreLayerNormForMaskedLM(config)
    # A narrow model's blocks add little to embeddings of full size: at 1, sudoku takes twice the steps.
    torch.nn.init.constant_(model.roberta_prelayernorm.embeddings.LayerNorm.weight, 0.1)
    with torch.no_grad():
        model.lm_head.bias[tokenizer.convert_tokens_to_ids([*tokenizer.all_special_tokens, *task.unanswered])] = (
            RULED_OUT
        )
    return model


def make_batch(task: Task, settings: Settings, tokenizer: PreTrainedTokenizerFast, step: int) -> dict[str, Tensor]:
    """Return the documents of one step, partly masked, as `input_ids` and `labels` [batch, length].

    Labels are there at the masked positions of the answer alone. In every row their number is uniform on 1 … n, the
    numbers of a batch as different as can be, and their places are uniform. A row with a null prompt has the whole
    prompt masked, colon included, as guidance by a masked prompt does.
    """
    rng = random.Random(f"documents {settings.seed} {step}")
    length = settings.max_length - task.prompt_length
    nulls = [rng.random() < settings.null_share for _ in range(settings.batch_size)]
    prompts, answers = zip(*(task.draw(rng, null) for null in nulls), strict=True)
    prompt: Tensor = tokenizer(list(prompts), return_tensors="pt")["input_ids"]
    answer: Tensor = tokenizer(list(answers), return_tensors="pt")["input_ids"]
    masked = torch.zeros(answer.shape, dtype=torch.bool)
    first = rng.randrange(length)
    for row in range(settings.batch_size):
        masked[row, rng.sample(range(length), 1 + (first + row) % length)] = True
    mask = tokenizer.mask_token_id
    prompt = prompt.masked_fill(torch.tensor(nulls)[:, None], mask)
    return {
        "input_ids": torch.cat([prompt, answer.masked_fill(masked, mask)], dim=1),
        "labels": torch.cat(
            [torch.full_like(prompt, IGNORED_LABEL), answer.masked_fill(~masked, IGNORED_LABEL)], dim=1
        ),
    }


def diffusion_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a masked-diffusion model in nats per token.

    For an answer x of n tokens and the set S of its masked positions, k of them,

        loss = E_{k ~ U{1..n}} E_{|S| = k} (1/k) Σ_{i ∈ S} −log p(x_i | prompt, x outside S)

    n times that is an upper bound on −log p(x | prompt) (LLaDA, arXiv 2502.09992). Here the expectation is the mean
    over rows.

    Args:
        logits: `[batch, length, V]`.
        labels: `[batch, length]`; `IGNORED_LABEL` where nothing is to be predicted.
    """
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED_LABEL
    )
    return (losses.sum(1) / (labels != IGNORED_LABEL).sum(1)).mean()


def _loss(
    task: Task, settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, step: int
) -> Tensor:
    batch = make_batch(task, settings, tokenizer, step)
    return diffusion_loss(model(input_ids=batch["input_ids"]).logits, batch["labels"])


def _tale(rng: random.Random, null: bool) -> tuple[str, str]:
    topic = rng.choice(list(tales.TOPICS))
    return slots.prompt(topic), slots.answer(rng, None if null else topic)


def _puzzle(rng: random.Random, _null: bool) -> tuple[str, str]:
    puzzle, grid = sudoku.draw(rng, rng.choice(sudoku.CLUES), held_out=False)
    return sudoku.prompt(puzzle), grid


def _recipe(name: str, task: Task, settings: Settings, of_use: str) -> Recipe[Settings]:
    return Recipe(
        name=name,
        settings=settings,
        make_tokenizer=partial(make_tokenizer, task),
        make_model=partial(make_model, task),
        loss=partial(_loss, task),
        about=f"A pre-layer-norm RoBERTa of {{parameters}} parameters (float16), a masked-diffusion model {of_use}.",
        corpus=f"lmguide/training/{name}.py",
    )


TALES_IN_SLOTS = Task(
    vocabulary=slots.VOCABULARY,
    unanswered=(*tales.TOPICS, ":"),
    token=slots.TOKEN,
    spaced=True,
    prompt_length=slots.PROMPT_LENGTH,
    draw=_tale,
)
SOLUTIONS = Task(
    vocabulary=sudoku.VOCABULARY,
    unanswered=(sudoku.EMPTY, ":"),
    token=sudoku.TOKEN,
    spaced=False,
    prompt_length=sudoku.PROMPT_LENGTH,
    draw=_puzzle,
)

SLOTS = _recipe(
    "slots",
    TALES_IN_SLOTS,
    Settings(
        steps=1500,
        batch_size=256,  # with fewer the learnt shares of the topics scatter more about those of the corpus
        learning_rate=4e-3,
        null_share=0.25,
        hidden_size=64,
        layers=2,
        max_length=slots.PROMPT_LENGTH + slots.ANSWER_LENGTH,
    ),
    "for demonstrations\nand tests; its text is of no other use",
)
SUDOKU = _recipe(
    "sudoku",
    SOLUTIONS,
    Settings(
        # Guidance shows where there is something left to gain: twice as many steps solve nearly every puzzle.
        steps=120,
        batch_size=64,
        learning_rate=3e-3,
        null_share=0.15,
        hidden_size=64,
        layers=2,
        max_length=sudoku.PROMPT_LENGTH + sudoku.CELLS,
        schedule_steps=480,
    ),
    "that solves\nsudoku of four by four cells, badly on purpose: it is a snapshot early in training",
)
