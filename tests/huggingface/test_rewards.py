"""Rewards in the loops: a reward with a state and a closed form, which must be told of every beam and draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import lmguide as lg
from lmguide.contexts import ClassifierGradient, Context
from lmguide.guidance.rewards import Reward, add_reward
from lmguide.huggingface import rewards as engine
from lmguide.processors import base as processors
from tests.families import VOCAB, padded, tiny, tokens, words
from tests.huggingface.methods import SCALE, Setting
from tests.huggingface.modes import MODES
from tests.huggingface.reference import First, Law, next_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmguide.guidance import Guidance
    from lmguide.rules import Scale
    from lmguide.sources.rewards.base import Generation

NEW = 10


@dataclass(frozen=True)
class Written(Context):
    """`log r(v) = -(times that v stands in the text)`."""


@dataclass(frozen=True)
class Fresh(Reward):
    """Away from what has been written."""

    scale: float | tuple[float, ...] = 1.0

    def sources(self) -> Mapping[str, Context]:
        return {"reward": Written()}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        return add_reward(cond, sources["reward"], strength)


class Counts:
    """The reward, counted on from what was counted before, so that a missed event shows."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.counts = [_counts(generation.prompts.tokens())]
        self.forwards = self.nfe = 0
        self.asked: list[tuple[int, Tensor]] = []

    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        self.forwards, self.nfe = self.forwards + 1, self.nfe + 2
        self.asked.append((generated.shape[1], scores))
        assert len(self.counts) <= generated.shape[1] + 1, "tokens were taken back unannounced"
        for place in range(len(self.counts) - 1, generated.shape[1]):
            self.counts.append(self.counts[-1].scatter_add(1, generated[:, place, None], torch.ones(len(generated), 1)))
        return -self.counts[-1]

    def reorder(self, order: Tensor) -> None:
        self.counts = [counts[order] for counts in self.counts]

    def rewind(self, valid: int) -> None:
        del self.counts[max(valid, 0) + 1 :]


def _counts(rows: list[list[int]]) -> Tensor:
    return torch.stack([torch.bincount(torch.tensor(row, dtype=torch.long), minlength=VOCAB).float() for row in rows])


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[Counts]:
    """The rewards that calls have bound."""
    made: list[Counts] = []

    def bind(context: Context, generation: Generation) -> Counts:
        assert context == Written()
        made.append(Counts(generation))
        return made[-1]

    monkeypatch.setattr(engine, "bind_token_reward", bind)
    monkeypatch.setattr(processors, "bind_token_reward", bind)
    return made


def law(setting: Setting, scales: list[float], cfg: float = 1.0, every: int = 1) -> Law:
    """Guidance and the reward, row by row."""

    def of(row: int, answer: list[int]) -> Tensor:
        cond = next_token(setting.model, setting.prompts[row], answer)
        if cfg != 1:
            uncond = next_token(setting.model, setting.prompts[row][-1:], answer)
            cond = uncond + cfg * (cond - uncond)
        counts = _counts([[*setting.prompts[row], *answer]])[0]
        return cond - (scales[row] if len(answer) % every == 0 else 0) * counts

    return of


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode: str, bound: list[Counts]) -> None:
    chosen = MODES[mode]
    setting = Setting("llama", *chosen.rows())
    ids, mask = padded(setting.prompts)
    scales = [2.0, 1.0, 4.0][: len(ids)]
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False} | chosen.arguments
    more = chosen.engine | ({"assistant_model": tiny("llama", 1)} if chosen.assistant else {})
    transformers.set_seed(0)
    expected = First(setting.model, law(setting, scales, SCALE)).generate(ids, **arguments)
    transformers.set_seed(0)
    guided = lg.guide(setting.model, [Fresh(tuple(scales)), lg.CFG(SCALE)])
    found: Any = guided.generate(ids, **arguments | more)
    assert found.tolist() == expected.tolist()
    (reward,) = bound
    assert reward.generation.batch == len(reward.generation.prompts.ids)
    assert guided.stats.forwards >= reward.forwards > 0


@pytest.mark.parametrize("mode", ["ragged", "beams", "sampling", "returned sequences", "prompt lookup", "no cache"])
def test_a_processor_in_every_mode(mode: str, bound: list[Counts]) -> None:
    chosen = MODES[mode]
    setting = Setting("llama", *chosen.rows())
    ids, mask = padded(setting.prompts)
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False} | chosen.arguments
    scales = [2.0, 1.0, 4.0][: len(ids)]
    transformers.set_seed(0)
    expected = First(setting.model, law(setting, scales, SCALE)).generate(ids, **arguments)
    processor = lg.GuidanceLogitsProcessor(setting.model, [Fresh(tuple(scales)), lg.CFG(SCALE)], tokenizer=words())
    transformers.set_seed(0)
    found = setting.model.generate(ids, **arguments | chosen.engine, logits_processor=[processor])
    assert found.tolist() == expected.tolist()
    assert bound


def test_behind_a_gate_it_is_not_asked_and_catches_up(bound: list[Counts]) -> None:
    setting = Setting("llama", [tokens(9, 1), tokens(6, 2)], [])
    ids, mask = padded(setting.prompts)
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "num_beams": 3}
    expected = First(setting.model, law(setting, [3.0, 3.0], every=4)).generate(ids, **arguments)
    guided = lg.guide(setting.model, Fresh(3.0, gate=lg.Period(4)))
    found: Any = guided.generate(ids, **arguments)
    assert found.tolist() == expected.tolist()
    assert [step for step, _ in bound[0].asked] == [0, 4, 8]
    assert (guided.stats.steps, guided.stats.forwards, guided.stats.nfe) == (NEW, NEW + 3, NEW + 6)


def test_a_schedule_grows_it(bound: list[Counts]) -> None:
    setting = Setting("llama", [tokens(9, 1)], [])
    ids, _ = padded(setting.prompts)

    def growing(row: int, answer: list[int]) -> Tensor:
        weight = 0.5 + len(answer) / NEW
        return law(setting, [3.0 * weight])(row, answer)

    expected = First(setting.model, growing).generate(ids, max_new_tokens=NEW, do_sample=False)
    guided = lg.guide(setting.model, Fresh(3.0, schedule=lg.Linear(0.5, 1.5)))
    found: Any = guided.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert found.tolist() == expected.tolist()
    assert bound[0].generation.total == NEW


def test_it_is_told_what_the_rules_have_combined(bound: list[Counts]) -> None:
    model, prompt = tiny("llama"), tokens(9, 1)
    methods: list[Guidance] = [Fresh(2.0), lg.CFG(SCALE), Fresh(1.0)]
    lg.guide(model, methods).generate(torch.tensor([prompt]), max_new_tokens=1)
    cond, uncond = next_token(model, prompt, []), next_token(model, prompt[-1:], [])
    mixed = uncond + SCALE * (cond - uncond)
    first, second = (reward.asked[0][1][0] for reward in bound)
    torch.testing.assert_close(first, mixed, atol=1e-4, rtol=0)
    torch.testing.assert_close(second, mixed - 2 * _counts([prompt])[0], atol=1e-4, rtol=0)


def test_switched_off_it_is_not_even_bound(bound: list[Counts]) -> None:
    model, ids = tiny("llama"), torch.tensor([tokens(9, 1)])
    found: Any = lg.guide(model, Fresh(0.0)).generate(ids, max_new_tokens=NEW, do_sample=False)
    assert found.tolist() == model.generate(ids, max_new_tokens=NEW, do_sample=False).tolist()
    assert not bound


def test_an_encoder_decoders_text_is_what_its_decoder_writes(bound: list[Counts]) -> None:
    model, ids = tiny("t5"), torch.tensor([tokens(9, 1), tokens(9, 2)])

    def of(row: int, answer: list[int]) -> Tensor:
        return next_token(model, ids[row].tolist(), answer) - 3.0 * _counts([answer])[0]

    arguments: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 2}
    found: Any = lg.guide(model, Fresh(3.0)).generate(ids, **arguments)
    assert found.tolist() == First(model, of).generate(ids, **arguments).tolist()
    assert bound[0].generation.prompts.ids.shape == (4, 0)


def test_the_prompt_must_be_known() -> None:
    model, ids = tiny("llama"), torch.tensor([tokens(9, 1)])
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match=r"inputs_embeds: .*token ids"):
        lg.guide(model, lg.GeDi(tiny("gpt2"), (5,), ((5,), (6,)))).generate(inputs_embeds=embeds, max_new_tokens=2)


def test_rewards_of_tokens_and_of_canvases_do_not_change_places() -> None:
    denoiser, tokenizer = lg.bundled("slots")
    method = lg.GeDi(tiny("gpt2"), (5,), ((5,), (6,)))
    prompt = tokenizer("the sea:", return_tensors="pt").input_ids
    with pytest.raises(ValueError, match=r"ClassPosterior: .*left to right.*lmguide\.guide"):
        lg.diffusion.generate(
            lg.diffusion.Denoiser(denoiser, tokenizer=tokenizer), prompt, guidance=method, max_new_tokens=4
        )
    with pytest.raises(ValueError, match="ClassifierGradient: expected a model that denoises a canvas"):
        lg.guide(tiny("llama"), lg.ClassifierGuidance("c", 1)).generate(prompt, max_new_tokens=2)
    assert ClassifierGradient("c", 1) == lg.ClassifierGuidance("c", 1).sources()["reward"]
