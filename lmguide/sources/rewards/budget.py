"""The chance that a span keeps its budget with each next token, from a predictor of lengths.

A predictor of hidden states gets them from a `Branch`, of the guided model or of its own reader: behind a gate of
newlines a line is read in one pass, whatever the loop does with its rows and drafts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmguide.descriptions.budget import RunningText, predicts
from lmguide.rules.candidates import plausible
from lmguide.sources.branch import Branch
from lmguide.sources.ids import check_positions
from lmguide.sources.models import check_vocabulary, opened
from lmguide.sources.rewards.budget_law import log_within
from lmguide.sources.rewards.budget_model import LengthModel, load_length_model
from lmguide.sources.rewards.budget_spans import Spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmguide.descriptions.budget import WithinBudget
    from lmguide.sources.rewards.base import Generation

ROUNDING = 1e-4
"""Largest log-probability that passes for 0."""


class BudgetReward:
    """`log P(the span keeps its budget | text, v)` for every next token `v`; see `WithinBudget` for the formula.

    Args:
        context: The description.
        generation: The call.

    Raises:
        ValueError: The predictor does not fit the guided model; budgets are neither one nor one per prompt; a marker
            cannot be found.
    """

    def __init__(self, context: WithinBudget, generation: Generation) -> None:
        self.context, self.generation = context, generation
        self.predictor = _predictor(context, generation)
        self.budgets = _budgets(context, generation)
        self.spans = Spans(context, generation)
        self._asked = 0
        self._branch = _branch(self.predictor, generation)

    @property
    def forwards(self) -> int:
        """Forward passes for hidden states; of a predictor that reads the text itself its calls."""
        return self._asked if self._branch is None else self._branch.forwards

    @property
    def nfe(self) -> int:
        """The same."""
        return self.forwards

    @torch.no_grad()
    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Log-rewards `[B, V]`: 0 on rows that are not guided here."""
        rewards = torch.zeros(scores.shape, device=scores.device)
        spans = {row: span for row, span in self.spans.guided(generated).items() if self.budgets[row] is not None}
        if not spans:
            return rewards
        rows = torch.tensor(list(spans), device=scores.device)
        left = [max(1, (self.budgets[row] or 0) - len(span)) for row, span in spans.items()]
        kept = plausible(scores[rows], self.context.plausibility)
        found = self._law(self._text(generated, rows), torch.tensor(left, device=scores.device), kept)
        ending = torch.zeros_like(found, dtype=torch.bool)
        for place, span in enumerate(spans.values()):
            ending[place, self.spans.ending(span)] = True
        unsure = torch.isneginf(found)
        counts = kept & ~unsure
        if predicts(self.predictor):
            counts |= kept & ending
        else:
            counts &= ~ending  # that it can end is no sign that the predictor is sure of anything
            if self.context.rest == "mean":
                found = found.where(~unsure, _mean(found, scores[rows], counts))
        found = found.masked_fill(ending, 0.0).masked_fill(~kept, -torch.inf)
        rewards[rows] = found.where(counts.any(-1, keepdim=True), 0.0)
        return rewards

    def reorder(self, order: Tensor) -> None:
        """Let the cache follow."""
        if self._branch is not None:
            self._branch.reorder(order)

    def rewind(self, valid: int) -> None:
        """Take tokens back from the cache."""
        if self._branch is not None:
            self._branch.rewind(valid)

    def _text(self, generated: Tensor, rows: Tensor) -> RunningText:
        prompts = self.generation.prompts
        states = None
        if self._branch is not None:
            if self._branch.consumed >= generated.shape[1]:
                self._branch.rewind(generated.shape[1] - 1)
            states = self._branch.logits(generated)[rows, -1]
        ids = torch.cat([prompts.ids, generated], 1)[rows]
        mask = torch.cat([prompts.mask, torch.ones_like(generated)], 1)[rows]
        return RunningText(ids, mask, states)

    def _law(self, text: RunningText, budget: Tensor, kept: Tensor) -> Tensor:
        """`log P(remaining tokens <= budget)`, `[N, V]`, float32, of the candidates that are kept."""
        self._asked += 1
        size = (len(text.ids), self.generation.vocab_size)
        if predicts(self.predictor):
            found: Tensor = self.predictor.log_prob_within(text, budget)
            _check("log_prob_within", (found,), size, budget.device)
            if bool((found.isnan() | (found > ROUNDING)).any()):
                raise ValueError(
                    "predictor: expected log-probabilities, at most 0, from log_prob_within, got NaN or more. "
                    "Take the logarithm of what it predicts."
                )
            return found.float().clamp_max(0.0)
        law = self.predictor.gamma(text)
        _check("gamma", law, size, budget.device)
        shape, rate = law
        if not bool(((shape > 0) & (rate > 0) & shape.isfinite() & rate.isfinite()).all()):
            raise ValueError(
                "predictor: expected finite shapes and rates above 0 from gamma, got others or NaN. "
                "Put a softplus behind what it predicts."
            )
        c = self.context
        return log_within(budget, shape, rate, c.min_shape, c.min_rate, c.min_remaining, kept).float()


def _mean(log_reward: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
    """`log E r(v)` over the candidates that count, by the law of the scores, `[N, 1]`."""
    law = scores.masked_fill(~counts, -torch.inf)
    total = (law + log_reward.masked_fill(~counts, -torch.inf)).logsumexp(-1, keepdim=True)
    return total - law.logsumexp(-1, keepdim=True)


def _check(method: str, law: Any, size: tuple[int, int], device: torch.device) -> None:
    """Refuse what is not one or two tensors `[N, V]` where scores are."""
    parts = law if isinstance(law, tuple | list) else (law,)
    wanted = 1 if method == "log_prob_within" else 2
    shapes = [list(getattr(part, "shape", ())) for part in parts]
    if len(parts) != wanted or not all(isinstance(part, torch.Tensor) and part.shape == size for part in parts):
        raise ValueError(
            f"predictor: expected {wanted} tensor(s) of shape {list(size)} from {method}, got shapes {shapes}. "
            "Give one number for each text and each token of the guided model's logits."
        )
    if any(part.device != device for part in parts):
        raise ValueError(f"predictor: expected what {method} gives on {device}, got {parts[0].device}. Move it there.")


def _predictor(context: WithinBudget, generation: Generation) -> Any:
    """The predictor, loaded where it is a path."""
    predictor: Any = context.predictor
    if isinstance(predictor, str):
        predictor = load_length_model(predictor).to(generation.device)
    if isinstance(predictor, LengthModel):
        if predictor.training:
            raise ValueError("predictor: expected a model that does not drop out units. Call its eval().")
        if predictor.config.vocab_size != generation.vocab_size:
            raise ValueError(
                f"predictor: expected one for {generation.vocab_size} tokens, got one for "
                f"{predictor.config.vocab_size}. Train one for the guided model."
            )
    return predictor


def _branch(predictor: Any, generation: Generation) -> Branch | None:
    """What runs the model whose states a predictor reads; `None` for a predictor that reads none."""
    layers = tuple(getattr(predictor, "layers", ()))
    if not layers:
        return None
    model, own = generation.model, getattr(predictor, "reader", None)
    if own is not None:
        model, tokenizer = opened(own, None, model, False, "predictor")
        check_vocabulary(generation.model, generation.tokenizer, model, tokenizer, "predictor")
        check_positions(model, generation.prompts, generation.total or 0, "predictor")
    if model.config.is_encoder_decoder or not bool(generation.prompts.mask.any(1).all()):
        raise ValueError(
            f"predictor: expected hidden states of a causal model behind a prompt, got {type(model).__name__} and "
            f"{generation.prompts.ids.shape[1]} tokens. Use a predictor of texts, without layers."
        )
    if model.training and own is not None:
        raise ValueError("predictor: expected a reader that does not drop out units. Call its eval().")
    config = model.config.get_text_config(decoder=True)
    depth = config.num_hidden_layers
    if any(not -depth - 1 <= layer <= depth for layer in layers):
        raise ValueError(
            f"predictor: expected layers in [{-depth - 1}, {depth}], got {layers}. Choose among the hidden states."
        )
    if isinstance(predictor, LengthModel) and predictor.config.hidden_size != config.hidden_size:
        raise ValueError(
            f"predictor: expected one for hidden states of width {config.hidden_size}, got one for "
            f"{predictor.config.hidden_size}. Train one on the guided model."
        )

    def read(outputs: Any, keep: int) -> Tensor:
        return torch.stack([outputs.hidden_states[layer][:, -keep:] for layer in layers], -2)

    return Branch(
        model,
        generation.prompts,
        generation.batch,
        record_past=generation.drafts,
        extra={"output_hidden_states": True},
        read=read,
    )


def _budgets(context: WithinBudget, generation: Generation) -> Sequence[int | None]:
    """The budget of each row: one for all, or one per prompt."""
    given = context.budget if isinstance(context.budget, tuple) else (context.budget,)
    prompts = generation.prompts.tokens()
    repeat = max(1, len(prompts) // len(given))
    same = all(prompts[row] == prompts[row - row % repeat] for row in range(len(prompts)))
    if len(given) > 1 and (len(prompts) % len(given) or not same):
        raise ValueError(
            f"budget: expected one or one per prompt, got {len(given)} for {len(prompts)} rows. "
            "Give as many as there are prompts."
        )
    return [budget for budget in given for _ in range(len(prompts) // len(given))]
