"""Every guidance method beside its law on plain log-probabilities. A new method is one line in `METHODS`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

import lmguide as lg
from lmguide import rules
from tests.budgets import RATE, ByStates, log_reward
from tests.families import ENCODER_DECODERS, VOCAB, text, tiny
from tests.gedi import kept, log_posterior
from tests.huggingface.reference import Law, View, next_token, thinned
from tests.sources.rewards import topics
from tests.sources.rewards.classifiers import alone, bag, unpadded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmguide import Guidance
    from tests.families import Model

SCALE = 3.0
NEW = 8
"""Tokens that every answer of the matrix has at most."""
PASSAGE = (11, 12, 13)
"""Tokens that every prompt of the matrix contains, for the method that takes a passage out."""
SUFFIX = (33, 90, 7)
CLASSES = ((40,), (41, 42))
"""Control codes of the guide that judges for GeDi."""
BARRED = tuple(f"w{token}" for token in range(2, VOCAB, 5))
"""Words that an answer must not have."""
UNLIKELY = -9.0
"""Bias of the wanted class: where it is all but certain there is nothing to guide."""


@dataclass(frozen=True)
class Setting:
    """The models and prompts of one cell of the matrix."""

    family: str
    prompts: Sequence[Sequence[int]]
    negatives: Sequence[Sequence[int]]

    @property
    def model(self) -> Model:
        return tiny(self.family)

    @property
    def expert(self) -> Model:
        return tiny(self.family, 1)

    @property
    def amateur(self) -> Model:
        return tiny(self.family, 2)

    @property
    def judge(self) -> Model:
        """A causal model of the same vocabulary."""
        return tiny("gpt2" if self.family in ENCODER_DECODERS else self.family, 3)

    def written(self, prompt: Sequence[int]) -> Sequence[int]:
        """What of a prompt belongs to the text that is written: an encoder's is another text."""
        return [] if self.family in ENCODER_DECODERS else prompt

    @property
    def negative(self) -> Any:
        """The negatives as a method takes them."""
        return tuple(map(tuple, self.negatives))

    @property
    def thinned(self) -> Model:
        """The model with the blocks skipped that `DroppedBlocks(0.5)` chooses."""
        return _thinned(self.model)

    @cached_property
    def threshold(self) -> float:
        """An entropy, in nats, that about half of the model's steps exceed."""
        return _median_entropy(self.model, tuple(self.prompts[0]))

    def law(self, method: str, model: Model | None = None) -> Law:
        """The law of a method in this setting, for the family's model or another."""
        score = METHODS[method][1]
        negatives = self.negatives if len(self.negatives) > 1 else list(self.negatives) * len(self.prompts)

        def law(row: int, answer: list[int]) -> Tensor:
            view = View(model or self.model, self.prompts[row], negatives[row], answer)
            return score(self, view.of(view.model), view)

        return law


@lru_cache
def _thinned(model: Model) -> Model:
    return thinned(model, lg.DroppedBlocks(0.5, 0))


@lru_cache
def _median_entropy(model: Model, prompt: tuple[int, ...]) -> float:
    answer: list[int] = []
    entropies = []
    for _ in range(9):
        logp = next_token(model, prompt, answer)
        entropies.append(entropy_of(logp))
        answer.append(int(logp.argmax()))
    return sorted(entropies)[4] - 1e-3


def entropy_of(logp: Tensor) -> float:
    """Nats."""
    return float(-(logp.exp() * logp).sum())


def _mix(u: Tensor, c: Tensor, scale: float) -> Tensor:
    return u + scale * (c - u)


def _rescaled(g: Tensor, c: Tensor, share: float) -> Tensor:
    return g + share * (c.std() / g.std() - 1) * (g - g.mean())


def _kl(p: Tensor, q: Tensor) -> float:
    return float((p.exp() * (p - q)).sum())


def _plausible(scores: Tensor, by: Tensor, share: float) -> Tensor:
    return scores.masked_fill(by.exp() < share * by.exp().max(), -torch.inf)


def _dola(c: Tensor, early: Sequence[Tensor]) -> Tensor:
    """Minus the early layer with the largest Jensen-Shannon divergence from the last."""

    def divergence(layer: Tensor) -> float:
        middle = ((c.exp() + layer.exp()) / 2).log()
        return (_kl(c, middle) + _kl(layer, middle)) / 2

    return _plausible(c - max(early, key=divergence), c, 0.1)


def _posterior(s: Setting, v: View, mean_over: float | None = None) -> Tensor:
    text = [*s.written(v.prompt), *v.answer]
    return log_posterior(s.judge, text, CLASSES, 0, mean_over=mean_over, added=(UNLIKELY, 0)).float()


def _best(scores: Tensor, posterior: Tensor) -> Tensor:
    return scores.masked_fill(~kept(scores, posterior, 0.8, 0.6), -torch.inf)


@lru_cache(maxsize=100_000)
def _verdict(ids: tuple[int, ...]) -> float:
    return float(alone(unpadded(), ids).log_softmax(-1)[2])


@lru_cache(maxsize=100_000)
def _gpt2(ids: tuple[int, ...]) -> float:
    return float(alone(unpadded("gpt2"), ids).log_softmax(-1)[1])


def _bag(ids: tuple[int, ...]) -> float:
    return float(bag([text([token for token in ids if token > 1])])[0, 1])


def _judged(
    c: Tensor, v: View, of: Callable[[tuple[int, ...]], float], scale: float, top: int, mean: bool = False
) -> Tensor:
    """The classifier's verdict on each candidate's whole text; special tokens are no text."""
    best = c.topk(top).indices.tolist()
    whole = (*v.prompt, *v.answer)
    verdicts = [of((*whole, token) if token > 1 else whole) for token in best]
    reward = torch.full_like(c, sum(verdicts) / top if mean else -torch.inf)
    reward[best] = torch.tensor(verdicts)
    return c + scale * reward


def _words(answer: list[int]) -> Tensor:
    """Every fifth word costs 6; 70 and 71 behind it are worth 4 until they stand in the answer."""
    reward = torch.zeros(VOCAB)
    reward[2::5] = -6.0
    if " w70 w71 " not in f" {text(answer)} ":
        reward[71 if answer[-1:] == [70] else 70] += 4.0
    return reward


def _budgets(s: Setting) -> tuple[int, ...]:
    """Of each prompt."""
    return tuple(4 + 5 * place for place in range(len(s.prompts)))


def _within(s: Setting, v: View, model: Model, min_rate: float | None = None) -> Tensor:
    left = max(1, _budgets(s)[s.prompts.index(v.prompt)] - len(v.answer))
    return log_reward(model, [*s.written(v.prompt), *v.answer], left, min_rate)


def _rest_filled(scores: Tensor, reward: Tensor) -> Tensor:
    """Excluded tokens get the mean of the others' `r` instead, weighed by the law."""
    law = scores.softmax(-1) * ~reward.isneginf()
    mean = ((law * reward.exp()).sum() / law.sum()).log()
    return scores + reward.where(~reward.isneginf(), mean)


def _random(setting: Setting, view: View) -> list[int]:
    """The tokens that `RandomPrompt` draws with seed 0: as many as each prompt has, never the special 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(VOCAB - 2, (len(prompt),), generator=generator) + 2 for prompt in setting.prompts]
    rows: list[list[int]] = [row.tolist() for row in drawn]
    return rows[setting.prompts.index(view.prompt)]


def _shuffled(setting: Setting, view: View) -> list[int]:
    """The prompt with all but its last token in the order that `ShuffledPrompt` draws with seed 0."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(prompt) - 1, generator=generator).tolist() for prompt in setting.prompts]
    return [*(view.prompt[place] for place in orders[setting.prompts.index(view.prompt)]), view.prompt[-1]]


def _cut(prompt: Sequence[int]) -> list[int]:
    """A prompt without the passage."""
    start = next(i for i in range(len(prompt)) if tuple(prompt[i : i + len(PASSAGE)]) == PASSAGE)
    return [*prompt[:start], *prompt[start + len(PASSAGE) :]]


Make: TypeAlias = "Callable[[Setting], Guidance | list[Guidance]]"
Score: TypeAlias = "Callable[[Setting, Tensor, View], Tensor]"

# Name: the method in a setting `s`, and its score from the conditional law `c` and whatever else `v` can be asked for.
METHODS: dict[str, tuple[Make, Score]] = {
    "cfg": (lambda s: lg.CFG(SCALE, s.negative), lambda s, c, v: _mix(v.on(v.negative), c, SCALE)),
    "cfg, last token": (lambda s: lg.CFG(SCALE), lambda s, c, v: _mix(v.on(v.prompt[-1:]), c, SCALE)),
    "cfg, no prompt": (lambda s: lg.CFG(SCALE, lg.EmptyPrompt()), lambda s, c, v: _mix(v.on([1]), c, SCALE)),
    "cfg, towards": (lambda s: lg.CFG(-0.5, s.negative), lambda s, c, v: _mix(v.on(v.negative), c, -0.5)),
    "cfg, rescaled": (
        lambda s: lg.CFG(SCALE, s.negative, guidance_rescale=0.7),
        lambda s, c, v: _rescaled(_mix(v.on(v.negative), c, SCALE), c, 0.7),
    ),
    "cfg, growing": (
        lambda s: lg.CFG(SCALE, s.negative, schedule=lg.Linear(0.5, 1.5)),
        lambda s, c, v: _mix(v.on(v.negative), c, 1 + (SCALE - 1) * (0.5 + len(v.answer) / NEW)),
    ),
    "cfg, in a window": (
        lambda s: lg.CFG(SCALE, s.negative, schedule=lg.Window(2, 0.6)),
        lambda s, c, v: _mix(v.on(v.negative), c, SCALE if 2 <= len(v.answer) < 0.6 * NEW else 1),
    ),
    "cfg, annealed": (
        lambda s: lg.CFG(SCALE, s.negative, schedule=lg.FromDivergence(0.2)),
        lambda s, c, v: _mix(v.on(v.negative), c, 1 + (SCALE - 1) * min(1, 0.2 / _kl(c, v.on(v.negative)))),
    ),
    "cfg, every other token": (
        lambda s: lg.CFG(SCALE, s.negative, gate=lg.Period(2)),
        lambda s, c, v: _mix(v.on(v.negative), c, 1 if len(v.answer) % 2 else SCALE),
    ),
    "cfg, where they differ": (
        lambda s: lg.CFG(SCALE, s.negative, gate=lg.Divergence(0.6)),
        lambda s, c, v: _mix(v.on(v.negative), c, SCALE if _kl(c, v.on(v.negative)) > 0.6 else 1),
    ),
    "selective": (
        lambda s: lg.SelectiveCFG(SCALE, s.negative, entropy_threshold=s.threshold),
        lambda s, c, v: _mix(v.on(v.negative), c, SCALE if entropy_of(c) > s.threshold else 1),
    ),
    "suffix": (
        lambda s: lg.SuffixCFG(SCALE, SUFFIX, entropy_threshold=None),
        lambda s, c, v: _mix(v.before(SUFFIX), c, SCALE),
    ),
    "suffix, selective": (
        lambda s: lg.SuffixCFG(SCALE, text(SUFFIX), entropy_threshold=s.threshold),
        lambda s, c, v: _mix(v.before(SUFFIX), c, SCALE if entropy_of(c) > s.threshold else 1),
    ),
    "apg": (
        lambda s: lg.APG(SCALE, s.negative, eta=0.3, norm_threshold=2.0),
        lambda s, c, v: rules.apg(c, v.on(v.negative), SCALE, 0.3, 2.0),
    ),
    "tangential": (
        lambda s: lg.TangentialCFG(SCALE, s.negative),
        lambda s, c, v: rules.tangential(c, v.on(v.negative), SCALE),
    ),
    "damped": (
        lambda s: lg.DivergenceDampedCFG(SCALE, s.negative, damping=0.5),
        lambda s, c, v: _mix(v.on(v.negative), c, 1 + (SCALE - 1) * math.exp(-0.5 * _kl(c, v.on(v.negative)))),
    ),
    "icg": (lambda s: lg.ICG(SCALE), lambda s, c, v: _mix(v.on(_random(s, v)), c, SCALE)),
    "tpg": (lambda s: lg.TPG(SCALE), lambda s, c, v: _mix(v.on(_shuffled(s, v)), c, SCALE)),
    "cad": (lambda s: lg.CAD(SCALE, text(PASSAGE)), lambda s, c, v: _mix(v.on(_cut(v.prompt)), c, SCALE)),
    "preadd": (lambda s: lg.PREADD(SCALE, text(SUFFIX)), lambda s, c, v: _mix(v.on([*SUFFIX, *v.prompt]), c, SCALE)),
    "mixture": (
        lambda s: lg.PromptMixture((s.negative, (8, 9, 10), lg.LastToken()), weights=(-0.9, 0.6, -0.4)),
        lambda s, c, v: (
            c - 0.9 * (v.on(v.negative) - c) + 0.6 * (v.on([8, 9, 10]) - c) - 0.4 * (v.on(v.prompt[-1:]) - c)
        ),
    ),
    "mixture of kinds": (
        lambda s: lg.PromptMixture(
            (lg.Suffix(SUFFIX), lg.OtherModel(s.amateur), s.negative), weights=(-0.9, 0.6, -0.4)
        ),
        lambda s, c, v: c - 0.9 * (v.before(SUFFIX) - c) + 0.6 * (v.of(s.amateur) - c) - 0.4 * (v.on(v.negative) - c),
    ),
    "autoguidance": (lambda s: lg.AutoGuidance(s.amateur, SCALE), lambda s, c, v: _mix(v.of(s.amateur), c, SCALE)),
    "contrastive": (
        lambda s: lg.Contrastive(s.amateur, 0.5, plausibility=0.3),
        lambda s, c, v: _plausible(1.5 * c - 0.5 * v.of(s.amateur), c, 0.3),
    ),
    "contrastive, original": (
        lambda s: lg.Contrastive(s.amateur, 1.0, form="original", amateur_temperature=0.5),
        lambda s, c, v: _plausible(c - (v.of(s.amateur) / 0.5).log_softmax(-1), c, 0.1),
    ),
    "dexperts": (
        lambda s: lg.DExperts(s.expert, s.amateur, 0.7),
        lambda s, c, v: c + 0.7 * (v.of(s.expert) - v.of(s.amateur)),
    ),
    "proxy tuning": (
        lambda s: lg.ProxyTuning(s.expert, s.amateur),
        lambda s, c, v: c + v.of(s.expert) - v.of(s.amateur),
    ),
    "dola": (lambda s: lg.DoLa((1, 2)), lambda s, c, v: _dola(c, [v.early(1), v.early(2)])),
    "s2": (
        lambda s: lg.S2Guidance(SCALE, s.negative, omega=0.5, fraction=0.5),
        lambda s, c, v: _mix(v.on(v.negative), c, SCALE) - 0.5 * (v.of(s.thinned) - c),
    ),
    "gedi": (
        lambda s: lg.GeDi(s.judge, CLASSES[0], CLASSES, SCALE, class_bias=UNLIKELY),
        lambda s, c, v: c + SCALE * _posterior(s, v),
    ),
    "gedi, as published": (
        lambda s: lg.GeDi(
            s.judge, CLASSES[0], CLASSES, form="normalized", class_bias=UNLIKELY, filter_p=0.8, target_p=0.6
        ),
        lambda s, c, v: _best(c + 30 * _posterior(s, v, 1.0), _posterior(s, v, 1.0)),
    ),
    "caif": (lambda s: lg.CAIF(unpadded(), 2, 5.0, 8), lambda s, c, v: _judged(c, v, _verdict, 5.0, 8)),
    "caif, texts": (
        lambda s: lg.CAIF(bag, 1, -5.0, 8, rest="mean", gate=lg.Period(2)),
        lambda s, c, v: c if len(v.answer) % 2 else _judged(c, v, _bag, -5.0, 8, mean=True),
    ),
    "fudge": (
        lambda s: lg.Fudge(unpadded("gpt2"), 1, 9.0, 8, gate=lg.Entropy(s.threshold)),
        lambda s, c, v: _judged(c, v, _gpt2, 9.0, 8) if entropy_of(c) > s.threshold else c,
    ),
    "words": (
        lambda s: lg.WordGuidance("w70 w71", BARRED, 4, 6, variants=False, exclude_at="last_token"),
        lambda s, c, v: c + _words(v.answer),
    ),
    **topics.METHODS,
    "budget": (
        lambda s: lg.BudgetGuidance(
            ByStates(s.judge),
            _budgets(s),
            SCALE,
            every=True,
            min_shape=None,
            min_rate=RATE,
            min_remaining=None,
            rest="excluded",
        ),
        lambda s, c, v: c + SCALE * _within(s, v, s.judge, RATE),
    ),
    "budget of a thought": (
        lambda s: [
            lg.BudgetGuidance(
                ByStates(), _budgets(s), start=PASSAGE, every=True, min_shape=None, min_rate=RATE, min_remaining=None
            ),
            lg.CFG(SCALE, s.negative),
        ],
        lambda s, c, v: _rest_filled(_mix(v.on(v.negative), c, SCALE), _within(s, v, s.model, RATE)),
    ),
    "gedi and cfg": (
        lambda s: [
            lg.GeDi(s.judge, CLASSES[0], CLASSES, SCALE, class_bias=UNLIKELY, gate=lg.Period(2)),
            lg.CFG(SCALE, s.negative),
        ],
        lambda s, c, v: _mix(v.on(v.negative), c, SCALE) + SCALE * _posterior(s, v) * (len(v.answer) % 2 == 0),
    ),
    "two methods": (
        lambda s: [lg.CFG(SCALE, s.negative), lg.DExperts(s.expert, s.amateur, 0.7)],
        lambda s, c, v: _mix(v.on(v.negative), c, SCALE) + 0.7 * (v.of(s.expert) - v.of(s.amateur)),
    ),
    "two gates": (
        lambda s: [
            lg.SelectiveCFG(SCALE, s.negative, entropy_threshold=s.threshold),
            lg.SuffixCFG(SCALE, SUFFIX, entropy_threshold=None, gate=lg.Period(2)),
        ],
        lambda s, c, v: (
            c
            + (SCALE - 1) * (c - v.on(v.negative)) * (entropy_of(c) > s.threshold)
            + (SCALE - 1) * (c - v.before(SUFFIX)) * (len(v.answer) % 2 == 0)
        ),
    ),
}
