"""GeDi in a server: a guide in the worker that reads all requests at once, and the Hugging Face engine's tokens."""

from __future__ import annotations

import importlib.util
import json
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lmguide as lg
from lmguide.contexts import OtherModel
from lmguide.descriptions.gedi import ClassPosterior
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation
from lmguide.sources.rewards.gedi import PosteriorReward
from lmguide.vllm.combine import Text
from lmguide.vllm.guides import Guides
from lmguide.vllm.settings import Settings, check_guides, read_settings
from tests.vllm.guide_models import CODES, additional_config, guided_kinds, save_guides
from tests.vllm.reference import SEA
from tests.vllm.served import VOCAB, small

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vllm.client import Client
    from tests.vllm.reference import Reference

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.timeout(400, method="signal"),  # an exception, so that the server is ended too
]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_guides(tmp_path_factory.mktemp("guides"))


@pytest.fixture
def served() -> Any:
    return SimpleNamespace(get_vocab_size=lambda: VOCAB, dtype=torch.float32)


def _posterior(ids: list[int], context: ClassPosterior) -> torch.Tensor:
    """The library's own reader on one text by itself."""
    model, tokenizer = lg.bundled("tales", torch.float32)
    like: Any = SimpleNamespace(config=model.config, dtype=model.dtype, device=model.device)
    generation = Generation(like, None, pack([ids], "cpu"), 1, VOCAB, torch.device("cpu"), None, drafts=False)
    own = ClassPosterior(model, context.code, context.codes, context.form, tokenizer=tokenizer)
    return PosteriorReward(own, generation).log_rewards(torch.zeros(1, 0, dtype=torch.long), torch.empty(0))[0]


@torch.no_grad()
def _law(folder: Path, ids: list[int]) -> torch.Tensor:
    """The law of a guide behind one text by itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("gib", [1.0, 2e-3, 1e-9])
@pytest.mark.parametrize("kind", ["exact", "normalized", "law"])
def test_texts_that_come_go_and_wait(guides: dict[str, Path], served: Any, kind: Any, gib: float) -> None:
    draw = random.Random(0)
    settings = Settings({"mood": str(guides["mood"]), "small": str(guides["small"])}, gib)
    guide = Guides(settings, served, None, torch.device("cpu"))
    source = OtherModel("small") if kind == "law" else ClassPosterior("mood", " glad", CODES, kind)
    texts: dict[str, list[int]] = {}
    most = 0.0
    for step in range(24):
        if step % 3 == 0:
            texts[f"r{step}"] = [draw.randrange(4, VOCAB) for _ in range(draw.choice([1, 7, 60]))]
        if step % 5 == 4:
            texts.pop(draw.choice(sorted(texts)))
        guide.keep(set(texts))
        everyone = {name: Text(name, ids[:1], ids[1:]) for name, ids in texts.items()}
        asked = [text for text in everyone.values() if step % 4 or draw.random() < 0.7]  # a gate may leave some alone
        with torch.inference_mode():
            got: Any = guide.read(source, asked, everyone) if asked else []
        for text, row in zip(asked, got, strict=True):
            want = (
                _posterior(text.ids, source) if isinstance(source, ClassPosterior) else _law(guides["small"], text.ids)
            )
            torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-4)
        most = max(most, guide._held())
        for ids in texts.values():
            if draw.random() < 0.9:  # else it waits for a step
                ids.append(draw.randrange(4, VOCAB))
    assert most <= gib * 2**30
    assert (most > 0) == (gib > 1e-6)
    guide.keep(set())
    assert guide._held() == 0


def test_many_new_texts_are_read_a_portion_at_a_time(
    guides: dict[str, Path], served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmguide.vllm.guides.AT_ONCE", 64)
    guide = Guides(Settings({"small": str(guides["small"])}), served, None, torch.device("cpu"))
    read: list[int] = []
    guide.model("small")[0].register_forward_pre_hook(
        lambda module, args, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    draw = random.Random(0)
    texts = {f"r{n}": [draw.randrange(4, VOCAB) for _ in range(n)] for n in (5, 60, 20, 18, 21, 100, 3)}
    for passes in ([3 * 18, 2 * 21, 60, 100], [len(texts)]):
        everyone = {name: Text(name, ids, []) for name, ids in texts.items()}
        read.clear()
        with torch.inference_mode():
            got = guide.read(OtherModel("small"), list(everyone.values()), everyone)
        assert read == passes
        for ids, row in zip(texts.values(), got, strict=True):
            torch.testing.assert_close(row, _law(guides["small"], ids), rtol=1e-4, atol=1e-4)
            ids.append(7)


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
def server_options(guides: dict[str, Path]) -> tuple[str, ...]:
    return (*small(17), "--additional-config", json.dumps(additional_config(guides)))


@pytest.mark.engine
@needs_vllm
def test_guided_by_a_guide_among_others(client: Client, reference: Reference, guides: dict[str, Path]) -> None:
    kinds = guided_kinds(guides)
    crowd = reference.crowd([*kinds, ({}, None)], 32, most=60)
    before = client.metrics()
    for asked in crowd[:12:2]:  # some leave in the middle of an answer
        next(iter(client.stream(asked.prompt, asked.sent, max_tokens=100, ignore_eos=True)))
    assert client.mistakes(crowd) == []
    after = client.metrics()
    assert after["vllm:num_preemptions_total"] > before["vllm:num_preemptions_total"]
    assert after["lmguide:lockstep_errors_total"] == after["lmguide:failed_requests_total"] == 0


@needs_vllm
def test_guides_change_the_answer(reference: Reference, guides: dict[str, Path]) -> None:
    prompt = reference.ids(SEA)
    plain = reference.answer(prompt).tokens
    assert all(reference.answer(prompt, methods).tokens != plain for _, methods in guided_kinds(guides))


@pytest.mark.engine
@needs_vllm
@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        ("gedi:guide=moood,code=glad", "guide: expected the name of a guide of this server"),
        ("gedi:guide=/etc,code=glad", "guide: expected the name of a guide of this server"),
        ("gedi:guide=mood,code=glad", "code: expected one of ' glad', ' grim'"),
        ('gedi:guide=mood,code=" glad",map_vocabulary=true', "map_vocabulary"),
        ('gedi:guide=mood,code=" glad",omega=-1', "omega"),
        ("gedi:guide=verdicts,code=glad", "guide: expected a language model among the guides, got 'verdicts'"),
        (
            "contrastive:model=verdicts",
            "model: expected a language model among the guides, got 'verdicts', a classifier",
        ),
        ("dexperts:expert=small,antiexpert=tiny", "antiexpert: expected the name of a guide of this server"),
        ("fudge:classifier=small,label=1", "classifier: expected a classifier among the guides, got 'small'"),
        ("fudge:classifier=verdicts,label=7", "label: expected one of"),
    ],
)
def test_what_the_guide_does_not_know_is_refused(client: Client, guidance: str, words: str) -> None:
    status, answer = client.post("/v1/completions", prompt=SEA, max_tokens=4, vllm_xargs={"guidance": guidance})
    assert status == 400
    assert words in answer["error"]["message"]


def test_guides_of_another_vocabulary_are_refused(guides: dict[str, Path]) -> None:
    tokens = lg.bundled("tales")[1].get_vocab()
    settings = Settings({name: str(path) for name, path in guides.items()})
    check_guides(settings, SimpleNamespace(get_vocab=lambda: tokens), VOCAB)
    other: Any = {token: VOCAB - 1 - index for token, index in tokens.items()}
    with pytest.raises(ValueError, match="^guide mood: expected the same vocabulary, but token 0 is "):
        check_guides(settings, SimpleNamespace(get_vocab=lambda: other), VOCAB)
    check_guides(Settings({"verdicts": str(guides["verdicts"])}), SimpleNamespace(get_vocab=lambda: other), VOCAB)
