"""A branch: one model on one context, with its own cache, run only when its scores are wanted.

It catches up on all tokens it has missed in one forward pass, follows beams as they are re-ordered, and takes rejected
drafts back.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from lmguide.sources import caches
from lmguide.sources.roomy import with_room
from lmguide.sources.skinny import few_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import Cache, PreTrainedModel

    from lmguide.sources.ids import Rows


RESUMES_EXACTLY = {"mamba2", "qwen3_next"}
"""Recurrent families whose forward takes several tokens behind a cached state and gives the same numbers as one token
at a time. Mamba's own (transformers 5.19) starts such a chunk from an empty state, so whatever is not listed here is
fed token by token."""


class Branch:
    """The next-token law of a model on its own prompt and the answer so far.

    Attributes:
        cache: The model's cache; `None` before the first forward, or always if run without one.
        consumed: Generated tokens the cache holds.
        forwards: Forward passes so far.
        caught_up: Generated tokens that were fed later than the step they belong to.

    Args:
        model: The model.
        rows: Its prompt, one row or one for each of the batch. For an encoder-decoder the decoder's prompt.
        batch: Rows to serve.
        use_cache: Whether to keep a cache; without one every call recomputes the whole context.
        record_past: Whether tokens may be taken back, which sliding-window caches must know beforehand.
        extra: Further keyword arguments of the model, such as an encoder's output.
        read: Takes the logits of the last positions out of the model's output; by default `outputs.logits`.
        room: Tokens that a cache makes room for at a time, see `with_room`; 0 for a layer that is copied at every
            token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Rows,
        batch: int,
        *,
        use_cache: bool = True,
        record_past: bool = False,
        extra: dict[str, Any] | None = None,
        read: Callable[[Any, int], Tensor] | None = None,
        room: int = 0,
    ) -> None:
        self.model = model
        self.rows = rows
        self.batch = batch
        self.use_cache = use_cache
        self.record_past = record_past and not model._is_stateful  # recurrent states cannot be taken back anyway
        self.extra = extra or {}
        self.read = read or _logits
        self.room = room
        self.cache: Cache | None = None
        self.consumed = 0
        self.forwards = 0
        self.caught_up = 0
        self._order: Tensor | None = None

    def logits(self, generated: Tensor, keep: int = 1, mask: Tensor | None = None) -> Tensor:
        """Logits for what follows each of the last `keep` prefixes of the answer.

        Args:
            generated: The answer so far, `[B, G]`, drafts included.
            keep: Prefixes to score, from all of `generated` backwards.
            mask: `[B, G]`, 0 on tokens that the model is not to see; `None` shows all of them.

        Returns:
            Logits `[B, keep, V]`.
        """
        shared = self.rows.ids.shape[0] == 1 < self.batch
        if shared and self.cache is None and self.use_cache and not generated.shape[1]:
            logits = self._forward(self.rows, generated[:1], keep).expand(self.batch, -1, -1)
            if self.cache is not None:
                caches.expand(self.cache, torch.zeros(self.batch, dtype=torch.long, device=generated.device))
        else:
            self._settle()
            logits = self._forward(self.rows.repeat(self.batch) if shared else self.rows, generated, keep, mask)
        if shared:
            self.rows = self.rows.repeat(self.batch)
        return logits

    def reorder(self, order: Tensor) -> None:
        """Follow a re-ordering of the rows, at the next forward."""
        if self.cache is not None:
            self._order = order if self._order is None else self._order[order]

    def rewind(self, valid: int) -> None:
        """Take back the generated tokens after the first `valid`, should they have been consumed.

        To be called whenever tokens may have been rejected, also on steps that want no scores.
        """
        if self.cache is None:
            return
        rejected = max(0, self.consumed - valid)
        if not rejected and not self.record_past:
            return
        if caches.croppable(self.cache, rejected):
            self._settle()
            caches.crop(self.cache, rejected)
            self.consumed -= rejected
        else:  # recurrent states, or a window that has slid past what it would need: the context is run again
            self.restart()

    def _settle(self) -> None:
        if self.cache is not None and self._order is not None:
            caches.expand(self.cache, self._order)
            self._order = None

    def restart(self) -> None:
        """Forget the context: it is run again when scores are wanted."""
        self.cache = self._order = None

    def _forward(self, rows: Rows, generated: Tensor, keep: int, mask: Tensor | None = None) -> Tensor:
        first = self.cache is None
        if first and self.use_cache:
            self.cache = caches.new_cache(self.model)
            self.use_cache = self.cache is not None
            if self.room:
                with_room(self.cache, self.room)
            if self.cache is not None and self.record_past:
                self.cache.activate_past_recording()
        ids = torch.cat([rows.ids, generated], 1)
        mask = torch.cat([rows.mask, torch.ones_like(generated) if mask is None else mask], 1)
        fresh = None if first or self.cache is None else generated.shape[1] - self.consumed
        outputs = forward(self.model, ids, mask, self.cache, fresh, keep, self.extra)
        self.forwards += passes(self.model, fresh)
        self.caught_up += (
            max(0, (generated.shape[1] if fresh is None else fresh) - keep) if self.cache is not None else 0
        )
        self.consumed = generated.shape[1]
        return self.read(outputs, keep)


def forward(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    cache: Cache | None,
    fresh: int | None,
    keep: int,
    extra: dict[str, Any],
) -> Any:
    """One forward pass of a model over whole rows or their last `fresh` tokens, prepared by the model's own code.

    Args:
        model: The model.
        ids: All tokens of each row, `[B, L]`, left-padded.
        mask: Their mask.
        cache: The cache, or `None`.
        fresh: How many of the last tokens the cache has not seen; `None` is all, the first time.
        keep: Positions whose logits are wanted; 1 for models that must be resumed token by token.
        extra: Further keyword arguments.
    """
    if fresh is not None and passes(model, fresh) > 1:
        for left in range(fresh - 1, 0, -1):
            forward(model, ids[:, : ids.shape[1] - left], mask[:, : mask.shape[1] - left], cache, 1, 1, extra)
        return forward(model, ids, mask, cache, 1, 1, extra)
    encoder_decoder = model.config.is_encoder_decoder
    prefix = "decoder_" if encoder_decoder else ""
    arguments: dict[str, Any] = {**extra, "use_cache": cache is not None}
    padded = not bool(mask.all())
    if padded or not encoder_decoder:
        arguments[f"{prefix}attention_mask"] = mask if padded else None
    if not encoder_decoder and accepts(model, "position_ids"):
        arguments["position_ids"] = positions(mask)
    if cache is not None:
        arguments[caches.cache_name(model)] = cache
    if model._supports_logits_to_keep():
        arguments["logits_to_keep"] = keep
    inputs = model.prepare_inputs_for_generation(
        ids, next_sequence_length=fresh, is_first_iteration=fresh is None, **arguments
    )
    with few_rows(model, ids.shape[0] * (ids.shape[1] if fresh is None else fresh)):
        return model(**inputs, return_dict=True)


def passes(model: Any, fresh: int | None) -> int:
    """Forward passes that `forward` needs for so many new tokens."""
    by_token = model._is_stateful and model.config.model_type not in RESUMES_EXACTLY
    return fresh if by_token and fresh is not None else 1


def _logits(outputs: Any, keep: int) -> Tensor:
    logits: Tensor = outputs.logits[:, -keep:]
    return logits


def positions(mask: Tensor) -> Tensor:
    """Position of each token in its row; padding is at 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes an argument by name."""
    return argument in inspect.signature(model.forward).parameters
