"""Words that an answer should have and words that it must not have, described without tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from lmguide.checks import check_number
from lmguide.contexts import CONTEXTS, Context

if TYPE_CHECKING:
    from collections.abc import Iterator

Words: TypeAlias = str | tuple[str, ...] | tuple[tuple[str, ...], ...]
"""A word or words for all prompts, or one list per prompt."""


@CONTEXTS.register("word_lists")
@dataclass(frozen=True)
class WordLists(Context):
    r"""`beta` for each token that begins or goes on with a wanted word, `-alpha` for each that ends an unwanted one.

    A word stands between word boundaries, as `\b` of regular expressions has them: "cat" is not in "category", and is
    in "cat's". Words may contain spaces.

    Args:
        include: Wanted words, for all prompts or a list for each. Once one of them stands in the answer, none of the
            prompt's is wanted any more.
        exclude: Unwanted words, likewise; they stay unwanted.
        beta: Added to a wanted word's tokens, at least 0, in nats.
        alpha: Taken from an unwanted word's, at least 0, in nats.
        variants: Whether a word also stands for itself capitalised and for its English plurals.
        exclude_at: What is penalised. `"boundary"`: the token with which the word has ended, which is the one behind
            the word's letters unless a token has both; the letters may still become those of a longer word, and must.
            `"last_token"`: the token with the word's last letter instead, which bars longer words that are spelled
            through it. `"expected"`: the former, and the last letter by what is to be expected behind it, `log(1 - p +
            p exp(-alpha))`, where `p` is the chance that the word ends there, as the model sees it without a prompt;
            for encoder-decoders, which see nothing without one, as `"boundary"`.
    """

    include: Words = ()
    exclude: Words = ()
    beta: float = 5.0
    alpha: float = 100.0
    variants: bool = True
    exclude_at: Literal["expected", "boundary", "last_token"] = "expected"

    def __post_init__(self) -> None:
        """Check the words and the numbers."""
        for argument in ("include", "exclude"):
            object.__setattr__(self, argument, _checked(argument, getattr(self, argument)))
        if not any(words for argument in (self.include, self.exclude) for words in lists(argument)):
            raise ValueError(
                "include: expected words to include or to exclude, got none. Give include=('sea',) or exclude=('cat',)."
            )
        check_number("beta", self.beta, "The published value is 5; to avoid words put them in exclude.", least=0)
        check_number("alpha", self.alpha, "The published value is 100; to favour words put them in include.", least=0)
        check_exclude_at(self.exclude_at)
        for wanted, unwanted in _pairs(lists(self.include), lists(self.exclude)):
            both = {form for word in wanted for form in forms(word, self.variants)} & {
                form for word in unwanted for form in forms(word, self.variants)
            }
            if both:
                raise ValueError(
                    f"include: expected other words than in exclude, got {min(both)!r} in both. "
                    "Take it out of one of them."
                )


def lists(words: Words) -> tuple[tuple[str, ...], ...]:
    """One list for all prompts, or one per prompt."""
    return tuple(item for item in words if isinstance(item, tuple)) or (tuple(w for w in words if isinstance(w, str)),)


def forms(word: str, variants: bool) -> tuple[str, ...]:
    """A word as it may stand in a text.

    Example:
        >>> forms("fox", variants=True)
        ('fox', 'Fox', 'foxes', 'Foxes')
    """
    found = [word, word[0].upper() + word[1:]]
    found += [_plural(form) for form in found]
    return tuple(dict.fromkeys(found)) if variants else (word,)


def singulars(word: str) -> tuple[str, ...]:
    """What a word can be the regular English plural of; none if it looks like no plural.

    Example:
        >>> singulars("foxes"), singulars("cookies"), singulars("glass")
        (('foxe', 'fox'), ('cookie', 'cooky'), ())
    """
    if len(word) < 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return ()
    found = [word[:-1]]
    if word.endswith("ies"):
        found.append(f"{word[:-3]}y")
    elif word.endswith(("ses", "xes", "zes", "ches", "shes")):
        found.append(word[:-2])
    return tuple(found)


def check_exclude_at(given: object) -> None:
    """Refuse an unknown place of a penalty.

    Raises:
        ValueError: It is one.
    """
    if given not in {"expected", "boundary", "last_token"}:
        raise ValueError(
            f"exclude_at: expected 'expected', 'boundary' or 'last_token', got {given!r}. Choose one of them."
        )


def _plural(word: str) -> str:
    """The regular English plural."""
    if word.lower().endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.lower().endswith("y") and word[-2:-1].lower() not in set("aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}s"


def _checked(argument: str, words: object) -> Words:
    if isinstance(words, str):
        words = (words,)
    if not isinstance(words, list | tuple):
        raise TypeError(
            f"{argument}: expected words, got {type(words).__name__}. Give a tuple such as ('sea', 'ship')."
        )
    nested = [isinstance(item, list | tuple) for item in words]
    if any(nested):
        if not all(nested):
            raise ValueError(f"{argument}: expected words or a list for each prompt, got both. Give one of them.")
        per_prompt = tuple(tuple(map(_word, [argument] * len(item), item)) for item in words)
        return per_prompt if any(per_prompt) else ()
    return tuple(_word(argument, item) for item in words)


def _word(argument: str, word: object) -> str:
    if not isinstance(word, str):
        raise TypeError(f"{argument}: expected words, got {word!r} among them. Give text.")
    if not word.strip():
        raise ValueError(f"{argument}: expected words, got {word!r} among them. Leave it out.")
    return word.strip()


def _pairs(
    first: tuple[tuple[str, ...], ...], second: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What meets on one prompt; lists of different numbers are refused when prompts are known."""
    for index in range(max(len(first), len(second))):
        yield first[index % len(first)], second[index % len(second)]
