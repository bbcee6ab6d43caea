"""A decoding loop of several rows that somebody else draws for: rows may be dropped and doubled between steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from lmguide.sources import caches

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig

    from lmguide.constraints.states import ConstraintState


class Draw(Protocol):
    """Draws the next token of every row."""

    def __call__(self, generated: Tensor, scores: Tensor, finished: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """A step.

        Args:
            generated: What the rows have written, `[B, G]`.
            scores: Guided scores behind the call's processors, `[B, V]`.
            finished: Rows that have ended, `[B]`; what is drawn for them does not count.

        Returns:
            A token for each row `[B]`; then the row that each row goes on with `[B]`, or `None` for its own; and the
            rows that end here, before re-ordering, `[B]`.
        """


class Drawer(Protocol):
    """Makes what draws, once the rows are known."""

    def __call__(self, state: ConstraintState | None, ends: tuple[int, ...]) -> Draw:
        """What draws for rows with this state under their constraint, `None` without, and these end tokens."""


def decode(
    view: Any,
    input_ids: Tensor,
    *,
    draw: Draw,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    **arguments: Any,
) -> Tensor:
    """Decode until every row has ended, `[B, L]`; the rows must be of one prompt."""
    ends = getattr(generation_config, "_eos_token_tensor", None)
    ends = input_ids.new_empty(0) if ends is None else ends.to(input_ids.device)
    padding = getattr(generation_config, "_pad_token_tensor", None)
    name = caches.cache_name(view._plan.model)
    prompt = input_ids.shape[1]
    finished = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    outputs = view._prefill(input_ids, generation_config, arguments, is_first_iteration=True)
    while True:
        if view._run is None:  # with guidance the run counts
            view.stats.steps += 1
            view.stats.forwards += 1
            view.stats.nfe += 1
        arguments = view._update_model_kwargs_for_generation(
            outputs, arguments, is_encoder_decoder=view.config.is_encoder_decoder
        )
        scores: Tensor = logits_processor(input_ids, outputs.logits[:, -1].to(copy=True, dtype=torch.float32))
        tokens, order, ended = draw(input_ids[:, prompt:], scores, finished)
        if padding is not None:
            tokens = torch.where(finished, padding, tokens)
        input_ids = torch.cat([input_ids, tokens[:, None]], 1)
        finished = finished | ended | torch.isin(tokens, ends)
        if order is not None:
            input_ids, finished = input_ids[order], finished[order]
            if arguments.get(name) is not None:
                arguments[name] = view._reorder_cache(arguments[name], order)
        finished = finished | stopping_criteria(input_ids, None)
        if bool(finished.all()):
            return input_ids
        fresh = 1 if arguments["use_cache"] else None
        inputs = view.prepare_inputs_for_generation(input_ids, next_sequence_length=fresh, **arguments)
        outputs = view(**inputs, return_dict=True)
