"""Lists of words in a server: the Hugging Face engine's tokens, whatever else is in the batch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from tests.vllm.reference import SEA, SPACE

if TYPE_CHECKING:
    from tests.vllm.client import Client
    from tests.vllm.reference import Reference

pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.timeout(400, method="signal"),  # an exception, so that the server is ended too
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

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


def _sent(methods: tuple[lg.Guidance, ...]) -> dict[str, Any]:
    return {"guidance": [method.to_json() for method in methods]}


def test_words_among_other_requests(client: Client, reference: Reference) -> None:
    kinds: list[Any] = [*((_sent(methods), methods) for methods in METHODS.values())]
    kinds += [(_sent((lg.CFG(3.0, SPACE),)), lg.CFG(3.0, SPACE)), ({}, None)]
    crowd = reference.crowd(kinds, 36, most=90)
    before = client.metrics()
    for asked in crowd[:6]:  # some leave in the middle of an answer
        next(iter(client.stream(asked.prompt, _sent((WORDS,)), max_tokens=100, ignore_eos=True)))
    assert client.mistakes(crowd) == []
    after = client.metrics()
    assert after["vllm:num_preemptions_total"] > before["vllm:num_preemptions_total"]
    assert after["lmguide:lockstep_errors_total"] == after["lmguide:failed_requests_total"] == 0


def test_words_change_the_answer_and_are_compact(client: Client, reference: Reference) -> None:
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
    "asks the served model questions": "example_guidance:topic=animal",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_words_are_refused(client: Client, words: str) -> None:
    status, answer = client.post("/v1/completions", prompt=SEA, max_tokens=4, vllm_xargs={"guidance": BAD[words]})
    assert status == 400
    assert words in answer["error"]["message"]
