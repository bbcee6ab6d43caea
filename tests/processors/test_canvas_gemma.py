"""Canvas processors in DiffusionGemma's own `generate()`: the tokens of the guided view, and nothing on the model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, SuppressTokensLogitsProcessor

import lmguide as lg
from lmguide.contexts import MaskedPrompt
from tests.diffusion.gemma import (
    BOS,
    CANVAS,
    EOS,
    MASK,
    PAD,
    PROMPTS,
    STEPS,
    VOCAB,
    Reference,
    answer,
    generate,
    model,
    rows,
)
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# torch deprecates what torch imports when transformers marks the beginning of a step
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

NEGATIVE = rows([BOS, 30, 31], [BOS, *range(25, 40)])
"""One shorter than its prompt and one longer, and than the window."""
NAMED = {"negative_prompt_ids": NEGATIVE[0], "negative_prompt_attention_mask": NEGATIVE[1]}
GIVEN = {"negative_prompt": NEGATIVE[0], "negative_prompt_attention_mask": NEGATIVE[1]}
STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}


def processed(processor: Any, *prompt: Any, behind: Any = (), gemma: Any = None, **kwargs: Any) -> list[list[int]]:
    """The plain model's answer with a processor."""
    processors = LogitsProcessorList([processor, *behind])
    return answer(gemma or model(), *prompt, logits_processor=processors, **kwargs)


def viewed(method: Any, *prompt: Any, **kwargs: Any) -> list[list[int]]:
    """The guided view's answer."""
    return answer(lg.diffusion.guide_gemma(model(), method), *prompt, **kwargs)


def cfg(gamma: float) -> Callable[..., Tensor]:
    def score(reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        return logp(1) + gamma * (logp(0) - logp(1))

    return score


def test_cfg_is_the_plain_loop() -> None:
    processor = lg.MaskedCFGLogitsProcessor(model(), 2.0, **GIVEN)
    assert processed(processor, canvases=3) == Reference([NEGATIVE], cfg(2.0)).answer(canvases=3)


PROCESSORS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "default": (lambda: lg.MaskedCFGLogitsProcessor(model(), 2.0), lg.CFG(2.0), {}),
    "ragged": (lambda: lg.MaskedCFGLogitsProcessor(model(), 2.0, **GIVEN), lg.CFG(2.0), NAMED),
    "by row": (lambda: lg.MaskedCFGLogitsProcessor(model(), (0.5, 3.0), **GIVEN), lg.CFG((0.5, 3.0)), NAMED),
    "one row": (
        lambda: lg.MaskedCFGLogitsProcessor(model(), 2.0, [BOS, 30]),
        lg.CFG(2.0, negative_prompt=[BOS, 30]),
        {},
    ),
    "off at one row": (lambda: lg.MaskedCFGLogitsProcessor(model(), (1.0, 3.0)), lg.CFG((1.0, 3.0)), {}),
    "adaptive": (lambda: lg.AdaptiveCFGLogitsProcessor(model(), 2.5, 0.5), lg.AdaptiveCFG(2.5, 0.5), {}),
    "adaptive by entropy": (
        lambda: lg.AdaptiveCFGLogitsProcessor(model(), (0.5, 2.5), confidence="entropy"),
        lg.AdaptiveCFG((0.5, 2.5), confidence="entropy"),
        {},
    ),
}
METHODS: dict[str, Any] = {
    "previous": lg.AdaptiveCFG(2.5, 0.5, confidences="previous"),
    "gate": lg.CFG(3.0, gate=lg.Entropy(3.0)),
    "selective": lg.SelectiveCFG(3.0, entropy_threshold=2.6),
    "schedule": lg.CFG(3.0, schedule=lg.Window(0.2, 0.7)),
    "shuffled": lg.TPG(3.0),
    "several": [lg.CFG(2.0), lg.AdaptiveCFG(2.0, 0.5), lg.PromptMixture(([BOS, 40, 41],), weights=(0.5,))],
}
PROCESSORS |= {
    name: (lambda method=method: lg.CanvasLogitsProcessor(model(), method), method, {})  # type: ignore[misc]
    for name, method in METHODS.items()
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_same_as_the_view(name: str) -> None:
    make, method, negative = PROCESSORS[name]
    processor, view = make(), lg.diffusion.guide_gemma(model(), method)
    # rows end before others
    options: dict[str, Any] = {"canvases": 3, "stability_threshold": 0, "confidence_threshold": 1.4}
    expected = answer(view, **options, **negative)
    assert expected != answer(model(), **options)
    for _ in range(2):  # used again without a reset
        assert processed(processor, **options) == expected
    # but for the conditional's encoder, which is transformers' own here
    assert processor.stats.nfe == view.stats.nfe - 3
    assert (processor.stats.steps, processor.stats.fired) == (view.stats.steps, view.stats.fired)


def test_the_scores_are_the_views_bit_for_bit_in_low_precision() -> None:
    # where a batch of two sources and two passes would not round alike
    gemma = copy.deepcopy(model()).bfloat16()
    expected = generate(lg.diffusion.guide_gemma(gemma, lg.CFG(2.0)), canvases=2, **NAMED)
    processor = lg.MaskedCFGLogitsProcessor(gemma, 2.0, **GIVEN)
    output = generate(gemma, canvases=2, logits_processor=LogitsProcessorList([processor]))
    assert torch.equal(output.sequences, expected.sequences)


def test_prompts_without_padding() -> None:
    ids = rows([BOS, 5, 6, 7, 8])[0]
    processor = lg.MaskedCFGLogitsProcessor(model(), 2.0)
    assert processed(processor, ids, None, canvases=2) == viewed(lg.CFG(2.0), ids, None, canvases=2)


def test_calls_of_different_prompts() -> None:
    processor = lg.MaskedCFGLogitsProcessor(model(), 2.0)
    other = rows([BOS, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [BOS, 40, 41, 42])
    for prompt in ((PROMPTS, MASK), other, (PROMPTS[:1], MASK[:1])):
        assert processed(processor, *prompt) == viewed(lg.CFG(2.0), *prompt)


def test_a_row_that_ends_becomes_padding() -> None:
    free = viewed(lg.CFG(2.0), canvases=3)
    ends = next(token for token in free[0][:CANVAS] if token not in free[1])
    options: dict[str, Any] = {"canvases": 3, "eos_token_id": ends, "pad_token_id": PAD}
    expected = viewed(lg.CFG(2.0), **options)
    assert expected[0][-CANVAS:] == [PAD] * CANVAS
    assert processed(lg.MaskedCFGLogitsProcessor(model(), 2.0), **options) == expected


@pytest.mark.parametrize("name", ["ragged", "adaptive"])
def test_processors_behind_see_what_they_see_in_the_view(name: str) -> None:
    make, method, negative = PROCESSORS[name]
    ban = SuppressTokensLogitsProcessor(list(range(20)))
    expected = viewed(method, canvases=2, logits_processor=[ban], **negative)
    assert processed(make(), behind=[ban], canvases=2) == expected
    assert min(min(row) for row in expected) >= 20


@pytest.mark.parametrize("name", ["default", "adaptive"])
def test_static_cache(name: str) -> None:
    make, method, _ = PROCESSORS[name]
    ids, mask = rows([BOS, 5, 6, 7, 8], [BOS, 9])
    processor = make()
    for _ in range(2):  # the second call finds the cache of the first
        assert processed(processor, ids, mask, **STATIC) == viewed(method, ids, mask, **STATIC)
    del model()._cache


@pytest.mark.parametrize("name", ["default", "adaptive"])
def test_compiled_static_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # `torch.compile` that keeps the function
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    make, method, _ = PROCESSORS[name]
    gemma = copy.copy(model())
    gemma._modules = dict(gemma._modules)
    options: dict[str, Any] = {"cache_implementation": "static", "canvases": 2}
    processor = lg.CanvasLogitsProcessor(gemma, method)
    expected = viewed(method, **options)
    for _ in range(2):  # the second call finds the compiled sampler of the first
        assert processed(processor, gemma=gemma, **options) == expected


def test_continuing_from_a_cache() -> None:
    ids = rows([BOS, 5, 6, 7, 8])[0]
    method = lg.CFG(2.0, negative_prompt=[BOS, 30, 31])
    processor = lg.CanvasLogitsProcessor(model(), method)
    new = torch.tensor([[9, 10]])
    answers = []
    for view in (True, False):
        first = generate(model(), ids, None)
        more = torch.cat([first.sequences[:, ids.shape[1] :], new], 1)
        how: Any = {"past_key_values": first.past_key_values, "canvases": 2}
        answers.append(viewed(method, more, None, **how) if view else processed(processor, more, None, **how))
    assert answers[0] == answers[1]


def test_a_starting_canvas_and_estimate() -> None:
    first = torch.randint(VOCAB, (2, CANVAS))
    state = torch.randn(2, CANVAS, VOCAB).double()
    options: dict[str, Any] = {"canvases": 2, "decoder_input_ids": first, "self_conditioning_logits": state}
    expected = viewed(lg.CFG(2.0), **options)
    assert processed(lg.MaskedCFGLogitsProcessor(model(), 2.0), **options) == expected


def test_laws_of_the_strength() -> None:
    # every source remembers its own: 0 is the other prompt alone
    processor = lg.MaskedCFGLogitsProcessor(model(), 0.0, **GIVEN)
    assert processed(processor, canvases=2) == answer(model(), *NEGATIVE, canvases=2)


@pytest.mark.parametrize("kind", [lg.MaskedCFGLogitsProcessor, lg.AdaptiveCFGLogitsProcessor])
def test_off_is_the_scores_themselves(kind: Any) -> None:
    processor = kind(model(), 1.0)
    plain = answer(model(), canvases=2)
    state = torch.random.get_rng_state()
    assert processed(processor, canvases=2) == plain
    assert torch.equal(torch.random.get_rng_state(), state)
    scores = torch.zeros(2, CANVAS, VOCAB)
    assert processor(PROMPTS, scores, cur_step=3) is scores
    assert processor.stats == lg.diffusion.Stats()


def attached(gemma: Any) -> list[tuple[str, str, Any]]:
    """Everything that hangs on a model and its parts, hooks included."""
    return [
        (name, key, dict(value) if isinstance(value, dict) else value)
        for name, part in gemma.named_modules()
        for key, value in part.__dict__.items()
    ]


def test_nothing_stays_on_the_model_or_with_the_processor() -> None:
    before = attached(model())
    processor = lg.AdaptiveCFGLogitsProcessor(model(), 2.5)
    seen = []

    def during(input_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append((attached(model()), len(processor._canvas._runs)))  # type: ignore[union-attr]
        return scores

    processed(processor, behind=[during], canvases=2)
    canvas: Any = processor._canvas
    assert len(seen) > 2 * STEPS
    assert all(same(now, before) and runs == 1 for now, runs in seen)
    assert same(attached(model()), before)
    # caches and estimates went with the call, what was done is still known
    assert len(canvas._runs) == 0
    assert processor.stats.steps == 2 * STEPS
    processor.reset()
    assert processor.stats.steps == 0


def same(now: list[Any], then: list[Any]) -> bool:
    return len(now) == len(then) and all(
        a[:2] == b[:2] and (a[2] is b[2] or a[2] == b[2]) for a, b in zip(now, then, strict=True)
    )


def test_a_call_that_fails_leaves_nothing() -> None:
    processor = lg.MaskedCFGLogitsProcessor(model(), 2.0)
    expected = processed(processor)
    steps = iter(range(3))

    def fails(input_ids: Tensor, scores: Tensor) -> Tensor:
        next(steps)
        return scores

    with pytest.raises(StopIteration):
        processed(processor, behind=[fails])
    assert answer(model()) != expected
    assert processed(processor) == expected


def test_calls_may_nest() -> None:
    processor = lg.MaskedCFGLogitsProcessor(model(), 2.0)
    expected, other = processed(processor, canvases=2), processed(processor, PROMPTS.flip(0), MASK.flip(0))
    inner: list[Any] = []

    def nested(input_ids: Tensor, scores: Tensor) -> Tensor:
        if not inner:
            inner.append(None)
            state = torch.random.get_rng_state()
            inner[0] = processed(processor, PROMPTS.flip(0), MASK.flip(0))
            torch.random.set_rng_state(state)
        return scores

    assert processed(processor, behind=[nested], canvases=2) == expected
    assert inner == [other]


def test_refused_callers() -> None:
    gemma = model()
    processor = lg.MaskedCFGLogitsProcessor(gemma, 2.0)
    scores = torch.zeros(2, CANVAS, VOCAB)
    with refused("model", "got another caller"):
        processor(PROMPTS, scores, cur_step=3)
    with refused("model", "got another caller"):
        processor.dream_hook()(0, PROMPTS, scores)
    with refused("model", "unguided"):
        answer(lg.diffusion.guide_gemma(gemma, lg.CFG(2.0)), logits_processor=[processor])
    with refused("model", "very"):
        processed(processor, gemma=copy.copy(gemma))
    ban = SuppressTokensLogitsProcessor([EOS])
    other = lg.AdaptiveCFGLogitsProcessor(gemma, 2.0)
    for first, second in ((ban, processor), (processor, processor), (processor, other)):
        with refused("logits_processor", "Put it first"):
            processed(first, behind=[second])


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("attention_mask", lambda g: lg.MaskedCFGLogitsProcessor(g, attention_mask=MASK)),
        ("steps", lambda g: lg.MaskedCFGLogitsProcessor(g, steps=STEPS)),
        ("candidates", lambda g: lg.AdaptiveCFGLogitsProcessor(g, candidates="prompt")),
        ("guidance", lambda g: lg.MaskedCFGLogitsProcessor(g, negative_prompt=MaskedPrompt())),
        ("guidance", lambda g: lg.CanvasLogitsProcessor(g, lg.DoLa())),
        ("negative_prompt", lambda g: lg.CanvasLogitsProcessor(g, lg.AdaptiveCFG(), negative_prompt="text")),
    ],
)
def test_refused_arguments(argument: str, make: Callable[[Any], Any]) -> None:
    with refused(argument):
        make(model())


def test_refused_at_the_call() -> None:
    class Config:
        model_type = "diffusion_gemma"

    class Other:
        config = Config()

    with refused("model", "Other", error=TypeError):
        lg.MaskedCFGLogitsProcessor(Other())
    with refused("guidance_scale"):
        processed(lg.MaskedCFGLogitsProcessor(model(), (1.0, 2.0, 3.0)))
    with refused("negative_prompt"):
        processed(lg.MaskedCFGLogitsProcessor(model(), 2.0, "a text"))

    class Subclass(DynamicCache):
        pass

    cache = Subclass(config=model().config.get_text_config(decoder=True))
    with refused("past_key_values", "Subclass"):
        processed(lg.MaskedCFGLogitsProcessor(model(), 2.0), past_key_values=cache)
