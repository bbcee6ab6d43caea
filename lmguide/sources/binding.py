"""From a context to the model it runs and the rows it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmguide import contexts
from lmguide.sources.layers import without_blocks
from lmguide.sources.models import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lmguide.guidance import Guidance
    from lmguide.sources.ids import Rows
    from lmguide.sources.rows import RowBuilder


def bind(
    context: contexts.Context, builder: RowBuilder, negative: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, Rows]:
    """The model of a context that has a forward pass of its own, and its rows: one, or one per prompt.

    Args:
        context: The context; not a `Suffix` or `EarlyLayers`, which run on the conditional's pass.
        builder: Makes rows from the prompts.
        negative: Arguments of `RowBuilder.negative`, to take the place of a `NegativePrompt`'s own.

    Raises:
        ValueError: The context cannot be made from what there is; the argument is named.
    """
    match context:
        case contexts.OtherModel():
            return resolve(context, builder.model, builder.tokenizer), builder.whole_prompt(context)
        case contexts.DroppedBlocks():
            return without_blocks(builder.model, context), builder.whole_prompt(context)
        case (
            contexts.MaskedPrompt()
            | contexts.RemaskedCanvas()
            | contexts.ClassifierGradient()
            | contexts.SampledCanvases()
        ):
            raise ValueError(canvas_only(context, builder.model))
        case contexts.NegativePrompt() if negative is not None:
            return builder.model, builder.negative(**negative)
    return builder.model, builder(context)


def canvas_only(context: contexts.Context, model: PreTrainedModel) -> str:
    """What to tell who gives a context of canvases to a model that has none."""
    return (
        f"{type(context).__name__}: expected a model that denoises a canvas, got {type(model).__name__}, which writes "
        "from left to right. Use lmguide.diffusion.generate, or another negative prompt."
    )


def given_negative(
    methods: Sequence[Guidance], prompt: Any, ids: Any = None, mask: Tensor | None = None
) -> dict[str, Any] | None:
    """A negative prompt given beside the methods, as arguments of `RowBuilder.negative`; `None` if there is none.

    Args:
        methods: The methods; exactly one negative prompt among them is to be replaced.
        prompt: Text, chat messages or ids, under the name `negative_prompt`.
        ids: Ids under the name `negative_prompt_ids`.
        mask: The mask of ids.

    Raises:
        ValueError: Too much is given, too little, or no method or several different ones would take it.
    """
    if prompt is None and ids is None:
        if mask is not None:
            raise ValueError(
                "negative_prompt_attention_mask: given without ids of a negative prompt. Pass both or neither."
            )
        return None
    if prompt is not None and ids is not None:
        raise ValueError("negative_prompt and negative_prompt_ids: expected one of them, got both. Pass one.")
    takers = [c for method in methods for c in method.sources().values() if isinstance(c, contexts.NegativePrompt)]
    if not takers:
        raise ValueError(
            "negative_prompt: none of the methods has one. Add CFG or another method with a negative prompt."
        )
    if any(taker != takers[0] for taker in takers):
        raise ValueError(
            "negative_prompt: the methods have several different ones, so it is not clear which to replace. "
            "Set them on the methods themselves."
        )
    if ids is not None:
        return {"prompt": ids, "mask": mask, "argument": "negative_prompt_ids"}
    if mask is not None and not hasattr(prompt, "shape"):
        raise ValueError(
            "negative_prompt_attention_mask: expected a tensor of ids beside it, got another negative prompt. "
            "Leave the mask out."
        )
    return {"prompt": prompt, "mask": mask}
