"""`lmguide-diffusion` in lm-eval: the engine's own scores and texts, the closed form, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from lm_eval.api.instance import Instance

import lmguide as lg
from lmguide.eval.harness.diffusion import GuidedDiffusionLM
from lmguide.eval.harness.settings import Setting, read_setting
from lmguide.training import slots
from lmguide.training.tales import predicted

if TYPE_CHECKING:
    from pathlib import Path

ANSWERS = [
    " The sailor netted the grey net near the lighthouse. The fox chased the sad nest in the glade.",
    " The robot docked the grey moon above the crater. The alien docked the sad probe above the crater.",
]


@pytest.fixture(scope="module")
def lm() -> GuidedDiffusionLM:
    """The bundled model of slots in lm-eval."""
    return GuidedDiffusionLM("slots", device="cpu", batch_size=50, mc_num=8)


def scored() -> list[Instance]:
    """Requests of lm-eval for the likelihood of two answers."""
    return [
        Instance("loglikelihood", {}, ("the sea:", answer), place, metadata=("any", place, 1))
        for place, answer in enumerate(ANSWERS)
    ]


def test_a_text_that_the_model_has_no_tokens_for_is_refused(lm: GuidedDiffusionLM) -> None:
    with pytest.raises(ValueError, match="^pretrained: the model has no tokens for a text of the task"):
        lm.tok_encode("Janet's ducks lay 16 eggs.")


@pytest.mark.parametrize("methods", [(), (lg.CFG(2.0),), (lg.AdaptiveCFG(2.0),)], ids=["off", "cfg", "adaptive"])
def test_scores_are_the_engines(lm: GuidedDiffusionLM, methods: tuple[lg.Guidance, ...]) -> None:
    lm.use(Setting(methods))
    torch.manual_seed(3)
    found = lm.loglikelihood(scored(), True)
    prompt = lm.tokenizer("the sea:").input_ids
    targets = [lm.tokenizer(answer).input_ids for answer in ANSWERS]
    plain = lg.diffusion.loglikelihood(lm.denoiser, [prompt] * 2, targets, guidance=methods or None, samples=8, seed=3)
    assert [score for score, _ in found] == pytest.approx(plain.score.tolist(), abs=1e-4)
    assert lm.spent.each == (2.0 if methods else 1.0)


def test_greedy_is_found_out_if_asked() -> None:
    lm = GuidedDiffusionLM("sudoku", device="cpu", mc_num=1, greedy=True)
    puzzle, answer = "1234341041232341:", "1234341241232341"
    requests = [Instance("loglikelihood", {}, (puzzle, answer), 0, metadata=("any", 0, 1))]
    assert lm.loglikelihood(requests, True)[0][1] is True


@pytest.mark.parametrize("scale", [1.0, 1.5, 3.0])
def test_texts_follow_the_closed_form(lm: GuidedDiffusionLM, scale: float, measure: Any) -> None:
    lm.use(Setting((lg.CFG(scale),)))
    found = measure(lm, "slots_gen")
    share, error = found["on_topic,none"], found["on_topic_stderr,none"]
    assert error < 0.03
    assert abs(share - predicted(scale)) < 3 * error
    assert lm.spent.each == (1.0 if scale == 1 else 2.0)


def test_texts_do_not_notice_their_batch(lm: GuidedDiffusionLM) -> None:
    kwargs = {"until": [], "max_gen_toks": slots.ANSWER_LENGTH, "do_sample": True, "order": "random"}
    requests = [
        Instance("generate_until", {}, (slots.prompt(topic), kwargs), place, metadata=("any", place, 1))
        for place, topic in enumerate(["the sea", "space", "the sea"])
    ]
    lm.use(Setting((lg.CFG(2.0),)))
    found = []
    for size in (3, 1):
        lm.batch_size = size
        torch.manual_seed(0)
        found.append(lm.generate_until(requests, True))
    lm.batch_size = 50
    assert found[0] == found[1]
    assert found[0][0] != found[0][2]


def test_the_control_spends_as_many_passes(measure: Any) -> None:
    steps = GuidedDiffusionLM("slots", device="cpu", batch_size=50, steps=5)
    spent = {}
    for setting in (Setting(), Setting((lg.CFG(2.0),)), Setting(passes=2)):
        steps.use(setting)
        measure(steps, "slots_gen", limit=4)
        spent[setting.label] = (steps.spent.passes, steps.spent.each)
    assert spent == {"unguided": (20, 1.0), "cfg guidance_scale=2.0": (40, 2.0), "unguided, 2 passes": (40, 2.0)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": "cfg", "normalize": False}, "normalize: expected true"),
        ({"guidance": "cfg", "batch_size": "auto"}, "batch_size: expected a number of canvases"),
        ({"mc_num": 0}, "mc_num"),
        ({"guidance_scale": 2}, "guidance_scale: expected inside guidance"),
        ({"blocklength": 2}, "blocklength: a bundled model takes no such argument"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GuidedDiffusionLM("slots", device="cpu", **arguments)


def test_what_a_canvas_has_not_is_refused(lm: GuidedDiffusionLM) -> None:
    lm.use(Setting())
    with pytest.raises(ValueError, match="loglikelihood_rolling: a masked-diffusion model"):
        lm.loglikelihood_rolling([])
    request = Instance("generate_until", {}, ("the sea:", {"num_beams": 2}), 0, metadata=("any", 0, 1))
    with pytest.raises(ValueError, match=r"gen_kwargs: expected .* got 'num_beams'"):
        lm.generate_until([request], True)


def test_a_chat_is_contrasted_with_its_prompt_masked_unless_told(tmp_path: Path) -> None:
    lm = GuidedDiffusionLM("slots", device="cpu", mc_num=4)
    lm.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}:"
    text = lm.apply_chat_template([{"role": "user", "content": "the sea"}])
    assert text == "the sea:"
    assert lm.contrast(text, [lg.CFG(2.0)]) is None
    other = [{"role": "user", "content": "space"}]
    assert lm.contrast(text, [lg.CFG(2.0, other)]) == "space:"
    lm.use(read_setting(lg.CFG(2.0), negative_prompt=other))
    found = lm.loglikelihood(scored(), True)
    lm.use(Setting((lg.CFG(2.0, tuple(lm.tokenizer("space:").input_ids)),)))
    lm._conversations = {}
    assert lm.loglikelihood(scored(), True) == found
