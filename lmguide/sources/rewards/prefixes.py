"""A causal classifier's logits for many one-token continuations of each row, behind one key-value cache of the row.

The candidates of a row stand side by side behind its prefix, all at the same position, and an attention mask hides
them from each other: one forward pass over `B` rows of `k` tokens, and no cache is copied. Where a model cannot be
masked so, the cache is lent out in `k` copies, a few candidates at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lmguide.sources import caches
from lmguide.sources.branch import RESUMES_EXACTLY, accepts, positions
from lmguide.sources.ids import Rows, pack

if TYPE_CHECKING:
    from torch import Tensor

Way = Literal["shared", "copied"]

PROBE_TOLERANCE = 1e-4
"""Largest relative difference, in float32, between a way of scoring candidates and plain forward passes."""

COARSE = 0.05
"""The same in a lower precision."""

PROBE_TOKENS = 6
"""Four of prefix, two candidates."""


class PrefixClassifier:
    """Class logits of prefixes and of their one-token continuations, with one cache.

    Attributes:
        forwards: Forward passes so far.
        nfe: The same counted per row: a pass over `n` copies of the rows counts `n`.

    Args:
        classifier: The classifier, for which `way` has found one.
        rows: The prompts, `[B, P]`.
        way: How candidates are scored.
        most: Most rows of a pass over copies.
    """

    def __init__(self, classifier: Any, rows: Rows, way: Way, most: int = 128) -> None:
        self.classifier = classifier
        self.base = classifier.base_model
        self.rows = rows
        self.way = way
        self.most = most
        self.forwards = 0
        self.nfe = 0
        self._positioned = accepts(self.base, "position_ids")
        self._order: Tensor | None = None
        self._forget()

    def logits(self, generated: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits `[B, k, C]` with each candidate behind the answer so far, and `[B, C]` of that itself.

        Args:
            generated: The answer so far, `[B, G]`.
            candidates: Tokens, `[B, k]`.
        """
        ids = torch.cat([self.rows.ids, generated], 1)
        mask = torch.cat([self.rows.mask, torch.ones_like(generated)], 1)
        self._settle()
        if self._held >= ids.shape[1]:  # the last token is run again, for the verdict on the prefix
            self._take_back(self._held - ids.shape[1] + 1)
        return self._shared(ids, mask, candidates) if self.way == "shared" else self._copied(ids, mask, candidates)

    def reorder(self, order: Tensor) -> None:
        """Follow a re-ordering of the rows, at the next forward."""
        self._order = order if self._order is None else self._order[order]

    def rewind(self, valid: int) -> None:
        """Take back the generated tokens after the first `valid`."""
        self._settle()
        self._take_back(max(0, self._held - self.rows.ids.shape[1] - valid))

    def _forget(self) -> None:
        self.cache = DynamicCache(config=self.classifier.config.get_text_config(decoder=True))
        self._held = 0
        self._order = None

    def _settle(self) -> None:
        if self._order is not None and self._held:
            caches.expand(self.cache, self._order)
        self._order = None

    def _take_back(self, tokens: int) -> None:
        if not tokens:
            return
        if caches.croppable(self.cache, tokens):
            caches.crop(self.cache, tokens)
            self._held -= tokens
        else:  # recurrent states, or a window that has slid past what it would need
            self._forget()

    def _shared(self, ids: Tensor, mask: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        length, count = ids.shape[1], candidates.shape[1]
        if self._held < length - 1:
            self._run(ids[:, self._held : -1], mask[:, :-1], positions(mask)[:, self._held : -1])
        at = mask.sum(1, keepdim=True)
        tokens = torch.cat([ids[:, -1:], candidates], 1)
        # the last token sees the prefix and itself; each candidate sees both and itself
        seen = mask[:, None, None].bool().expand(-1, 1, count + 1, -1)
        own = torch.eye(count + 1, dtype=torch.bool, device=ids.device)[:, 1:]
        allowed = torch.cat([seen, own.expand(ids.shape[0], 1, -1, -1)], -1)
        dtype = self.base.dtype
        hidden_from = torch.zeros(allowed.shape, dtype=dtype, device=ids.device)
        hidden_from.masked_fill_(~allowed, torch.finfo(dtype).min)
        states = self._run(tokens, hidden_from, torch.cat([at - 1, at.expand(-1, count)], 1))
        caches.crop(self.cache, count)
        self._held = length
        logits = self.classifier.score(states)
        return logits[:, 1:], logits[:, 0]

    def _copied(self, ids: Tensor, mask: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        states = self._run(ids[:, self._held :], mask, positions(mask)[:, self._held :])
        self._held = ids.shape[1]
        own = self.classifier.score(states[:, -1])
        longer = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], 1)
        found = []
        for part in candidates.split(max(1, self.most // ids.shape[0]), 1):
            rows = torch.arange(ids.shape[0], device=ids.device).repeat_interleave(part.shape[1])
            with caches.lent(self.cache):
                caches.expand(self.cache, rows)
                states = self._run(part.reshape(-1, 1), longer[rows], positions(longer)[rows, -1:], part.shape[1])
            found.append(self.classifier.score(states[:, -1]).unflatten(0, part.shape))
        return torch.cat(found, 1), own

    def _run(self, ids: Tensor, mask: Tensor, places: Tensor, copies: int = 1) -> Tensor:
        more = {"position_ids": places} if self._positioned else {}
        self.forwards += 1
        self.nfe += copies
        outputs = self.base(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **more)
        states: Tensor = outputs.last_hidden_state
        return states


_WAYS: WeakKeyDictionary[Any, Way | None] = WeakKeyDictionary()


def way(classifier: Any) -> Way | None:
    """How a classifier can score candidates behind a cache; `None` if it cannot, because it is not causal for instance.

    Found out once, by a few tokens: what it says must be what the classifier itself says of each text alone, with and
    without padding in front.
    """
    if classifier not in _WAYS:
        _WAYS[classifier] = _find(classifier)
    return _WAYS[classifier]


@torch.no_grad()
def _find(classifier: Any) -> Way | None:
    config = classifier.config
    if config.is_encoder_decoder or not isinstance(getattr(classifier, "score", None), torch.nn.Module):
        return None
    if classifier._is_stateful and config.model_type not in RESUMES_EXACTLY:
        return None
    vocab_size = classifier.get_input_embeddings().weight.shape[0]
    known = [token for token in range(vocab_size) if token != getattr(config, "pad_token_id", None)]
    if len(known) < PROBE_TOKENS:
        return None
    tokens = known[:: len(known) // PROBE_TOKENS][:PROBE_TOKENS]
    prefixes, continued = [tokens[:4], tokens[1:3]], tokens[4:]

    def alone(row: list[int]) -> Tensor:
        logits: Tensor = classifier(input_ids=torch.tensor([row], device=classifier.device)).logits[0]
        return logits.float()

    wanted = torch.stack(
        [torch.stack([alone(row), *(alone([*row, candidate]) for candidate in continued)]) for row in prefixes]
    )
    tolerance = PROBE_TOLERANCE if classifier.dtype is torch.float32 else COARSE
    tolerance *= max(1.0, float(wanted.abs().max()))
    candidates = torch.tensor([continued] * 2, device=classifier.device)
    for found in _candidates(classifier):
        try:
            reader = PrefixClassifier(classifier, pack(prefixes, classifier.device), found)
            after, before = reader.logits(candidates[:, :0], candidates)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            continue  # a model that takes no cache, or no such mask
        got = torch.cat([before[:, None], after], 1).float()
        if got.shape == wanted.shape and float((got - wanted).abs().max()) <= tolerance:
            return found
    return None


def _candidates(classifier: Any) -> tuple[Way, ...]:
    cache = DynamicCache(config=classifier.config.get_text_config(decoder=True))
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    masked = getattr(classifier.config, "_attn_implementation", None) in {"eager", "sdpa"}
    if plain and masked and accepts(classifier.base_model, "position_ids"):
        return ("shared", "copied")
    return ("copied",)
