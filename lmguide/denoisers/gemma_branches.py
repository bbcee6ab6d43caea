"""What DiffusionGemma's decoder reads beside the conditional's: other prompts, re-noised canvases, caches as one batch.

It knows transformers' caches and the model's encoder. It knows no guidance method and not when a source is wanted.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lmguide.sources import caches
from lmguide.sources.canvas import least_confident

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import Cache

    from lmguide.contexts import RemaskedCanvas
    from lmguide.denoisers.stats import Stats
    from lmguide.sources.ids import Rows


@dataclass
class Prefix:
    """What stands before the canvas, as the encoder has stored it.

    Attributes:
        cache: Keys and values of the columns, `B` rows.
        mask: True on tokens, `[B, L]`; padding is on the left.
    """

    cache: Cache
    mask: Tensor


@dataclass
class Reading:
    """What the decoder is given beside the canvas: of one source, or of several as one batch.

    Attributes:
        cache: The encoder's cache, `n B` rows.
        masks: Attention masks by layer type; `None` where everything is seen.
        positions: Positions of the canvas, `[1, C]` or `[n B, C]`.
    """

    cache: Cache
    masks: dict[str, Any]
    positions: Tensor


@dataclass
class Block:
    """One source's rows of a decoder pass.

    Attributes:
        canvas: The tokens, `[B, C]`.
        state: Self-conditioning logits `[B, C, V]`; `None` before the source's first pass over this canvas.
    """

    canvas: Tensor
    state: Tensor | None


class PromptSource:
    """The model behind another prompt: an encoder cache and an estimate of the canvas of its own.

    It encodes what it has not seen when it is asked, so a source that is never wanted costs nothing.

    Attributes:
        state: Its own logits of the last step it ran at, as the decoder takes them; `None` at the start of a canvas.

    Args:
        model: The model.
        rows: The prompt, one row or one for each of the batch.
        batch: Rows to serve.
        cache: An empty cache.
        stats: Where encoder passes are counted.
    """

    def __init__(self, model: Any, rows: Rows, batch: int, cache: Cache, stats: Stats) -> None:
        self.model = model
        self.batch = batch
        self.state: Tensor | None = None
        self.stats = stats
        self._cache = cache
        self._mask = rows.mask.bool()
        self._fresh = [rows.ids]
        self._seen = 0

    def commit(self, canvas: Tensor) -> None:
        """Put a finished canvas, `[B, C]`, behind the prompt."""
        self._fresh.append(canvas)

    def prefix(self) -> Prefix:
        """Everything committed, encoded."""
        if self._fresh:
            self._encode()
        return Prefix(self._cache, self._mask)

    def _encode(self) -> None:
        # One row that serves a batch is encoded once. A static cache is made for all rows; canvases differ by row.
        alone = self._mask.shape[0] == 1 < self.batch and len(self._fresh) == 1 and type(self._cache) is DynamicCache
        batch = 1 if alone else self.batch
        ids = torch.cat([part.expand(batch, -1) for part in self._fresh], 1)
        missing = self._seen + ids.shape[1] - self._mask.shape[1]
        mask = pad(self._mask.expand(batch, -1), (0, missing), value=True)
        positions = torch.arange(self._seen, self._seen + ids.shape[1], dtype=torch.int32, device=ids.device)[None]
        fresh, masks = self.model._prepare_encoder_inputs(
            input_ids=ids,
            attention_mask=mask,
            encoder_position_ids=positions,
            past_key_values=self._cache,
            is_prefill=True,  # all of the ids are new
            canvas_length=self.model.config.canvas_length,
            batch_size=batch,
        )
        self.model.model.encoder(
            input_ids=fresh, attention_mask=masks, past_key_values=self._cache, position_ids=positions
        )
        if alone:
            caches.expand(self._cache, torch.zeros(self.batch, dtype=torch.long, device=ids.device))
        self._mask = mask.expand(self.batch, -1)
        self._seen += ids.shape[1]
        self._fresh = []
        self.stats.forwards += 1
        self.stats.nfe += 1


def reading(model: Any, prefix: Prefix) -> Reading:
    """What the decoder is given for one source."""
    start, width = prefix.mask.shape[1], model.config.canvas_length
    positions = torch.arange(start, start + width, dtype=torch.int32, device=prefix.mask.device)[None]
    return Reading(prefix.cache, _decoder_masks(model, prefix.cache, prefix.mask), positions)


def joined(model: Any, prefixes: Sequence[Prefix]) -> Reading | None:
    """Several sources as one batch, rows under rows, each padded on the left; `None` where that would not be exact.

    The caches themselves are left as they are: the decoder only reads, so a copy serves until the canvas is done.
    """
    if not all(_joinable(prefix.cache) for prefix in prefixes) or _rope_looks_at_length(model):
        return None
    types = {tuple(map(type, prefix.cache.layers)) for prefix in prefixes}
    if len(types) > 1:
        return None
    longest = max(prefix.mask.shape[1] for prefix in prefixes)
    mask = torch.cat([pad(prefix.mask, (longest - prefix.mask.shape[1], 0), value=False) for prefix in prefixes])
    cache = _join([prefix.cache for prefix in prefixes], longest)
    masks = _decoder_masks(model, cache, mask)
    if masks["full_attention"] is None and not bool(mask.all()):
        return None  # an attention function of the user's own, for which transformers makes no masks
    width = model.config.canvas_length
    offsets = torch.arange(width, dtype=torch.int32, device=mask.device)
    positions = torch.cat([(offsets + p.mask.shape[1]).expand(p.mask.shape[0], -1) for p in prefixes])
    return Reading(cache, masks, positions)


def renoised(context: RemaskedCanvas, main: Block, candidates: Tensor, confidence: Tensor, noise: Tensor) -> Block:
    """The conditional's canvas with its least confident candidates replaced by noise.

    The estimate of the canvas is flat at these positions: otherwise it would go on telling what stood there.

    Args:
        context: Share of the candidates.
        main: The conditional's canvas and estimate.
        candidates: Positions that may be replaced, `[B, C]`.
        confidence: What is low where the model is unsure, `[B, C]`.
        noise: Tokens to take instead, `[B, C]`.
    """
    hit = least_confident(candidates, confidence, context.remask_ratio)
    state = main.state if main.state is None else main.state.masked_fill(hit[..., None], 0)
    return Block(torch.where(hit, noise, main.canvas), state)


def stack(blocks: Sequence[Block]) -> dict[str, Any]:
    """Canvases and estimates of several sources as arguments of the decoder."""
    states = [block.state for block in blocks]
    arguments: dict[str, Any] = {"decoder_input_ids": _rows([block.canvas for block in blocks])}
    known = next((state for state in states if state is not None), None)
    if known is None:
        return arguments | {"self_conditioning_logits": None}
    arguments["self_conditioning_logits"] = _rows([torch.zeros_like(known) if s is None else s for s in states])
    if any(state is None for state in states):
        has = [torch.full(block.canvas.shape[:1], block.state is not None) for block in blocks]
        arguments["self_conditioning_mask"] = torch.cat(has).to(known.device)
    return arguments


def static_cache(model: Any, length: int) -> StaticCache:
    """An empty static cache."""
    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)


def dynamic_cache(model: Any) -> DynamicCache:
    """An empty dynamic cache."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _rows(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _decoder_masks(model: Any, cache: Cache, mask: Tensor) -> dict[str, Any]:
    width = model.config.canvas_length
    # The masks take shape, type and device of the embeddings alone.
    embeds = torch.empty((mask.shape[0], width, 0), dtype=model.dtype, device=mask.device)
    masks: dict[str, Any] = model.model.decoder.create_diffusion_decoder_attention_mask(
        config=model.config,
        inputs_embeds=embeds,
        past_key_values=cache,
        decoder_attention_mask=pad(mask, (0, width), value=True),
    )
    return masks


def _joinable(cache: Cache) -> bool:
    """Whether every layer is of a known type; an exact check, because a subclass may keep more state."""
    kinds = {DynamicLayer, DynamicSlidingWindowLayer}
    return (
        type(cache) is DynamicCache
        and not cache.offloading
        and all(type(layer) in kinds and not getattr(layer, "record_past", False) for layer in cache.layers)
    )


def _rope_looks_at_length(model: Any) -> bool:
    """Whether rotary frequencies depend on the longest row of the batch."""
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None)
    return any(kind in str(rope) for kind in ("'dynamic'", "'longrope'"))


def _join(parts: Sequence[Cache], longest: int) -> Cache:
    whole = copy.copy(parts[0])
    whole.layers = []
    for same in zip(*(part.layers for part in parts), strict=True):
        layer: Any = copy.copy(same[0])
        sliding = isinstance(layer, DynamicSlidingWindowLayer)
        width = min(longest, layer.sliding_window - 1) if sliding else longest
        layer.keys = torch.cat([pad(part.keys, (0, 0, width - part.keys.shape[-2], 0)) for part in same])
        layer.values = torch.cat([pad(part.values, (0, 0, width - part.values.shape[-2], 0)) for part in same])
        if sliding:
            layer.cumulative_length = longest
        whole.layers.append(layer)
    return whole
