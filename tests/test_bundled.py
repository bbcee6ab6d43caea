"""The bundled models load offline and quietly and are small; tales obeys the closed form of its corpus."""

from __future__ import annotations

import random
import re
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from transformers.utils import logging

import lmguide as lg
from lmguide.bundled import MODELS, PREFIX, bundled
from lmguide.training import tales
from lmguide.training.tales import TaleScore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

TOPICS = list(tales.TOPICS)
MODELS_OF_CANVASES = ["slots", "sudoku"]
GUIDES = ["mood_gedi", "mood_classifier"]
BYTES = {("tales",): 600_000, ("slots", "sudoku"): 400_000, ("mood_gedi", "mood_classifier"): 400_000}
BYTES |= {("tales_length",): 200_000}
"""The room that bundled models may take together in the package."""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return bundled("tales")


@pytest.fixture
def _talkative() -> Iterator[None]:
    """Transformers as it comes: with its warnings and progress bars, which the other tests switch off."""
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    switch_bars(True)
    logging.set_verbosity_warning()
    yield
    logging.set_verbosity(verbosity)
    switch_bars(bar)


def switch_bars(on: bool) -> None:
    if on:
        logging.enable_progress_bar()
    else:
        logging.disable_progress_bar()


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("bundled() reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_talkative", "_offline")
@pytest.mark.parametrize("name", ["tales", "tales_length", *MODELS_OF_CANVASES, *GUIDES])
def test_loads_without_a_network_or_a_word(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = bundled(name)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.padding_side == "left"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.mask_token_id
    assert capfd.readouterr() == ("", "")


def test_tales_come_when_nothing_is_asked_for() -> None:
    model, tokenizer = bundled()
    assert type(model).__name__ == "LlamaForCausalLM"
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    config = model.generation_config
    assert config is not None
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == ids


@pytest.mark.parametrize("name", MODELS_OF_CANVASES)
def test_models_of_canvases_name_their_mask(name: str) -> None:
    model, tokenizer = bundled(name)
    assert type(model).__name__ == "RobertaPreLayerNormForMaskedLM"
    assert model.config.mask_token_id == tokenizer.mask_token_id == 1
    assert model.dtype == torch.float32
    # Positions are counted from behind the padding token's id, so one more than the longest canvas.
    assert model.config.max_position_embeddings == tokenizer.model_max_length + 1


@pytest.mark.parametrize(("name", "prompts"), [("slots", ["the sea:", "space:"]), ("sudoku", ["1000 0002 4003 0000:"])])
def test_a_row_does_not_see_the_padding_before_it(name: str, prompts: list[str]) -> None:
    model, tokenizer = bundled(name)
    row = tokenizer([prompt + "<|mask|>" * 16 for prompt in prompts], return_tensors="pt")
    padded = {key: torch.nn.functional.pad(value, (3, 0)) for key, value in row.items()}
    assert (padded["input_ids"][:, :3] == tokenizer.pad_token_id).all()
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits[:, 3:], model(**row).logits, atol=1e-5, rtol=1e-5)


def test_prompts_and_answers_read_well() -> None:
    _, tokenizer = bundled("slots")
    text = "the sea: The sailor rowed the sad boat by the shore. The fox chased the merry nest in the glade."
    assert len(tokenizer(text)["input_ids"]) == 22
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    _, tokenizer = bundled("sudoku")
    ids = tokenizer("1000\n0002\n4003\n0000:")["input_ids"]
    assert (len(ids), tokenizer.decode(ids)) == (17, "1000000240030000:")


def test_dtype_is_respected_and_models_are_not_shared() -> None:
    first, second = bundled("tales", torch.float16)[0], bundled("tales", dtype=torch.float16)[0]
    assert first.dtype == torch.float16
    with torch.no_grad():
        for weight in first.parameters():
            weight.zero_()
    assert all(weight.any() for weight in second.parameters())


@pytest.mark.usefixtures("_talkative")
@pytest.mark.parametrize("bar", [True, False])
def test_the_progress_bars_of_transformers_stay_as_the_user_set_them(bar: bool) -> None:
    switch_bars(bar)
    bundled()
    assert logging.is_progress_bar_enabled() is bar


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    names = sorted(folder.name for folder in MODELS.iterdir())
    known = rf"expected the name of a bundled model \({', '.join(names)}\)"
    for wrong, right in (("tails", "tales"), ("slot", "slots"), ("suduko", "sudoku"), ("mood_geddi", "mood_gedi")):
        with pytest.raises(ValueError, match=rf"{known}, got '{wrong}'\. Did you mean '{right}'\?"):
            bundled(wrong)
    with pytest.raises(ValueError, match=rf"got 'gpt2'\. Choose one of {', '.join(map(repr, names))}\."):
        bundled("gpt2")


@pytest.mark.parametrize(
    ("name", "kind"), [("mood_gedi", "LlamaForCausalLM"), ("mood_classifier", "LlamaForSequenceClassification")]
)
def test_guides_for_the_mood_read_the_tokens_of_the_tales(name: str, kind: str) -> None:
    model, tokenizer = bundled(name)
    assert type(model).__name__ == kind
    assert tokenizer.get_vocab() == bundled("tales")[1].get_vocab()


@pytest.mark.parametrize(
    "method",
    [
        lambda gedi, classifier: lg.GeDi(gedi, " glad", omega=5.0),
        lambda gedi, classifier: lg.CAIF(classifier, "glad", top_k=20),
        lambda gedi, classifier: lg.Fudge(classifier, "grim", top_k=20),
        lambda gedi, classifier: lg.AutoGuidance(gedi, 1.5),
    ],
    ids=["gedi", "caif", "fudge", "autoguidance"],
)
def test_a_bundled_guide_by_name_is_the_guide_itself(loaded: Loaded, method: Callable[[Any, Any], lg.Guidance]) -> None:
    model, tokenizer = loaded
    inputs = tokenizer([tales.prompt(topic) for topic in TOPICS], return_tensors="pt", padding=True)
    guides = [bundled(name)[0] for name in GUIDES]
    found = []
    for described in (method(*guides), method(*(f"{PREFIX}{name}" for name in GUIDES))):
        guided: Any = lg.guide(model, described, tokenizer=tokenizer)
        options = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True}
        output = guided.generate(**inputs, **options)
        found.append((output.sequences, torch.stack(output.logits)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=0, rtol=0)


def test_a_bundled_guide_by_a_wrong_name_is_refused(loaded: Loaded) -> None:
    model, tokenizer = loaded
    inputs = tokenizer("A tale of space:", return_tensors="pt")
    guided: Any = lg.guide(model, lg.GeDi("bundled/mood_geddi", " glad"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="Did you mean 'mood_gedi'"):
        guided.generate(**inputs, max_new_tokens=2)
    guided = lg.guide(model, lg.CAIF("bundled/mood_gedi", "glad"), tokenizer=tokenizer)
    with pytest.raises(TypeError, match="expected a sequence classifier of transformers, got LlamaForCausalLM"):
        guided.generate(**inputs, max_new_tokens=2)
    guided = lg.guide(model, lg.GeDi("bundled/mood_classifier", " glad", (" glad", " grim")), tokenizer=tokenizer)
    with pytest.raises(TypeError, match="guide: expected a transformers model or its name, got LlamaForSequence"):
        guided.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("names", BYTES)
def test_the_files_are_small_and_name_no_machine_or_time(names: tuple[str, ...]) -> None:
    files = [file for name in names for file in (MODELS / name).iterdir() if file.is_file()]
    expected = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    for name in names:
        own = {file.name for file in files if file.parent.name == name}
        assert own == expected | ({"generation_config.json"} if name in {"tales", "mood_gedi"} else set())
    assert sum(file.stat().st_size for file in files) <= BYTES[names]
    for file in files:
        if file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8")
            assert re.search(r"name_or_path|/(home|root|tmp|usr|work)\b|20\d\d-\d\d|\d\d:\d\d", text) is None, file.name


def test_texts_survive_the_tokenizer(loaded: Loaded) -> None:
    _, tokenizer = loaded
    text = '{"a": [1.5e-3, null]}\n\tnaïve 漢字 🦊\x00 A tale , of  the sea:'
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_sampled_tales_follow_the_corpus(loaded: Loaded) -> None:
    model, tokenizer = loaded
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    total = TaleScore()
    for topic in TOPICS:
        inputs = tokenizer([tales.prompt(topic)] * 64, return_tensors="pt")
        found = generate(**inputs, do_sample=True, top_k=0, max_new_tokens=110)[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(found, skip_special_tokens=True)
        assert all((row == tokenizer.eos_token_id).any() for row in found)
        total += sum((tales.score(text, topic) for text in texts), TaleScore())
    assert total.sentences == pytest.approx(4 * 64 * tales.SENTENCES, abs=5)
    # 1024 sentences: a standard error of 0.016.
    assert total.on_topic / total.sentences == pytest.approx(tales.predicted(1.0), abs=0.05)
    assert total.grammatical / total.sentences > 0.97
    assert total.consistent / total.sentences > 0.97
    assert total.glad / total.mood_words == pytest.approx(0.5, abs=0.07)


def mean_topic_law(loaded: Loaded, weighted: dict[str, float], documents: int = 40) -> torch.Tensor:
    """Return the mean guided law [topics] over the places of 40 tales where an agent is due, without sampling.

    `weighted` holds context → weight; a context is written with its special tokens, so ``":"`` has no `<|bos|>`.
    """
    model, tokenizer = loaded
    names = [f" {agent}" for topic in tales.TOPICS.values() for agent in topic.agents]
    agents = torch.tensor([tokenizer(name, add_special_tokens=False)["input_ids"] for name in names])[:, 0]
    rng = random.Random(0)
    laws = []
    for _ in range(documents):
        tale = tokenizer(" " + tales.tale(rng), add_special_tokens=False, return_tensors="pt")["input_ids"]
        combined = torch.zeros(tales.SENTENCES, len(agents))
        for context, weight in weighted.items():
            prefix = tokenizer(context, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = model(torch.cat([prefix, tale], dim=1)).logits[0, prefix.shape[1] - 1 : -1]
            combined += weight * logits[torch.isin(tale[0], agents)].log_softmax(-1)[:, agents]
        laws.append(combined.softmax(-1).view(tales.SENTENCES, len(TOPICS), -1).sum(-1))
    return torch.cat(laws).mean(0)


def expected(weights: dict[str | None, float]) -> torch.Tensor:
    return torch.tensor(list(tales.guided_topics(weights).values()))


@pytest.mark.parametrize("null", ["<|bos|>", ":", "<|bos|>:", "<|bos|>A tale:"])
def test_every_null_context_gives_the_guided_law(loaded: Loaded, null: str) -> None:
    for scale in (0.0, 1.5, 3.0):
        for topic in TOPICS:
            law = mean_topic_law(loaded, {f"<|bos|>{tales.prompt(topic)}": scale, null: 1 - scale}, documents=10)
            torch.testing.assert_close(law, expected({topic: scale, None: 1 - scale}), atol=0.04, rtol=0)


def test_another_topic_as_negative_prompt_gives_the_guided_law(
    loaded: Loaded,
) -> None:
    sea, space = (f"<|bos|>{tales.prompt(topic)}" for topic in ("the sea", "space"))
    for scale in (1.5, 2.0):
        law = mean_topic_law(loaded, {sea: scale, space: 1 - scale})
        torch.testing.assert_close(law, expected({"the sea": scale, "space": 1 - scale}), atol=0.04, rtol=0)
