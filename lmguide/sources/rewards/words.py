"""Rewards of wanted and unwanted words, from the text of each row.

All state is in the generated tokens: nothing is kept between steps but what depends on the words alone. The walk over
the last few tokens of each row is on the host; the rewards of all rows are then written at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from lmguide.descriptions.words import WordLists, forms, lists
from lmguide.sources.branch import Branch
from lmguide.sources.ids import pack
from lmguide.sources.rewards.spelling import Spelling, ends_in_word, spelling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from lmguide.sources.rewards.base import Generation

LEADS = ("", " ", "\n", '"')
"""What a word is put behind to see how it is tokenised: nothing, a space, and what has none behind it."""


class WordReward:
    """`beta [v begins or goes on with a wanted word] - alpha [v ends an unwanted word]`, see `WordLists`.

    Attributes:
        forwards: 1 if the chances that words end had to be found out, else 0.
        nfe: The same.

    Args:
        context: The words.
        generation: The call.

    Raises:
        ValueError: No tokenizer, a word that no tokens spell, or neither one list nor one per prompt.
    """

    def __init__(self, context: WordLists, generation: Generation) -> None:
        if generation.tokenizer is None:
            raise ValueError(
                "tokenizer: words need the guided model's tokenizer, got None. "
                "Pass tokenizer= to guide() or to the processor."
            )
        self.forwards = 0
        self.nfe = 0
        self.generation = generation
        self.beta = context.beta
        self.spelling = spelling(generation.tokenizer, generation.vocab_size)
        goes_on: dict[bytes, float] = {}
        if context.exclude_at == "expected" and context.exclude and not generation.model.config.is_encoder_decoder:
            goes_on = _goes_on(context, self.spelling, generation)
            self.forwards = self.nfe = 1
        prompts = generation.prompts.tokens()
        self.prompts = [self.spelling.text(row) for row in prompts]
        wanted = [_Wanted.of(words, context.variants, self.spelling, generation) for words in lists(context.include)]
        unwanted = [_Unwanted.of(words, context, self.spelling, goes_on) for words in lists(context.exclude)]
        self.wanted = per_row("include", wanted, prompts)
        self.unwanted = per_row("exclude", unwanted, prompts)

    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Log-rewards `[B, V]`."""
        rewards = torch.zeros(scores.shape, device=scores.device)
        rows, tokens, values = [], [], []
        last = generated.shape[1] + 1 == self.generation.total
        for row, answer in enumerate(generated.tolist()):
            text = self.spelling.text(answer)
            favoured = self.wanted[row].tokens(self.prompts[row], text, answer, self.spelling)
            barred, prices = self.unwanted[row].tokens(self.prompts[row], text, last, self.spelling)
            rows.append(torch.full((len(favoured) + len(barred),), row))
            tokens += [favoured, barred]
            values += [torch.full(favoured.shape, float(self.beta)), prices]
        at = (torch.cat(rows).to(scores.device), torch.cat(tokens).to(scores.device))
        return rewards.index_put_(at, torch.cat(values).to(scores.device), accumulate=True)

    def reorder(self, order: Tensor) -> None:
        """Nothing is kept by row: beams of a prompt have its words, whatever their order."""

    def rewind(self, valid: int) -> None:
        """Nothing is kept by token."""


@dataclass
class _Unwanted:
    """Words by what a text may already have of them, and the tokens that end one.

    Attributes:
        missing: By each beginning of a form, none and all of it included, what is missing to the form, and the form.
        inside: Forms that begin and end within a token, with those tokens, as `Spelling.ending` has them.
        price: What the token with the last letter of each form costs when another may follow, at most 0.
        alpha: What a token costs with which a form has ended.
        longest: Bytes of the longest form.
        once: Whether the last letter has paid all.
    """

    missing: dict[bytes, set[tuple[bytes, bytes]]]
    inside: dict[bytes, tuple[set[int], set[int]]]
    price: dict[bytes, float]
    alpha: float
    longest: int
    once: bool
    known: dict[tuple[frozenset[tuple[bytes, bytes]], bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, words: Sequence[str], context: WordLists, spelled: Spelling, goes_on: Mapping[bytes, float]
    ) -> _Unwanted:
        missing: dict[bytes, set[tuple[bytes, bytes]]] = {}
        inside, price = {}, {}
        for word in words:
            possible = [f for form in forms(word, context.variants) if _spelled(f := form.encode(), spelled)]
            if not possible:
                raise ValueError(_unspelled("exclude", word))
            for form in possible:
                for cut in range(len(form) + 1):
                    missing.setdefault(form[:cut], set()).add((form[cut:], form))
                inside[form] = spelled.ending(form, inside=True)
                price[form] = _expected(goes_on.get(form, 1.0), context.alpha)
                if context.exclude_at == "last_token":
                    price[form] = -context.alpha
        longest = max(map(len, price), default=0)
        return cls(missing, inside, price, context.alpha, longest, context.exclude_at == "last_token")

    def tokens(self, prompt: bytes, answer: bytes, last: bool, spelled: Spelling) -> tuple[Tensor, Tensor]:
        """Tokens that end a form behind the answer, or that may, and what is taken from each.

        What the prompt ends with may become a form, but is none itself. With the `last` token of an answer every form
        ends.
        """
        text = prompt[-self.longest - 4 :] + answer[-self.longest - 4 :]
        rests: set[tuple[bytes, bytes]] = set()
        for size in range(min(self.longest, len(text)) + 1):
            found = self.missing.get(text[len(text) - size :])
            if found and not ends_in_word(text[: len(text) - size]):
                whole = answer and not self.once
                rests |= found if whole else {(rest, form) for rest, form in found if rest}
        key = (frozenset(rests), last)
        if key not in self.known:
            prices: dict[int, float] = {}
            ending = [(form, *tokens) for form, tokens in self.inside.items()]
            ending += [(form, *spelled.ending(rest)) for rest, form in rests]
            for form, ended, open_ in ending:
                for tokens, price in ((ended, -self.alpha), (open_, -self.alpha if last else self.price[form])):
                    prices |= {token: min(price, prices.get(token, 0.0)) for token in tokens if price}
            ids, values = (
                torch.tensor(list(prices), dtype=torch.long),
                torch.tensor(list(prices.values()), dtype=torch.float32),
            )
            self.known[key] = (ids, values)
        return self.known[key]


def _expected(goes_on: float, alpha: float) -> float:
    """`log(q + (1 - q) exp(-alpha))`: what a token costs behind which there is `alpha` to pay, but with chance `q`."""
    return max(-alpha, math.log(max(goes_on + (1 - goes_on) * math.exp(-alpha), torch.finfo(torch.float32).tiny)))


@torch.no_grad()
def _goes_on(context: WordLists, spelled: Spelling, generation: Generation) -> dict[bytes, float]:
    """The chance that each excluded form goes on behind its letters, if it stands alone: one pass over short rows.

    Summed over the tokens that go on, and not as what those that end it leave of 1: of a word that nearly always ends,
    rounding would leave little.
    """
    every = {form for words in lists(context.exclude) for word in words for form in forms(word, context.variants)}
    paths: dict[str, tuple[int, ...]] = {}
    for form, found in _paths(sorted(every), spelled, generation.tokenizer).items():
        if found:  # a form that the tokenizer never makes has no likely way to be written
            paths[form] = min(found, key=lambda path: (spelled.texts[path[0]][:1] != b" ", path))
    if not paths:
        return {}
    first = generation.prompts.tokens()[0][:1]
    begins = first if set(first) & set(generation.tokenizer.all_special_ids) else []
    rows = pack([[*begins, *path] for path in paths.values()], generation.device)
    none = rows.ids[:, :0]
    logits = Branch(generation.model, rows, len(paths), use_cache=False).logits(none)[:, -1]
    inside = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[torch.tensor(spelled.after_word, device=logits.device)] = False
    chances = logits.float().softmax(-1)[:, inside].sum(-1).clamp(0, 1)
    return {form.encode(): chance for form, chance in zip(paths, chances.tolist(), strict=True)}


@dataclass
class _Wanted:
    """A trie of the tokens of each form, and the forms as a pattern.

    Attributes:
        after: By each beginning of a form's tokens, none included, what may follow: behind a word, or where one may
            begin at once.
        pattern: Finds a form between word boundaries; `None` if there is no form.
        longest: Tokens of the longest form.
    """

    after: dict[tuple[int, ...], set[int]]
    bare: set[int]
    spaced: set[int]
    pattern: re.Pattern[str] | None
    longest: int

    @classmethod
    def of(cls, words: Sequence[str], variants: bool, spelled: Spelling, generation: Generation) -> _Wanted:
        after: dict[tuple[int, ...], set[int]] = {}
        bare: set[int] = set()
        spaced: set[int] = set()
        every = [form for word in words for form in forms(word, variants)]
        known = _paths(every, spelled, generation.tokenizer)
        longest = 0
        for word in words:
            paths = {path for form in forms(word, variants) for path in known[form]}
            if not paths:
                raise ValueError(_unspelled("include", word))
            for path in paths:
                longest = max(longest, len(path))
                (spaced if spelled.texts[path[0]][:1] == b" " else bare).add(path[0])
                for cut in range(1, len(path)):
                    after.setdefault(path[:cut], set()).add(path[cut])
        alternatives = "|".join(sorted(map(re.escape, every), key=len, reverse=True))
        pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if every else None
        return cls(after, bare, spaced, pattern, longest)

    def tokens(self, prompt: bytes, text: bytes, answer: Sequence[int], spelled: Spelling) -> Tensor:
        """Tokens that go on with a form, or else begin one; none once a form stands in the answer."""
        if self.pattern is None or self._complete(prompt, text):
            return torch.zeros(0, dtype=torch.long)
        found: set[int] = set()
        before = len(text)
        for size in range(1, min(self.longest - 1, len(answer)) + 1):
            path = tuple(answer[-size:])
            before -= len(spelled.texts[path[0]])
            if path in self.after and (
                path[0] not in self.bare or not ends_in_word((prompt[-4:] + text)[: len(prompt[-4:]) + before])
            ):
                found |= self.after[path]
        return torch.tensor(sorted(found or self._beginnings(prompt[-4:] + text[-4:])), dtype=torch.long)

    def _beginnings(self, text: bytes) -> set[int]:
        if ends_in_word(text):
            return self.spaced
        if text[-1:].isspace():
            return self.bare or self.spaced
        return self.spaced | self.bare

    def _complete(self, prompt: bytes, text: bytes) -> bool:
        assert self.pattern is not None
        start = prompt[-64:].decode("utf-8", "replace")
        whole = (prompt[-64:] + text).decode("utf-8", "replace")
        return any(match.end() > len(start) for match in self.pattern.finditer(whole))


def writable(words: Iterable[str], variants: bool, spelled: Spelling, tokenizer: Any) -> tuple[str, ...]:
    """Words with a form that the tokenizer has tokens for."""
    every = {word: forms(word, variants) for word in words}
    known = _paths([form for found in every.values() for form in found], spelled, tokenizer)
    return tuple(word for word, found in every.items() if any(known[form] for form in found))


def _paths(every: Sequence[str], spelled: Spelling, tokenizer: Any) -> dict[str, set[tuple[int, ...]]]:
    """For each form its tokens behind each of `LEADS`, without those of the lead."""
    texts = [lead + form for form in every for lead in LEADS]
    rows = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    found: dict[str, set[tuple[int, ...]]] = {form: set() for form in every}
    for form in every:
        wanted = {form.encode(), b" " + form.encode()}
        for _, tokens in zip(LEADS, rows, strict=False):
            starts = (start for start in range(len(tokens)) if spelled.text(tokens[start:]) in wanted)
            found[form] |= {tuple(tokens[start:]) for start in islice(starts, 1)}
    return found


def _spelled(form: bytes, spelled: Spelling) -> bool:
    return spelled.spells(form) or spelled.spells(b" " + form)


def _unspelled(argument: str, word: str) -> str:
    return (
        f"{argument}: no tokens of the vocabulary spell {word!r}. "
        "Look at its letters, or choose another word for the same."
    )


def per_row(argument: str, found: list[Any], prompts: list[list[int]]) -> list[Any]:
    """The item of each row: one for all, or one per prompt.

    Raises:
        ValueError: Neither.
    """
    if len(found) == 1:
        return found * len(prompts)
    repeat = len(prompts) // len(found)
    same = repeat and all(prompts[row] == prompts[row - row % repeat] for row in range(len(prompts)))
    if len(prompts) % len(found) or not same:
        raise ValueError(
            f"{argument}: expected one for all prompts or one for each, got {len(found)} for {len(prompts)} rows. "
            "Give as many as there are prompts."
        )
    return [item for item in found for _ in range(repeat)]
