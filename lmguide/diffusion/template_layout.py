"""Templates on a canvas: which columns are their text, which are fields, and what was written there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmguide.constraints import Constraint, Literal, Regex, Sequence, Vocabulary
from lmguide.constraints.automaton.language import byte_dfa
from lmguide.constraints.automaton.store import token_dfa
from lmguide.constraints.context_free.reading import is_context_free
from lmguide.diffusion.request import own_tokens
from lmguide.diffusion.spans import Span
from lmguide.diffusion.templates import ExactField, Field, Filled, Template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from lmguide.diffusion.output import DiffusionOutput

EXAMPLES = ("x", "0", "a", '"x"', '"a"', "true", "[]", "{}")
"""Texts that stand in fields of a template while it is cut into tokens: the first that may and can."""
_ANYTHING = Regex("(?s).*")


@dataclass(frozen=True)
class Slot:
    """A field on a canvas.

    Attributes:
        name: Its name.
        start: First column, of the template's.
        stop: First column behind.
        constraint: What stands there, with what borders on it within the same tokens.
        before: Text of the template in its first token.
        behind: Text of the template in its last token.
        exact: Whether the text fills the columns, and no null token follows.
    """

    name: str
    start: int
    stop: int
    constraint: Constraint
    before: str
    behind: str
    exact: bool


@dataclass(frozen=True)
class Layout:
    """A template as columns.

    Attributes:
        template: The template.
        tokens: What stands in each column; -1 where a field is.
        slots: The fields.
        vocabulary: The tokens; its end is the null token.
    """

    template: Template
    tokens: tuple[int, ...]
    slots: tuple[Slot, ...]
    vocabulary: Vocabulary

    def spans(self, rows: int, first: int) -> list[Span]:
        """The fields of all rows, `first` columns behind the beginning of the canvas."""
        null = self.vocabulary.eos
        return [
            Span(row, first + slot.start, first + slot.stop, slot.constraint, () if slot.exact else null, ())
            for row in range(rows)
            for slot in self.slots
        ]

    def read(self, tokens: Tensor) -> Filled:
        """What stands in the fields of one row, `[columns]`."""
        row, values = tokens.tolist(), {}
        for slot in self.slots:
            inside = [token for token in row[slot.start : slot.stop] if token not in self.vocabulary.eos_set]
            text = self.vocabulary.spell(inside).decode(errors="replace")
            values[slot.name] = text[len(slot.before) : len(text) - len(slot.behind)]
        return Filled(self.template.filled(values), values)


def layout_of(template: Template, vocabulary: Vocabulary) -> Layout:
    """The template as tokens and columns.

    Args:
        template: The template.
        vocabulary: The tokens; its end is the null token.

    Raises:
        ValueError: No tokens spell the text with its examples, or a token reaches over a whole text between fields.
    """
    examples = {name: each.example or _example(each, vocabulary) for name, each in template.fields.items()}
    text, pieces = template.filled(examples), template.pieces
    space = ""
    try:
        tokens = vocabulary.encode(text)
    except ValueError:  # a vocabulary of words has a space before each
        space, tokens = " ", vocabulary.encode(" " + text)
    return _laid_out(template, [space + pieces[0], *pieces[1:]], examples, tokens, vocabulary)


def _example(field: Field, vocabulary: Vocabulary) -> str:
    """A short text of a field that the vocabulary spells."""
    constraint = field.constraint if isinstance(field.constraint, Constraint) else _ANYTHING
    free = is_context_free(constraint) or constraint is _ANYTHING
    for text in EXAMPLES:
        if vocabulary.alphabet.issuperset(text.encode()) and (free or byte_dfa(constraint).accepts(text.encode())):
            return text
    if free:
        words = (text.decode(errors="replace").strip() for text in vocabulary.tokens)
        return next((word for word in words if word.isalnum()), EXAMPLES[0])
    single = [bytes([byte]) for byte in range(256)]
    return bytes(token_dfa(constraint, single).shortest()).decode()


def fitted(template: Template, score: Callable[[Template, str], float]) -> Template:
    """A template in which each field has one length: that at which the score is best, field by field.

    Args:
        template: With fields of several lengths.
        score: Of a template in which one field has a definite length, for that field.

    Raises:
        ValueError: A field has no text of any of its lengths.
    """
    for name in template.undecided:
        best: tuple[float, Template] | None = None
        refusal: ValueError | None = None
        lengths = template.fields[name].length
        for length in lengths if isinstance(lengths, tuple) else ():
            tried = template.with_length(name, length)
            try:
                found = score(tried, name)
            except ValueError as error:
                refusal = error
                continue
            if best is None or found > best[0]:
                best = found, tried
        if best is None:
            assert refusal is not None
            raise refusal
        template = best[1]
    return template


def check_template(template: object, others: Mapping[str, object]) -> None:
    """Refuse what is no template, and arguments whose place it takes.

    Raises:
        TypeError: No template.
        ValueError: One of the others was given.
    """
    if not isinstance(template, Template):
        raise TypeError(
            f"template: expected a Template, got {type(template).__name__}. Write for example "
            "lg.diffusion.Template('Name: {{name}}')."
        )
    for name, value in others.items():
        if value is not None:
            raise ValueError(
                f"{name}: expected none beside a template, whose fields say where what is written, got {value!r}. "
                "Leave it out."
            )


def null_vocabulary(template: Template, denoiser: Any, tokenizer: Any) -> Vocabulary:
    """The tokens of a model, the null token for their end.

    Raises:
        ValueError: There is no tokenizer, or no such token.
    """
    tokenizer = denoiser.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ValueError(
            "template: expected a tokenizer, which cuts the text into tokens, got none. Pass tokenizer=, or give it to "
            "the denoiser."
        )
    if template.null is None:
        roles = ("pad_token_id", "eos_token_id")
        found = [token for role in roles for token in own_tokens(denoiser, tokenizer, role, denoiser.mask_token_id)]
    else:
        token = tokenizer.get_vocab().get(template.null)
        found = [] if token is None or token == denoiser.mask_token_id else [token]
    if not found or found[0] >= denoiser.vocab_size:
        name = "one for padding or the end of texts" if template.null is None else repr(template.null)
        raise ValueError(f"null: expected a token of the vocabulary to follow short texts, got {name}. Name another.")
    return Vocabulary.of_tokenizer(tokenizer, denoiser.vocab_size, found[0])


def surety(output: DiffusionOutput, layout: Layout, name: str) -> float:
    """The mean log-probability of what was written into a field, over its columns and all rows."""
    slot = next(slot for slot in layout.slots if slot.name == name)
    return float(output.confidences[:, slot.start : slot.stop].double().log().mean())


def _laid_out(
    template: Template, pieces: list[str], examples: Mapping[str, str], tokens: list[int], vocabulary: Vocabulary
) -> Layout:
    """Tokens of the text with its examples, those that touch an example replaced by the columns of its field."""
    borders, place = [], 0
    for at, piece in enumerate(pieces):
        if at % 2:
            size = len(examples[piece].encode())
            borders.append((piece, place, place + size))
        else:
            size = len(piece.encode())
        place += size
    columns: list[int] = []
    slots: list[Slot] = []
    spelled = vocabulary.spell(tokens)
    ends = list(itertools.accumulate(len(vocabulary.tokens[token]) for token in tokens))
    at = 0
    for name, start, stop in borders:
        kept = at
        while ends[at] <= start:
            at += 1
        while at > kept and _within(spelled, ends[at - 1]):
            at -= 1
        columns += tokens[kept:at]
        first = ends[at - 1] if at else 0
        while ends[at] < stop or _within(spelled, ends[at]):
            at += 1
        end, at = ends[at], at + 1
        following = next((other for _, other, _ in borders if other > start), None)
        if following is not None and end > following:
            raise ValueError(
                f"text: expected text between fields that is a token at least, got {spelled[stop:following]!r} behind "
                f"{name!r}, which tokens join to both. Put more text there, or make the fields one."
            )
        each = template.fields[name]
        before, behind = (spelled[part].decode() for part in (slice(first, start), slice(stop, end)))
        value = _ANYTHING if each.constraint is None else each.constraint
        assert isinstance(value, Constraint)
        edges = [Literal(before)] * bool(before), [Literal(behind)] * bool(behind)
        whole = Sequence((*edges[0], value, *edges[1])) if before or behind else value
        length = each.length if isinstance(each.length, int) else max(each.length)
        slots.append(
            Slot(name, len(columns), len(columns) + length, whole, before, behind, isinstance(each, ExactField))
        )
        columns += [-1] * length
    return Layout(template, (*columns, *tokens[at:]), tuple(slots), vocabulary)


def _within(spelled: bytes, place: int) -> bool:
    """Whether a place lies within a character."""
    return place < len(spelled) and spelled[place] & 0xC0 == 0x80
