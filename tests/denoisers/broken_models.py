"""A tiny bidirectional model with the faults that code for transformers 4 has under transformers 5, each by itself.

This file is its own checkpoint: `checkpoints.save` copies it beside the weights as remote code, with the faults asked
for written into `FAULTS`. Without faults it is sound, and the reference of the tests.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FAULTS: frozenset[str] = frozenset()

if "lost_import" in FAULTS:
    from transformers.utils.import_utils import is_torch_fx_available  # type: ignore[attr-defined]

    if is_torch_fx_available():
        raise RuntimeError("there is nothing to trace")

MASK, VOCAB, LENGTH = 31, 32, 64


class BrokenConfig(PretrainedConfig):
    model_type = "broken"

    def __init__(
        self,
        vocab_size: int = VOCAB,
        hidden_size: int = 16,
        num_attention_heads: int = 2,
        num_hidden_layers: int = 2,
        max_position_embeddings: int = LENGTH,
        rope_theta: float = 100.0,
        rope_scaling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_attention_heads, self.num_hidden_layers = num_attention_heads, num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta, self.rope_scaling = rope_theta, rope_scaling
        if "config_default" not in FAULTS:
            self.use_cache = False
        super().__init__(**kwargs)


class BrokenGenerationConfig(GenerationConfig):
    def __init__(self, **kwargs: Any) -> None:
        self.eps = kwargs.pop("eps", 1e-3)
        self.steps = kwargs.pop("steps", 8)
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]


def frequencies(config: Any, device: Any = None) -> tuple[Tensor, float]:
    """`theta^(-2i/d)`, written as transformers 4 had it."""
    dim = config.hidden_size // config.num_attention_heads
    steps = torch.arange(0, dim, 2, dtype=torch.int64).to(device=device)
    if "default_dtype" not in FAULTS:
        steps = steps.to(torch.float)
    return 1.0 / (config.rope_theta ** (steps / dim)), 1.0


class BrokenRotaryEmbedding(nn.Module):
    """Angles as published models keep them: frequencies in a buffer, tables in buffers, tables in a shared cache."""

    inv_freq: Tensor

    def __init__(self, config: BrokenConfig, cache: dict[str, Tensor]) -> None:
        super().__init__()
        self.config, self.kept = config, cache
        scaling = config.rope_scaling or {}
        self.rope_type = scaling.get("rope_type", scaling.get("type", "default"))
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_init_fn: Any = frequencies
        if "default_rope" in FAULTS or self.rope_type != "default":
            self.rope_init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        if FAULTS & {"rotary_buffer", "rotary_kept"}:
            inv_freq, self.attention_scaling = self.rope_init_fn(config, None)
            self.register_buffer("inv_freq", inv_freq, persistent="rotary_kept" in FAULTS)
            self.original_inv_freq = self.inv_freq
        if "rotary_tables" in FAULTS:
            angles = _angles(torch.arange(LENGTH), frequencies(config)[0])
            self.register_buffer("cos_cached", angles.cos(), persistent=False)
            self.register_buffer("sin_cached", angles.sin(), persistent=False)
        if "rotary_cache" in FAULTS:
            self.tables(LENGTH)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        if "rope_pos_sin" not in self.kept or self.kept["rope_pos_sin"].shape[-2] < length:
            # Without a device: under `from_pretrained` this is made where nothing is.
            angles = _angles(torch.arange(length), frequencies(self.config)[0])
            self.kept["rope_pos_sin"], self.kept["rope_pos_cos"] = angles.sin(), angles.cos()
        return self.kept["rope_pos_sin"][:length], self.kept["rope_pos_cos"][:length]

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        length = states.shape[1]
        if "rotary_tables" in FAULTS:
            sin, cos = self.get_buffer("sin_cached")[:length], self.get_buffer("cos_cached")[:length]
        elif "rotary_cache" in FAULTS:
            sin, cos = self.tables(length)
        else:
            kept = FAULTS & {"rotary_buffer", "rotary_kept"}
            inv_freq = self.inv_freq if kept else self.rope_init_fn(self.config, None)[0]
            angles = _angles(torch.arange(length), inv_freq.float())
            sin, cos = angles.sin(), angles.cos()
        return sin.to(states.dtype), cos.to(states.dtype)


class PositionedEmbedding(nn.Embedding):
    """An embedding with a buffer of its own, which keeps transformers from taking it for initialised."""

    scale: Tensor

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if "redrawn_weights" in FAULTS:
            self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        scale = self.scale if "redrawn_weights" in FAULTS else 2.0
        return super().forward(input) * scale


class Layer(nn.Module):
    def __init__(self, config: BrokenConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        rows, length, size = states.shape
        q, k, v = (
            each.view(rows, length, self.heads, -1).transpose(1, 2) for each in self.qkv(states).chunk(3, dim=-1)
        )
        q, k = _turned(q, sin, cos), _turned(k, sin, cos)
        seen = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v
        update: Tensor = self.out(seen.transpose(1, 2).reshape(rows, length, size))
        return states + update


class BrokenPreTrainedModel(PreTrainedModel):
    config_class = BrokenConfig
    base_model_prefix = "model"
    _keys_to_ignore_on_load_unexpected = ["nobody_has_this"]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=0.3)


class BrokenModel(BrokenPreTrainedModel):
    mixing: Tensor

    def __init__(self, config: BrokenConfig) -> None:
        super().__init__(config)
        cache: dict[str, Tensor] = {}
        self.embed_tokens = PositionedEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.rotary_emb = BrokenRotaryEmbedding(config, cache)
        if "attribute" in FAULTS:
            self.gain = torch.tensor([1.5])
        if "random_buffer" in FAULTS:
            self.register_buffer("mixing", torch.rand(config.hidden_size), persistent=False)
        if "no_post_init" not in FAULTS:
            self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor) -> Tensor:
        states: Tensor = self.embed_tokens(input_ids)
        states = states * (self.gain if "attribute" in FAULTS else 1.5)
        if "random_buffer" in FAULTS:
            states = states * self.mixing
        sin, cos = self.rotary_emb(states)
        for layer in self.layers:
            states = layer(states, sin, cos)
        return states


class BrokenForMaskedLM(BrokenPreTrainedModel):
    _tied_weights_keys: Any = (
        ["lm_head.weight"] if "tied_list" in FAULTS else {"lm_head.weight": "model.embed_tokens.weight"}
    )

    def __init__(self, config: BrokenConfig) -> None:
        super().__init__(config)
        if "generation_config" in FAULTS:
            self.generation_config = BrokenGenerationConfig.from_model_config(config)
        self.model = BrokenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if "no_post_init" not in FAULTS:
            self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    if "old_tie_weights" in FAULTS:

        def tie_weights(self) -> None:  # type: ignore[override]
            if self.config.tie_word_embeddings:
                self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None
    ) -> MaskedLMOutput:
        if (self.config.use_cache if use_cache is None else use_cache) or (
            attention_mask is not None and not bool(attention_mask.all())
        ):
            raise NotImplementedError
        return MaskedLMOutput(logits=self.lm_head(self.model(input_ids)))


def _angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    angles = positions[:, None].float() * inv_freq
    return torch.cat([angles, angles], -1)


def _turned(states: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    one, other = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-other, one], -1) * sin
