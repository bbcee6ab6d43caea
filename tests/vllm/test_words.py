"""Lists of words in a server: the Hugging Face engine's tokens, whatever else is in the batch."""

from __future__ import annotations

import importlib.util
import random
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from tests.vllm.client import Client
from tests.vllm.reference import Reference
from tests.vllm.served import VOCAB, save_model, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.timeout(400, method="signal"),  # an exception, so that the server is ended too
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

SEA, SPACE = "A tale of the sea:", "A tale of space: The captain"
WORDS = lg.WordGuidance(include=("whale", "captain"), exclude=("sea", "a"), beta=4.0, exclude_at="boundary")
METHODS: dict[str, tuple[lg.Guidance, ...]] = {
    "in and out": (WORDS,),
    "out, softly": (lg.WordGuidance(exclude=("whale", "lonely", "grandmother"), alpha=3.0, exclude_at="last_token"),),
    "with another prompt": (lg.CFG(2.0, SPACE), WORDS),
    "before another prompt": (WORDS, lg.CFG(2.0, SPACE)),
    "where unsure": (lg.WordGuidance(include="ship", beta=8.0, gate=lg.Entropy(3.0)),),
    "with a gated prompt": (lg.SelectiveCFG(3.0, SPACE, entropy_threshold=3.6), WORDS),
    "at first": (lg.WordGuidance(include="ship", beta=8.0, schedule=lg.Window(0, 0.5)),),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    options = ("--max-num-seqs", "8", "--num-gpu-blocks-override", "17", "--max-num-batched-tokens", "64")
    with server(folder, *options) as address:
        yield Client(address)


def _sent(methods: tuple[lg.Guidance, ...]) -> dict[str, Any]:
    return {"guidance": [method.to_json() for method in methods]}


def test_words_among_other_requests(client: Client, folder: Path) -> None:
    reference, draw = Reference(folder), random.Random(0)
    kinds: list[tuple[lg.Guidance, ...]] = [*METHODS.values(), (lg.CFG(3.0, SPACE),), ()]
    requests, answers = [], []
    for number in range(36):
        methods = kinds[number % len(kinds)]
        prompt = reference.ids(SEA) + [draw.randrange(4, VOCAB) for _ in range(draw.choice([0, 1, 40, 90]))]
        tokens = draw.randrange(40, 90)
        requests.append((prompt, _sent(methods) if methods else {}, {"max_tokens": tokens, "min_tokens": tokens}))
        answers.append(reference.answer(prompt, methods or None, tokens, min_new_tokens=tokens))
    before = client.metrics()
    for number in range(6):  # some leave in the middle of an answer
        next(iter(client.stream(requests[number][0], _sent((WORDS,)), max_tokens=100, ignore_eos=True)))
    got = client.many(requests)
    wrong = [
        request for request, answer, tokens in zip(requests, answers, got, strict=True) if not answer.agrees(tokens)
    ]
    assert wrong == []
    after = client.metrics()
    assert after["vllm:num_preemptions_total"] > before["vllm:num_preemptions_total"]
    assert after["lmguide:lockstep_errors_total"] == after["lmguide:failed_requests_total"] == 0


def test_words_change_the_answer_and_are_compact(client: Client, folder: Path) -> None:
    reference = Reference(folder)
    prompt = reference.ids(SEA)
    plain = reference.answer(prompt).tokens
    for methods in METHODS.values():
        assert reference.answer(prompt, methods).tokens != plain
    want = reference.answer(prompt, (lg.WordGuidance(include="whale", beta=8.0),))
    assert want.agrees(client.tokens(SEA, {"guidance": "word_guidance:include=whale,beta=8"}))


BAD = {
    "exclude_at": "word_guidance:exclude=sea",
    "beta": "word_guidance:include=sea,beta=much",
    "include": 'word_guidance:include=["sea"],exclude=["sea"],exclude_at=boundary',
    "judges texts": "fudge:classifier=somewhere,label=1",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_words_are_refused(client: Client, words: str) -> None:
    status, answer = client.post("/v1/completions", prompt=SEA, max_tokens=4, vllm_xargs={"guidance": BAD[words]})
    assert status == 400
    assert words in answer["error"]["message"]
