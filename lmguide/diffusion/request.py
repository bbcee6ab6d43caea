"""What a caller of `generate` asks for, checked and made whole."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from lmguide.checks import check_whole
from lmguide.constraints.mixed import divided
from lmguide.guidance import Guidance, as_methods, parse_guidance
from lmguide.sources.canvas import Canvas

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.denoisers import Denoiser


@dataclass(frozen=True)
class Prompts:
    """Canvases before the first step.

    Attributes:
        canvas: Prompts and undecided answers, or the given canvases.
        prompt_length: Columns of the prompt; 0 where canvases were given to be filled in.
    """

    canvas: Canvas
    prompt_length: int


def methods_of(guidance: object) -> tuple[Guidance, ...]:
    """A method, a string, several of both or nothing as methods.

    Raises:
        TypeError: It is something else.
        ValueError: A string that cannot be read, or an empty list.
    """
    return () if guidance is None else as_methods(_parsed(guidance))


def methods_and_constraint(guidance: object, constraint: Any) -> tuple[tuple[Guidance, ...], Any]:
    """Methods as `methods_of`, and the constraint, which may be among them or stand by itself.

    Raises:
        TypeError: Neither methods nor a constraint.
        ValueError: More than one constraint, a string that cannot be read, or an empty list.
    """
    methods, among = ((), None) if guidance is None else divided(_parsed(guidance))
    if among is not None and constraint is not None:
        raise ValueError(
            "constraint: expected one constraint, got one in guidance and another here. Leave one of the two out."
        )
    return methods, constraint if among is None else among


def _parsed(guidance: Any) -> Any:
    """Strings as methods."""
    given = [guidance] if isinstance(guidance, str) else guidance
    if not isinstance(given, list | tuple):
        return given
    return [parse_guidance(each) if isinstance(each, str) else each for each in given]


def lay_out(
    denoiser: Denoiser, input_ids: object, attention_mask: object, new_tokens: int | None, infill: bool
) -> Prompts:
    """Put prompts and room for answers on canvases.

    Args:
        denoiser: The model.
        input_ids: Prompts `[B, P]`, or canvases with mask tokens where `infill`.
        attention_mask: Their mask, `[B, P]`; `None` is all ones.
        new_tokens: Columns of the answer; `None` with `infill`.
        infill: Whether the mask tokens in `input_ids` are to be filled in.

    Raises:
        ValueError: Bad ids or mask, mask tokens where there should be none, or none where there should be some.
    """
    ids = _ids(denoiser, input_ids)
    mask = _mask(ids, attention_mask)
    mask_id = denoiser.mask_token_id
    masked = torch.zeros_like(ids, dtype=torch.bool) if mask_id is None else (ids == mask_id) & mask.bool()
    if infill:
        if mask_id is None:
            raise ValueError(
                f"model: expected one with a mask token for infill, got {denoiser.family.name}, which denoises random "
                "tokens: its canvas does not tell what is to be filled in. Leave infill out, or use a masked model."
            )
        if new_tokens is not None:
            raise ValueError(
                "max_new_tokens: a canvas that is filled in has its length already. Leave it out, or put mask tokens "
                "at the end of the canvas."
            )
        if not masked.any(1).all():
            raise ValueError(
                "input_ids: expected mask tokens to fill in on every canvas, got a canvas without. "
                f"Put token {mask_id} where text is wanted, or leave infill out."
            )
        return Prompts(Canvas(ids, mask, mask.bool() & ~masked, masked, mask_id), 0)
    if masked.any():
        raise ValueError(
            f"input_ids: the prompt holds mask tokens ({mask_id}). Pass infill=True to have them filled in, or remove "
            "them."
        )
    assert new_tokens is not None
    answer = ids.new_full((ids.shape[0], new_tokens), 0 if mask_id is None else mask_id)
    given = torch.nn.functional.pad(mask.bool(), (0, new_tokens))
    undecided = torch.nn.functional.pad(torch.zeros_like(mask, dtype=torch.bool), (0, new_tokens), value=True)
    mask = torch.nn.functional.pad(mask, (0, new_tokens), value=1)
    return Prompts(Canvas(torch.cat([ids, answer], 1), mask, given, undecided, mask_id), ids.shape[1])


def lay_out_template(denoiser: Denoiser, input_ids: object, attention_mask: object, tokens: Sequence[int]) -> Prompts:
    """Put prompts and a template behind them on canvases.

    Args:
        denoiser: The model.
        input_ids: Prompts `[B, P]`.
        attention_mask: Their mask, `[B, P]`; `None` is all ones.
        tokens: The template; -1 where something is to be filled in.

    Raises:
        ValueError: As `lay_out`.
    """
    prompts = lay_out(denoiser, input_ids, attention_mask, len(tokens), infill=False)
    canvas, first = prompts.canvas, prompts.prompt_length
    template = torch.tensor(tokens, device=canvas.ids.device)
    stands = template >= 0
    canvas.ids[:, first:] = torch.where(stands, template, canvas.ids[:, first:])
    canvas.given[:, first:] = stands
    canvas.undecided[:, first:] = ~stands
    return prompts


def check_lengths(
    denoiser: Denoiser,
    length: int,
    answer: int,
    block_length: int | None,
    steps: int | None,
    holes: int | None = None,
) -> tuple[int | None, int]:
    """The block length and the steps of each block.

    Args:
        denoiser: The model.
        length: Columns of the canvas.
        answer: Columns of the answer.
        block_length: As asked for.
        steps: Of the whole answer, as asked for; `None` is one for each column, or where a canvas of full attention is
            filled in as one window, for each hole.
        holes: Undecided positions of the row with most, where canvases are filled in; `None` elsewhere.

    Raises:
        ValueError: Too long a canvas, blocks that do not fit the answer, or steps that do not fit the blocks.
    """
    limit = denoiser.max_length
    if limit is not None and length > limit:
        if holes is not None:
            raise ValueError(
                f"input_ids: the canvas has {length} columns, but the model's context has {limit}. Shorten the canvas."
            )
        raise ValueError(
            f"max_new_tokens: prompt and answer have {length} columns, but the model's context has {limit}. "
            "Shorten the prompt or max_new_tokens."
        )
    family = denoiser.family
    if block_length is not None:
        check_whole("block_length", block_length, "Give the columns of a block, 32 for example.", least=1)
        block_length = operator.index(block_length)
    if steps is not None:
        check_whole("steps", steps, "Give the number of denoising steps, 128 for example.", least=1)
        steps = operator.index(steps)
    if family.attention == "full":
        block = block_length or answer
        if answer % block:
            raise ValueError(
                f"block_length: expected a divisor of the answer's {answer} columns, got {block}. "
                f"Change it{'' if holes is not None else ' or max_new_tokens'}."
            )
        blocks = answer // block
        if steps is None and blocks == 1 and holes is not None:
            return block_length, holes
    else:
        block = block_length or family.block_length or answer
        if family.block_length is not None and family.block_length % block:
            raise ValueError(
                f"block_length: expected a divisor of the model's block of {family.block_length}, got {block}. "
                "Change it or leave it out."
            )
        blocks = -(-answer // block)
        if steps is None:
            return block_length, block
    steps = answer if steps is None else steps
    if steps % blocks:
        raise ValueError(
            f"steps: expected a multiple of the {blocks} blocks, got {steps}. "
            f"Use {max(1, round(steps / blocks)) * blocks}."
        )
    return block_length, steps // blocks


def most_blocks(denoiser: Denoiser, length: int, prompt_length: int, block_length: int | None) -> int:
    """The blocks of an answer; of a block-causal family the most that a prompt of any length may leave it.

    Args:
        denoiser: The model.
        length: Columns of the canvas.
        prompt_length: Columns of the prompt; 0 where a canvas is filled in.
        block_length: As asked for.
    """
    answer = length - prompt_length
    width = block_length or denoiser.family.block_length or answer
    begun = denoiser.family.attention == "block_causal" and prompt_length > 0
    return (answer + width - 2) // width + 1 if begun else -(-answer // width)


def token_list(argument: str, tokens: object, vocab_size: int) -> list[int]:
    """One token id, several or none as a list: an integer, a sequence, a set, a tensor or an array.

    Raises:
        ValueError: Not ids of the vocabulary.
    """
    items = _items(tokens)
    for item in items:
        if (token := _token(item)) is None or not 0 <= token < vocab_size:
            raise ValueError(
                f"{argument}: expected token ids in [0, {vocab_size}), got {item!r}. Use the model's own tokenizer."
            )
    return [operator.index(item) for item in items]


def own_tokens(denoiser: Denoiser, tokenizer: Any, name: str, unfit: int | None = None) -> list[int]:
    """What a model's own configurations say of a token, then its tokenizer; what is no token of it says nothing.

    Args:
        denoiser: The model.
        tokenizer: In the place of the denoiser's own; `None` is that.
        name: Such as `eos_token_id`.
        unfit: A token that will not do.
    """
    tokenizer = denoiser.tokenizer if tokenizer is None else tokenizer
    for holder in (getattr(denoiser.model, "generation_config", None), denoiser.model.config, tokenizer):
        tokens = [_token(item) for item in _items(getattr(holder, name, None))]
        fit = [token for token in tokens if token is not None and 0 <= token < denoiser.vocab_size and token != unfit]
        if fit:
            return fit
    return []


def check_tokens(
    suppressed: list[int], ends: list[int], padding: list[int], mask_token_id: int | None, vocab_size: int
) -> None:
    """Refuse tokens that leave nothing to write, or that write what is never written.

    Args:
        suppressed: Tokens that are never written.
        ends: Ends as the user gave them.
        padding: Padding as the user gave it.
        mask_token_id: The mask token, if there is one.
        vocab_size: Ids are below it.

    Raises:
        ValueError: They do.
    """
    if len({*suppressed, *(() if mask_token_id is None else (mask_token_id,))}) == vocab_size:
        raise ValueError(
            f"suppress_tokens: expected a token that is left to write, got all {vocab_size} of the vocabulary. "
            "Leave some out."
        )
    if len(padding) > 1:
        raise ValueError(f"pad_token_id: expected one token, got {len(padding)}. Choose one of them.")
    for argument, tokens in (("eos_token_id", ends), ("pad_token_id", padding)):
        if mask_token_id is not None and mask_token_id in tokens:
            raise ValueError(
                f"{argument}: expected a token of text, got the mask token {mask_token_id}, which means undecided. "
                "Give the tokenizer's end token."
            )


def _items(tokens: object) -> list[Any]:
    """One thing or several as a list."""
    if tokens is None:
        return []
    listed: Any = tokens.tolist() if hasattr(tokens, "tolist") else tokens  # tensors, arrays and their numbers
    if isinstance(listed, AbstractSet):
        return sorted(listed, key=str)
    return list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str | bytes) else [listed]


def _token(item: object) -> int | None:
    """A token id as an int; `None` if it is none."""
    if isinstance(item, torch.Tensor) and not item.ndim:
        item = item.item()
    return int(item) if isinstance(item, Integral) and not isinstance(item, bool) else None


def _ids(denoiser: Denoiser, ids: object) -> Tensor:
    if isinstance(ids, Mapping):
        raise ValueError(
            f"input_ids: expected integer ids [rows, tokens], got {type(ids).__name__}. "
            "Pass the tokenizer's output as generate(model, **inputs)."
        )
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.dtype not in {torch.int32, torch.int64}:
        got = f"{ids.dtype} of shape {list(ids.shape)}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(
            f"input_ids: expected integer ids [rows, tokens], got {got}. Pass the tokenizer's input_ids with "
            "return_tensors='pt'."
        )
    if ids.device != denoiser.device:
        raise ValueError(
            f"input_ids: expected it on {denoiser.device} like the model, got {ids.device}. Move it with .to()."
        )
    if not ids.numel():
        raise ValueError("input_ids: expected at least one token, got none. Start from a beginning-of-sequence token.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= denoiser.vocab_size:
        raise ValueError(
            f"input_ids: expected ids in [0, {denoiser.vocab_size}), got {low if low < 0 else high}. "
            "Use the model's own tokenizer."
        )
    return ids.long()


def _mask(ids: Tensor, mask: object) -> Tensor:
    if mask is None:
        return torch.ones_like(ids)
    if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape or mask.device != ids.device:
        got = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask: expected a tensor of shape {list(ids.shape)} beside input_ids, got {got}. "
            "Pass the tokenizer's attention_mask."
        )
    mask = (mask != 0).long()
    if not mask[:, -1].all() or (mask.diff(dim=1) < 0).any():
        raise ValueError(
            "attention_mask: expected padding on the left alone, got some to the right of a token. "
            "Tokenize with padding_side='left'."
        )
    return mask
