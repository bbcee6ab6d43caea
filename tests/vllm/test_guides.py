"""GeDi in a server: a guide in the worker that reads all requests at once, and the Hugging Face engine's tokens."""

from __future__ import annotations

import importlib.util
import json
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.descriptions.gedi import ClassPosterior
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation
from lmguide.sources.rewards.gedi import PosteriorReward
from lmguide.vllm.combine import Text
from lmguide.vllm.guides import Guides, Settings, read_settings
from tests.vllm.client import Client
from tests.vllm.reference import Reference
from tests.vllm.served import VOCAB, save_model, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.timeout(400, method="signal"),  # an exception, so that the server is ended too
]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

SEA, SPACE = "A tale of the sea:", "A tale of space: The captain"
CODES = (" glad", " grim")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guide")
    model, tokenizer = lg.bundled("tales", torch.float32)
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "gedi": {"codes": CODES}}))
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def served() -> Any:
    return SimpleNamespace(get_vocab_size=lambda: VOCAB, dtype=torch.float32)


def _posterior(guide: Path, ids: list[int], context: ClassPosterior) -> torch.Tensor:
    """The library's own reader on one text by itself."""
    model, tokenizer = lg.bundled("tales", torch.float32)
    like: Any = SimpleNamespace(config=model.config, dtype=model.dtype, device=model.device)
    generation = Generation(like, None, pack([ids], "cpu"), 1, VOCAB, torch.device("cpu"), None, drafts=False)
    own = ClassPosterior(model, context.code, context.codes, context.form, tokenizer=tokenizer)
    return PosteriorReward(own, generation).log_rewards(torch.zeros(1, 0, dtype=torch.long), torch.empty(0))[0]


@pytest.mark.parametrize("gib", [1.0, 2e-3, 1e-9])
@pytest.mark.parametrize("form", ["exact", "normalized"])
def test_texts_that_come_go_and_wait(guide: Path, served: Any, form: Any, gib: float) -> None:
    draw = random.Random(0)
    guides = Guides(Settings({"mood": str(guide)}, gib), served, None, torch.device("cpu"))
    context = ClassPosterior("mood", " glad", CODES, form)
    texts: dict[str, list[int]] = {}
    most = 0.0
    for step in range(24):
        if step % 3 == 0:
            texts[f"r{step}"] = [draw.randrange(4, VOCAB) for _ in range(draw.choice([1, 7, 60]))]
        if step % 5 == 4:
            texts.pop(draw.choice(sorted(texts)))
        guides.keep(set(texts))
        everyone = {name: Text(name, ids[:1], ids[1:]) for name, ids in texts.items()}
        asked = [text for text in everyone.values() if step % 4 or draw.random() < 0.7]  # a gate may leave some alone
        with torch.inference_mode():
            got: Any = guides.posteriors(context, asked, everyone) if asked else []
        for text, row in zip(asked, got, strict=True):
            torch.testing.assert_close(row, _posterior(guide, text.ids, context), rtol=1e-4, atol=1e-4)
        most = max(most, guides._held())
        for ids in texts.values():
            if draw.random() < 0.9:  # else it waits for a step
                ids.append(draw.randrange(4, VOCAB))
    assert most <= gib * 2**30
    assert (most > 0) == (gib > 1e-6)
    guides.keep(set())
    assert guides._held() == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guide": {"mood": "x"}}, "^additional_config: expected something like"),
        ({"guides": ["x"]}, "^guides: expected the model of each name"),
        ({"guides": {"mood": ""}}, "^guides: expected the model of each name"),
        ({"guide_cache_gib": 0}, "^guide_cache_gib: expected a finite number above 0"),
    ],
)
def test_bad_settings_are_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_settings(SimpleNamespace(additional_config={"lmguide": given}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path, guide: Path) -> Iterator[Client]:
    told = json.dumps({"lmguide": {"guides": {"mood": str(guide)}, "guide_cache_gib": 0.02}})
    options = ("--max-num-seqs", "8", "--num-gpu-blocks-override", "17", "--max-num-batched-tokens", "64")
    with server(folder, *options, "--additional-config", told) as address:
        yield Client(address)


@needs_vllm
def test_guided_by_a_guide_among_others(client: Client, folder: Path) -> None:
    model, tokenizer = lg.bundled("tales", torch.float32)
    reference, draw = Reference(folder), random.Random(0)

    def gedi(**options: Any) -> tuple[lg.Guidance, lg.Guidance]:
        """As sent, and as the reference runs it."""
        return tuple(  # type: ignore[return-value]
            lg.GeDi(name, " glad", codes, tokenizer=own, **options)
            for name, codes, own in (("mood", None, None), (model, CODES, tokenizer))
        )

    paper = {"form": "normalized", "omega": 30.0, "filter_p": 0.8, "target_p": 0.8}
    words = lg.WordGuidance(include="whale", beta=4.0)
    cfg = lg.CFG(2.0, SPACE)
    kinds: list[list[tuple[lg.Guidance, lg.Guidance]]] = [
        [gedi()],
        [gedi(omega=12.0)],
        [gedi(**paper)],
        [gedi(gate=lg.Entropy(3.3))],
        [(cfg, cfg), gedi()],
        [gedi(), (words, words)],
        [(cfg, cfg)],
        [],
    ]
    requests, answers = [], []
    for number in range(32):
        kind = kinds[number % len(kinds)]
        prompt = reference.ids(SEA) + [draw.randrange(4, VOCAB) for _ in range(draw.choice([0, 1, 40, 90]))]
        tokens = draw.randrange(30, 80)
        sent = {"guidance": [method.to_json() for method, _ in kind]} if kind else {}
        requests.append((prompt, sent, {"max_tokens": tokens, "min_tokens": tokens}))
        methods = tuple(method for _, method in kind) or None
        answers.append(reference.answer(prompt, methods, tokens, min_new_tokens=tokens))
    before = client.metrics()
    for prompt, sent, _ in requests[:6]:  # some leave in the middle of an answer
        next(iter(client.stream(prompt, sent, max_tokens=100, ignore_eos=True)))
    got = client.many(requests)
    wrong = [
        request[1] for request, answer, tokens in zip(requests, answers, got, strict=True) if not answer.agrees(tokens)
    ]
    assert wrong == []
    after = client.metrics()
    assert after["vllm:num_preemptions_total"] > before["vllm:num_preemptions_total"]
    assert after["lmguide:lockstep_errors_total"] == after["lmguide:failed_requests_total"] == 0


@needs_vllm
@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        ("gedi:guide=moood,code=glad", "guide: expected the name of a guide of this server"),
        ("gedi:guide=/etc,code=glad", "guide: expected the name of a guide of this server"),
        ("gedi:guide=mood,code=glad", "code: expected one of ' glad', ' grim'"),
        ('gedi:guide=mood,code=" glad",map_vocabulary=true', "map_vocabulary"),
        ('gedi:guide=mood,code=" glad",omega=-1', "omega"),
    ],
)
def test_what_the_guide_does_not_know_is_refused(client: Client, guidance: str, words: str) -> None:
    status, answer = client.post("/v1/completions", prompt=SEA, max_tokens=4, vllm_xargs={"guidance": guidance})
    assert status == 400
    assert words in answer["error"]["message"]
