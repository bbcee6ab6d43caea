"""Adaptive guidance of DiffusionGemma: away from the canvas whose least confident accepted tokens are noise again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.contexts import RemaskedCanvas
from lmguide.denoisers.gemma_branches import Block, renoised
from lmguide.diffusion.gemma import guide_gemma
from tests.diffusion.gemma import BOS, CANVAS, STEPS, VOCAB, Reference, answer, laws, model, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Renoised(Reference):
    """The plain loop with one more source: the same prompt on a canvas that is partly noise again."""

    def __init__(
        self,
        gamma: float,
        ratio: float,
        confidence: str = "max_probability",
        previous: bool = False,
        others: Any = (),
        with_others: Callable[[Callable[[int], Tensor]], Tensor | float] = lambda logp: 0.0,
    ) -> None:
        super().__init__(others, self.guided)
        self.gamma, self.ratio, self.confidence, self.previous = gamma, ratio, confidence, previous
        self.with_others = with_others
        self.replaced = 0
        self.before: Tensor | None = None

    def guided(self, reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        """`u + gamma (c - u)` where something is noise again."""
        cond = logp(0)
        sure = cond.exp().amax(-1) if self.confidence == "max_probability" else (cond.exp() * cond).sum(-1)
        before, self.before = self.before, sure
        extra = self.with_others(logp)
        if self.accepted is None:
            return cond + extra
        noise = self.sampler.initialize_canvas(cond.shape[0], cond.device)
        canvas, state = self.canvas.clone(), self.states[0]
        assert state is not None and before is not None
        state = state.clone()
        for row in range(cond.shape[0]):
            sureness = before[row] if self.previous else sure[row]
            places = [place for place in range(CANVAS) if self.accepted[row, place]]
            places.sort(key=lambda place: float(sureness[place]))
            for place in places[: math.ceil(self.ratio * len(places))]:
                canvas[row, place] = noise[row, place]
                state[row, place] = 0.0
                self.replaced += 1
        uncond = laws(*self.prompts[0], canvas, state).log_softmax(-1)
        return uncond + self.gamma * (cond - uncond) + extra


@pytest.mark.parametrize("confidence", ["max_probability", "entropy"])
@pytest.mark.parametrize("confidences", ["current", "previous"])
@pytest.mark.parametrize("ratio", [0.35, 1.0])
def test_adaptive_guidance(confidence: Any, confidences: Any, ratio: float) -> None:
    method = lg.AdaptiveCFG(2.5, remask_ratio=ratio, confidence=confidence, confidences=confidences)
    reference = Renoised(2.5, ratio, confidence, confidences == "previous")
    view = guide_gemma(model(), method)
    assert answer(view, canvases=2) == reference.answer(canvases=2)
    assert reference.replaced > 2 * STEPS
    assert view.stats.steps == 2 * STEPS
    # nothing is accepted before the first step of a canvas
    assert view.stats.fired == 2 * (STEPS - 1)
    assert view.stats.nfe == 2 + 2 * STEPS + 2 * (STEPS - 1)
    passes = 2 * (STEPS - 1) if confidences == "current" else 0
    assert view.stats.forwards == 2 + 2 * STEPS + passes


def test_the_choices_matter() -> None:
    def said(**kwargs: Any) -> str:
        return str(answer(guide_gemma(model(), lg.AdaptiveCFG(2.5, **kwargs)), canvases=2))

    measures: list[Any] = ["max_probability", "entropy"]
    different = {
        said(remask_ratio=0.35, confidence=m, confidences=w) for m in measures for w in ["current", "previous"]
    }
    assert len(different) == 4
    assert said(candidates="all") == said(candidates="generated")


@pytest.mark.parametrize("confidences", ["current", "previous"])
def test_together_with_another_prompt(confidences: Any) -> None:
    first = [BOS, 40, 41]
    methods = [lg.AdaptiveCFG(2.5, remask_ratio=0.5, confidences=confidences), lg.CFG(1.5, negative_prompt=first)]
    reference = Renoised(
        2.5,
        0.5,
        previous=confidences == "previous",
        others=[rows(first, first)],
        with_others=lambda logp: 0.5 * (logp(0) - logp(1)),
    )
    assert answer(guide_gemma(model(), methods), canvases=2) == reference.answer(canvases=2)


def test_rows_that_are_done_are_left_alone() -> None:
    options: dict[str, Any] = {"stability_threshold": 0, "confidence_threshold": 1.9}
    reference = Renoised(2.5, 0.7)
    reference.stop = (0, 1.9)
    view = guide_gemma(model(), lg.AdaptiveCFG(2.5))
    assert answer(view, canvases=3, **options) == reference.answer(canvases=3)
    assert view.stats.steps < 3 * STEPS


def test_static_cache() -> None:
    ids, mask = rows([BOS, 5, 6, 7, 8], [BOS, 9])
    view = guide_gemma(model(), lg.AdaptiveCFG(2.5))
    expected = Renoised(2.5, 0.7).answer(ids, mask)
    assert answer(view, ids, mask, cache_implementation="static", disable_compile=True) == expected


def test_off_draws_nothing() -> None:
    plain = answer(model(), canvases=2)
    state = torch.random.get_rng_state()
    view = guide_gemma(model(), lg.AdaptiveCFG(2.5))
    assert answer(view, canvases=2, guidance_scale=1.0) == plain
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_noise_again_is_forgotten() -> None:
    # the estimate of the canvas would tell what stood there: at these positions it says that it knows nothing
    canvas, noise = torch.full((1, 4), 7), torch.full((1, 4), 9)
    state = torch.randn(1, 4, VOCAB)
    confidence = torch.tensor([[0.9, 0.1, 0.5, 0.2]])
    candidates = torch.tensor([[True, False, True, True]])
    block = renoised(RemaskedCanvas(0.5), Block(canvas, state), candidates, confidence, noise)
    assert block.canvas.tolist() == [[7, 7, 9, 9]]
    assert block.state is not None
    assert torch.equal(block.state[:, :2], state[:, :2])
    assert torch.equal(block.state[:, 2:].softmax(-1), torch.full((1, 2, VOCAB), 1 / VOCAB))
