"""Small random denoisers, made in code, with the forwards of the families that people load.

Each class takes what the published class takes and treats it the same way: what it ignores, refuses, stores and checks.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import transformers as tf
from torch import Tensor, nn

from lmguide.denoisers import FAMILIES, Denoiser, Family

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB, WIDTH, HEADS, LAYERS = 48, 32, 4, 2
PAD, MASK = 0, 3
LONGEST = 128


def denoiser_of(name: str) -> Denoiser:
    """A denoiser with small random weights, always the same ones; `MODELS` has the names."""
    return Denoiser(model_of(name), FAMILY.get(name), mask_token_id=None if name in UNIFORM else MASK)


@cache
def model_of(name: str) -> Any:
    """The model alone, in float32 and evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


def canvas_of(rows: int, prompt: int, answer: int, seed: int = 0) -> Tensor:
    """Canvases `[rows, prompt + answer]`: random ordinary tokens, then mask tokens."""
    ids = torch.randint(4, VOCAB, (rows, prompt), generator=torch.Generator().manual_seed(seed))
    return torch.cat([ids, torch.full((rows, answer), MASK)], 1)


def left_padded(canvas: Tensor, gaps: list[int]) -> tuple[Tensor, Tensor]:
    """The canvas with the first `gaps[b]` columns of row b made padding, and its attention mask."""
    mask = (torch.arange(canvas.shape[1])[None] >= torch.tensor(gaps)[:, None]).long()
    return canvas.masked_fill(mask == 0, PAD), mask


class Core(nn.Module):
    """A transformer with rotary positions; who sees whom is the caller's matter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, exchange: Any) -> Tensor:
        """Hidden states; `exchange(index, keys, values)` gives the keys and values that are seen."""
        frequencies = 100.0 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
        angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, None]
        hidden: Tensor = self.embed(ids)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, mask, angles, lambda keys, values, index=index: exchange(index, keys, values))
        return hidden


class Layer(nn.Module):
    """Attention and one non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(
        self, hidden: Tensor, mask: Tensor | None, angles: Tensor, exchange: Callable[[Tensor, Tensor], Any]
    ) -> Tensor:
        rows, columns, _ = hidden.shape
        states = 3 * self.qkv(self.norm(hidden))
        q, k, v = (each.view(rows, columns, HEADS, -1).transpose(1, 2) for each in states.chunk(3, -1))
        k, v = exchange(rotated(k, angles), v)
        mixed = nn.functional.scaled_dot_product_attention(rotated(q, angles), k, v, attn_mask=mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(rows, columns, WIDTH))
        return hidden + torch.tanh(self.up(hidden))


def rotated(states: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding."""
    first, second = states.chunk(2, -1)
    return states * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class Small(nn.Module):
    """What the small models share: a core, a head, a configuration."""

    settings: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = Core(), nn.Linear(WIDTH, VOCAB)
        self.config = SimpleNamespace(vocab_size=VOCAB, pad_token_id=PAD, **self.settings)

    def answer(self, hidden: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=2 * self.head(hidden))


class LLaDALike(Small):
    """LLaDAModelLM: no position ids, rotary tables built when first needed, a 2-D mask or none, no cache."""

    settings = {"model_type": "llada", "max_sequence_length": LONGEST}
    _table: Tensor | None = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SimpleNamespace:
        assert past_key_values is None and not use_cache, "no cache for this model"
        assert not kwargs, kwargs
        if self._table is None:
            self._table = torch.arange(LONGEST)[None]
        seen = None
        if attention_mask is not None:
            assert attention_mask.shape == input_ids.shape
            seen = (1.0 - attention_mask.float())[:, None, None] * torch.finfo(torch.float).min
        positions = self._table[:, : input_ids.shape[1]]
        return self.answer(self.core(input_ids, seen, positions, lambda _, keys, values: (keys, values)))


class DreamLike(Small):
    """DreamModel: `attention_mask` is "full" or a bool mask `[B, 1, Q, L]`, logits are kept by a count."""

    settings = {"model_type": "Dream", "max_position_embeddings": LONGEST}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        num_logits_to_keep: int = 0,
    ) -> SimpleNamespace:
        seen = attention_mask if isinstance(attention_mask, Tensor) else None
        assert seen is not None or attention_mask == "full"
        assert seen is None or (seen.dtype == torch.bool and seen.ndim == 4)
        assert isinstance(num_logits_to_keep, int)
        positions = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids

        def exchange(index: int, keys: Tensor, values: Tensor) -> Any:
            if past_key_values is None:
                return keys, values
            return past_key_values.update(keys, values, index, {"cache_position": None})

        return self.answer(self.core(input_ids, seen, positions, exchange)[:, -num_logits_to_keep:])


class SDARLike(Small):
    """SDARForCausalLM: a bool mask always, keys and values stored only when told so."""

    settings = {"model_type": "sdar", "max_position_embeddings": LONGEST, "block_size": 4}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        store_kv: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> SimpleNamespace:
        assert attention_mask is not None and position_ids is not None
        assert past_key_values is None or isinstance(past_key_values, tf.Cache)

        def exchange(index: int, keys: Tensor, values: Tensor) -> Any:
            if past_key_values is not None and store_kv:
                return past_key_values.update(keys, values, index)
            return keys, values

        hidden = self.core(input_ids, attention_mask.bool(), position_ids, exchange)
        return self.answer(kept(hidden, logits_to_keep))


class LLaDA2Like(Small):
    """LLaDA2MoeModelLM: a mask to add, whose shape is checked against what the cache says it holds."""

    settings = {"model_type": "llada2_moe", "max_position_embeddings": LONGEST, "block_size": 8}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor]:
        assert attention_mask is not None and attention_mask.is_floating_point()
        assert position_ids is not None

        def exchange(index: int, keys: Tensor, values: Tensor) -> Any:
            rows, wanted = input_ids.shape
            seen = wanted
            if past_key_values is not None:
                seen += past_key_values.get_seq_length(index)
                keys, values = past_key_values.update(keys, values, index, {"sin": None})
            assert attention_mask.shape == (rows, 1, wanted, seen)
            return keys, values

        return (self.answer(self.core(input_ids, attention_mask, position_ids, exchange)).logits,)


class FastDLLMLike(Small):
    """Fast_dLLM_QwenForCausalLM: makes its own mask, by columns, and drops the one it is given."""

    settings = {"model_type": "Fast_dLLM_Qwen", "max_position_embeddings": LONGEST, "bd_size": 8}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        update_past_key_values: bool = False,
        block_size: int = 32,
        **kwargs: Any,
    ) -> SimpleNamespace:
        width = input_ids.shape[1]
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        block = torch.arange(before + width) // block_size
        positions = torch.arange(before, before + width)[None] if position_ids is None else position_ids

        def exchange(index: int, keys: Tensor, values: Tensor) -> Any:
            if past_key_values is not None and update_past_key_values:
                return past_key_values.update(keys, values, index, {"cache_position": None})
            return keys, values

        hidden = self.core(input_ids, block[before:, None] >= block, positions, exchange)
        return self.answer(kept(hidden, logits_to_keep))


class MDLMLike(Small):
    """MDLM: ids and times alone, raw logits."""

    settings = {"model_type": "mdlm", "model_length": LONGEST}

    def forward(self, input_ids: Tensor, timesteps: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1])[None]
        hidden = self.core(input_ids, None, positions, lambda _, keys, values: (keys, values))
        logits: Tensor = self.answer(hidden).logits + timesteps[:, None, None]
        return logits


class UDLMLike(MDLMLike):
    """UDLM: the same with uniform noise, conditioned on how much there is."""

    settings = {"model_type": "udlm", "model_length": LONGEST}

    def forward(self, input_ids: Tensor, timesteps: Tensor) -> Tensor:
        return super().forward(input_ids, torch.zeros_like(timesteps)) * (1 + timesteps[:, None, None])


def kept(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The columns of transformers' `logits_to_keep`: the last so many, or those of an index."""
    return hidden[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


def _native(config_class: Any, model_class: Any, **settings: Any) -> Callable[[], Any]:
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "initializer_range": 0.3,
        "max_position_embeddings": LONGEST,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return lambda: model_class(config_class(**common | settings))


_GROUPED = {"num_key_value_heads": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "llada": LLaDALike,
    "dream": DreamLike,
    "masked_lm": _native(tf.BertConfig, tf.BertForMaskedLM),
    "modernbert": _native(tf.ModernBertConfig, tf.ModernBertForMaskedLM, cls_token_id=1, sep_token_id=2),
    "roberta": _native(tf.RobertaConfig, tf.RobertaForMaskedLM),
    "bidirectional": _native(tf.Qwen3Config, tf.Qwen3ForCausalLM, head_dim=8, **_GROUPED),
    "bidirectional_llama": _native(tf.LlamaConfig, tf.LlamaForCausalLM, attn_implementation="eager", **_GROUPED),
    "blocks": _native(tf.Qwen3Config, tf.Qwen3ForCausalLM, head_dim=8, **_GROUPED),
    "shifted_blocks": _native(tf.Qwen3Config, tf.Qwen3ForCausalLM, head_dim=8, **_GROUPED),
    "uniform": _native(tf.Qwen3Config, tf.Qwen3ForCausalLM, head_dim=8, **_GROUPED),
    "sdar": SDARLike,
    "llada2": LLaDA2Like,
    "fast_dllm_v2": FastDLLMLike,
    "mdlm": MDLMLike,
    "udlm": UDLMLike,
}
"""How to make each: published families by their name, and models of transformers run as some family."""
FAMILY: dict[str, Family] = {
    "bidirectional": FAMILIES["bidirectional"],
    "bidirectional_llama": FAMILIES["bidirectional"],
    "blocks": Family("blocks", attention="block_causal", block_length=8, padding="bias"),
    "shifted_blocks": Family("shifted_blocks", attention="block_causal", block_length=8, padding="pairs", shift=True),
    "uniform": Family("uniform", noise="uniform", padding="bias"),
}
"""The families of those that are not recognised by themselves."""
UNIFORM = ("uniform", "udlm")
BLOCK_CAUSAL = ("blocks", "shifted_blocks", "sdar", "llada2", "fast_dllm_v2")
CACHED = ("dream", "bidirectional", "bidirectional_llama", "uniform")
"""With full attention, those that take a cache."""
UNPADDED = ("fast_dllm_v2", "mdlm", "udlm")
"""Those that cannot be told of padding."""
