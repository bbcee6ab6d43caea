"""The page of `lmguide inspect`: one HTML text that shows what guidance did to every token.

Needs no network and no script, neither to be made nor to be read. It knows a trace, not how it came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmguide.pages import template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from lmguide.guidance import Guidance
    from lmguide.huggingface.run import Stats
    from lmguide.trace import StepRecord, Trace

NEIGHBOURS = 8
"""Tokens before one that can change how it is spelled: a space, or the first bytes of its letter."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
"""Signs for the letters that leave no trace on a page; the others get their code."""


@dataclass(frozen=True)
class Part:
    """A letter of a token, or the sign for one that would leave no trace."""

    text: str
    sign: bool = False


@dataclass(frozen=True)
class Candidate:
    """A token that could have come, with its probability."""

    parts: tuple[Part, ...]
    probability: float
    chosen: bool


@dataclass(frozen=True)
class Shown:
    """A token of the answer as the page shows it.

    Attributes:
        number: Its place in the answer, from 1.
        parts: Its text in the answer.
        name: Its text by itself, with signs for spaces.
        record: What the trace says of it.
        height: Its entropy as a share of the largest.
        turned: Whether guidance made another token the likeliest.
        before: Candidates without guidance.
        after: Candidates with guidance.
    """

    number: int
    parts: tuple[Part, ...]
    name: tuple[Part, ...]
    record: StepRecord
    height: float
    turned: bool
    before: tuple[Candidate, ...]
    after: tuple[Candidate, ...]


def render(
    trace: Trace,
    tokenizer: PreTrainedTokenizerBase,
    *,
    title: str = "What guidance did",
    model: str | None = None,
    guidance: Sequence[Guidance] = (),
    prompt: str | None = None,
    negative_prompt: str | None = None,
    seed: int | None = None,
    stats: Stats | None = None,
    row: int = 0,
) -> str:
    """A self-contained HTML page about one traced answer.

    Everything but the trace and the tokenizer is only told to the reader; what is `None` is left out.

    Args:
        trace: What `lmguide.trace` returned.
        tokenizer: The tokenizer of the model.
        title: The page's title.
        model: Name or path of the model.
        guidance: The methods.
        prompt: The prompt as text.
        negative_prompt: The negative prompt as text.
        seed: The seed.
        stats: `guided.stats` after the call.
        row: Which answer of the batch, from 0.

    Returns:
        The page. All text in it is escaped.

    Raises:
        ValueError: There is no such row.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("tales")
        >>> guided = lg.guide(model, lg.CFG(3.0), tokenizer=tokenizer)
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> page = render(lg.trace(guided, **inputs, max_new_tokens=5), tokenizer, model="tales")
        >>> page.startswith("<!DOCTYPE html>")
        True
    """
    if not 0 <= row < len(trace.rows):
        raise ValueError(f"row: expected one of the {len(trace.rows)} answers of the trace, got {row}. Count from 0.")
    tokens = _tokens(trace, tokenizer, row)
    return template("inspect.html").render(
        title=title,
        model=model,
        guidance=[method.to_json() for method in guidance],
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        stats=stats,
        tokens=tokens,
        largest=max(token.record.entropy for token in tokens),
        opened=sum(token.record.open for token in tokens),
        turned=sum(token.turned for token in tokens),
    )


def visible(text: str, spaces: bool) -> tuple[Part, ...]:
    r"""Text with signs for what leaves no trace on a page: line breaks, tabs, control characters and odd spaces.

    Args:
        text: Any text.
        spaces: Whether plain spaces get a sign too. A text of nothing but spaces always gets them.

    Example:
        >>> "".join(part.text for part in visible("a b\u200b", spaces=False))
        'a b⟨U+200B⟩'
    """
    parts: list[Part] = []
    for letter in text:
        sign = _sign(letter, spaces or not text.strip(" "))
        if sign is not None:
            parts.append(Part(sign, sign=True))
        if sign is None or (letter == "\n" and not spaces):
            parts.append(Part(letter))
    return tuple(parts)


def _sign(letter: str, spaces: bool) -> str | None:
    if letter == " ":
        return "␣" if spaces else None
    if letter in MARKS:
        return MARKS[letter]
    return None if letter.isprintable() else f"⟨U+{ord(letter):04X}⟩"


def _tokens(trace: Trace, tokenizer: PreTrainedTokenizerBase, row: int) -> list[Shown]:
    ids = trace.sequences[row].tolist()
    records = trace.rows[row]
    largest = max(record.entropy for record in records)
    shown = []
    for place, record in enumerate(records):
        before = ids[: trace.prompt_length + place]

        def name(token: int, before: list[int] = before) -> tuple[Part, ...]:
            return spelled(tokenizer, before, token, spaces=True)

        shown.append(
            Shown(
                number=place + 1,
                parts=spelled(tokenizer, before, record.token, spaces=False),
                name=name(record.token),
                record=record,
                height=record.entropy / largest if largest > 0 else 0.0,
                turned=record.before[0][0] != record.after[0][0],
                before=tuple(Candidate(name(token), p, token == record.token) for token, p in record.before),
                after=tuple(Candidate(name(token), p, token == record.token) for token, p in record.after),
            )
        )
    return shown


def spelled(tokenizer: PreTrainedTokenizerBase, before: list[int], token: int, spaces: bool) -> tuple[Part, ...]:
    """A token as it is spelled after others: many tokenizers write its space, or its letter, only in company.

    Args:
        tokenizer: The tokenizer.
        before: The tokens in front of it.
        token: The token.
        spaces: As in `visible`.
    """
    neighbours = before[-NEIGHBOURS:]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    # A letter of which bytes are missing ends in replacement characters, which the next token takes back.
    start = str(tokenizer.decode(neighbours, **options)).rstrip(REPLACEMENT)
    whole = str(tokenizer.decode([*neighbours, token], **options))
    text = whole[len(start) :] if whole.startswith(start) else ""
    if text.strip(REPLACEMENT):
        return visible(text, spaces)
    return (Part(f"⟨{tokenizer.convert_ids_to_tokens(token)}⟩", sign=True),)
