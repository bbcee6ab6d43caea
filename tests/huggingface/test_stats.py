"""What a call reports is what it did: forward passes counted by hooks, gates and late tokens by the law."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from tests.families import ENCODER_DECODERS, FAMILIES, padded, tiny, tokens, words
from tests.huggingface.methods import METHODS, Setting, entropy_of
from tests.huggingface.reference import First, next_token
from tests.huggingface.test_view import Counter

if TYPE_CHECKING:
    from lmguide.huggingface import Stats

NEW = 12
SETTING = Setting("llama", [tokens(9, 1), tokens(6, 2)], [tokens(4, 3), tokens(12, 4)])
SINGLE = Setting("llama", [tokens(9, 1)], [tokens(4, 3)])
IDS, MASK = padded(SETTING.prompts)
ARGUMENTS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


def run(setting: Setting, guidance: Any, **more: Any) -> tuple[Stats, int, list[list[int]]]:
    """The report of a guided call, its forward passes as the hooks counted them, and the answers."""
    ids, mask = padded(setting.prompts)
    guided: Any = lg.guide(setting.model, guidance, tokenizer=words())
    with Counter(setting.model, setting.expert, setting.amateur) as counter:
        output = guided.generate(ids, attention_mask=mask, **ARGUMENTS | more)
    return guided.stats, counter.count, output[:, ids.shape[1] :].tolist()


def fired_steps(setting: Setting, answers: list[list[int]]) -> list[int]:
    """The steps at which the entropy of some row exceeds the threshold, by the law."""
    return [
        step
        for step in range(NEW)
        if any(
            entropy_of(next_token(setting.model, prompt, answer[:step])) > setting.threshold
            for prompt, answer in zip(setting.prompts, answers, strict=True)
        )
    ]


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "returned sequences": {"num_return_sequences": 2, "do_sample": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "method", ["cfg", "selective", "suffix, selective", "dexperts", "dola", "mixture", "two methods"]
)
def test_forwards_are_those_a_hook_counts(method: str, mode: str) -> None:
    stats, counted, _ = run(SETTING, METHODS[method][0](SETTING), **MODES[mode])
    assert stats.forwards == counted
    assert stats.steps == NEW
    assert stats.nfe >= stats.forwards
    assert 0 < stats.fired <= stats.steps


@pytest.mark.parametrize("family", FAMILIES)
def test_forwards_are_those_a_hook_counts_in_every_family(family: str) -> None:
    setting = Setting(family, SETTING.prompts, SETTING.negatives)
    ids, mask = padded(setting.prompts, right=family in ENCODER_DECODERS)
    for method in ("cfg", "selective", "suffix, selective"):
        guided: Any = lg.guide(setting.model, METHODS[method][0](setting), tokenizer=words())
        with Counter(setting.model) as counter:
            guided.generate(ids, attention_mask=mask, **ARGUMENTS)
        assert guided.stats.forwards == counter.count, method


def test_batched_guidance_runs_one_pass_a_step() -> None:
    """A prefill for each of the two contexts, then both in one: the whole point of the engine."""
    stats, counted, _ = run(SETTING, METHODS["cfg"][0](SETTING))
    assert (stats.steps, stats.fired, stats.caught_up, stats.forwards, stats.nfe) == (NEW, NEW, 0, NEW + 1, 2 * NEW)
    assert counted == NEW + 1
    stats, counted, _ = run(SETTING, METHODS["mixture"][0](SETTING))
    assert (stats.forwards, stats.nfe, counted) == (NEW + 3, 4 * NEW, NEW + 3)


def test_one_negative_for_a_batch_is_prefilled_once() -> None:
    rows: list[int] = []

    def hook(_: Any, __: Any, kwargs: dict[str, Any], ___: Any) -> None:
        rows.append(kwargs["input_ids"].shape[0])

    handle = tiny("llama").register_forward_hook(hook, with_kwargs=True)
    try:
        run(SETTING, lg.CFG(3.0, (4, 5, 6)))
    finally:
        handle.remove()
    assert rows == [2, 1, *[4] * (NEW - 1)]


@pytest.mark.parametrize("setting", [SINGLE, SETTING], ids=["one row", "two rows"])
def test_selective_guidance_pays_where_it_fires(setting: Setting) -> None:
    """`fired` and `caught_up` are what the law says, and every fired step is one pass of the second branch."""
    stats, counted, answers = run(setting, METHODS["selective"][0](setting))
    fired = fired_steps(setting, answers)
    assert 2 < len(fired) < NEW - 1, "the threshold no longer lies between the entropies"
    late = [step - before - 1 for before, step in zip([0, *fired], fired, strict=False)]
    assert stats.steps == NEW
    assert stats.fired == len(fired)
    assert stats.caught_up == sum(max(0, tokens) for tokens in late)
    assert stats.caught_up > 0
    assert stats.forwards == counted == NEW + len(fired)


def test_a_suffix_pays_where_it_fires_and_nothing_else() -> None:
    stats, counted, answers = run(SETTING, METHODS["suffix, selective"][0](SETTING))
    fired = fired_steps(SETTING, answers)
    assert 2 < len(fired) < NEW
    assert (stats.fired, stats.caught_up) == (len(fired), 0)
    assert stats.forwards == counted == NEW + len(fired)


def test_a_gate_that_never_opens_runs_no_second_branch() -> None:
    for method in (
        lg.SelectiveCFG(3.0, SETTING.negative, entropy_threshold=99.0),
        lg.SuffixCFG(3.0, (5, 7), entropy_threshold=99.0),
        lg.DExperts(SETTING.expert, SETTING.amateur, gate=lg.Interval(start=NEW)),
        lg.CFG(3.0, SETTING.negative, schedule=lg.Window(start=NEW)),
    ):
        stats, counted, answers = run(SETTING, method)
        assert (stats.fired, stats.caught_up, stats.forwards, counted) == (0, 0, NEW, NEW), method
        plain: Any = tiny("llama").generate(IDS, attention_mask=MASK, **ARGUMENTS)
        assert answers == plain[:, IDS.shape[1] :].tolist()


def test_finished_rows_open_no_gate() -> None:
    """Behind its end-of-sequence token a row is not decoded, so its entropy must not cost a pass."""
    guided: Any = lg.guide(tiny("llama"), METHODS["selective"][0](SETTING))
    plain = guided.generate(IDS, attention_mask=MASK, **ARGUMENTS)[:, IDS.shape[1] :].tolist()
    first, second = plain
    eos = next(token for token in first[1:] if token not in second)
    end = first.index(eos) + 1
    with Counter(tiny("llama")) as counter:
        guided.generate(IDS, attention_mask=MASK, eos_token_id=eos, **ARGUMENTS)
    open_steps = []
    for step in range(NEW):
        live = [0, 1] if step < end else [1]
        laws = [next_token(tiny("llama"), SETTING.prompts[row], plain[row][:step]) for row in live]
        open_steps += [step] if any(entropy_of(law) > SETTING.threshold for law in laws) else []
    assert len(open_steps) < len(fired_steps(SETTING, plain)), "the finished row would have opened no gate anyway"
    assert guided.stats.fired == len(open_steps)
    assert guided.stats.forwards == counter.count == NEW + len(open_steps)


def test_drafts_are_scored_in_one_pass() -> None:
    setting = Setting("llama", [tokens(9, 1) * 2], SINGLE.negatives)
    plain, _, answers = run(setting, METHODS["cfg"][0](setting))
    drafted, counted, same = run(setting, METHODS["cfg"][0](setting), prompt_lookup_num_tokens=3)
    assert same == answers
    assert drafted.steps <= plain.steps
    assert drafted.forwards == counted == drafted.steps + 1


def test_each_call_counts_anew() -> None:
    guided: Any = lg.guide(tiny("llama"), METHODS["selective"][0](SETTING))
    guided.generate(IDS, attention_mask=MASK, **ARGUMENTS)
    first = guided.stats
    guided.generate(IDS, attention_mask=MASK, **ARGUMENTS)
    assert guided.stats == first
    assert guided.stats is not first
    guided.generate(IDS, attention_mask=MASK, guidance_scale=1.0, **ARGUMENTS)
    assert guided.stats.steps == 0


def test_drafts_are_accepted_as_the_reference_accepts_them() -> None:
    """Prompt lookup with an answer that repeats itself, so that several drafts a step stand."""
    model = tiny("llama")
    setting = Setting("llama", [tokens(9, 1) * 2], [tokens(4, 3)])
    ids = torch.tensor(setting.prompts)
    arguments = ARGUMENTS | {"max_new_tokens": 30}
    guided: Any = lg.guide(model, lg.CFG(1.2, setting.negative))
    expected = First(
        model,
        lambda row, answer: (
            1.2 * next_token(model, setting.prompts[row], answer)
            - 0.2 * next_token(model, setting.negatives[row], answer)
        ),
    ).generate(ids, **arguments)
    assert guided.generate(ids, prompt_lookup_num_tokens=4, **arguments).tolist() == expected.tolist()
    assert guided.stats.steps < 30, "no draft was accepted, so the test tests nothing"
