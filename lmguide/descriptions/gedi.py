"""The posterior of a class by a language model that was trained with control codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from lmguide.checks import check_number
from lmguide.contexts import CONTEXTS, Context
from lmguide.serialization import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Code: TypeAlias = str | tuple[int, ...]
"""A control code or topic: text, tokenised without special tokens, or token ids of the guide."""


@CONTEXTS.register("class_posterior")
@dataclass(frozen=True)
class ClassPosterior(Context):
    """`log P(code | text, v)` for every next token `v`, by Bayes' rule on a class-conditional language model.

    With `L_c = log p(text | code c)` of the prompt and the answer so far, `t` tokens with `v`, and `pi_c` the prior:

        exact:       z_c(v) = L_c + log p(v | text, c) + log pi_c + class_bias [c = code]
        normalized:  z_c(v) = (L_c + log p(v | text, c)) logit_scale / t + bias_c + log pi_c + class_bias [c = code]
        log P(code | text, v) = log softmax_c z(v) at the code

    The guide reads each text behind a code: `code topic text`, or `<bos> code topic text` where the prompt begins with
    the token of that name. Codes and topic are conditions, their own probability does not count.

    Args:
        guide: A causal language model trained with the codes, or its name or path. Only a name can be serialised.
        code: The wanted class, one of `codes`.
        codes: All classes, two or more; `None` takes those in the guide's `config.gedi["codes"]`.
        form: `"exact"` is Bayes' rule, `"normalized"` the paper's with the mean over tokens in the place of the sum.
        logit_scale: Of the normalised form, above 0; `None` is `config.gedi["logit_scale"]`, or 1.
        bias: Of the normalised form, one number for each of `codes`; `None` is `config.gedi["bias"]`, or 0.
        class_bias: Nats added to the wanted class.
        class_prior: Share of each of `codes`, above 0; made to sum to one. `None` is all alike.
        topic: Stands behind every code: with the codes `"true"` and `"false"` the zero-shot topic.
        tokenizer: The guide's, for codes in text and to compare vocabularies. Loaded with a guide that is a name; else
            the guided model's.
        map_vocabulary: Whether a guide of another vocabulary is served through the tokens that both have. Other tokens
            leave the posterior as it was, and the guide does not see them.

    Raises:
        ValueError: Fewer than two codes, an empty one or one twice, a code that is none of them, a number out of range
            or of the other form.
        TypeError: A code that is neither text nor token ids.

    Example:
        >>> ClassPosterior("some/guide", " glad", (" glad", " grim")).form
        'exact'
    """

    guide: PreTrainedModel | str
    code: str | tuple[int, ...]
    codes: tuple[str | tuple[int, ...], ...] | None = None
    form: Literal["exact", "normalized"] = "exact"
    logit_scale: float | None = None
    bias: tuple[float, ...] | None = None
    class_bias: float = 0.0
    class_prior: tuple[float, ...] | None = None
    topic: str | tuple[int, ...] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    map_vocabulary: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "code", _checked_code("code", self.code))
        if self.topic is not None:
            object.__setattr__(self, "topic", _checked_code("topic", self.topic))
        if self.form not in {"exact", "normalized"}:
            raise ValueError(f"form: expected 'exact' or 'normalized', got {self.form!r}. Choose one of them.")
        for argument in ("logit_scale", "bias"):
            if self.form == "exact" and getattr(self, argument) is not None:
                raise ValueError(
                    f"{argument}: it belongs to the length-normalised form, got it with form='exact'. "
                    "Use form='normalized', or class_prior and class_bias."
                )
        if self.logit_scale is not None:
            check_number("logit_scale", self.logit_scale, "The paper's starts at 1 and is trained.", above=0)
        check_number("class_bias", self.class_bias, "Use 0 for none; the paper uses 2 against toxicity.")
        for argument in ("bias", "class_prior"):
            if (given := getattr(self, argument)) is not None:
                object.__setattr__(self, argument, _numbers(argument, given))
        if self.codes is not None:
            object.__setattr__(self, "codes", check_codes(self.codes, self.code))
            for argument in ("bias", "class_prior"):
                check_count(argument, getattr(self, argument), self.codes)


def check_codes(codes: object, code: Code) -> tuple[Code, ...]:
    """The codes as a tuple, if they are two or more different ones with `code` among them.

    Raises:
        ValueError: They are not.
        TypeError: One is neither text nor token ids.
    """
    if isinstance(codes, str) or not isinstance(codes, list | tuple):
        raise TypeError(f"codes: expected a sequence of codes, got {codes!r}. Give for example (' glad', ' grim').")
    known = tuple(_checked_code("codes", item) for item in codes)
    if len(known) < 2:
        raise ValueError(
            f"codes: expected two or more, got {len(known)}. A posterior compares classes: give the code of every one."
        )
    if len(set(known)) < len(known):
        raise ValueError(f"codes: expected different ones, got {known}. Give each class once.")
    if code not in known:
        raise ValueError(
            f"code: expected one of {', '.join(map(repr, known))}, got {code!r}. {did_you_mean(code, map(str, known))}"
        )
    return known


def check_count(argument: str, given: Sequence[float] | None, codes: Sequence[Code]) -> None:
    """Refuse numbers that are not one for each code.

    Raises:
        ValueError: They are more or fewer.
    """
    if given is not None and len(given) != len(codes):
        raise ValueError(
            f"{argument}: expected one number for each of {len(codes)} codes, got {len(given)}. "
            "Give them in the order of codes."
        )


def _checked_code(argument: str, code: object) -> Code:
    if isinstance(code, str):
        if not code:
            raise ValueError(
                f"{argument}: expected a text or token ids, got ''. Give the code the guide was trained on."
            )
        return code
    if not isinstance(code, list | tuple) or not all(type(token) is int for token in code):
        raise TypeError(f"{argument}: expected a text or token ids, got {code!r}. Give one of these.")
    if not code or min(code) < 0:
        raise ValueError(
            f"{argument}: expected at least one token id, none below 0, got {code!r}. "
            "Give the code the guide was trained on."
        )
    return tuple(code)


def _numbers(argument: str, given: object) -> tuple[float, ...]:
    cure = "Give one number for each code."
    if not isinstance(given, list | tuple):
        raise TypeError(f"{argument}: expected one number for each code, got {given!r}. {cure}")
    for number in given:
        if argument == "class_prior":
            check_number(argument, number, "Leave a class out of codes if it cannot be.", above=0)
        else:
            check_number(argument, number, cure)
    return tuple(float(number) for number in given)
