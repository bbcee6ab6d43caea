"""A sequence classifier of transformers as a differentiable function of embeddings, whatever its padding."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

PADDING_TOLERANCE = 0.05
"""Largest change of a classifier's log-probability by padding, in nats. What is left in half precision is smaller."""


class SequenceClassifier:
    """A sequence classifier of transformers as a `CanvasClassifier`.

    Padding is put on whichever side its score does not depend on, which is found out once: encoders count positions
    from the left, and those that read the last token need the padding in front.

    Args:
        model: An `AutoModelForSequenceClassification`.

    Raises:
        TypeError: It is none.
        ValueError: It drops out units, or has no classes.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if not hasattr(model, "get_input_embeddings") or "inputs_embeds" not in parameters(model):
            raise TypeError(
                f"model: expected a sequence classifier of transformers that takes inputs_embeds, got "
                f"{type(model).__name__}. Load one with AutoModelForSequenceClassification, or give an object with "
                "embedding and log_prob (see CanvasClassifier)."
            )
        if model.training:
            raise ValueError("model: expected a classifier that does not drop out units. Call its eval().")
        config = model.config
        self._classes = int(config.num_labels or 0)
        self._independent = config.problem_type == "multi_label_classification"
        if config.problem_type == "regression" or (self._classes < 2 and not self._independent):
            raise ValueError(
                "model: expected a classifier with several classes, got one number. "
                "Give an object whose log_prob says what it means (see CanvasClassifier)."
            )
        self.model = model
        module: Any = model.get_input_embeddings()
        with torch.inference_mode(False), torch.no_grad():
            # some embeddings scale what they look up
            plain = type(module) is torch.nn.Embedding and module.max_norm is None
            weight: Tensor = module.weight
            tokens = torch.arange(weight.shape[0], device=weight.device)
            self.embedding: Tensor = weight if plain else module(tokens)
        self._side: str | None = None

    def log_prob(self, embeds: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """`log p(label | canvas)`, `[B]`."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and 0 < longest < embeds.shape[1]:
            raise ValueError(
                f"model: expected a classifier of canvases of {embeds.shape[1]} tokens, got one of up to {longest}. "
                "Decode a shorter answer or train a longer classifier."
            )
        if int(labels.max()) >= self._classes:
            raise ValueError(
                f"label: expected one of {self._classes} classes, got {int(labels.max())}. Count them from 0."
            )
        if bool(attention_mask.all()):
            return self._run(embeds, attention_mask, labels)
        self._side = self._side or self._harmless_side(embeds.detach(), attention_mask, labels)
        return self._padded(self._side, embeds, attention_mask, labels)

    @torch.no_grad()
    def _harmless_side(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> str:
        row = int(mask.sum(1).argmin())
        one = slice(row, row + 1)
        kept = mask[row].bool()
        alone = self._run(embeds[one, kept], mask[one, kept], labels[one])
        changes = {
            side: float((self._padded(side, embeds[one], mask[one], labels[one]) - alone).abs())
            for side in ("right", "left")
        }
        side = min(changes, key=changes.__getitem__)
        if changes[side] > PADDING_TOLERANCE:
            raise ValueError(
                f"model: expected a classifier whose score does not change with padding, but it moves by "
                f"{changes[side]:.2g} nats. Decode prompts of equal length, or one at a time."
            )
        return side

    def _padded(self, side: str, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        if side == "left":
            return self._run(embeds, mask, labels, (mask.cumsum(1) - 1).clamp_min(0))
        order = mask.eq(0).long().argsort(dim=1, stable=True)
        return self._run(embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order), labels)

    def _run(self, embeds: Tensor, mask: Tensor, labels: Tensor, positions: Tensor | None = None) -> Tensor:
        more: dict[str, Any] = {}
        if positions is not None and "position_ids" in parameters(self.model):
            more["position_ids"] = positions
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, **more).logits.float()
        log_probs = torch.nn.functional.logsigmoid(logits) if self._independent else logits.log_softmax(-1)
        return log_probs.gather(1, labels[:, None])[:, 0]


def parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, or of a module's forward; none where Python cannot tell."""
    try:
        return inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):
        return {}
