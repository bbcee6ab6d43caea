"""What a caller of `generate` gives as constraint: texts for the answers, for some columns, or a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lmguide.constraints import Constraint, FreeText, Repeat, Triggered, Union, Vocabulary, parse_constraint
from lmguide.constraints import Sequence as InSequence
from lmguide.constraints.context_free.reading import is_context_free
from lmguide.diffusion.grammar_texts import GrammarText, grammar_texts
from lmguide.diffusion.spans import Span, SpanGroup, check_places, group_spans
from lmguide.sources.vocabularies import token_bytes

if TYPE_CHECKING:
    from lmguide.denoisers import Denoiser
    from lmguide.sources.canvas import Canvas

Allowed: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A constraint as a function: canvas `[B, L]`, rows `[n]`, columns `[n]` to the allowed tokens, booleans `[n, V]`."""


def spans_of(constraint: Any, canvas: Canvas, prompt_length: int) -> list[Span]:
    """The columns under constraints, and under which.

    Args:
        constraint: A constraint or its string form for all rows; a list with one or `None` for each row; a list of
            spans; `None` for nothing.
        canvas: The canvases before the first step.
        prompt_length: Columns of the prompt; 0 where canvases were given to be filled in. There a text begins at the
            first token of its row that is to be filled in, and what is given behind that is a part of it.

    Raises:
        TypeError: Something else.
        ValueError: Not one for each row.
    """
    if constraint is None:
        return []
    batch, length = canvas.ids.shape
    if isinstance(constraint, list | tuple):
        if constraint and all(isinstance(each, Span) for each in constraint):
            return list(constraint)
        each_row = [None if each is None else _constraint(each) for each in constraint]
        if len(each_row) != batch:
            raise ValueError(
                f"constraint: expected one for each of the {batch} rows, got {len(each_row)}. Give None for rows that "
                "are free, or one constraint for all."
            )
    else:
        each_row = [_constraint(constraint)] * batch
    first = [prompt_length] * batch if prompt_length else canvas.undecided.int().argmax(1).tolist()
    return [Span(row, first[row], length, each) for row, each in enumerate(each_row) if each is not None]


def bound_spans(
    spans: Sequence[Span],
    canvas: Canvas,
    denoiser: Denoiser,
    tokenizer: Any,
    ends: Sequence[int],
    padding: Sequence[int],
    suppressed: Sequence[int],
) -> tuple[list[SpanGroup], list[GrammarText]]:
    """Spans ready for a loop.

    Args:
        spans: Where which texts are.
        canvas: The canvases before the first step.
        denoiser: The model.
        tokenizer: Whose tokens spell texts; `None` is the denoiser's own.
        ends: Tokens that end a text.
        padding: Tokens that may stand behind an end.
        suppressed: Tokens that are never written.

    Returns:
        Those that an automaton reads, by their automata, and those under grammars.

    Raises:
        ValueError: As `check_places`, `group_spans` and `grammar_texts`; there is no tokenizer, or a trigger is a
            special token.
    """
    if not spans:
        return [], []
    if canvas.ids.device.type == "mps":
        raise ValueError("constraint: expected a device with numbers of 64 bits, got mps. Run the model on the CPU.")
    tokenizer = denoiser.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ValueError(
            "constraint: expected a tokenizer, whose tokens spell texts, got none. Pass tokenizer=, or give it to the "
            "denoiser."
        )
    size, mask = denoiser.vocab_size, denoiser.mask_token_id
    if ends:
        vocabulary = Vocabulary.of_tokenizer(tokenizer, size, ends)
        tokens, specials = vocabulary.tokens, vocabulary.specials
    else:
        tokens, specials = [text or b"" for text in token_bytes(tokenizer, size)], {}
    for trigger in (trigger for span in spans for trigger in _triggers(span.constraint)):
        if trigger in specials or trigger in getattr(tokenizer, "all_special_tokens", ()):
            raise ValueError(
                f"constraint: expected triggers of text, got {trigger!r}, a special token, which spells none. "
                "Constrain the columns behind it: constraint=[Span(...)]."
            )
    banned = [*suppressed, *([] if mask is None else [mask])]
    check_places(spans, canvas)
    in_grammars = [span for span in spans if is_context_free(span.constraint)]
    regular = [span for span in spans if not is_context_free(span.constraint)]
    groups = group_spans(regular, canvas, tokens, ends, padding, banned)
    return groups, grammar_texts(in_grammars, canvas, tokens, ends, padding, banned)


def checked_function(constraint: Allowed, canvas: Canvas, vocab_size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A constraint that is a function, on the canvas as it is when asked, whose answers are looked at.

    Args:
        constraint: Canvas `[B, L]`, rows and columns `[n]` to booleans `[n, V]`.
        canvas: The canvases.
        vocab_size: V.
    """

    def allowed(rows: Tensor, columns: Tensor) -> Tensor:
        found: object = constraint(canvas.ids, rows, columns)
        shape, device = [len(rows), vocab_size], canvas.ids.device
        if isinstance(found, torch.Tensor):
            if found.dtype == torch.bool and list(found.shape) == shape and found.device == device:
                return found
            got = f"{found.dtype} of shape {list(found.shape)} on {found.device}"
        else:
            got = type(found).__name__
        raise ValueError(
            f"constraint: expected booleans [n, V], {shape} on {device}, got {got}. Return one row for each position, "
            "True where a token is allowed."
        )

    return allowed


def _constraint(given: object) -> Constraint:
    if isinstance(given, Constraint):
        return given
    if isinstance(given, str):
        try:
            return parse_constraint(given)
        except ValueError as error:
            raise ValueError(f"constraint: {error}") from None
    raise TypeError(
        f"constraint: expected a constraint, one for each row, spans, or a function of canvas, rows and columns, got "
        f"{type(given).__name__}. Write for example lg.Regex('[0-9]+')."
    )


def _triggers(constraint: Constraint) -> list[str]:
    """The texts that end free text within a constraint."""
    if isinstance(constraint, FreeText):
        return [] if constraint.until is None else [constraint.until]
    if isinstance(constraint, Triggered):
        return [constraint.trigger, *_triggers(constraint.constraint)]
    if isinstance(constraint, InSequence | Union):
        return [trigger for part in constraint.parts for trigger in _triggers(part)]
    return _triggers(constraint.part) if isinstance(constraint, Repeat) else []
