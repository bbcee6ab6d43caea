"""The plain reference: every source computed from scratch at every step, row by row, without padding or cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor

from lmguide.sources.layers import without_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide import DroppedBlocks
    from tests.families import Model

Law = Callable[[int, list[int]], "Tensor"]
"""Scores `[V]` of the next token, given the number of the prompt and the answer so far."""


@lru_cache(maxsize=100_000)  # the modes of one family ask for the same contexts again and again
def _outputs(model: Model, prompt: tuple[int, ...], answer: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    if model.config.is_encoder_decoder:
        start = (model.generation_config.decoder_start_token_id,)
        arguments = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([start + answer])}
    else:
        arguments = {"input_ids": torch.tensor([prompt + answer])}
    with torch.no_grad():
        outputs = model(**arguments, use_cache=False, output_hidden_states=True)
    hidden = outputs.decoder_hidden_states if model.config.is_encoder_decoder else outputs.hidden_states
    return outputs.logits[0, -1].float().log_softmax(-1), tuple(state[0, -1] for state in hidden)


def next_token(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The model's own law `[V]` of the next token."""
    return _outputs(model, tuple(prompt), tuple(answer))[0]


@dataclass(frozen=True)
class View:
    """What a law may look at when it is asked for one token: everything there is, each on its own."""

    model: Model
    prompt: Sequence[int]
    negative: Sequence[int]
    answer: list[int]

    def on(self, prompt: Sequence[int]) -> Tensor:
        """The model on another prompt and the answer so far."""
        return next_token(self.model, prompt, self.answer)

    def of(self, model: Model) -> Tensor:
        """Another model on the prompt and the answer so far."""
        return next_token(model, self.prompt, self.answer)

    def before(self, suffix: Sequence[int]) -> Tensor:
        """The model on the prompt, the answer so far and a suffix."""
        return next_token(self.model, self.prompt, [*self.answer, *suffix])

    def early(self, layer: int) -> Tensor:
        """The model read out at an earlier layer."""
        state = _outputs(self.model, tuple(self.prompt), tuple(self.answer))[1][layer]
        head: Any = self.model
        logits: Tensor = head.get_output_embeddings()(state)
        return logits.detach().float().log_softmax(-1)


def cfg_law(
    model: Model, prompts: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]], scales: Sequence[float]
) -> Law:
    """Classifier-free guidance as it is written: u + scale (c - u)."""

    def law(row: int, answer: list[int]) -> Tensor:
        cond, uncond = next_token(model, prompts[row], answer), next_token(model, negatives[row], answer)
        return uncond + scales[row] * (cond - uncond)

    return law


class Reference(LogitsProcessor):
    """Puts a law in the place of the model's scores, first of all processors."""

    def __init__(self, law: Law, prompts: int, skip: int) -> None:
        self.law, self.prompts, self.skip = law, prompts, skip

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        repeat = input_ids.shape[0] // self.prompts
        rows = [self.law(row // repeat, ids[self.skip :].tolist()) for row, ids in enumerate(input_ids)]
        return torch.stack(rows).log_softmax(-1)


class First:
    """`model.generate` with a law in the place of the model's scores, before every other processor."""

    def __init__(self, model: Model, law: Law) -> None:
        self.model, self.law = copy.copy(model), law

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Any:
        model: Any = self.model
        skip = 1 if model.config.is_encoder_decoder else input_ids.shape[1]
        reference = Reference(self.law, input_ids.shape[0], skip)
        own = model._get_logits_processor

        def with_reference(*args: Any, **arguments: Any) -> Any:
            processors = own(*args, **arguments)
            processors.insert(0, reference)
            return processors

        model._get_logits_processor = with_reference  # of the shallow copy: the model itself stays as it is
        return model.generate(input_ids, **kwargs)


def thinned(model: Model, context: DroppedBlocks) -> Model:
    """A deep copy of a model in which the blocks that a context skips do nothing."""
    clone = copy.deepcopy(model)
    kept = set(map(id, _blocks(without_blocks(model, context))))
    for own, block in zip(_blocks(model), _blocks(clone), strict=True):
        if id(own) not in kept:
            block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    return clone


def _blocks(model: Any) -> list[Any]:
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = (m for m in model.get_decoder().modules() if isinstance(m, torch.nn.ModuleList))
    return list(next(blocks for blocks in lists if len(blocks) == depth))
