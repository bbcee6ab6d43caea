"""What can be told of English text without a parser: the items of a list, and what a text begins with.

Rules about word boundaries, capitals and the few hundred words that name nothing; no grammar.
"""

from __future__ import annotations

import re
from itertools import takewhile

_NAMES_NOTHING = """
a an the this that these those each every either neither some any no all both half such what which whose another
i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours
they them their theirs themselves who whom someone something anyone anything everyone everything none nothing one
be am is are was were been being have has had having do does did doing done will would shall should can could may
might must ought need let get got go going gone come came make made take took see saw say said know think want
in on at by for with without from to of off about above across after against along among around as before behind
below beneath beside besides between beyond but despite down during except inside into like near onto out outside
over past per since than through throughout till toward towards under until up upon via within
and or nor so yet if because although though while whereas unless whether when where why how then there here
not never also too very just only even still again already always often sometimes usually much many more most few
less least several other others own same well now yes etc example examples following
"""
FUNCTION_WORDS = frozenset(_NAMES_NOTHING.split())
"""Words that are no examples of anything: pronouns, prepositions, auxiliaries and their like."""

MOST_WORDS = 4
"""Words of an item of a list; what is longer is a sentence."""

_WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*")
_POSSESSIVE = re.compile(r"['\u2019]s?$")
_BULLET = re.compile(r"(?:[-*\u2022\u2013]|\d+[.)])\s+")
_EXPLAINED = re.compile(r"\s[-\u2013\u2014]\s|[:(]")
_SEPARATOR = re.compile(r"[,;/]|\b(?:and|or)\b")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_DETERMINER = re.compile(r"^(?:(?:an?|the|some|such as)\b\s*)+", re.IGNORECASE)
_AROUND = " \t*_`\"'.,;:!?()[]\u201c\u201d\u2018\u2019"


def read_list(answer: str) -> tuple[str, ...]:
    r"""The items of a list: of the first line, or one of each line if these have bullets or numbers.

    Without articles, explanations, words that name nothing and what is longer than four words; each once.

    Example:
        >>> read_list(" a cat, dogs, polar bear and the lion. They live in the wild.")
        ('cat', 'dogs', 'polar bear', 'lion')
        >>> read_list("Here are some:\n1. **Cat**: small.\n2. Polar bear - large.\nAnything else?")
        ('Cat', 'Polar bear')
    """
    lines = _lines(answer)
    if lines and _BULLET.match(lines[0]):
        items = [_EXPLAINED.split(_BULLET.sub("", line, count=1))[0] for line in takewhile(_BULLET.match, lines)]
    else:
        items = _SEPARATOR.split(_SENTENCE_END.split("".join(lines[:1]))[0])
    words = [_DETERMINER.sub("", item.strip(_AROUND)).strip(_AROUND) for item in items]
    kept = [word for word in words if word and word.lower() not in FUNCTION_WORDS and len(word.split()) <= MOST_WORDS]
    return tuple(dict.fromkeys(kept))


def list_ended(answer: str) -> bool:
    r"""Whether `read_list` reads the same whatever follows.

    Example:
        >>> list_ended(" cat, do"), list_ended(" cat, dog.\nWhat"), list_ended("1. Cat\n2. Do")
        (False, True, False)
    """
    finished = _lines(answer.rpartition("\n")[0])
    return bool(finished) and not all(map(_BULLET.match, finished))


def leading_entity(text: str) -> str | None:
    """What a text names first, in small letters: its first word, or all of a run of capitalised ones.

    `None` if that is a function word, or if the text stops before the word does.

    Example:
        >>> leading_entity(" New York City's parks are"), leading_entity(" dogs and"), leading_entity(" the dog is")
        ('new york city', 'dogs', None)
        >>> leading_entity(" do") is None
        True
    """
    run, rest = _leading(text)
    if not rest or run[0].lower() in FUNCTION_WORDS:
        return None
    return _POSSESSIVE.sub("", " ".join(run).lower())


def entity_settled(text: str) -> bool:
    """Whether `leading_entity` says the same whatever follows.

    Example:
        >>> entity_settled(" dog"), entity_settled(" dog is"), entity_settled(" Dog "), entity_settled(" Dog is")
        (False, True, False, True)
    """
    run, rest = _leading(text)
    return rest not in {"", "-", "'", "\u2019", *([" "] if run and _is_name(run[0]) else [])}


def _leading(text: str) -> tuple[list[str], str]:
    """The first word of a text, or the run of capitalised ones that it begins with, and what follows."""
    words = list(_WORD.finditer(text))
    run = words[:1]
    for word in words[1:]:
        if text[run[-1].end() : word.start()] != " " or not (_is_name(run[-1][0]) and _is_name(word[0])):
            break
        run.append(word)
    return [word[0] for word in run], text[run[-1].end() :] if run else ""


def _is_name(word: str) -> bool:
    return word[:1].isupper()


def _lines(answer: str) -> list[str]:
    """Lines that say something; one that announces a list ends with a colon."""
    lines = [line.strip() for line in answer.splitlines()]
    return [line for line in lines if line and (_BULLET.match(line) or not line.endswith(":"))]
