"""The reward of a budget is that of a plain reference, and makes a perfect predictor sample the conditional law."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.descriptions.budget import RunningText, WithinBudget
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from lmguide.sources.rewards.budget import BudgetReward
from lmguide.sources.rewards.budget_model import LengthConfig, LengthModel
from tests.budgets import RATE, ByStates, ByText, by_text, log_reward
from tests.families import STATEFUL, VOCAB, made, tiny, tokens, words
from tests.huggingface.reference import next_token
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

PROMPTS = [tokens(9, 1), tokens(4, 2), tokens(6, 3)]
FREE: dict[str, Any] = {"every": True, "min_shape": None, "min_rate": None, "min_remaining": None}


def generation(prompts: Sequence[Sequence[int]] = PROMPTS, **more: Any) -> Generation:
    arguments: dict[str, Any] = {
        "model": tiny("llama"),
        "tokenizer": None,
        "prompts": pack(prompts, "cpu"),
        "batch": len(prompts),
        "vocab_size": VOCAB,
        "device": torch.device("cpu"),
        "total": 30,
    }
    return Generation(**arguments | more)


def bind(call: Generation | None = None, predictor: Any = None, budget: Any = 20, **more: Any) -> BudgetReward:
    context = WithinBudget(predictor or ByStates(), budget, **FREE | more)
    reward = bind_token_reward(context, call or generation())
    assert isinstance(reward, BudgetReward)
    return reward


def asked(reward: BudgetReward, answers: Sequence[Sequence[int]], scores: Tensor | None = None) -> Tensor:
    generated = torch.tensor(answers, dtype=torch.long).view(len(answers), -1)
    return reward.log_rewards(generated, torch.zeros(len(answers), VOCAB) if scores is None else scores)


def expected(
    answers: Sequence[Sequence[int]],
    budgets: Sequence[int],
    model: Any = None,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    min_rate: float | None = None,
) -> Tensor:
    rows = zip(prompts, answers, budgets, strict=True)
    return torch.stack(
        [
            log_reward(model or tiny("llama"), [*prompt, *answer], max(1, budget - len(answer)), min_rate)
            for prompt, answer, budget in rows
        ]
    )


def answers_of(length: int, seed: int = 50) -> list[list[int]]:
    return [tokens(length, seed + row) for row in range(len(PROMPTS))]


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("reader", [None, "gpt2"])
def test_step_by_step_on_ragged_rows(reader: str | None) -> None:
    predictor = ByStates(reader and tiny(reader, 1))
    reward, answers = bind(predictor=predictor, budget=(5, 30, 9)), answers_of(12)
    for length in range(13):
        now = [answer[:length] for answer in answers]
        close(asked(reward, now), expected(now, (5, 30, 9), predictor.reader))
        reward.rewind(length)
    assert (reward.forwards, reward.nfe) == (13, 13)


def test_a_predictor_of_texts() -> None:
    reward, answers = bind(predictor=ByText(), budget=7), answers_of(9)
    for length in (0, 1, 5, 9):
        now = [answer[:length] for answer in answers]
        left = max(1, 7 - length)
        wanted = [by_text([*prompt, *answer], left) for prompt, answer in zip(PROMPTS, now, strict=True)]
        close(asked(reward, now), torch.stack(wanted))
    assert (reward.forwards, reward.nfe) == (4, 4)


@pytest.mark.parametrize("family", ["llama", "mistral_sliding", "gemma3", "opt", "qwen3_next", "mamba", "mamba2"])
def test_every_kind_of_cache_follows_gates_drafts_and_beams(family: str) -> None:
    model = tiny(family)
    tolerance = 1e-4 if family in STATEFUL else 1e-5  # recurrent states round otherwise over several tokens
    budgets = (20, 20, 20)
    reward = bind(generation(model=model))
    answers = answers_of(14)
    for length in (0, 1, 6):  # behind a gate several tokens come at once
        now = [answer[:length] for answer in answers]
        close(asked(reward, now), expected(now, budgets, model), tolerance)
        reward.rewind(length)
    drafts = [[*answer[:6], *tokens(4, 70 + row)] for row, answer in enumerate(answers)]
    for length in (7, 8, 9, 10):
        now = [answer[:length] for answer in drafts]
        close(asked(reward, now), expected(now, budgets, model), tolerance)
    reward.rewind(8)  # two drafts were right
    now = [[*draft[:8], 90 + row] for row, draft in enumerate(drafts)]
    close(asked(reward, now), expected(now, budgets, model), tolerance)
    close(asked(reward, now), expected(now, budgets, model), tolerance)  # asked twice
    same = bind(generation([PROMPTS[0]] * 3, model=model), budget=(20,))
    asked(same, [answer[:3] for answer in answers])
    same.reorder(torch.tensor([2, 0, 1]))
    same.reorder(torch.tensor([1, 1, 2]))  # before it is asked again
    moved = [[*answers[row][:3], 40 + place] for place, row in enumerate((0, 0, 1))]
    close(asked(same, moved), expected(moved, budgets, model, [PROMPTS[0]] * 3), tolerance)


def test_beams_of_a_prompt_share_its_budget() -> None:
    call = generation([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    now = [[5], [6], [7], [8]]
    found = asked(bind(call, budget=(4, 25)), now)
    close(found, expected(now, (4, 4, 25, 25), prompts=call.prompts.tokens()))
    with refused("budget", "got 3 for 4 rows"):
        bind(call, budget=(1, 2, 3))
    with refused("budget", "got 2 for 3 rows"):
        bind(budget=(1, 2))


def test_without_a_budget_there_is_no_reward_and_no_pass() -> None:
    reward = bind(budget=None)
    assert not bool(asked(reward, answers_of(3)).any())
    assert reward.forwards == 0
    some = bind(budget=(None, 9, None))
    found = asked(some, answers_of(3))
    assert found.any(1).tolist() == [False, True, False]


def test_candidates_that_are_excluded() -> None:
    reward, answers = bind(min_rate=RATE, rest="excluded"), answers_of(2)
    wanted = expected(answers, (20, 20, 20), min_rate=RATE)
    unsure = wanted.isneginf()
    assert 0.2 < float(unsure.float().mean()) < 0.8
    close(asked(reward, answers), wanted)
    scores = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    found = asked(bind(min_rate=RATE), answers, scores)
    close(found[~unsure], wanted[~unsure])
    for row in range(3):
        sure = scores[row].exp() * ~unsure[row]
        assert found[row, unsure[row]].tolist() == pytest.approx(
            [math.log(float((sure * wanted[row].exp()).sum() / sure.sum()))] * int(unsure[row].sum()), abs=1e-5
        )
    found = asked(bind(plausibility=0.3), answers, scores)
    kept = scores.exp() >= 0.3 * scores.exp().amax(1, keepdim=True)
    close(found, expected(answers, (20, 20, 20)).masked_fill(~kept, -math.inf))


def test_where_nothing_counts_the_law_is_left_alone() -> None:
    """The published code takes the greedy token there."""
    model = made("llama")
    model.generation_config.eos_token_id = 7
    call = generation(model=model)
    assert not bool(asked(bind(call, min_rate=1e6), answers_of(2)).any()), "not even the end is favoured"
    scores = torch.zeros(3, VOCAB)
    valid = ~asked(bind(call, min_rate=RATE, rest="excluded"), answers_of(2)).isneginf()
    valid[:, 7] = False
    scores[1] = scores[1].masked_fill(valid[1], -math.inf)  # others have excluded all that counts
    for rest in ("mean", "excluded"):
        found = asked(bind(call, min_rate=RATE, rest=rest), answers_of(2), scores)
        assert found.any(1).tolist() == [True, False, True]


def test_the_end_of_the_span_keeps_every_budget() -> None:
    model = made("llama")
    model.generation_config.eos_token_id = [7, 9]
    reward = bind(generation(model=model), budget=1, min_rate=RATE, rest="excluded")
    answers = answers_of(3)
    wanted = expected(answers, (1, 1, 1), min_rate=RATE)
    wanted[:, [7, 9]] = 0.0
    close(asked(reward, answers), wanted)
    marked = bind(budget=1, end=(5, 6, 8))
    answers = [[11, 5, 6], [5, 6, 12], [5, 6, 8]]
    found = asked(marked, answers)
    wanted = expected(answers, (1, 1, 1))
    wanted[0, 8] = 0.0
    wanted[2] = 0.0  # this one has ended
    close(found, wanted)


class Perfect:
    """What the model itself says of its answers, by looking ahead at all of them."""

    def __init__(self, model: Any, end: int) -> None:
        self.model, self.end = model, end

    def within(self, text: Sequence[int], budget: int) -> list[float]:
        """`P(remaining tokens <= budget | text, v)`, for every `v`."""
        law = next_token(self.model, text, []).exp().tolist()
        return [self._after([*text, v], budget - 1) if v != self.end else 1.0 for v in range(len(law))]

    def _after(self, text: list[int], budget: int) -> float:
        if budget == 0:
            return 0.0
        law = next_token(self.model, text, []).exp().tolist()
        return math.fsum(p * within for p, within in zip(law, self.within(text, budget), strict=True))

    def log_prob_within(self, text: RunningText, budget: Tensor) -> Tensor:
        rows = zip(text.ids.tolist(), budget.tolist(), strict=True)
        return torch.tensor([self.within(ids, int(left)) for ids, left in rows]).log()


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_a_perfect_predictor_gives_the_models_law_of_spans_that_keep_the_budget(budget: int) -> None:
    """`p(answer | length <= budget) = p(answer) / P(length <= budget)`, answer by answer."""
    model, end, prompt = made("llama", 3, vocab_size=5), 4, [2, 3]
    model.generation_config.eos_token_id = end
    call = generation([prompt], model=model, vocab_size=5, total=budget)
    reward = bind_token_reward(WithinBudget(Perfect(model, end), budget, every=True), call)

    def steps(answer: Sequence[int]) -> tuple[float, float]:
        own = guided = 0.0
        for place, token in enumerate(answer):
            law = next_token(model, prompt, answer[:place])
            change = reward.log_rewards(torch.tensor([answer[:place]]).long().view(1, -1), law[None])[0]
            own, guided = own + float(law[token]), guided + float((law + change).log_softmax(-1)[token])
        return own, guided

    answers = [(*body, end) for size in range(budget) for body in itertools.product(range(4), repeat=size)]
    logs = [steps(answer) for answer in answers]
    total = math.log(math.fsum(math.exp(own) for own, _ in logs))
    assert total < -0.1
    for own, guided in logs:
        assert guided == pytest.approx(own - total, abs=1e-4)
    assert math.fsum(math.exp(guided) for _, guided in logs) == pytest.approx(1.0, abs=1e-4)


def length_model(**sizes: Any) -> Any:
    model: Any = LengthModel(LengthConfig(**sizes))
    return model.eval()


def test_the_length_model_reads_what_its_configuration_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "rank": 5, "layers": [0, 2, -1]}
    own = length_model(**sizes, reader=tiny("gpt2").config.to_diff_dict())
    for predictor in (length_model(**sizes), own):
        predictor.save_pretrained(tmp_path)
        reader = tiny("llama") if predictor.reader is None else predictor.reader
        answers = answers_of(3)
        found = asked(bind(predictor=str(tmp_path) if predictor is own else predictor), answers)
        for row, prompt in enumerate(PROMPTS):
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *answers[row]]])
                hidden = reader(ids, output_hidden_states=True).hidden_states
                state = torch.cat([hidden[layer][0, -1] for layer in (0, 2, -1)])
                raw = predictor.outer(torch.nn.functional.gelu(predictor.inner(state)))
            mean, rate = (torch.nn.functional.softplus(raw).double() + 1e-4).split(VOCAB)
            within = torch.distributions.Gamma(mean * rate, rate).cdf(torch.tensor(18.0).double().log())
            close(found[row], within.log().float())
            with torch.no_grad():
                some = torch.tensor([3, 50])
                states = torch.stack([hidden[layer][0, -1] for layer in (0, 2, -1)]).expand(2, -1, -1)
                torch.testing.assert_close(
                    predictor(states, some), tuple(law[[0, 1], some] for law in predictor(states)), atol=1e-6, rtol=1e-5
                )


class Gives:
    """A predictor that gives what it was made with."""

    def __init__(self, shape: Any, rate: Any) -> None:
        self.law = shape, rate

    def gamma(self, text: RunningText) -> Any:
        return self.law


class GivesLogs(Gives):
    def log_prob_within(self, text: RunningText, budget: Tensor) -> Any:
        return self.law[0]


def ones(*shape: int, value: float = 1.0) -> Tensor:
    return torch.full(shape or (3, VOCAB), value)


REFUSED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a wrong shape": (lambda: Gives(ones(3, 5), ones(3, 5)), (r"\[3, 120\]", r"\[3, 5\]")),
    "one law for all": (lambda: Gives(ones(VOCAB), ones(VOCAB)), (r"\[3, 120\]",)),
    "no tensors": (lambda: Gives(1.0, 2.0), ("gamma",)),
    "a shape below 0": (lambda: Gives(ones(value=-1.0), ones()), ("above 0", "softplus")),
    "a rate of 0": (lambda: Gives(ones(), ones(value=0.0)), ("above 0",)),
    "a rate that is NaN": (lambda: Gives(ones(), ones(value=math.nan)), ("NaN",)),
    "an infinite shape": (lambda: Gives(ones(value=math.inf), ones()), ("finite",)),
    "probabilities": (lambda: GivesLogs(ones(value=0.5), None), ("log-probabilities", "logarithm")),
    "logs that are NaN": (lambda: GivesLogs(ones(value=math.nan), None), ("NaN",)),
    "logs of a wrong shape": (lambda: GivesLogs(-ones(3), None), (r"1 tensor.*\[3, 120\]",)),
    "layers there are not": (lambda: ByStates(layers=(1, 5)), (r"\[-5, 4\]",)),
    "a head of another width": (
        lambda: length_model(vocab_size=VOCAB, hidden_size=16),
        ("width 32", "got one for 16"),
    ),
    "a head of another vocabulary": (
        lambda: length_model(vocab_size=9, hidden_size=32),
        ("120 tokens", "got one for 9"),
    ),
    "a head in training": (lambda: length_model(vocab_size=VOCAB, hidden_size=32).train(), (r"eval\(\)",)),
    "a reader of another vocabulary": (lambda: ByStates(made("gpt2", vocab_size=9)), ("vocabulary",)),
    "a reader that is an encoder-decoder": (lambda: ByStates(tiny("t5")), ("T5", "causal")),
    "a reader in training": (lambda: ByStates(made("gpt2").train()), (r"eval\(\)",)),
    "a reader with too few positions": (lambda: ByStates(made("gpt2", n_positions=32)), ("positions",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_predictors_that_are_refused(case: str) -> None:
    make, found = REFUSED[case]
    with refused("predictor", *found):
        asked(bind(predictor=make()), answers_of(2))


def test_a_reader_that_is_no_model() -> None:
    with refused("predictor", "int", error=TypeError):
        bind(predictor=ByStates(3))


def test_states_of_an_encoder_decoder_are_refused_and_its_texts_are_not() -> None:
    call = generation([[], []], model=tiny("t5"))
    for reader in (None, tiny("gpt2")):
        with refused("predictor", "behind a prompt", "of texts"):
            bind(call, ByStates(reader))
    found = asked(bind(call, ByText(), budget=6), [[4], [5]])
    close(found, torch.stack([by_text([4], 5.0), by_text([5], 5.0)]))


def test_newlines_need_a_tokenizer() -> None:
    with refused("every", "tokenizer=", "every=True"):
        bind(every=False)
    bind(generation(tokenizer=words()), every=False)
