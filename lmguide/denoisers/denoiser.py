"""A model and what its family needs, as one function from canvas to logits.

It undoes shifts, applies substitutions, builds masks and positions and asks for no more logits than are wanted. It
knows nothing of orders, guidance or sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from lmguide.denoisers.caches import CanvasCache, Span
from lmguide.denoisers.families import Family, family_of
from lmguide.denoisers.families import family as family_named
from lmguide.denoisers.layouts import Layouts
from lmguide.denoisers.reading import check_attention, mask_token, max_length, parameters, position_offset, unwrapped

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.denoisers.layouts import Layout

# How a forward is told to write into the cache it is given; most do so unasked.
_STORE_ARGUMENTS = ("store_kv", "update_past_key_values")
# Time inputs of models conditioned on how noisy the canvas is.
_TIME_ARGUMENTS = ("timesteps", "sigma")
# Between rows, a probe's logits may differ by rounding: by this share of their standard deviation, in any dtype.
_PROBE_TOLERANCE = 0.1


class Denoiser:
    """A diffusion language model as one function from a canvas to the logits of some of its columns.

    Args:
        model: A model in evaluation mode, on its device and in its dtype. It is not changed.
        family: What it expects: a ``Family``, a name of ``FAMILIES``, or None to recognise it by its configuration.
        tokenizer: The tokenizer, where the mask token is known to it alone.
        mask_token_id: The mask token. None takes the first that is known of ``config.mask_token_id``, the family's
            and the tokenizer's; always None for uniform noise.

    Attributes:
        model: The model.
        family: Its family.
        tokenizer: The tokenizer, or None.
        mask_token_id: The mask token; None with uniform noise.
        vocab_size: V.
        device: Where the canvas must be.
        dtype: The dtype of the logits.
        max_length: How many columns a canvas may have; None if nobody knows.

    Raises:
        TypeError: the model is not a module, or ``mask_token_id`` not an int.
        ValueError: the family is not recognised, the model is in training mode, the mask token is unknown, outside of
            the vocabulary, or is the padding token, or the model attends in a way that a mask cannot be given for.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        ... )
        >>> denoiser = Denoiser(BertForMaskedLM(config).eval(), mask_token_id=4)
        >>> canvas = torch.tensor([[7, 8, 9, 4, 4, 4]])
        >>> with torch.no_grad():
        ...     logits = denoiser(canvas, start=3)
        >>> logits.shape, denoiser.family.name
        (torch.Size([1, 3, 50]), 'masked_lm')
    """

    def __init__(
        self,
        model: Any,
        family: Family | str | None = None,
        *,
        tokenizer: Any = None,
        mask_token_id: int | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: expected a torch module, got {type(model).__name__}. Load the model first.")
        if model.training:
            raise ValueError("model: expected evaluation mode, got training mode. Call model.eval().")
        inner = unwrapped(model)
        if not hasattr(inner, "config"):
            raise TypeError(f"model: expected a model with a config, got {type(inner).__name__}. Give it one.")
        if family is None:
            family = family_of(inner)
        elif isinstance(family, str):
            family = family_named(family)
        if family.runner != "canvas":
            raise ValueError(
                f"family: expected one whose model reads a canvas, got {family.name!r}, whose models keep a state of "
                "their own between steps. Use lmguide.diffusion.guide_gemma(model, guidance).generate(...)."
            )
        self.model, self.family, self.tokenizer = model, family, tokenizer
        config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
        self._takes = parameters(inner)
        check_attention(family, config)
        self.vocab_size = int(config.vocab_size)
        self.device = next(inner.parameters()).device
        self.dtype: torch.dtype = next(each.dtype for each in inner.parameters() if each.is_floating_point())
        self.mask_token_id = mask_token(family, config, tokenizer, mask_token_id)
        # Positions of RoBERTa and its like are counted from behind the padding token's.
        self._offset = position_offset(inner)
        self.max_length = max_length(config, self._offset)
        self._layouts = Layouts(family, self.device, self.dtype)
        self._wanted: dict[tuple[int, int], Tensor] = {}
        self._probed = family.padding != "keys"

    def __call__(
        self,
        canvas: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: CanvasCache | None = None,
        start: int = 0,
        stop: int | None = None,
        timesteps: Tensor | None = None,
    ) -> Tensor:
        """The logits of the columns ``[start, stop)``, in one forward pass.

        Entry i scores the token at column ``start + i``, whatever the model's own convention. With a shift, a row's
        first token has nobody before it and takes the scores that the model gives for its second.

        Gradients are as the caller has them; with a cache there are none.

        Args:
            canvas: Token ids ``[B, L]``, int64, on the denoiser's device. A block-causal family is run on the columns
                that the wanted ones see, and no further.
            attention_mask: ``[B, L]``, 1 at real tokens, undecided ones included; padding stands on the left. None
                means no padding. What follows from it is kept as long as the same tensor comes again.
            cache: One of ``new_cache``, for fewer columns to run; ``begin_block`` must have been called on it.
            start: First column wanted.
            stop: The column behind the last wanted; None is L.
            timesteps: ``[B]`` float, how noisy each row is, for models conditioned on it. None is 0, which masked
                models are given throughout; with uniform noise it must be given.

        Returns:
            Logits ``[B, stop - start, V]`` in the model's dtype.

        Raises:
            ValueError: the canvas is not two-dimensional or too long, the window is empty or outside of the canvas,
                the attention mask has another shape, a gap, or padding that the family cannot take, the cache has not
                begun this window, or timesteps are missing or not taken.
        """
        stop = self._check(canvas, start, stop)
        rows, length = canvas.shape
        layout = self._layouts.of(attention_mask, rows, length)
        if layout.padded and not self._probed:
            self._probe_padding()
        low, high, firsts = start, stop, []
        if self.family.shift:
            firsts = [column for column in layout.begins if start <= column < stop]
            low, high = max(start - 1, 0), max(stop - 1, *(column + 1 for column in firsts), 1)
        if cache is not None:
            with torch.no_grad():
                span = cache.span(layout, start, stop, low, high)
                logits = self._run(canvas, layout, span, low, high, timesteps, cache)
                cache.ran(span)
        else:
            behind = layout.block_stop(high - 1) if self.family.attention == "block_causal" else length
            logits = self._run(canvas, layout, Span(0, behind, behind), low, high, timesteps, None)
        if self.family.shift:
            logits = _shifted(logits, layout, low, start, stop, firsts)
        return self._substituted(logits, canvas[:, start:stop]) if self.family.substitution else logits

    @property
    def timed(self) -> bool:
        """Whether the model is told how noisy a canvas is."""
        return any(name in self._takes for name in _TIME_ARGUMENTS)

    def new_cache(self, kind: Literal["prefix", "dual"] = "prefix") -> CanvasCache:
        """An empty cache for one batch.

        Args:
            kind: With full attention, approximate, after Fast-dLLM (arXiv 2505.22618): ``"prefix"`` runs the window
                and what is behind it, ``"dual"`` the window alone, against keys and values from the window's first
                call. With block-causal attention ``"prefix"``, which is exact.

        Raises:
            ValueError: an unknown kind, ``"dual"`` for a block-causal family, or a model that takes no cache.
        """
        if kind not in ("prefix", "dual"):
            raise ValueError(f"kind: expected 'prefix' or 'dual', got {kind!r}. Use 'prefix' for the more exact one.")
        if self.family.attention == "block_causal" and kind == "dual":
            raise ValueError(
                f"kind: expected 'prefix' for the block-causal family {self.family.name!r}, got 'dual'. "
                "The prefix cache is exact there, and nothing behind the window is run."
            )
        if self.family.attention == "full" and self.family.padding in ("keys", "none"):
            raise ValueError(
                f"cache: expected a family whose forward takes keys and values, got {self.family.name!r}. "
                "Decode without a cache, with fewer steps or an order that commits several tokens a step."
            )
        if "past_key_values" not in self._takes:
            raise ValueError(
                f"cache: expected a model whose forward takes past_key_values, got {type(self.model).__name__}. "
                "Decode without a cache."
            )
        return CanvasCache(self.family.attention, kind)

    def _run(
        self,
        canvas: Tensor,
        layout: Layout,
        span: Span,
        low: int,
        high: int,
        timesteps: Tensor | None,
        cache: CanvasCache | None,
    ) -> Tensor:
        """One forward over the columns of the span; the logits that the model gives at `[low, high)`."""
        first, behind, keys = span
        inputs: dict[str, Any] = {"input_ids": canvas[:, first:behind]}
        mask = layout.mask(first, behind, keys)
        if mask is not None:
            inputs["attention_mask"] = mask
        elif self.family.padding == "pairs":
            inputs["attention_mask"] = "full"  # Dream's word for no mask
        if "position_ids" in self._takes:
            inputs["position_ids"] = layout.positions_of(first, behind, self._offset)
        if cache is not None:
            inputs["past_key_values"] = cache
        if "use_cache" in self._takes:
            inputs["use_cache"] = cache is not None
        if self.family.attention == "block_causal" and "block_size" in self._takes:
            inputs["block_size"] = self.family.block_length
        if cache is not None:
            inputs |= {name: True for name in _STORE_ARGUMENTS if name in self._takes}
        inputs |= self._times(timesteps, canvas.shape[0])
        kept = self._keep(inputs, low - first, high - first, behind - first)
        logits = _logits(self.model(**inputs))
        return logits[:, kept : kept + high - low]

    def _keep(self, inputs: dict[str, Any], low: int, high: int, width: int) -> int:
        """Ask for the logits of `[low, high)` out of `width`; returns where in the answer `low` will stand."""
        if "logits_to_keep" in self._takes and high < width:
            if (low, high) not in self._wanted:
                self._wanted.clear()
                self._wanted[low, high] = torch.arange(low, high, device=self.device)
            inputs["logits_to_keep"] = self._wanted[low, high]
            return 0
        name = next((each for each in ("logits_to_keep", "num_logits_to_keep") if each in self._takes), None)
        if name is None:
            return low
        inputs[name] = width - low
        return 0

    def _check(self, canvas: Tensor, start: int, stop: int | None) -> int:
        """Refuse a canvas or a window that cannot be; the window's end."""
        if canvas.ndim != 2 or canvas.dtype != torch.int64:
            raise ValueError(
                f"canvas: expected token ids [B, L] of dtype int64, got {tuple(canvas.shape)} of {canvas.dtype}. "
                "Stack the rows, padded on the left."
            )
        length = canvas.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"canvas: expected at most {self.max_length} columns, got {length}. Give fewer new tokens or a shorter "
                "prompt."
            )
        stop = length if stop is None else stop
        if not 0 <= start < stop <= length:
            raise ValueError(
                f"start, stop: expected 0 <= start < stop <= {length}, got {start} and {stop}. "
                "Give columns of the canvas."
            )
        return stop

    def _times(self, timesteps: Tensor | None, rows: int) -> dict[str, Tensor]:
        name = next((each for each in _TIME_ARGUMENTS if each in self._takes), None)
        if timesteps is not None and (name is None or timesteps.shape != (rows,)):
            expected = "None: the model has no time input" if name is None else f"shape ({rows},)"
            raise ValueError(
                f"timesteps: expected {expected}, got shape {tuple(timesteps.shape)}. Give one for each row, or none."
            )
        if name is None:
            return {}
        if timesteps is None:
            if self.family.noise == "uniform":
                raise ValueError(
                    "timesteps: expected how noisy each row is, got None: the model is conditioned on it. "
                    "Give a tensor [B]."
                )
            timesteps = torch.zeros(rows, device=self.device)
        return {name: timesteps}

    def _substituted(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The SUBS parametrisation: no mass on the mask token, all mass on a token that stands."""
        assert self.mask_token_id is not None  # there is none with uniform noise alone
        masked = (tokens == self.mask_token_id)[..., None]
        # At a masked column the token that stands is the mask token itself.
        own = torch.where(masked, -torch.inf, 0.0).to(logits.dtype)
        return logits.masked_fill(~masked, -torch.inf).scatter_(-1, tokens[..., None], own)

    @torch.no_grad()
    def _probe_padding(self) -> None:
        """Once, on three columns: padding must change nothing.

        Published code exists that drops the mask, or becomes causal with one, and says nothing.
        """
        self._probed = True
        ids = [token for token in range(min(self.vocab_size, 8)) if token != self.mask_token_id]
        canvas = torch.tensor([[ids[0], *ids[-2:]]], device=self.device)
        padded = self(canvas, torch.tensor([[0, 1, 1]], device=self.device), start=1).float()
        alone = self(canvas[:, 1:]).float()
        off = float((padded - alone).abs().max())
        if off > _PROBE_TOLERANCE * float(alone.std()):
            self._probed = False
            raise ValueError(
                f"attention_mask: expected a model that leaves padding out, got logits that change by {off:.2g} with "
                "one column of it. Decode prompts of different lengths one at a time, or load newer model code."
            )


def _shifted(logits: Tensor, layout: Layout, low: int, start: int, stop: int, firsts: list[int]) -> Tensor:
    """The scores of the columns `[start, stop)`, each from the column before it; rows that begin there from their own.

    Args:
        logits: The model's, at the columns from `low` on.
        layout: Where rows begin.
        low: The column before `start`, or 0.
        start: First column wanted.
        stop: The column behind the last wanted.
        firsts: Columns among them at which rows begin.
    """
    scores = logits[:, : stop - start] if start else torch.cat([logits[:, :1], logits[:, : stop - 1]], 1)
    if firsts and layout.padded:
        scores = scores.clone()
        for column in firsts:
            begins = (layout.begin == column)[:, None]
            scores[:, column - start] = torch.where(begins, logits[:, column - low], scores[:, column - start])
    return scores


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    result: Tensor = logits[0] if isinstance(logits, tuple) else logits
    return result
