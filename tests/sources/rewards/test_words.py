"""Words as rewards, against a reference that only looks at decoded text and at the tokenizer's own spelling."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers as tf

import lmguide as lg
from lmguide.descriptions.words import WordLists, forms
from lmguide.guidance.words import WordGuidance
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from tests.families import tiny
from tests.families import words as spaced_words
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

BETA, ALPHA = 3.0, 20.0
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,'!-"


@cache
def pieces() -> Any:
    """A tokenizer of pieces of words, "##" in front of those that go on."""
    names = ["[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "cat", "##cat", "##egory", "the", "sea", "##s"]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@cache
def bytes_and_spaces() -> Any:
    """A tokenizer of the kind of SentencePiece: a mark for the space, and single bytes for rare characters."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *LETTERS]
    merges = [("c", "a"), ("ca", "t"), ("\u2581", "cat"), ("t", "h"), ("th", "e"), ("\u2581", "the")]
    names += [left + right for left, right in merges]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {name: index for index, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@cache
def tales() -> Any:
    """The bundled tokenizer: pairs of bytes."""
    return lg.bundled("tales")[1]


TOKENIZERS: dict[str, Callable[[], Any]] = {"tales": tales, "pieces": pieces, "bytes": bytes_and_spaces}
PROMPT = "It is said: the sea cat"
ANSWERS = (
    " cat",
    "s and a bobcat, a category. Cats! the cat-like cat's sea cats, the sea. cat",
    " The caf\u00e9 caf\u00e9s are by the sea sea-cat now",
    "\u201cCat\u201d sat on cat\u2014sea",
)


def call(tokenizer: Any, prompts: Sequence[str], total: int | None = None, model: Any = None) -> Generation:
    """A call whose prompts are these texts."""
    rows = pack([tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts], "cpu")
    return Generation(
        model=tiny("llama") if model is None else model,
        tokenizer=tokenizer,
        prompts=rows,
        batch=len(prompts),
        vocab_size=len(tokenizer) + 3,  # models pad their embedding
        device=torch.device("cpu"),
        total=total,
    )


def rewards(tokenizer: Any, context: WordLists, prompts: Sequence[str], answers: Sequence[Sequence[int]]) -> Tensor:
    """Log-rewards `[B, V]` for the next token behind answers of one length."""
    generation = call(tokenizer, prompts)
    generated = torch.tensor([list(answer) for answer in answers], dtype=torch.long).reshape(len(prompts), -1)
    return bind_token_reward(context, generation).log_rewards(
        generated, torch.zeros(len(prompts), generation.vocab_size)
    )


def _every(words: Sequence[str]) -> list[str]:
    return [form for word in words for form in forms(word, variants=True)]


def _ended(words: Sequence[str], text: str, start: int, early: bool) -> set[tuple[int, str]]:
    """Where forms stand that end behind `start`; not yet, unless `early`, those at the very end of the text."""
    end = r"(?!\w)" if early else r"\W"
    return {
        (match.start(), form)
        for form in _every(words)
        for match in re.finditer(rf"(?<!\w)(?={re.escape(form)}{end})", text)
        if match.start() + len(form) > start
    }


def unwanted(tokenizer: Any, words: Sequence[str], answer: Sequence[int], early: bool) -> list[bool | None]:
    """Of each token behind `PROMPT` and an answer, whether some form has ended with it that had not before.

    `None` where a lone byte makes the tokenizer take a whole character before it for broken.
    """
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode([*ids, *tokens], clean_up_tokenization_spaces=False))

    start, text = len(decode([])), decode(answer)
    before = _ended(words, text, start, early)
    texts = [decode([*answer, token]) for token in range(len(tokenizer))]
    return [
        any(place not in before for place in _ended(words, after, start, early)) if after.startswith(text) else None
        for after in texts
    ]


@pytest.mark.parametrize("at", ["boundary", "last_token"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_unwanted_words_are_ended_nowhere(name: str, answer: str, at: Any) -> None:
    tokenizer = TOKENIZERS[name]()
    words = ("cat", "the sea") if name == "pieces" else ("cat", "the sea", "caf\u00e9")
    context = WordLists(exclude=words, alpha=ALPHA, exclude_at=at)
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    penalised = 0
    for length in range(0, len(ids) + 1, 1 if len(ids) < 30 else 3):
        found = rewards(tokenizer, context, [PROMPT], [ids[:length]])[0, : len(tokenizer)]
        expected = unwanted(tokenizer, words, ids[:length], at == "last_token")
        known = [(token, value) for token, value in enumerate(expected) if value is not None]
        assert [(token, bool(found[token])) for token, _ in known] == known, ids[:length]
        assert set(found.tolist()) <= {0.0, -ALPHA}
        assert len(known) > len(expected) // 3
        penalised += sum(value for _, value in known)
    assert penalised


def wanted(tokenizer: Any, words: Sequence[str], answer: Sequence[int]) -> set[int]:
    """Tokens behind `PROMPT` and an answer that go on with a form as the tokenizer spells it, or else begin one."""
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode([*ids, *tokens], clean_up_tokenization_spaces=False))

    text = decode(answer)
    if _ended(words, text, len(decode([])), early=True):
        return set()
    behind_word = {tuple(tokenizer(f"the {form}", add_special_tokens=False)["input_ids"]) for form in _every(words)}
    one = len(tokenizer("the", add_special_tokens=False)["input_ids"])
    behind_word = {path[one:] for path in behind_word}
    found = {
        path[size]
        for path in behind_word
        for size in range(1, len(path))
        if tuple(answer[len(answer) - size :]) == path[:size]
    }
    return found or {path[0] for path in behind_word}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_wanted_words_are_begun_and_gone_on_with_until_one_stands(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    words = ("cat", "catalog", "the sea")
    context = WordLists(include=words, beta=BETA)
    counts = []
    for answer in (" a category a cat and more", " cats", " catalogs", " the seat the sea", " ca at c a t"):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if name == "bytes":  # its own beginning of a text is no space of the answer
            ids = ids if tokenizer.decode(ids).startswith(" ") else tokenizer(f"x{answer}")["input_ids"][2:]
        for length in range(len(ids) + 1):
            found = rewards(tokenizer, context, [PROMPT], [ids[:length]])[0]
            assert set(found.tolist()) <= {0.0, BETA}
            assert set(found.nonzero()[:, 0].tolist()) == wanted(tokenizer, words, ids[:length]), (answer, length)
            counts.append(int((found != 0).sum()))
    assert min(counts) == 0 < max(counts)


def test_a_word_begins_at_once_where_no_word_stands_before() -> None:
    tokenizer = tales()
    first = tokenizer("whale", add_special_tokens=False)["input_ids"][0]
    spaced = tokenizer(" whale", add_special_tokens=False)["input_ids"][0]
    context = WordLists(include="whale", beta=BETA)

    def favoured(prompt: str) -> tuple[bool, bool]:
        found = rewards(tokenizer, context, [prompt], [[]])[0]
        return bool(found[first]), bool(found[spaced])

    assert favoured("the") == (False, True)
    assert favoured("the ") == (True, False)
    assert favoured('the "') == (True, True)


def test_prompts_have_their_own_words_and_rows_of_one_prompt_share_them() -> None:
    tokenizer = tales()
    prompts = ["the sea", "the sea", "space is big:", "space is big:"]
    context = WordLists(
        include=((), ("whale",)), exclude=(("ship",), ()), beta=BETA, alpha=ALPHA, exclude_at="boundary"
    )
    ship = tokenizer(" ship", add_special_tokens=False)["input_ids"]
    found = rewards(tokenizer, context, prompts, [ship] * 4)
    assert (found[:2] <= 0).all()
    assert (found[:2] < 0).any(1).all()
    assert (found[2:] >= 0).all()
    assert (found[2:] > 0).any(1).all()
    torch.testing.assert_close(found[0], found[1])
    with refused("include", "2 for 3 rows"):
        rewards(tokenizer, context, prompts[:3], [ship] * 3)


def test_the_last_letter_costs_what_is_to_be_expected_behind_it() -> None:
    model, tokenizer = lg.bundled("tales")
    prompt = "A tale of the sea:"
    bos = tokenizer(prompt)["input_ids"][0]
    rows = pack([[bos, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]], "cpu")
    generation = Generation(**{**vars(call(tokenizer, [prompt], model=model)), "prompts": rows})
    found = bind_token_reward(WordLists(exclude="sailor", alpha=ALPHA), generation)
    assert (found.forwards, found.nfe) == (1, 1)
    logits = torch.zeros(1, generation.vocab_size)
    for word in (" sailor", " sailors"):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            after = model(torch.tensor([[bos, *ids]])).logits[0, -1].double().softmax(-1)
        letters = [re.match(r"\w", str(tokenizer.decode([token]))) for token in range(len(tokenizer))]
        goes_on = sum(float(chance) for chance, letter in zip(after, letters, strict=True) if letter)
        cost = found.log_rewards(torch.tensor([ids[:-1]]).long(), logits)[0, ids[-1]]
        assert float(cost) == pytest.approx(math.log(goes_on + (1 - goes_on) * math.exp(-ALPHA)), abs=1e-5)
        assert found.log_rewards(torch.tensor([ids]), logits)[0, tokenizer.convert_tokens_to_ids(".")] == -ALPHA


def test_the_last_token_of_an_answer_ends_its_word() -> None:
    tokenizer = tales()
    context = WordLists(exclude="cat", alpha=ALPHA, exclude_at="boundary")
    ids = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    reward = bind_token_reward(context, call(tokenizer, [PROMPT], total=len(ids) + 2))
    shown = tokenizer(" a", add_special_tokens=False)["input_ids"]
    for answer, cost in (([*ids[:-1]], 0.0), ([*shown, *ids[:-1]], 0.0), ([*shown, *shown, *ids[:-1]], -ALPHA)):
        found = reward.log_rewards(torch.tensor([answer]), torch.zeros(1, len(tokenizer) + 3))
        assert float(found[0, ids[-1]]) == cost


def test_tokens_that_do_both_get_both() -> None:
    context = WordLists(include="cats", exclude="cat", beta=BETA, alpha=ALPHA, variants=False, exclude_at="last_token")
    found = rewards(spaced_pieces(), context, ["the"], [[]])[0]
    assert found.tolist()[:4] == [0.0, 0.0, BETA - ALPHA, 0.0]


@cache
def spaced_pieces() -> Any:
    """The tokenizer of `pieces` in little."""
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_guided_answers_have_no_unwanted_word_and_the_wanted_one() -> None:
    model, tokenizer = lg.bundled("tales")
    inputs = tokenizer(["A tale of the sea:", "A tale of space:"], return_tensors="pt", padding=True)
    arguments: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "num_return_sequences": 4}

    def answers(method: Any) -> list[str]:
        torch.manual_seed(0)
        guided = lg.guide(model, method, tokenizer=tokenizer)
        texts: list[str] = tokenizer.batch_decode(
            guided.generate(**inputs, **arguments)[:, inputs.input_ids.shape[1] :]
        )
        return texts

    common = ("the", "a", "captain")
    unguided = " ".join(answers(WordGuidance(include="sailor", exclude=common, scale=0.0)))
    assert re.search(r"(?i)\bthe\b", unguided)
    found = answers(WordGuidance(include="sailor", exclude=common, beta=15.0))
    assert not [text for text in found if re.search(r"\b([Tt]he|[Aa]|[Cc]aptains?)\b", text)]
    assert all(re.search(r"\b[Ss]ailors?\b", text) for text in found)
    assert "sailor" not in unguided or unguided.count("sailor") < len(found)


@pytest.mark.parametrize(
    ("arguments", "argument", "words"),
    [
        ({}, "include", ["got none"]),
        ({"include": ((), ()), "exclude": ()}, "include", ["got none"]),
        ({"include": ("sea", " ")}, "include", ["' '"]),
        ({"include": ("cat",), "exclude": ("cats",)}, "include", ["in both"]),
        ({"include": ("cat", ("sea",))}, "include", ["both"]),
        ({"exclude": "cat", "alpha": -1.0}, "alpha", ["-1"]),
        ({"include": "cat", "beta": float("nan")}, "beta", ["nan"]),
        ({"exclude": "cat", "exclude_at": "start"}, "exclude_at", ["'start'"]),
    ],
)
def test_bad_words_are_refused(arguments: dict[str, Any], argument: str, words: list[str]) -> None:
    with refused(argument, *words):
        WordLists(**arguments)


def test_words_that_are_no_text_are_refused() -> None:
    with refused("exclude", "got 3", error=TypeError):
        WordLists(exclude=(3,))  # type: ignore[arg-type]
    with refused("include", "got int", error=TypeError):
        WordLists(include=3)  # type: ignore[arg-type]


def test_words_that_no_tokens_spell_are_refused() -> None:
    with refused("include", "'caf\u00e9'"):
        rewards(pieces(), WordLists(include=("sea", "caf\u00e9")), ["the"], [[]])
    with refused("exclude", "'caf\u00e9'"):
        rewards(pieces(), WordLists(exclude=("sea", "caf\u00e9"), exclude_at="boundary"), ["the"], [[]])
    rewards(tales(), WordLists(include=("caf\u00e9",)), ["the"], [[]])
    rewards(spaced_words(), WordLists(include="w7 w9", exclude="w8", variants=False), ["w5"], [[]])


def test_words_need_a_tokenizer() -> None:
    generation = call(pieces(), ["the"])
    with refused("tokenizer", "got None"):
        bind_token_reward(WordLists(include="cat"), Generation(**{**vars(generation), "tokenizer": None}))
