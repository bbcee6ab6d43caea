"""Families of diffusion language models: what a model expects and what its logits mean.

Frozen descriptions, and how to tell from a configuration which one it is. They hold no tensors and no model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from lmguide.checks import check_whole
from lmguide.serialization import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Noise: TypeAlias = Literal["mask", "uniform"]
Attention: TypeAlias = Literal["full", "block_causal"]
Padding: TypeAlias = Literal["none", "keys", "pairs", "bias"]
Runner: TypeAlias = Literal["canvas", "encoder_decoder"]

# Where configurations say how long a block is.
_BLOCK_FIELDS = ("bd_size", "block_length", "block_size", "canvas_length")


@dataclass(frozen=True)
class Family:
    """What a family of denoisers expects, and what its logits mean.

    Args:
        name: Its name.
        mask_token_id: The mask token of the published models; None where the configuration or tokenizer must say.
        noise: ``"mask"``: undecided positions hold the mask token. ``"uniform"``: they hold random tokens.
        shift: The hidden state at column i scores the token at column i + 1, as in the autoregressive model that it was
            trained from.
        attention: ``"full"``: every column sees every column. ``"block_causal"``: a column sees its own block and those
            before it. Blocks are counted from the first real token of a row.
        block_length: Columns of a block; for block-causal families only.
        padding: How the model is told who sees whom. ``"keys"``: a mask ``[B, L]``, left out without padding.
            ``"pairs"``: a bool mask ``[B, 1, Q, L]`` and position ids. ``"bias"``: the same, as a number to add to the
            scores. ``"none"``: not at all, so that padded batches are refused.
        editable: Trained for committed tokens to change.
        substitution: The raw logits need the SUBS parametrisation (arXiv 2406.07524): no mass on the mask token, and
            committed tokens are copied.
        seeds_block: The first token of a block is decided by the last position of the block before it. Follows from
            ``shift`` with block-causal attention; a loop that decodes in other units than blocks should know.
        runner: ``"canvas"``: one forward over the canvas. ``"encoder_decoder"``: the columns before the window are
            encoded, and the window is decoded given them.
        model_types: ``config.model_type`` of its models.
        architectures: Names of its model classes.

    Raises:
        TypeError: ``mask_token_id`` or ``block_length`` is not an int.
        ValueError: a word is not one of those above, a block-causal family has no block length, a full-attention family
            has one, or a uniform-noise family has a mask token or substitution.

    Example:
        >>> import dataclasses
        >>> dataclasses.replace(FAMILIES["bidirectional"], shift=True, mask_token_id=4).shift
        True
    """

    name: str
    mask_token_id: int | None = None
    noise: Noise = "mask"
    shift: bool = False
    attention: Attention = "full"
    block_length: int | None = None
    padding: Padding = "keys"
    editable: bool = False
    substitution: bool = False
    seeds_block: bool = False
    runner: Runner = "canvas"
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        for argument, words in (("noise", Noise), ("attention", Attention), ("padding", Padding), ("runner", Runner)):
            if (value := getattr(self, argument)) not in (known := get_args(words)):
                expected = ", ".join(map(repr, known))
                raise ValueError(f"{argument}: expected one of {expected}, got {value!r}. {did_you_mean(value, known)}")
        if self.mask_token_id is not None:
            check_whole("mask_token_id", self.mask_token_id, "Give the id of the mask token.", least=0)
            if self.noise == "uniform":
                raise ValueError(
                    f"mask_token_id: expected None with uniform noise, got {self.mask_token_id}. "
                    'Use noise="mask" for a model that knows a mask token.'
                )
        if self.substitution and self.noise == "uniform":
            raise ValueError(
                "substitution: expected False with uniform noise, got True. There is no mask token to take mass from."
            )
        if self.attention == "block_causal":
            if self.block_length is None:
                raise ValueError("block_length: expected the columns of a block, got None. Give that of training.")
            check_whole("block_length", self.block_length, "Give the length of the blocks in training.", least=1)
        elif self.block_length is not None:
            raise ValueError(
                f"block_length: expected None with full attention, got {self.block_length}. "
                'Use attention="block_causal" for a model trained with blocks.'
            )


def _table() -> Iterator[Family]:
    """The families that are recognised, the more special before the more general."""
    yield Family("llada", 126336, model_types=("llada",), architectures=("LLaDAModelLM", "LLaDAModel"))
    yield Family("illada", 5, model_types=("illada",), architectures=("ILLaDAModelLM", "iLLaDAModelLM"))
    yield Family(
        "llada_moe",
        156895,
        model_types=("llada_moe", "lladamoe"),
        architectures=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    )
    llada2 = Family(
        "llada2",
        156895,
        attention="block_causal",
        block_length=32,
        padding="bias",
        model_types=("llada2_moe",),
        architectures=("LLaDA2MoeModelLM",),
    )
    yield llada2
    yield dataclasses.replace(llada2, name="llada2.1", editable=True, model_types=(), architectures=())
    yield Family(
        "dream",
        151666,
        shift=True,
        padding="pairs",
        model_types=("dream", "Dream"),
        architectures=("DreamModel",),
    )
    yield Family(
        "sdar",
        151669,
        attention="block_causal",
        block_length=4,
        padding="pairs",
        model_types=("sdar", "sdar_moe"),
        architectures=("SDARForCausalLM", "SDARMoeForCausalLM"),
    )
    yield Family(
        "fast_dllm_v2",
        151665,
        shift=True,
        attention="block_causal",
        block_length=32,
        padding="none",
        seeds_block=True,
        model_types=("Fast_dLLM_Qwen",),
        architectures=("Fast_dLLM_QwenForCausalLM",),
    )
    yield Family("mdlm", 50257, padding="none", substitution=True, model_types=("mdlm",), architectures=("MDLM",))
    yield Family("udlm", noise="uniform", padding="none", model_types=("udlm",), architectures=("UDLM",))
    yield Family(
        "diffusion_gemma",
        noise="uniform",
        attention="block_causal",
        block_length=256,
        padding="keys",
        editable=True,
        runner="encoder_decoder",
        model_types=("diffusion_gemma",),
        architectures=("DiffusionGemmaForBlockDiffusion",),
    )
    yield Family(
        "bidirectional",
        padding="bias",
        model_types=("a2d-llama", "a2d-qwen2", "a2d-qwen3"),
        architectures=("A2DLlamaLMHeadModel", "A2DQwen2LMHeadModel", "A2DQwen3LMHeadModel"),
    )
    yield Family("masked_lm")


FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _table()})
"""The families by name. ``masked_lm`` is any ``...ForMaskedLM``; ``bidirectional`` any decoder that takes a mask
``[B, 1, Q, L]``, trained to denoise."""

# Published under another name with the code, and so the class names, of an older family.
_IN_THE_PATH = (("illada", "illada", "llada"), ("llada2.1", "llada2.1", "llada2"), ("llada2.2", "llada2.1", "llada2"))


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        ValueError: no family has this name; the message proposes the nearest one.

    Example:
        >>> family("dream").shift
        True
    """
    if name in FAMILIES:
        return FAMILIES[name]
    known = ", ".join(FAMILIES)
    raise ValueError(f"family: expected the name of a family ({known}), got {name!r}. {did_you_mean(name, FAMILIES)}")


def family_of(model: Any) -> Family:
    """Recognise the family of a model, or of its configuration alone.

    By ``model_type``, then by the class names in ``architectures`` and ``auto_map`` and that of the model, then by the
    ending ``ForMaskedLM``. A block length in the configuration goes before the published one.

    Args:
        model: A model or its configuration.

    Raises:
        ValueError: it is none of ``FAMILIES``.

    Example:
        >>> from transformers import BertConfig
        >>> family_of(BertConfig(architectures=["BertForMaskedLM"])).name
        'masked_lm'
    """
    config = getattr(model, "config", model)
    model_type, classes = getattr(config, "model_type", None), _class_names(model, config)
    found = next((each for each in FAMILIES.values() if model_type and model_type in each.model_types), None)
    found = found or next((each for each in FAMILIES.values() if classes & {*each.architectures}), None)
    if found is None and any(name.endswith("ForMaskedLM") for name in classes):
        found = FAMILIES["masked_lm"]
    if found is None:
        shown = ", ".join(map(str, getattr(config, "architectures", None) or [type(model).__name__]))
        raise ValueError(
            f"family: expected a diffusion language model, got model_type {model_type!r} of class "
            f'{shown}. Give family="bidirectional" for a decoder trained to denoise '
            f"with full attention, or one of {', '.join(FAMILIES)}, or a Family(...) of your own."
        )
    path = str(getattr(config, "_name_or_path", "")).lower()
    renamed = next((name for part, name, code in _IN_THE_PATH if part in path and found.name == code), found.name)
    return _with_block_length(FAMILIES[renamed], config)


def _class_names(model: Any, config: Any) -> set[str]:
    names = {str(name) for name in getattr(config, "architectures", None) or ()}
    for value in (getattr(config, "auto_map", None) or {}).values():
        names |= {str(name).rpartition(".")[2] for name in (value if isinstance(value, list | tuple) else [value])}
    if model is not config:
        names |= {cls.__name__ for cls in type(model).__mro__}
    return names


def _with_block_length(found: Family, config: Any) -> Family:
    if found.attention != "block_causal":
        return found
    for field in _BLOCK_FIELDS:
        length = getattr(config, field, None)
        if isinstance(length, int) and not isinstance(length, bool) and length > 0:
            return dataclasses.replace(found, block_length=length)
    return found
