"""`lmguide-hf` in lm-eval: what it writes, chats, the traps it closes, and the closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

import lmguide as lg
from lmguide.bundled import MODELS
from lmguide.eval.harness.base import model_path, seeded
from lmguide.eval.harness.hf import GuidedHFLM
from lmguide.eval.harness.settings import Setting, read_setting
from lmguide.training.tales import predicted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SLACK = 3.0
"""Standard errors that a measured share may be away from what the closed form says of a perfect model."""


def asked(texts: Sequence[str], **kwargs: Any) -> list[Instance]:
    """Requests of lm-eval for answers."""
    kwargs = {"until": ["\n"], "max_gen_toks": 12, **kwargs}
    return [
        Instance("generate_until", {}, (text, kwargs), place, metadata=("any", place, 1))
        for place, text in enumerate(texts)
    ]


@pytest.fixture
def chat(random_model: PreTrainedModel) -> GuidedHFLM:
    """A model with a chat template."""
    _, tokenizer = lg.bundled("tales")
    tokenizer.chat_template = TEMPLATE
    return GuidedHFLM(random_model, tokenizer=tokenizer, batch_size=2)


@pytest.mark.parametrize("scale", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_scores_follow_the_closed_form(tales: GuidedHFLM, scale: float, normalize: bool, measure: Any) -> None:
    tales.use(read_setting(lg.CFG(scale), normalize=normalize))
    found = measure(tales, "tales_mc")
    share, error = found["drawn,none"], found["drawn_stderr,none"]
    assert error < 0.04
    assert abs(share - predicted(scale)) < SLACK * error
    # Without the spread of the draws: the model itself has learned its topics a little too low.
    assert predicted(scale) - 0.02 < found["topic_probability,none"] < predicted(scale)


@pytest.mark.parametrize("scale", [1.0, 1.5, 3.0])
def test_texts_follow_the_closed_form(tales: GuidedHFLM, scale: float, measure: Any) -> None:
    tales.use(Setting((lg.CFG(scale),)))
    found = measure(tales, "tales_gen", limit=100)
    share, error = found["on_topic,none"], found["on_topic_stderr,none"]
    assert error < 0.03
    assert abs(share - predicted(scale)) < SLACK * error
    assert found["grammatical,none"] > 0.95


def test_answers_are_those_of_a_guided_view(random_lm: GuidedHFLM) -> None:
    setting = Setting((lg.CFG(2.0, "A sad tale:"),))
    random_lm.use(setting)
    texts = ["A tale of the sea:", "A tale:", "The crab rowed by the"]
    found = random_lm.generate_until(asked(texts), True)
    guided = lg.guide(random_lm.model, setting.guidance, tokenizer=random_lm.tokenizer)
    for text, answer in zip(texts, found, strict=True):
        inputs = random_lm.tokenizer(text, return_tensors="pt")
        written = guided.generate(**inputs, max_new_tokens=12, do_sample=False)
        plain = random_lm.tokenizer.decode(written[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        assert answer == plain.split("\n")[0]


def test_off_writes_what_the_model_writes_and_costs_one_pass(random_lm: GuidedHFLM) -> None:
    texts = ["A tale of the sea:", "A tale:"]
    random_lm.use(Setting())
    plain = random_lm.generate_until(asked(texts), True)
    assert random_lm.spent.each == 1.0
    random_lm.use(Setting((lg.CFG(1.0),)))
    assert random_lm.generate_until(asked(texts), True) == plain
    assert random_lm.spent.each == 1.0
    random_lm.use(Setting((lg.CFG(2.0),)))
    random_lm.generate_until(asked(texts), True)
    assert 1.9 < random_lm.spent.each <= 2.0 + 1 / 6


def test_the_control_spends_as_many_passes(random_lm: GuidedHFLM) -> None:
    random_lm.use(Setting(passes=2))
    (found,) = random_lm.generate_until(asked(["A tale of the sea:"]), True)
    inputs = random_lm.tokenizer("A tale of the sea:", return_tensors="pt")
    beams = random_lm.model.generate(**inputs, max_new_tokens=12, num_beams=2, do_sample=False)
    assert found == random_lm.tokenizer.decode(beams[0, 7:], skip_special_tokens=True).split("\n")[0]
    assert random_lm.spent.each == 2.0


def test_samples_depend_on_the_seed_alone(random_lm: GuidedHFLM) -> None:
    random_lm.use(Setting((lg.CFG(1.5),)))
    batch = asked(["A tale of the sea:"] * 7, do_sample=True, temperature=1.0)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(random_lm.generate_until(batch, True))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 7
    assert seeded(0, 1) != seeded(1, 0)


def test_a_chat_is_contrasted_with_another_chat(chat: GuidedHFLM) -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A tale?"},
        {"role": "assistant", "content": "The sea."},
        {"role": "user", "content": "Another?"},
    ]
    text = chat.apply_chat_template(history)
    assert text.endswith("<user>Another?\n<assistant> ")
    empty = "<system>Be brief.\n<user>A tale?\n<assistant>The sea.\n<user>\n<assistant> "
    assert chat.contrast(text, [lg.CFG(2.0)]) == empty
    assert chat.contrast(text, [lg.CFG(2.0, lg.EmptyPrompt())]) == empty
    named = chat.contrast(text, [lg.CFG(2.0, "Be sad.")])
    assert named == text.replace("Be brief.", "Be sad.")
    begun = chat.apply_chat_template([*history, {"role": "assistant", "content": "Well"}], False)
    assert chat.contrast(begun, [lg.CFG(2.0)]) == begun.replace("Another?", "")
    assert chat.contrast("A tale:", [lg.CFG(2.0)]) is None
    with pytest.raises(ValueError, match="source: the last token of a chat"):
        chat.contrast(text, [lg.CFG(2.0, lg.LastToken())])


def test_chats_are_scored_and_written_against_their_contrast(chat: GuidedHFLM) -> None:
    texts = [chat.apply_chat_template([{"role": "user", "content": word}]) for word in ("The crab", "A fox in space")]
    nulls = chat.apply_chat_template([{"role": "user", "content": ""}])
    scored = [
        Instance("loglikelihood", {}, (text, "The sea"), place, metadata=("any", place, 1))
        for place, text in enumerate(texts)
    ]
    chat.use(Setting((lg.CFG(2.0),)))
    found, written = chat.loglikelihood(scored, True), chat.generate_until(asked(texts), True)
    # The same without knowing that these are chats: the contrast is given as text. lm-eval moves the space at the end
    # of a prompt to the text that is scored, but leaves it where an answer is written.
    chat._conversations = {}
    chat.use(Setting((lg.CFG(2.0, nulls.rstrip()),)))
    assert [total for total, _ in chat.loglikelihood(scored, True)] == pytest.approx([total for total, _ in found])
    chat.use(Setting((lg.CFG(2.0, nulls),)))
    assert chat.generate_until(asked(texts), True) == written


def test_chats_of_several_contrasts_together_are_those_apart(chat: GuidedHFLM) -> None:
    text = chat.apply_chat_template([{"role": "user", "content": "The crab"}])
    requests = [Instance("loglikelihood", {}, (text, "The sea"), 0, metadata=("any", 0, 1))]
    settings = [Setting(), *(Setting((lg.CFG(2.0, prompt),)) for prompt in (None, "Be sad.", "Be glad."))]
    apart = []
    for setting in settings:
        chat.use(setting)
        apart += chat.loglikelihood(requests, True)
    together = []
    for setting in settings:
        chat.use(setting, settings)
        together += chat.loglikelihood(requests, True)
    assert together == apart
    assert len(set(apart)) == 4


def test_rolling_perplexity_is_refused_under_guidance(random_lm: GuidedHFLM) -> None:
    requests = [Instance("loglikelihood_rolling", {}, ("The crab rowed.",), 0, metadata=("any", 0, 1))]
    random_lm.use(Setting((lg.CFG(1.0),)))
    (found,) = random_lm.loglikelihood_rolling(requests, True)
    assert math.isfinite(found) and found < 0
    random_lm.use(Setting((lg.CFG(1.5),)))
    with pytest.raises(ValueError, match="loglikelihood_rolling: .* Run it without guidance"):
        random_lm.loglikelihood_rolling(requests, True)


def test_a_cache_of_answers_keeps_to_its_guidance(random_lm: GuidedHFLM, tmp_path: Path) -> None:
    request = Instance("loglikelihood", {}, ("A tale of the sea:", " The crab"), 0, metadata=("any", 0, 1))

    def answers(scale: float, path: Path) -> Any:
        random_lm.use(Setting((lg.CFG(scale),)))
        return CachingLM(random_lm, str(path)).loglikelihood([request])

    plain = answers(1.0, tmp_path / "one")
    guided = answers(3.0, tmp_path / "three")
    assert answers(1.0, tmp_path / "one") == plain != guided == answers(3.0, tmp_path / "three")
    with pytest.raises(ValueError, match="use_cache: the answers in this cache were made with other guidance"):
        answers(3.0, tmp_path / "one")
    cached = CachingLM(random_lm, str(tmp_path / "three"))
    other = Instance("loglikelihood", {}, ("A tale:", " The fox"), 0, metadata=("any", 0, 1))
    random_lm.use(Setting())
    random_lm.loglikelihood([other], True)  # not through the cache, and not into it
    assert len(cached.dbdict) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": "cfgg"}, "Did you mean 'cfg'"),
        ({"guidance": "cfg", "entropy_threshold": 0.5}, "entropy_threshold: expected inside guidance"),
        ({"gamma": 1.5}, "gamma: expected inside guidance"),
        ({"guidence": "cfg"}, "Did you mean guidance"),
        ({"guidance": "cfg", "source": "last_tokn"}, "source: expected 'default'"),
        ({"guidance": "dola", "source": "empty"}, "source: expected a method with a negative prompt"),
        ({"guidance": "cfg", "source": "empty", "negative_prompt": "A tale:"}, "negative_prompt: is a source itself"),
        ({"guidance": "cfg", "normalize": "no"}, "normalize: expected true or false"),
        ({"guidance": "cfg", "logits_cache": True}, "logits_cache: expected false"),
        ({"guidance": lg.CFG((1.0, 2.0))}, "guidance_scale: expected one number"),
        ({"guidance": 3}, "guidance: expected a method"),
        ({"guidance": "cfg", "sources": "last_token"}, "sources: expected a dictionary"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_is_loaded(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GuidedHFLM("a model that is not there", device="cpu", **arguments)


def test_results_tell_the_setting(tales: GuidedHFLM) -> None:
    tales.use(read_setting("cfg:guidance_scale=2", normalize=False, source="last_token"))
    told = tales.get_model_info()["guidance"]
    assert told["label"] == "cfg guidance_scale=2, source=last_token, not normalised"
    assert read_setting(told["guidance"], told["normalize"], told["source"]) == tales.setting


def test_a_folder_of_ones_own_is_no_bundled_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert model_path(str(tmp_path)) == (str(tmp_path), False)
    assert model_path("tales") == model_path("bundled/tales") == (str(MODELS / "tales"), True)
    assert model_path("gpt2") == ("gpt2", False)
    assert model_path("") == ("", False)


@pytest.mark.parametrize("multiturn", [True, False])
def test_lm_evals_chats_are_known_as_such(chat: GuidedHFLM, tasks: Any, multiturn: bool) -> None:
    chat.use(Setting((lg.CFG(2.0),)))
    found = lm_eval.simple_evaluate(
        chat,
        tasks=["tales_mc"],
        num_fewshot=1,
        limit=2,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="Go on.",
        task_manager=tasks,
        bootstrap_iters=0,
    )
    prompts = {arguments[0] for sample in found["samples"]["tales_mc"] for arguments in sample["arguments"]}
    assert len(prompts) == 2
    for prompt in prompts:
        assert prompt.count("<user>") == (2 if multiturn else 1)
        other = chat.contrast(prompt, [lg.CFG(2.0)])
        assert other is not None and other.startswith("<system>Go on.") and other.endswith("<user>\n<assistant> ")
