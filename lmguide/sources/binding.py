"""From a context to the model it runs and the rows it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmguide import contexts
from lmguide.sources.layers import without_blocks
from lmguide.sources.models import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

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
        case contexts.NegativePrompt() if negative is not None:
            return builder.model, builder.negative(**negative)
    return builder.model, builder(context)
