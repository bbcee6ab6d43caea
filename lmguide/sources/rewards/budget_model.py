"""A small model that says, for each next token, how many tokens will remain."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import gelu, softplus
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lmguide.bundled import PREFIX, bundled

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.descriptions.budget import RunningText

LEAST = 1e-4
"""Smallest mean and rate: a Gamma law needs both above 0."""


class LengthConfig(PreTrainedConfig):
    """The sizes of a `LengthModel`.

    Attributes:
        vocab_size: Of the guided model's logits, V.
        hidden_size: Of the hidden states that are read, D.
        rank: Width between the two layers of the head.
        layers: Indices of the hidden states; 0 is the embedding output, -1 the last.
        reader: Configuration of the model's own causal language model, as a dictionary; `None` reads the states of the
            guided model.
        pad_token_id: The padding token of the guided model.
    """

    model_type = "lmguide_length"

    vocab_size: int = 512
    hidden_size: int = 96
    rank: int = 32
    layers: tuple[int, ...] | list[int] = (-1,)
    reader: dict[str, Any] | None = None
    pad_token_id: int | None = None


class LengthModel(PreTrainedModel):
    """A Gamma law over `log(remaining tokens + 1)` for each next token `v`, by a head on hidden states.

        z = gelu(A h + a),   mean_v, rate_v = softplus(B_v z + b_v),   shape_v = mean_v rate_v

    with `h` the states of the named layers at the last token, one behind the other. They are those of the guided model,
    as in Budget Guidance (2506.13752), or of a small causal language model of its own, the `reader`.
    `save_pretrained` and `from_pretrained` keep both; `lmguide.training.length.length_loss` trains it.

    Args:
        config: The sizes.

    Example:
        >>> predictor = LengthModel(LengthConfig(vocab_size=7, hidden_size=4))
        >>> shape, rate = predictor(torch.zeros(2, 1, 4))
        >>> shape.shape, bool((rate > 0).all())
        (torch.Size([2, 7]), True)
    """

    config_class = LengthConfig
    base_model_prefix = "head"

    def __init__(self, config: LengthConfig) -> None:
        super().__init__(config)
        self.layers = tuple(config.layers)
        self.reader = None
        if config.reader is not None:
            self.reader = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.reader))
        self.inner = nn.Linear(len(self.layers) * config.hidden_size, config.rank)
        self.outer = nn.Linear(config.rank, 2 * config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, states: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shape and rate, float32, from hidden states `[..., K, D]`.

        Args:
            states: The states.
            tokens: One next token for each, `[...]`; `None` is every one.

        Returns:
            Two tensors `[...]`, or `[..., V]` where no tokens are given.
        """
        inner = gelu(self.inner(states.flatten(-2).to(self.dtype)))
        if tokens is None:
            raw = self.outer(inner).unflatten(-1, (2, -1))
        else:
            both = torch.stack([tokens, tokens + self.config.vocab_size], -1)
            raw = (self.outer.weight[both] @ inner[..., None])[..., 0] + self.outer.bias[both]
            raw = raw[..., None]
        mean, rate = (softplus(raw.float()) + LEAST).unbind(-2)
        shape = mean * rate
        return (shape, rate) if tokens is None else (shape[..., 0], rate[..., 0])

    def gamma(self, text: RunningText) -> tuple[Tensor, Tensor]:
        """What makes it a `GammaLengthPredictor`."""
        shape, rate = self(text.states)
        return shape, rate


AutoConfig.register(LengthConfig.model_type, LengthConfig, exist_ok=True)
AutoModel.register(LengthConfig, LengthModel, exist_ok=True)


@lru_cache(maxsize=4)  # asked for at every call
def load_length_model(name: str) -> Any:
    """The saved model of a name or path, in float32."""
    if name.startswith(PREFIX):
        return bundled(name.removeprefix(PREFIX))[0]
    model: Any = LengthModel.from_pretrained(name, dtype=torch.float32)
    return model.eval()
