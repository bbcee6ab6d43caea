"""Topics as rewards: lists that a model writes, its likeliest tokens, and its verdicts, each against a plain reference.

That they are right in every decoding loop is in `tests/huggingface/test_matrix.py`.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.descriptions.topics import TopicContext, TopicExamples, TopicTokens, TopicVerdicts
from lmguide.descriptions.words import WordLists
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from lmguide.sources.rewards.english import leading_entity
from tests.families import VOCAB, made, padded, tiny, tokens, words
from tests.huggingface.reference import next_token
from tests.refusals import refused
from tests.sources.rewards import topics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PROMPTS = ("A tale of the sea:", "A tale of the sea:", "A tale of space: The")
BETA, ALPHA = 3.0, 20.0


@lru_cache
def tales() -> tuple[Any, Any]:
    return lg.bundled("tales")


def call(prompts: Sequence[str] = PROMPTS, model: Any = None) -> Generation:
    """A call of the bundled model."""
    bundled, tokenizer = tales()
    return Generation(
        model=bundled if model is None else model,
        tokenizer=tokenizer,
        prompts=pack([tokenizer(prompt)["input_ids"] for prompt in prompts], "cpu"),
        batch=len(prompts),
        vocab_size=bundled.config.vocab_size,
        device=torch.device("cpu"),
        total=40,
    )


def small(prompts: Sequence[Sequence[int]] = ([5, 6, 7], [8, 9]), **more: Any) -> Generation:
    """A call of a tiny model."""
    return Generation(
        **{
            "model": tiny("llama"),
            "tokenizer": words(),
            "prompts": pack(prompts, "cpu"),
            "batch": len(prompts),
            "vocab_size": VOCAB,
            "device": torch.device("cpu"),
            "total": 10,
        }
        | more
    )


def generated(*texts: str) -> Tensor:
    """Answers of equal numbers of tokens, cut to the shortest."""
    rows = [tales()[1](text, add_special_tokens=False)["input_ids"] for text in texts]
    return torch.tensor([row[: min(map(len, rows))] for row in rows]).long().reshape(len(texts), -1)


def rewards(context: TopicContext | WordLists, generation: Generation, answers: Tensor) -> Tensor:
    scores = torch.zeros(generation.batch, generation.vocab_size)
    return bind_token_reward(context, generation).log_rewards(answers, scores)


# Examples.


def test_the_lists_are_those_of_the_answers_with_their_singulars_and_small_letters() -> None:
    asked: list[str] = []

    def read(answer: str) -> list[str]:
        asked.append(answer)
        return [["Whales", "the pier", "ship"], ["ship", "Foxes"]][len(asked) - 1]

    context = TopicExamples(("sea", None, "sea"), "forest", BETA, ALPHA, query="A tale of {topic}:", extract=read)
    include = (("Whales", "whales", "the pier"), (), ("Whales", "whales", "the pier"))
    exclude = ("forest", "ship", "Foxes", "foxes", "Foxe", "foxe", "Fox", "fox")
    expected = WordLists(include, exclude, BETA, ALPHA)
    generation = call()
    for answer in (("", "", ""), (" The whales", " A fox and", " By the pi"), (" sh", " fo", " Fo")):
        torch.testing.assert_close(
            rewards(context, generation, generated(*answer)), rewards(expected, generation, generated(*answer))
        )
        asked.clear()
    bound = bind_token_reward(context, generation)
    assert len(asked) == 2, "each topic is asked about once"
    assert bound.forwards == 60 + 1, "the answers, and how likely words are to end"


def test_a_model_that_lists_nothing_is_told_of_and_refused_where_that_leaves_nothing() -> None:
    silent: dict[str, Any] = {"query": "A tale of {topic}:", "extract": lambda answer: [], "max_new_tokens": 3}
    with pytest.warns(UserWarning, match=r"topic: expected examples of 'sea' from the model, got .*query="):
        found = rewards(TopicExamples("sea", "ship", exclude_at="boundary", **silent), call(), generated("", "", ""))
    expected = WordLists(exclude="ship", exclude_at="boundary")
    torch.testing.assert_close(found, rewards(expected, call(), generated("", "", "")))
    with refused("topic", "'sea'", "none that it can write"):
        rewards(TopicExamples("sea", **silent), call(), generated("", "", ""))


def test_another_models_words_are_spelled_in_the_guided_models_tokens() -> None:
    guide, of_guide = tiny("gpt2", 1), words()
    context = TopicExamples(
        "w9", "w8", query="w5 {topic}", model=guide, tokenizer=of_guide, extract=lambda answer: ["whale", "w1\u4e00"]
    )
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = rewards(context, call(), generated("", "", ""))
    expected = WordLists(exclude=("w8", "whale", "w1\u4e00"))
    torch.testing.assert_close(found, rewards(expected, call(), generated("", "", "")))


# Tokens.


def test_the_likeliest_words_behind_the_question() -> None:
    model, tokenizer = tales()
    query = "A tale of {topic}: The merry"
    context = TopicTokens(("sea", None, "space"), "space", BETA, ALPHA, query=query, include_top_k=7, exclude_top_k=3)
    found = rewards(context, call(), generated("", "", ""))
    texts = [str(tokenizer.decode([token])) for token in range(model.config.vocab_size)]

    def best(topic: str, count: int) -> set[int]:
        law = next_token(model, tokenizer(query.replace("{topic}", topic))["input_ids"], [])
        order = [token for token in law.argsort(descending=True).tolist() if any(map(str.isalnum, texts[token]))]
        return set(order[:count]) - set(tokenizer.all_special_ids)

    for row, topic in enumerate(("sea", None, "space")):
        wanted = best(topic, 7) if topic else set()
        for token in range(model.config.vocab_size):
            assert found[row, token] == BETA * (token in wanted) - ALPHA * (token in best("space", 3))
    bound = bind_token_reward(context, call())
    assert (bound.forwards, bound.nfe) == (1, 1)


def test_a_call_asks_once_however_many_tokens_it_writes() -> None:
    model, tokenizer = tales()
    inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    guided = lg.guide(model, lg.TopKGuidance("sea", avoid=("space", None, "sea")), tokenizer=tokenizer)
    guided.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert (guided.stats.steps, guided.stats.forwards, guided.stats.nfe) == (12, 13, 13)


# Verdicts.

QUESTION = "A tale of {topic}: The {entity}"
ANSWERS = (" steered", " launched")


def verdict(entity: str, topic: str, threshold: float) -> bool:
    """Whether the bundled model would rather say the first answer, plainly."""
    model, tokenizer = tales()
    question = tokenizer(QUESTION.replace("{entity}", entity).replace("{topic}", topic))["input_ids"]

    def log_prob(answer: str) -> Tensor:
        path = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return sum((next_token(model, question, path[:n])[token] for n, token in enumerate(path)), torch.zeros(()))

    return float(torch.sigmoid(log_prob(ANSWERS[0]) - log_prob(ANSWERS[1]))) > threshold


def ahead(prompt: str, answer: Sequence[int], token: int, count: int = 8) -> str:
    """What the bundled model writes greedily from a token on, so many tokens with it."""
    model, tokenizer = tales()
    ids = tokenizer(prompt)["input_ids"]
    found = [token]
    for _ in range(count - 1):
        found.append(int(next_token(model, ids, [*answer, *found]).argmax()))
    before = str(tokenizer.decode([*ids, *answer]))
    return str(tokenizer.decode([*ids, *answer, *found]))[len(before) :]


def test_candidates_that_begin_a_word_are_judged_by_what_it_becomes() -> None:
    model, tokenizer = tales()
    context = TopicVerdicts(
        "the sea",
        ("space", None, "the forest"),
        BETA,
        ALPHA,
        question=QUESTION,
        answers=ANSWERS,
        threshold=0.6,
        candidates=5,
    )
    bound = bind_token_reward(context, call())
    answers = generated(
        " The merry captain steered the", " A happy fox, the sailor's do", " launched a new moon. The roc"
    )
    seen = {BETA: 0, -ALPHA: 0, 0.0: 0, BETA - ALPHA: 0}
    for length in range(answers.shape[1] + 1):
        part = answers[:, :length]
        scores = torch.stack(
            [next_token(model, tokenizer(p)["input_ids"], row.tolist()) for p, row in zip(PROMPTS, part, strict=True)]
        )
        found = bound.log_rewards(part, scores)
        expected = torch.zeros_like(found)
        for row, (prompt, avoid) in enumerate(zip(PROMPTS, ("space", None, "the forest"), strict=True)):
            for token in scores[row].topk(5).indices.tolist():
                text = str(tokenizer.decode(part[row].tolist()))
                piece = str(tokenizer.decode([token]))
                begins = piece[:1] == " " or not (text[-1:] or prompt[-1]).isalnum()
                entity = leading_entity(ahead(prompt, part[row].tolist(), token))
                if begins and piece.strip()[:1].isalnum() and entity:
                    expected[row, token] += BETA * verdict(entity, "the sea", 0.6)
                    expected[row, token] -= ALPHA * (avoid is not None and verdict(entity, avoid, 0.6))
        torch.testing.assert_close(found, expected)
        for value in found.flatten().tolist():
            seen[value] += 1
    assert min(seen.values()), seen


def test_each_name_is_asked_of_once_and_drafts_can_be_taken_back() -> None:
    generation = small(drafts=True)
    context = TopicVerdicts("w70", "w80", **topics.VERDICTS)
    answers = torch.tensor([tokens(6, 1), tokens(6, 2)])
    fresh = bind_token_reward(context, generation)
    bound = bind_token_reward(context, generation)

    def scores(part: Tensor) -> Tensor:
        laws = [
            next_token(generation.model, prompt, row.tolist())
            for prompt, row in zip(([5, 6, 7], [8, 9]), part, strict=True)
        ]
        return torch.stack(laws)

    for length in (2, 3, 5):
        bound.log_rewards(answers[:, :length], scores(answers[:, :length]))
    asked = bound.forwards
    for length in (5, 3, 4, 0):
        bound.rewind(length)
        part = answers[:, :length]
        again = bound.log_rewards(part, scores(part))
        torch.testing.assert_close(again, bind_token_reward(context, generation).log_rewards(part, scores(part)))
    assert fresh.forwards == 0
    assert bound.forwards - asked < 4 * 8
    order = torch.tensor([1, 0])
    part = answers[:, :4]
    bound.log_rewards(part, scores(part))
    bound.reorder(order)
    moved = torch.cat([part[order], answers[:, 4:5]], 1)
    # of equal prompts in a loop; here the second row's cache must now serve the first
    rows = small(([8, 9], [5, 6, 7]))
    laws = torch.stack([next_token(rows.model, p, r.tolist()) for p, r in zip(([8, 9], [5, 6, 7]), moved, strict=True)])
    torch.testing.assert_close(
        bound.log_rewards(moved, laws), bind_token_reward(context, rows).log_rewards(moved, laws)
    )


def test_ones_own_extractor_sees_all_that_is_looked_at() -> None:
    model, tokenizer = tales()
    seen: list[str] = []

    def read(text: str) -> str | None:
        seen.append(text)
        return "whale" if "captain" in text else None

    context = TopicVerdicts(
        "the sea", question=QUESTION, answers=(" zz", " steered"), threshold=0.0, look_ahead=6, extract=read
    )
    prompt = "A tale of the sea: The"
    law = next_token(model, tokenizer(prompt)["input_ids"], [])[None]
    bound = bind_token_reward(context, call([prompt]))
    found = bound.log_rewards(generated(""), law)
    assert [f" {text}" for text in seen] == [ahead(prompt, [], int(law.argmax()), 6)]
    assert bound.forwards == 1 + 5 + ("captain" in seen[0]) * 2
    assert bool(found.any()) == ("captain" in seen[0])


# What is refused.


@pytest.mark.parametrize(
    ("make", "argument", "said"),
    [
        (lambda: TopicExamples(), "topic", ["neither"]),
        (lambda: TopicExamples((None, None)), "topic", ["neither"]),
        (lambda: TopicExamples(" "), "topic", ["' '"]),
        (lambda: TopicExamples(("a", "b"), ("c",)), "avoid", ["2 topics", "got 1"]),
        (lambda: TopicExamples("a", beta=-1.0), "beta", ["-1"]),
        (lambda: TopicExamples("a", alpha=float("inf")), "alpha", ["inf"]),
        (lambda: TopicExamples("a", query="Examples?"), "query", [r"\{topic\}"]),
        (lambda: TopicExamples("a", max_new_tokens=0), "max_new_tokens", ["0"]),
        (lambda: TopicExamples("a", exclude_at="start"), "exclude_at", ["'start'"]),  # type: ignore[arg-type]
        (lambda: TopicExamples("a", extract="module"), "extract", ["'module'"]),
        (lambda: TopicTokens("a", include_top_k=0), "include_top_k", ["0"]),
        (lambda: TopicTokens("a", exclude_top_k=0), "exclude_top_k", ["0"]),
        (lambda: TopicVerdicts("a", question="Is it {topic}?"), "question", [r"\{entity\}"]),
        (lambda: TopicVerdicts("a", "b", question="Is it {entity}?"), "question", [r"\{topic\}"]),
        (lambda: TopicVerdicts("a", answers=("yes", "yes")), "answers", ["'yes'"]),
        (lambda: TopicVerdicts("a", threshold=1.5), "threshold", ["1.5"]),
        (lambda: TopicVerdicts("a", look_ahead=0), "look_ahead", ["0"]),
        (lambda: TopicVerdicts("a", candidates=0), "candidates", ["0"]),
    ],
)
def test_bad_descriptions_are_refused(make: Any, argument: str, said: list[str]) -> None:
    with refused(argument, *said):
        make()


@pytest.mark.parametrize("argument", ["topic", "avoid", "query", "extract"])
def test_what_is_no_text_or_function_is_refused(argument: str) -> None:
    with refused(argument, "int|3", error=TypeError):
        TopicExamples(**{"topic": "a", argument: 3})  # type: ignore[arg-type]


def test_what_cannot_be_bound_is_refused() -> None:
    for context in (TopicExamples(("a", "b")), TopicTokens(("a", "b")), TopicVerdicts(("a", "b"))):
        with refused("topic", "got 2 for 3 rows"):
            bind_token_reward(context, call())
    with refused("extract", "no_module"):
        bind_token_reward(TopicVerdicts("w9", extract="no_module:f", answers=("w2", "w3")), small())
    with refused("extract", "got"):
        bind_token_reward(TopicVerdicts("w9", extract="math:pi", answers=("w2", "w3")), small())
    with refused("model", "vocabulary"):
        bind_token_reward(TopicTokens("sea", model=made("llama"), tokenizer=words()), call())
    for answers, said in ((("w2", "unknown"), "same"), ((" ", "w3"), "at least one token")):
        with refused("answers", said):
            bind_token_reward(TopicVerdicts("w9", answers=answers), small())
    with refused("look_ahead", "exceed"):
        bind_token_reward(TopicVerdicts("w9", answers=("w2", "w3")), small(model=tiny("gpt2"), total=120))
    with refused("model", "encoder-decoder"):
        bind_token_reward(TopicVerdicts("w9"), small(model=tiny("t5")))
    for context in (TopicExamples("w9"), TopicTokens("w9"), TopicVerdicts("w9")):
        with refused("tokenizer", "None"):
            bind_token_reward(context, small(tokenizer=None))


def test_an_encoder_decoder_answers_by_its_encoder() -> None:
    model = tiny("t5")
    method = lg.TopKGuidance("w70", "w80", **topics.TOKENS)
    ids, mask = padded([tokens(6, 1), tokens(4, 2)], right=True)
    found: Any = lg.guide(model, method, tokenizer=words()).generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False
    )
    for row, prompt in enumerate((tokens(6, 1), tokens(4, 2))):
        answer: list[int] = []
        for _ in range(4):
            answer.append(int((next_token(model, prompt, answer) + topics.by_tokens(model, "w70", "w80")).argmax()))
        assert found[row, 1:].tolist() == answer
