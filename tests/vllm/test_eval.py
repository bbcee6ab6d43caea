"""`lmguide-vllm` and `lmguide-completions` in lm-eval: the numbers and answers of `lmguide-hf` at the same setting."""

from __future__ import annotations

import importlib.util
import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

import lmguide as lg
from lmguide.eval.harness import manager
from lmguide.eval.harness.completions import GuidedCompletions
from lmguide.eval.harness.hf import GuidedHFLM
from lmguide.eval.harness.settings import Setting, read_setting
from lmguide.eval.sweeps import Options, Runner, Store
from tests.vllm.served import ENVIRONMENT, save_model, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmguide.eval.harness.vllm import GuidedVLLM

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(300, method="signal"),
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),  # vLLM and lm-eval have warnings of their own
]

TEXTS = ("A tale of the sea:", "A tale of space: The captain", "A tale:")
LENGTH = 16
SETTINGS = {
    "unguided": Setting(),
    "off": Setting((lg.CFG(1.0, "A tale of space:"),)),
    "last token": Setting((lg.CFG(3.0),)),
    "below one": Setting((lg.CFG(0.5, "A sad tale:"),)),
    "empty": read_setting("cfg:guidance_scale=2", source="empty"),
    "entropy": Setting((lg.SelectiveCFG(3.0, "A tale:", entropy_threshold=3.6),)),
    "two": Setting((lg.CFG(2.0, "A sad tale:"), lg.APG(1.5, "A tale of space:"))),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, chat=True)
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> GuidedHFLM:
    return GuidedHFLM(str(folder), device="cpu", dtype="float32", batch_size=4, max_length=256)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[GuidedVLLM]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The engine in this process, whose end is its end.
        for name, value in (ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}).items():
            patch.setenv(name, value)
        from lmguide.eval.harness.vllm import GuidedVLLM

        sizes = {"max_model_len": 256, "block_size": 32, "gpu_memory_utilization": 0.1}
        yield GuidedVLLM(str(folder), dtype="float32", enforce_eager=True, **sizes)


def asked(texts: tuple[str, ...] = TEXTS, **options: Any) -> list[Instance]:
    """Requests of lm-eval for answers."""
    options = {"until": ["\n\n"], "max_gen_toks": LENGTH, **options}
    return [
        Instance("generate_until", {}, (text, options), place, ("any", place, 1)) for place, text in enumerate(texts)
    ]


def scored(texts: tuple[str, ...] = TEXTS, answer: str = " The captain rowed a reef") -> list[Instance]:
    """Requests of lm-eval for scores."""
    return [Instance("loglikelihood", {}, (text, answer), place, ("any", place, 1)) for place, text in enumerate(texts)]


def whole(texts: list[str]) -> list[str]:
    """Texts without a letter that is cut off at their end, which vLLM keeps back."""
    return [text.rstrip("\ufffd") for text in texts]


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_scores_and_costs_are_those_of_hf(plain: GuidedHFLM, served: GuidedVLLM, name: str) -> None:
    setting = SETTINGS[name]
    for kind in (plain, served):
        kind.use(setting)
    expected, got = plain.generate_until(asked(), True), served.generate_until(asked(), True)
    assert whole(got) == whole(expected)
    assert served.spent.each == plain.spent.each
    for kind in (plain, served):
        kind.use(setting)
    likely = plain.generate_until(asked(max_gen_toks=1), True)[0]
    for answer in (" The captain rowed a reef", likely):
        one, other = plain.loglikelihood(scored(answer=answer), True), served.loglikelihood(scored(answer=answer), True)
        assert [total for total, _ in other] == pytest.approx([total for total, _ in one], abs=1e-4)
        assert [greedy for _, greedy in other] == [greedy for _, greedy in one]


def test_settings_differ(served: GuidedVLLM) -> None:
    """What is equal above is not equal because nothing is guided."""
    found = []
    for setting in SETTINGS.values():
        served.use(setting)
        found.append([*served.generate_until(asked(), True), *served.loglikelihood(scored(), True)])
    assert found[0] == found[1]
    assert all(one != other for place, one in enumerate(found[1:]) for other in found[1:][:place])


def test_chats_have_the_contrast_of_hf(plain: GuidedHFLM, served: GuidedVLLM) -> None:
    for setting in (Setting((lg.CFG(3.0),)), Setting((lg.CFG(3.0, "Be sad."),))):
        answers = []
        for kind in (plain, served):
            kind.use(setting)
            texts = tuple(kind.apply_chat_template([{"role": "user", "content": text}]) for text in TEXTS)
            answers.append(
                (texts, whole(kind.generate_until(asked(texts), True)), kind.loglikelihood(scored(texts), True))
            )
        (one_texts, one_answers, one_scores), (other_texts, other_answers, other_scores) = answers
        assert one_texts == other_texts
        assert one_answers == other_answers
        assert [each[0] for each in other_scores] == pytest.approx([each[0] for each in one_scores], abs=1e-4)


def test_samples_depend_on_the_seed_alone(served: GuidedVLLM) -> None:
    served.use(Setting((lg.CFG(1.5),)))
    found = []
    for seed, size in ((0, 2), (0, "auto"), (1, "auto")):
        torch.manual_seed(seed)
        served.batch_size = size
        found.append(served.generate_until(asked(TEXTS[:1] * 5, do_sample=True, temperature=1.0), True))
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 5


def test_long_prompts_are_cut_alike(plain: GuidedHFLM, served: GuidedVLLM) -> None:
    setting = Setting((lg.CFG(2.0, "A sad tale: " * 60),))
    answers = []
    for kind in (plain, served):
        kind.use(setting)
        kind_answers = kind.loglikelihood(scored(("A tale of the sea: " * 60,)), True)
        answers.append(kind_answers[0][0])
    # vLLM keeps one place of its context for what it writes: the texts begin one token later.
    assert answers[0] == pytest.approx(answers[1], abs=0.5)


REFUSED: dict[str, tuple[Setting, str]] = {
    "raw": (
        Setting((lg.CFG(2.0),), normalize=False),
        "scores that are not renormalised exactly. Use --model",
    ),
    "schedule": (Setting((lg.CFG(2.0, schedule=lg.Linear(0.0, 1.0)),)), "a schedule or gate of cfg that counts steps"),
    "other source": (Setting((lg.ICG(2.0),)), "icg, which is no contrast with a negative prompt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_scores_that_would_not_be_exact_are_refused(served: GuidedVLLM, name: str) -> None:
    setting, words = REFUSED[name]
    served.use(setting)
    assert len(served.generate_until(asked(), True)) == 3
    with pytest.raises(ValueError, match=f"^guidance: vLLM cannot score texts under {words}"):
        served.loglikelihood(scored(), True)
    with pytest.raises(ValueError, match="^loglikelihood_rolling"):
        served.loglikelihood_rolling(scored(), True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance": "dola"}, "guidance: dola "),
        ({"gamma": 2}, "gamma: expected inside guidance"),
        ({"device": "cpu"}, "device: vLLM takes those it sees"),
        ({"data_parallel_size": 2}, "data_parallel_size: expected 1"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_it_starts(
    served: GuidedVLLM, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        type(served)("no/such/model", **arguments)


def test_a_cache_of_answers_keeps_to_its_guidance(served: GuidedVLLM, tmp_path: Path) -> None:
    def answers(scale: float) -> Any:
        served.use(Setting((lg.CFG(scale),)))
        return CachingLM(served, str(tmp_path / "cache")).generate_until(asked())

    assert answers(1.0) == answers(1.0)
    with pytest.raises(ValueError, match="use_cache: the answers in this cache were made with other guidance"):
        answers(3.0)


def test_a_sweep_records_how_it_was_guided(served: GuidedVLLM, tmp_path: Path) -> None:
    tasks, settings = manager(defaults=False), [Setting(), Setting((lg.CFG(3.0),))]
    model, options = {"model": "lmguide-vllm", "model_args": {}}, Options(limit=3)
    notes: list[str] = []
    runner = Runner(lambda: served, type(served), model, tasks, Store(tmp_path, notes.append), options, notes.append)
    loaded = {"tales_mc": tasks.load(["tales_mc"]), "tales_gen": tasks.load(["tales_gen"])}
    results = runner.sweep(loaded, settings)
    assert [(result.point.label, result.passes) for result in results] == [
        ("unguided", 1.0),
        ("cfg guidance_scale=3.0", 2.0),
    ] * 2
    assert len({result.point.key for result in results}) == 4
    told = [json.loads(path.read_text())["told"]["model"] for path in sorted(tmp_path.glob("*.json"))]
    assert {each["tensor_parallel_size"] for each in told} == {1}
    assert {each["guidance"]["label"] for each in told} == {"unguided", "cfg guidance_scale=3.0"}
    again = Runner(lambda: served, type(served), model, tasks, Store(tmp_path, notes.append), options, notes.append)
    assert [result.metrics for result in again.sweep(loaded, settings)] == [result.metrics for result in results]
    assert again.ran == 0


@pytest.mark.slow
def test_a_server_answers_what_hf_answers(plain: GuidedHFLM, folder: Path) -> None:
    with server(folder) as address:
        options = {"model": "m", "tokenizer": str(folder), "revision": None, "num_concurrent": 3, "max_length": 256}
        client = GuidedCompletions(f"{address}/v1/completions", **options)
        for setting in SETTINGS.values():
            answers = []
            for kind in (plain, client):
                kind.use(setting)
                texts = tuple(kind.apply_chat_template([{"role": "user", "content": text}]) for text in TEXTS)
                chats = [] if setting == SETTINGS["two"] else kind.generate_until(asked(texts), True)
                answers.append(whole([*kind.generate_until(asked(), True), *chats]))
            assert answers[0] == answers[1]
        for kind in (plain, client):
            kind.use(Setting())
        one, other = plain.loglikelihood(scored(), True), client.loglikelihood(scored(), True)
        assert [total for total, _ in other] == pytest.approx([total for total, _ in one], abs=1e-4)
