"""Guided requests through a real server: what it answers is what the Hugging Face engine answers.

One small server for the whole file, with little cache and short steps: prompts come in chunks and requests wait.
"""

from __future__ import annotations

import importlib.util
import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.measures import entropy
from tests.vllm.reference import SEA, SPACE
from tests.vllm.served import VOCAB, save_model, small

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vllm.client import Client
    from tests.vllm.reference import Reference

pytestmark = [
    pytest.mark.timeout(400, method="signal"),  # an exception, so that the server is ended too
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


GATES: list[dict[str, Any]] = [{}, {"entropy_threshold": 3.6}]
"""Companions that always run, and such as come when they are asked for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, chat=True)
    return path


@pytest.fixture(scope="module")
def server_options() -> tuple[str, ...]:
    return small(28)


@pytest.mark.parametrize("count", [48, pytest.param(200, marks=pytest.mark.slow)])
def test_many_at_once(client: Client, reference: Reference, count: int) -> None:
    draw = random.Random(count)
    requests, answers = [], []
    for number in range(count):
        prompt = _ids(draw, draw.choice([1, 2, 5, 40, 90]))
        negative = draw.choice([None, _ids(draw, 1), _ids(draw, 20), _ids(draw, 70)])
        scale, tokens = draw.choice([0.5, 1.0, 1.5, 3.0]), draw.randrange(5, 40)
        guidance: dict[str, Any] = {"guidance_scale": scale}
        if negative is not None:
            guidance["negative_prompt_ids"] = negative
        guidance, method = (guidance, lg.CFG(scale, negative)) if number % 4 else ({}, None)
        requests.append((prompt, guidance, {"max_tokens": tokens}))
        answers.append(reference.answer(prompt, method, tokens))
    got = client.many(requests)
    wrong = [
        request for request, answer, tokens in zip(requests, answers, got, strict=True) if not answer.agrees(tokens)
    ]
    assert wrong == []


METHODS: dict[str, tuple[dict[str, Any], lg.Guidance]] = {
    "default contrast": ({"guidance_scale": 3.0}, lg.CFG(3.0)),
    "text": ({"guidance_scale": 1.5, "negative_prompt": SPACE}, lg.CFG(1.5, SPACE)),
    "messages": (
        {"guidance_scale": 2.0, "negative_messages": json.dumps([{"role": "user", "content": "Hello"}])},
        lg.CFG(2.0, [{"role": "user", "content": "Hello"}]),
    ),
    "several": (
        {"guidance_scale": 3.0, "negative_prompts": [SPACE, "A sad"], "negative_weights": [0.75, 0.25]},
        lg.PromptMixture((SPACE, "A sad"), (-0.75, -0.25), 2.0),
    ),
    "rule": ({"guidance": f"apg:guidance_scale=4,negative_prompt={SPACE}"}, lg.APG(4.0, SPACE)),
    "rule with the request's prompt": (
        {"guidance": "tangential_cfg", "negative_prompt": SPACE},
        lg.TangentialCFG(1.5, SPACE),
    ),
    "json": (
        {"guidance": lg.CFG(2.0, lg.LastToken(), gate=lg.Period(2)).to_json()},
        lg.CFG(2.0, lg.LastToken(), gate=lg.Period(2)),
    ),
    "two methods": (
        {"guidance": ["preadd:prefix=Sad!", f"divergence_damped_cfg:negative_prompt={SPACE}"]},
        (lg.PREADD(2.0, "Sad!"), lg.DivergenceDampedCFG(3.0, SPACE)),  # type: ignore[dict-item]
    ),
    "schedule": (
        {"guidance_scale": 3.0, "guidance_schedule": "window:start=4,stop=0.75"},
        lg.CFG(3.0, schedule=lg.Window(4, 0.75)),
    ),
    "entropy": (
        {"guidance_scale": 3.0, "negative_prompt": SPACE, "entropy_threshold": 3.6},
        lg.SelectiveCFG(3.0, SPACE, entropy_threshold=3.6),
    ),
    "divergence": (
        {"guidance_scale": 3.0, "guidance_gate": "divergence:threshold=2.5"},
        lg.CFG(3.0, gate=lg.Divergence(2.5)),
    ),
    "suffix": ({"guidance": "suffix_cfg", "entropy_threshold": 3.6}, lg.SuffixCFG(1.5, entropy_threshold=3.6)),
    "suffix on every step": (
        {"guidance": "suffix_cfg:entropy_threshold=null", "guidance_scale": 2.0},
        lg.SuffixCFG(2.0, entropy_threshold=None),
    ),
}


def test_methods(client: Client, reference: Reference) -> None:
    prompt = reference.ids(SEA)
    unguided = reference.answer(prompt).tokens
    before = client.metrics()
    got = client.many([(SEA, guidance, {}) for guidance, _ in METHODS.values()])
    assert _since(client, before, "guided_steps") + _since(client, before, "skipped_steps") == sum(map(len, got))
    for name, (_, method), tokens in zip(METHODS, METHODS.values(), got, strict=True):
        answer = reference.answer(prompt, method)
        assert answer.tokens != unguided, name
        assert answer.agrees(tokens), name


def test_selective_requests_skip_their_companions(client: Client) -> None:
    before = client.metrics()
    guidance = {"guidance_scale": 3.0, "negative_prompt": SPACE, "entropy_threshold": 3.6}
    tokens = client.tokens(SEA, guidance, max_tokens=40, ignore_eos=True)
    guided, skipped = _since(client, before, "guided_steps"), _since(client, before, "skipped_steps")
    assert guided + skipped == len(tokens)
    assert min(guided, skipped) > 3


def test_chat(client: Client, reference: Reference) -> None:
    guidance = {"guidance_scale": 3.0, "negative_messages": json.dumps([{"role": "user", "content": "Be sad."}])}
    messages = [{"role": "user", "content": "Tell me."}]
    body = {"messages": messages, "max_tokens": 16, "temperature": 0, "return_token_ids": True, "vllm_xargs": guidance}
    status, answer = client.post("/v1/chat/completions", **body)
    assert status == 200, answer
    prompt = reference.chat(messages)
    method = lg.CFG(3.0, [{"role": "user", "content": "Be sad."}])
    assert reference.answer(prompt, method, 16).agrees(answer["choices"][0]["token_ids"])


def test_streaming(client: Client, reference: Reference) -> None:
    prompt = reference.ids(SEA)
    chunks = client.stream(prompt, {"guidance_scale": 3.0, "negative_prompt": SPACE})
    tokens = [token for chunk in chunks for token in chunk["token_ids"]]
    assert reference.answer(prompt, lg.CFG(3.0, SPACE)).agrees(tokens)


def test_off_costs_nothing(client: Client, reference: Reference) -> None:
    before = client.metrics()
    plain: dict[str, Any] = {"seed": 5, "temperature": 1.0, "top_p": 0.9}
    assert client.tokens(SEA, {"guidance_scale": 1.0, "negative_prompt": SPACE}, **plain) == client.tokens(SEA, **plain)
    assert _since(client, before, "groups") == 0


@pytest.mark.parametrize("gate", GATES)
def test_seeds_do_not_see_the_batch(client: Client, gate: dict[str, Any]) -> None:
    guidance = {"guidance_scale": 2.0, "negative_prompt": SPACE, **gate}
    options: list[dict[str, Any]] = [{"seed": seed, "temperature": 1.0, "ignore_eos": True} for seed in range(3)]
    alone = [client.tokens(SEA, guidance, **option) for option in options]
    others = [([7] * 60, {"guidance_scale": 0.5}, {"temperature": 0.7}), ([9], {}, {"seed": 1, "temperature": 1.0})]
    together = client.many([*others, *((SEA, guidance, option) for option in options)])
    assert together[2:] == alone
    assert len({tuple(tokens) for tokens in alone}) == 3


@pytest.mark.parametrize("gate", GATES)
def test_several_answers_and_their_logprobs(client: Client, reference: Reference, gate: dict[str, Any]) -> None:
    guidance = {"guidance_scale": 2.0, "negative_prompt": SPACE, **gate}
    choices = client.complete(SEA, guidance, n=3, temperature=1.0, logprobs=2)
    prompt, negative = reference.ids(SEA), reference.ids(SPACE)
    for choice in choices:
        tokens = torch.tensor(choice["token_ids"])
        cond, uncond = (_laws(reference, start, tokens) for start in (prompt, negative))
        guided = (uncond + 2 * (cond - uncond)).log_softmax(-1)
        if gate:
            guided = torch.where((entropy(cond) > gate["entropy_threshold"])[:, None], guided, cond)
        wanted = guided.gather(1, tokens[:, None])[:, 0]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted.tolist(), abs=1e-3)


def test_a_companion_draws_as_its_conditional_would(client: Client, reference: Reference) -> None:
    guidance = {"guidance_scale": 3.0, "negative_prompt": SPACE, "entropy_threshold": 0.0}
    prompt, negative = reference.ids(SEA), reference.ids(SPACE)
    greedy = reference.answer(prompt, lg.CFG(3.0, SPACE))
    assert greedy.agrees(client.tokens(SEA, guidance, temperature=1.0, top_k=1))
    assert greedy.agrees(client.tokens(SEA, guidance, temperature=1.0, min_p=1.0))
    nothing = torch.tensor([0])
    cond, uncond = (_laws(reference, start, nothing)[0] for start in (prompt, negative))
    law = ((uncond + 3 * (cond - uncond)).log_softmax(-1) / 2).log_softmax(-1)
    choices = client.complete(SEA, guidance, n=400, temperature=2.0, max_tokens=1, ignore_eos=True)
    drawn = law[[choice["token_ids"][0] for choice in choices]]
    # The mean log-probability of draws from a law is minus its entropy, give or take five standard errors.
    spread = float((law.exp() * (law + entropy(law)) ** 2).sum().sqrt())
    assert float(drawn.mean()) == pytest.approx(-float(entropy(law)), abs=5 * spread / len(drawn) ** 0.5)
    assert len({choice["token_ids"][0] for choice in choices}) > 5


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "repetition penalty": ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    "bias": ({"logit_bias": {"40": 6.0, "41": 5.0}}, {"sequence_bias": {(40,): 6.0, (41,): 5.0}}),
    "minimum": ({"min_tokens": 20}, {"min_new_tokens": 20}),
    "stop token": ({"stop_token_ids": [41, 92]}, {"eos_token_id": [1, 41, 92]}),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_come_after_guidance(client: Client, reference: Reference, name: str, gate: dict[str, Any]) -> None:
    sent, told = OPTIONS[name]
    guidance = {"guidance_scale": 3.0, "negative_prompt": SPACE, **gate}
    prompt = reference.ids(SEA)
    method = lg.SelectiveCFG(3.0, SPACE, **gate) if gate else lg.CFG(3.0, SPACE)
    want = reference.answer(prompt, method, 24, **told)
    assert want.agrees(client.tokens(SEA, guidance, **sent))


def test_stop_string(client: Client, reference: Reference) -> None:
    text = str(reference.tokenizer.decode(reference.answer(reference.ids(SEA), lg.CFG(3.0)).tokens))
    stop = text[10:13]
    choice = client.complete(SEA, {"guidance_scale": 3.0}, stop=[stop])[0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == text[: text.index(stop)]


@pytest.mark.parametrize("method", [lg.CFG(3.0, SPACE), lg.SelectiveCFG(3.0, SPACE, entropy_threshold=3.6)])
def test_grammars_mask_the_combination(client: Client, reference: Reference, method: lg.Guidance) -> None:
    pattern = "[a-z ]+"
    want = reference.answer(reference.ids(SEA), (method, lg.Regex(pattern)))
    tokens = client.tokens(SEA, {"guidance": method.to_json()}, structured_outputs={"regex": pattern})
    assert want.agrees(tokens)
    assert want.tokens != reference.answer(reference.ids(SEA), (lg.Regex(pattern),)).tokens


def test_a_grammar_is_kept_to(client: Client) -> None:
    words = ["forest", "kitchen"]
    for scale in (0.5, 1.5, 3.0):
        choice = client.complete(SEA, {"guidance_scale": scale}, structured_outputs={"choice": words})[0]
        assert choice["text"] in words


BAD: dict[str, dict[str, Any]] = {
    "guidance_scale": {"guidance_scale": "x"},
    "negative_prompt_ids": {"guidance_scale": 2.0, "negative_prompt_ids": [5000]},
    "negative_prompt": {"negative_prompt": "a"},
    "negative_prompts": {"guidance_scale": 2.0, "negative_prompts": [1, 2]},
    "leave no room": {"guidance_scale": 2.0, "negative_prompt_ids": [5] * 300},
    "_lmguide_plan": {"guidance_scale": 2.0, "_lmguide_plan": "x"},
    "Did you mean 'guidance_scale'": {"guidance_scal": 2.0},
    "model: expected the name of a guide of this server, none": {"guidance": "contrastive:model=somewhere"},
    "classifier: expected the name of a guide": {"guidance": "fudge:classifier=somewhere,label=1"},
    "rewarded_samples draws canvases": {"guidance": "rewarded_samples:reward=os:system"},
    "dola reads early layers": {"guidance": "dola"},
    "s2 runs the served model without": {"guidance": "s2"},
    "Did you mean 'apg'": {"guidance": "apgg:guidance_scale=2"},
    "entropy_threshold": {"guidance_scale": 2.0, "entropy_threshold": -1},
    "got several": {"guidance": "cfg:guidance_scale=[1.5, 2]"},
    "8 sequences": {"guidance_scale": 2.0, "negative_prompts": list("abcdefgh")},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_arguments_are_refused(client: Client, words: str) -> None:
    status, answer = client.post("/v1/completions", prompt=SEA, max_tokens=4, vllm_xargs=BAD[words])
    assert status == 400
    assert words in answer["error"]["message"]


@pytest.mark.parametrize("options", [{"use_beam_search": True, "n": 2}, {"prompt_logprobs": 1}])
def test_what_cannot_be_guided_is_refused(client: Client, options: dict[str, Any]) -> None:
    status, answer = client.post(
        "/v1/completions", prompt=SEA, max_tokens=4, vllm_xargs={"guidance_scale": 2.0}, **options
    )
    assert status == 400, answer
    assert "guidance" in answer["error"]["message"]


def test_clients_that_leave(client: Client, reference: Reference) -> None:
    draw = random.Random(1)
    for number in range(24):
        guidance = {"guidance_scale": 2.0, "negative_prompt_ids": _ids(draw, 20)}
        if number % 2:
            guidance["entropy_threshold"] = 3.5
        for place, _ in enumerate(client.stream(_ids(draw, 30), guidance, max_tokens=150, ignore_eos=True)):
            if place == number % 5:
                break
    prompt = reference.ids(SEA)
    assert reference.answer(prompt, lg.CFG(3.0, SPACE)).agrees(
        client.tokens(prompt, {"guidance_scale": 3.0, "negative_prompt": SPACE})
    )
    deadline = time.monotonic() + 20
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    while any((metrics := client.metrics())[gauge] for gauge in gauges) and time.monotonic() < deadline:
        client.tokens([5], max_tokens=1)  # gauges move when something runs
    assert [metrics[gauge] for gauge in gauges] == [0, 0, 0]
    assert metrics["lmguide:lockstep_errors_total"] == metrics["lmguide:failed_requests_total"] == 0
    assert metrics["lmguide:groups_total"] > 24


def _ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(4, VOCAB) for _ in range(length)]


def _since(client: Client, before: dict[str, float], name: str) -> float:
    return client.metrics()[f"lmguide:{name}_total"] - before.get(f"lmguide:{name}_total", 0)


@torch.no_grad()
def _laws(reference: Reference, start: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """The laws from which each token of an answer was drawn."""
    ids = torch.cat([torch.tensor(start), tokens[:-1]])
    laws: torch.Tensor = reference.model(ids[None]).logits[0, -len(tokens) :].log_softmax(-1)
    return laws
