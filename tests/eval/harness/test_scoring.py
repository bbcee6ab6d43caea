"""Scores of given texts are those of plain sums, and of the processors that walk along the text token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import lmguide as lg
from lmguide.eval.harness.settings import Setting, read_setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lmguide.eval.harness.hf import GuidedHFLM

PAIRS = [
    ("A tale of the sea:", " The sailor hauled the net."),
    ("A tale of space:", " Gladly, a robot docked."),
    ("A tale of the kitchen: The cook", " baked"),
    ("", "A tale of the forest"),
    ("A tale of the sea:", " The"),
]


def requests(pairs: Sequence[tuple[str, str]], task: str = "any") -> list[Instance]:
    """Requests of lm-eval for the likelihood of some texts."""
    return [Instance("loglikelihood", {}, pair, place, metadata=(task, place, 1)) for place, pair in enumerate(pairs)]


def encoded(lm: GuidedHFLM, context: str, target: str) -> tuple[list[int], list[int]]:
    """The tokens of both, as lm-eval cuts them; the tokenizer begins with a special token."""
    before = lm.tok_encode(context) if context else [lm.prefix_token_id]
    return before, lm.tok_encode(context + target)[len(before) :]


def log_probs(model: Any, context: list[int], target: list[int]) -> Tensor:
    """The model's log-probabilities where the target's tokens are predicted, `[L, V]`."""
    with torch.no_grad():
        logits = model(torch.tensor([context + target])).logits[0]
    found: Tensor = logits[len(context) - 1 : -1].float().log_softmax(-1)
    return found


def test_unguided_is_lm_evals_own_bit_for_bit(random_lm: GuidedHFLM, random_model: PreTrainedModel) -> None:
    _, tokenizer = lg.bundled("tales")
    plain = HFLM(random_model, tokenizer=tokenizer, batch_size=3, logits_cache=False)
    random_lm.use(Setting())
    assert random_lm.loglikelihood(requests(PAIRS), True) == plain.loglikelihood(requests(PAIRS), True)


@pytest.mark.parametrize("scale", [1.5, 3.0, 0.0])
def test_raw_sums_are_those_of_the_paper(random_lm: GuidedHFLM, scale: float) -> None:
    random_lm.use(read_setting(lg.CFG(scale), normalize=False))
    found = random_lm.loglikelihood(requests(PAIRS), True)
    for (context, target), (total, greedy) in zip(PAIRS, found, strict=True):
        before, after = encoded(random_lm, context, target)
        cond = log_probs(random_lm.model, before, after)
        uncond = log_probs(random_lm.model, before[-1:], after)
        guided = scale * cond + (1 - scale) * uncond
        assert total == pytest.approx(float(guided.gather(1, torch.tensor(after)[:, None]).sum()), abs=1e-4)
        assert greedy == (guided.argmax(-1).tolist() == after)


@pytest.mark.parametrize(
    ("source", "null"),
    [("last_token", [40]), ("empty", "bos"), ({"negative_prompt": "A tale:"}, "A tale:")],
)
def test_sources_are_what_they_say(random_lm: GuidedHFLM, source: Any, null: Any) -> None:
    context, target = "A tale of the sea:", " The crab rowed."
    before, after = encoded(random_lm, context, target)
    other = {"bos": [random_lm.tokenizer.bos_token_id]}.get(str(null), before[-1:])
    if source == {"negative_prompt": null}:
        other = random_lm.tok_encode(null)
    random_lm.use(read_setting(lg.CFG(2.0), source=source))
    ((total, _),) = random_lm.loglikelihood(requests([(context, target)]), True)
    cond, uncond = log_probs(random_lm.model, before, after), log_probs(random_lm.model, other, after)
    guided = (2 * cond - uncond).log_softmax(-1)
    assert total == pytest.approx(float(guided.gather(1, torch.tensor(after)[:, None]).sum()), abs=1e-4)


METHODS = [
    lg.CFG(2.0),
    lg.CFG(2.0, "A tale:", guidance_rescale=0.5),
    lg.SelectiveCFG(2.0, "A tale:", entropy_threshold=5.9),
    lg.SuffixCFG(2.0, entropy_threshold=None),
    lg.APG(3.0, "A tale:", eta=0.5),
    lg.TPG(2.0),
    lg.PREADD(2.0, "A sad tale."),
    lg.CFG(3.0, "A tale:", schedule=lg.Linear(0.0, 1.0)),
    lg.CFG(3.0, "A tale:", gate=lg.Period(2)),
    lg.DoLa(),
    lg.S2Guidance(2.0, "A tale:"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).name)
def test_one_pass_is_a_walk_along_the_text(random_lm: GuidedHFLM, method: lg.Guidance) -> None:
    random_lm.use(Setting((method,)))
    pairs = [pair for pair in PAIRS if pair[0]]
    found = random_lm.loglikelihood(requests(pairs), True)
    for (context, target), (total, _) in zip(pairs, found, strict=True):
        before, after = encoded(random_lm, context, target)
        processor = lg.GuidanceLogitsProcessor(random_lm.model, method, random_lm.tokenizer, max_new_tokens=len(after))
        cond = log_probs(random_lm.model, before, after)
        walked = sum(
            float(processor(torch.tensor([before + after[:place]]), cond[place : place + 1])[0, token])
            for place, token in enumerate(after)
        )
        assert total == pytest.approx(walked, abs=2e-4)


def test_settings_together_are_settings_apart(random_lm: GuidedHFLM) -> None:
    settings = [Setting(), Setting((lg.CFG(1.5),)), Setting((lg.CFG(3.0),), normalize=False), Setting((lg.DoLa(),))]
    apart = []
    for setting in settings:
        random_lm.use(setting)
        apart.append(random_lm.loglikelihood(requests(PAIRS), True))
    passes = []
    for setting, alone in zip(settings, apart, strict=True):
        random_lm.use(setting, settings)
        counted = _counted(random_lm)
        assert random_lm.loglikelihood(requests(PAIRS), True) == alone
        passes.append(counted())
    assert passes[0] > 0
    assert passes[1:] == [0, 0, 0]


def test_costs_are_counted_for_each_setting(random_lm: GuidedHFLM) -> None:
    for setting, each in ((Setting(), 1.0), (Setting((lg.CFG(2.0),)), 2.0), (Setting((lg.CFG(1.0),)), 1.0)):
        random_lm.use(setting)
        random_lm.loglikelihood(requests(PAIRS), True)
        assert random_lm.spent.each == each


def test_sources_of_tasks_stay_apart(random_lm: GuidedHFLM) -> None:
    both = requests(PAIRS[:2], "one") + requests(PAIRS[:2], "two")
    random_lm.use(read_setting(lg.CFG(2.0), source="empty", sources={"two": {"negative_prompt": "A tale:"}}))
    found = random_lm.loglikelihood(both, True)
    random_lm.use(read_setting(lg.CFG(2.0), source="empty"))
    first = random_lm.loglikelihood(both[:2], True)
    random_lm.use(read_setting(lg.CFG(2.0, "A tale:")))
    assert found == first + random_lm.loglikelihood(both[:2], True)
    assert found[:2] != found[2:]


def test_long_contexts_are_cut_on_the_left(random_lm: GuidedHFLM) -> None:
    random_lm.use(Setting((lg.CFG(2.0),)))
    long = "The crab rowed. " * 40
    (found,) = random_lm.loglikelihood(requests([(long.strip(), " The")]), True)
    tokens = random_lm.tok_encode(long.strip())
    target = random_lm.tok_encode(" The", add_special_tokens=False)
    cond = log_probs(random_lm.model, tokens[-128:], target)
    uncond = log_probs(random_lm.model, tokens[-1:], target)
    guided = (2 * cond - uncond).log_softmax(-1)
    assert len(target) == 1 and len(tokens) > 128
    assert found[0] == pytest.approx(float(guided[0, target[0]]), abs=1e-4)


def test_rewards_are_refused_for_scores(random_lm: GuidedHFLM) -> None:
    random_lm.use(Setting((lg.Fudge("bundled/mood_classifier", label="glad"),)))
    with pytest.raises(ValueError, match=r"guidance: expected methods that combine sources .* got Fudge"):
        random_lm.loglikelihood(requests(PAIRS), True)


def _counted(lm: GuidedHFLM) -> Any:
    """Count forward passes of the model from here on."""
    calls = []
    handle = lm.model.register_forward_hook(lambda *_: calls.append(1))

    def count() -> int:
        handle.remove()
        return len(calls)

    return count
