"""Classifiers as rewards: every candidate gets what the classifier says of its whole text, whoever made it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.descriptions.caif import TextClassifier
from lmguide.sources.rewards import prefixes
from lmguide.sources.rewards.base import bind_token_reward
from tests.families import PAD, VOCAB, text, tokens, words
from tests.refusals import refused
from tests.sources.rewards.classifiers import (
    TURNED,
    alone,
    bag,
    causal,
    encoder,
    generation,
    made,
    prompts,
    scores,
    wide,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LABEL = 2
TOP = 9


def _log_p(logits: Tensor) -> float:
    return float(logits.log_softmax(-1)[LABEL])


# Name: the description's arguments, and log p(label | text) of token ids, one text at a time.
KINDS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[list[int]], float]]] = {
    "ids": (lambda: {"classifier": causal()}, lambda ids: _log_p(alone(causal(), ids))),
    "ids, gpt2": (lambda: {"classifier": causal("gpt2")}, lambda ids: _log_p(alone(causal("gpt2"), ids))),
    "ids, copied": (
        lambda: {"classifier": causal("mistral_sliding"), "batch_size": 7},
        lambda ids: _log_p(alone(causal("mistral_sliding"), ids)),
    ),
    "ids, independent": (
        lambda: {"classifier": made("llama", problem_type="multi_label_classification")},
        lambda ids: math.log(1 / (1 + math.exp(-float(alone(causal(), ids)[LABEL])))),
    ),
    "text, causal": (
        lambda: {"classifier": causal(), "tokenizer": words(), "reading": "text", "batch_size": 7},
        lambda ids: _log_p(alone(causal(), ids)),
    ),
    "text, encoder": (
        lambda: {"classifier": encoder(), "tokenizer": words(), "batch_size": 7},
        lambda ids: _log_p(alone(encoder(), ids)),
    ),
    "text, cut": (
        lambda: {"classifier": encoder(), "tokenizer": words(), "max_length": 6},
        lambda ids: _log_p(alone(encoder(), ids[-6:])),
    ),
    "text, another vocabulary": (
        lambda: dict(zip(("classifier", "tokenizer"), wide(), strict=True)),
        lambda ids: _log_p(alone(wide()[0], [TURNED - token for token in ids])),
    ),
    "function": (lambda: {"classifier": bag, "batch_size": 4}, lambda ids: float(bag([text(ids)])[0, LABEL])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_get_the_verdict_on_their_whole_text(kind: str) -> None:
    arguments, of = KINDS[kind]
    rows = prompts()
    reward = bind_token_reward(TextClassifier(label=LABEL, top_k=TOP, **arguments()), generation(rows))
    answers = [tokens(6, 50 + row) for row in range(len(rows))]
    for length in (0, 1, 4, 6):  # steps 2, 3 and 5 had a closed gate
        law = scores(length)
        found = reward.log_rewards(torch.tensor([a[:length] for a in answers], dtype=torch.long).reshape(3, -1), law)
        expected = torch.full((3, VOCAB), -torch.inf)
        for row, best in enumerate(law.topk(TOP).indices.tolist()):
            whole = [*rows[row], *answers[row][:length]]
            for token in best:
                expected[row, token] = of(whole if token < 2 else [*whole, token])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("arguments", [{"classifier": causal()}, {"classifier": bag}], ids=["ids", "text"])
def test_the_rest_may_get_the_mean(arguments: dict[str, Any]) -> None:
    law = scores(0)
    none = torch.zeros(3, 0, dtype=torch.long)
    law[1, law[1].topk(2).indices] = -torch.inf  # some other method has excluded them
    law[2, 4:] = -torch.inf  # fewer tokens are left than candidates are asked for
    excluded, mean = (
        bind_token_reward(TextClassifier(label=1, top_k=TOP, rest=rest, **arguments), generation(prompts()))
        .log_rewards(none, law)
        for rest in ("excluded", "mean")
    )  # fmt: skip
    kept = ~excluded.isneginf()
    assert kept.sum(1).tolist() == [TOP, TOP, 4]
    assert not (kept & law.isneginf()).any()
    torch.testing.assert_close(mean[kept], excluded[kept])
    for row in range(3):
        average = excluded[row, kept[row]].mean()
        rest = ~kept[row] & ~law[row].isneginf()
        torch.testing.assert_close(mean[row, rest], average.expand(int(rest.sum())))


def test_special_tokens_get_the_verdict_on_the_prefix() -> None:
    law = torch.full((3, VOCAB), -1.0)
    law[:, PAD] = law[:, 1] = 0.0
    for arguments in ({"classifier": causal()}, {"classifier": causal(), "tokenizer": words(), "reading": "text"}):
        found = bind_token_reward(TextClassifier(label=0, top_k=2, **arguments), generation(prompts()))
        rewards = found.log_rewards(torch.full((3, 1), 9), law)[:, :2]
        expected = torch.tensor([float(alone(causal(), [*row, 9]).log_softmax(-1)[0]) for row in prompts()])
        torch.testing.assert_close(rewards, expected[:, None].expand(-1, 2), atol=1e-5, rtol=0)


def test_labels_by_name_and_per_prompt() -> None:
    model = made("llama", id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2})
    rows = [row for row in prompts() for _ in range(2)]  # two beams each
    none, law = torch.zeros(6, 0, dtype=torch.long), scores(0, rows=6)

    def rewards(label: Any) -> Tensor:
        return bind_token_reward(TextClassifier(model, label, TOP), generation(rows)).log_rewards(none, law)

    torch.testing.assert_close(rewards("good"), rewards(2), atol=0, rtol=0)
    mixed = rewards(("good", 0, "fair"))
    for row in range(6):
        torch.testing.assert_close(mixed[row], rewards([2, 0, 1][row // 2])[row], atol=0, rtol=0)


def test_texts_that_agree_are_classified_once() -> None:
    seen: list[str] = []

    def count(texts: list[str]) -> Tensor:
        seen.extend(texts)
        return bag(texts)

    rows = [prompts()[0]] * 3
    reward = bind_token_reward(TextClassifier(count, 0, TOP), generation(rows))
    reward.log_rewards(torch.full((3, 1), 9), scores(0)[:1].expand(3, -1))
    assert len(seen) == len(set(seen)) <= TOP
    assert (reward.forwards, reward.nfe) == (1, TOP)


def test_scikit_learn() -> None:
    why = "scikit-learn is not installed"
    bags = pytest.importorskip("sklearn.feature_extraction.text", reason=why).CountVectorizer
    regression = pytest.importorskip("sklearn.linear_model", reason=why).LogisticRegression
    joined = pytest.importorskip("sklearn.pipeline", reason=why).make_pipeline
    texts = [text(tokens(30, seed)) for seed in range(20)]
    pipeline = joined(bags(), regression(C=10.0))
    pipeline.fit(texts, ["glad", "grim"] * 10)
    law, rows = scores(0), prompts()
    answers = torch.full((3, 1), 9)
    found = bind_token_reward(TextClassifier(pipeline, "grim", TOP), generation(rows)).log_rewards(answers, law)
    for row, best in enumerate(law.topk(TOP).indices.tolist()):
        for token in best:
            whole = text([*rows[row], 9, *([token] if token > 1 else [])])
            expected = math.log(pipeline.predict_proba([whole])[0, 1])
            assert float(found[row, token]) == pytest.approx(expected, abs=1e-5)
    with refused("label", "glad, grim", "'grin'", "Did you mean 'grim'"):
        bind_token_reward(TextClassifier(pipeline, "grin"), generation(rows))
    with refused("classifier", "fitted"):
        bind_token_reward(TextClassifier(joined(regression()), "grim"), generation(rows))
    with refused("reading", "'text'"):
        bind_token_reward(TextClassifier(pipeline, "grim", reading="ids"), generation(rows))


def test_one_class_is_refused() -> None:
    with refused("classifier", "two classes, got 1", "multi_label_classification"):
        bind_token_reward(TextClassifier(made("llama", num_labels=1), 0), generation(prompts()))
    with refused("classifier", "problem_type 'regression'"):
        bind_token_reward(TextClassifier(made("llama", problem_type="regression"), 0), generation(prompts()))
    one = made("llama", num_labels=1, problem_type="multi_label_classification")
    reward = bind_token_reward(TextClassifier(one, 0, top_k=1), generation(prompts()))
    assert not reward.log_rewards(torch.zeros(3, 0, dtype=torch.long), scores(0)).isnan().any()


def test_classifiers_that_are_none_are_refused() -> None:
    with refused("classifier", "LlamaForCausalLM", error=TypeError):
        bind_token_reward(TextClassifier(generation(prompts()).model, 0), generation(prompts()))
    with refused("classifier", "float", error=TypeError):
        TextClassifier(3.0, 0)  # type: ignore[arg-type]
    with refused("classifier", "drop out"):
        bind_token_reward(TextClassifier(made("llama").train(), 0), generation(prompts()))


@pytest.mark.parametrize(
    ("function", "words_", "error"),
    [
        (lambda texts: bag(texts).exp(), ["above 0", "Return logarithms"], ValueError),
        (lambda texts: bag(texts) - 1, ["adds up to 1"], ValueError),
        (lambda texts: torch.zeros(len(texts), 2), ["adds up to 1, got 2"], ValueError),
        (lambda texts: torch.zeros(len(texts), 1), ["two classes, got one"], ValueError),
        (lambda texts: bag(texts)[:, 0], ["shape"], ValueError),
        (lambda texts: bag(texts)[1:], ["shape"], ValueError),
        (lambda texts: bag(texts) * math.nan, ["NaN"], ValueError),
        (lambda texts: [{"label": "good", "score": 0.5} for _ in texts], ["tensor or an array, got list"], TypeError),
    ],
)
def test_what_is_no_log_probability_is_refused(
    function: Callable[[list[str]], Any], words_: list[str], error: type[Exception]
) -> None:
    reward = bind_token_reward(TextClassifier(function, 0), generation(prompts()))
    with refused("classifier", *words_, error=error):
        reward.log_rewards(torch.full((3, 1), 9), scores(0))


def test_labels_that_are_none_are_refused() -> None:
    with refused("label", "'LABEL_1'", "'label_7'"):
        bind_token_reward(TextClassifier(causal(), "label_7"), generation(prompts()))
    with refused("label", "below 3, got 3"):
        bind_token_reward(TextClassifier(causal(), 3), generation(prompts()))
    with refused("label", "2 for 3 rows"):
        bind_token_reward(TextClassifier(causal(), (0, 1)), generation(prompts()))
    with refused("label", "no names"):
        bind_token_reward(TextClassifier(bag, "good"), generation(prompts()))
    reward = bind_token_reward(TextClassifier(bag, 3), generation(prompts()))
    with refused("label", "3 classes, got 3"):
        reward.log_rewards(torch.full((3, 1), 9), scores(0))


def test_ids_are_refused_where_they_mean_something_else() -> None:
    with refused("classifier", "vocabulary", "reading='text'"):
        bind_token_reward(TextClassifier(wide()[0], 0, reading="ids"), generation(prompts()))
    with refused("classifier", "causal", "BertForSequenceClassification"):
        bind_token_reward(TextClassifier(encoder(), 0, reading="ids"), generation(prompts()))
    with refused("tokenizer", "its own"):
        bind_token_reward(TextClassifier(encoder(), 0), generation(prompts()))
    with refused("classifier", "128 positions"):
        bind_token_reward(TextClassifier(causal("gpt2"), 0), generation(prompts(), total=120))
    assert prefixes.way(causal("gpt2")) == "shared"


def test_texts_need_the_guided_tokenizer() -> None:
    call = generation(prompts())
    call = type(call)(**{**vars(call), "tokenizer": None})
    with refused("tokenizer", "guided model"):
        bind_token_reward(TextClassifier(bag, 0), call)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"label": ()}, "label"),
        ({"top_k": 0}, "top_k"),
        ({"rest": "zero"}, "rest"),
        ({"reading": "tokens"}, "reading"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_length": 0}, "max_length"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], argument: str) -> None:
    with refused(argument):
        TextClassifier(**{"classifier": "some/classifier", "label": 0, **arguments})
