"""Where each row stands in the span that has a budget, and which tokens would end it: told from the tokens alone.

Nothing is kept between steps, so beams and drafts need no care.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import torch

from lmguide.sources.rewards.spelling import Spelling, spelling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmguide.descriptions.budget import Marker, WithinBudget
    from lmguide.sources.rewards.base import Generation


class Spans:
    """The spans of a call's rows.

    Args:
        context: The description.
        generation: The call.

    Raises:
        ValueError: No tokenizer where text or newlines are looked for, a marker that no tokens spell, or a token id
            out of range.
    """

    def __init__(self, context: WithinBudget, generation: Generation) -> None:
        eos = getattr(generation.model.generation_config, "eos_token_id", None)
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        ends = ends if generation.ends is None else list(generation.ends)
        self._stop: _Finder = _Ids([(token,) for token in ends])
        self._start = None if context.start is None else _finder("start", context.start, generation)
        self._end = self._stop if context.end is None else _finder("end", context.end, generation)
        self._prompts = generation.prompts.tokens()
        self._newlines: set[int] | None = None
        if not context.every:
            self._newlines = set(_holding(_spelled("every", generation), b"\n"))
            guided = self._newlines | (set() if self._start is None else self._start.lasts())
            behind = torch.zeros(generation.vocab_size, dtype=torch.bool)
            behind[list(guided)] = True
            self._behind = behind.to(generation.device)

    def guided(self, generated: Tensor) -> dict[int, Sequence[int]]:
        """Rows whose next token is guided, with the tokens of their span that the answer `[B, G]` has."""
        rows: Sequence[int] = range(len(generated))
        if self._newlines is not None and generated.shape[1]:
            rows = self._behind[generated[:, -1]].nonzero()[:, 0].tolist()
        found: dict[int, Sequence[int]] = {}
        answers = generated.tolist() if rows else []
        for row in rows:
            span = self._span(row, answers[row])
            if span is not None and (self._newlines is None or not span or span[-1] in self._newlines):
                found[row] = span
        return found

    def ending(self, span: Sequence[int]) -> list[int]:
        """Tokens that would end a span behind these."""
        return self._end.completing(span)

    def _span(self, row: int, answer: Sequence[int]) -> Sequence[int] | None:
        """The tokens of the answer in the open span; `None` if none is open."""
        text, opened, before = answer, 0, 0
        if self._start is not None:
            text, before = [*self._prompts[row], *answer], len(self._prompts[row])
            opened = self._start.last(text)
            if not opened:
                return None
        inside = text[opened:]
        if self._end.last(inside) or self._stop.last(inside):
            return None
        return text[max(opened, before) :]


class _Finder(Protocol):
    """Finds a marker in tokens."""

    def last(self, tokens: Sequence[int]) -> int:
        """How many tokens there are up to and with the one that completes the last marker; 0 if there is none."""

    def completing(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that would complete a marker behind these."""

    def lasts(self) -> set[int]:
        """Tokens that may complete a marker."""


class _Ids:
    """One of several sequences of token ids."""

    def __init__(self, sequences: Sequence[tuple[int, ...]]) -> None:
        self._sequences = sequences

    def last(self, tokens: Sequence[int]) -> int:
        return max((self._last(tokens, sequence) for sequence in self._sequences), default=0)

    def completing(self, tokens: Sequence[int]) -> list[int]:
        shown = tuple(tokens)
        return [s[-1] for s in self._sequences if shown[len(shown) - len(s) + 1 :] == s[:-1]]

    def lasts(self) -> set[int]:
        return {sequence[-1] for sequence in self._sequences}

    @staticmethod
    def _last(tokens: Sequence[int], sequence: tuple[int, ...]) -> int:
        if sequence[-1] not in tokens:
            return 0
        stops = range(len(tokens), len(sequence) - 1, -1)
        return next((stop for stop in stops if tuple(tokens[stop - len(sequence) : stop]) == sequence), 0)


class _Text:
    """A text, whichever tokens spell it."""

    def __init__(self, text: bytes, spelled: Spelling) -> None:
        self._text, self._spelled = text, spelled

    def last(self, tokens: Sequence[int]) -> int:
        whole = self._spelled.text(tokens)
        at = whole.rfind(self._text)
        if at < 0:
            return 0
        count, size = len(tokens), len(whole)
        while size - len(self._spelled.texts[tokens[count - 1]]) >= at + len(self._text):
            count, size = count - 1, size - len(self._spelled.texts[tokens[count - 1]])
        return count

    def completing(self, tokens: Sequence[int]) -> list[int]:
        tail = self._spelled.text(tokens[-len(self._text) :])
        found = set(_holding(self._spelled, self._text))
        for cut in range(1, len(self._text)):
            if tail.endswith(self._text[:cut]):
                found.update(_beginning(self._spelled, self._text[cut:]))
        return sorted(found)

    def lasts(self) -> set[int]:
        rests = (_beginning(self._spelled, self._text[cut:]) for cut in range(1, len(self._text)))
        return set(_holding(self._spelled, self._text)).union(*rests)


@lru_cache(maxsize=64)  # asked for at every call; the table of a large vocabulary takes a moment
def _holding(spelled: Spelling, text: bytes) -> tuple[int, ...]:
    return tuple(token for token, own in enumerate(spelled.texts) if text in own)


@lru_cache(maxsize=64)
def _beginning(spelled: Spelling, text: bytes) -> tuple[int, ...]:
    return tuple(token for token, own in enumerate(spelled.texts) if own.startswith(text))


def _spelled(argument: str, generation: Generation) -> Spelling:
    if generation.tokenizer is None:
        found = "newlines are" if argument == "every" else "a text is"
        cure = "every=True" if argument == "every" else "token ids"
        raise ValueError(
            f"{argument}: {found} found by the guided model's tokenizer, got None. "
            f"Pass tokenizer= to guide() or to the processor, or give {cure}."
        )
    return spelling(generation.tokenizer, generation.vocab_size)


def _finder(argument: str, marker: Marker, generation: Generation) -> _Finder:
    size = generation.vocab_size
    if isinstance(marker, tuple):
        if max(marker) >= size:
            raise ValueError(
                f"{argument}: expected token ids below {size}, got {max(marker)}. Use the model's own tokenizer."
            )
        return _Ids([marker])
    spelled = _spelled(argument, generation)
    ids = tuple(generation.tokenizer(marker, add_special_tokens=False)["input_ids"])
    special = set(generation.tokenizer.all_special_ids)
    unknown = generation.tokenizer.unk_token_id
    if ids and unknown not in ids and special & set(ids):
        return _Ids([ids])
    if not ids or not spelled.spells(marker.encode()):
        raise ValueError(
            f"{argument}: expected a text that the model's tokens spell, got {marker!r}. Look at how tokenizer("
            f"{marker!r}) cuts it, or give token ids."
        )
    return _Text(marker.encode(), spelled)
