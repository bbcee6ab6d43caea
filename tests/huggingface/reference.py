"""The plain reference: every source recomputed from scratch at every step, one row at a time, without padding or cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Law = Callable[[int, list[int]], "Tensor"]
"""Log-probabilities `[V]` of the next token, given the number of the prompt and the answer so far."""


def next_token(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The model's own law of the next token."""
    if model.config.is_encoder_decoder:
        start = [model.generation_config.decoder_start_token_id]
        arguments = {"input_ids": torch.tensor([list(prompt)]), "decoder_input_ids": torch.tensor([start + list(answer)])}
    else:
        arguments = {"input_ids": torch.tensor([[*prompt, *answer]])}
    with torch.no_grad():
        return model(**arguments, use_cache=False).logits[0, -1].float().log_softmax(-1)


def cfg_law(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]], scales: Sequence[float]
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

    def __init__(self, model: PreTrainedModel, law: Law) -> None:
        self.model, self.law = model, law

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Any:
        model = self.model
        skip = 1 if model.config.is_encoder_decoder else input_ids.shape[1]
        reference = Reference(self.law, input_ids.shape[0], skip)
        own = model._get_logits_processor

        def with_reference(*args: Any, **arguments: Any) -> Any:
            processors = own(*args, **arguments)
            processors.insert(0, reference)
            return processors

        model._get_logits_processor = with_reference
        try:
            return model.generate(input_ids, **kwargs)
        finally:
            del model._get_logits_processor
