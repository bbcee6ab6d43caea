"""The view of a DiffusionGemma: the model stays as it was, and what cannot be served is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import StoppingCriteriaList

import lmguide as lg
from lmguide.contexts import MaskedPrompt, Suffix
from lmguide.diffusion.gemma import GuidedDiffusionGemma, guide_gemma
from lmguide.guidance.rewards import RewardedSamples
from tests.diffusion.gemma import BOS, CANVAS, MASK, PROMPTS, VOCAB, answer, generate, model
from tests.families import tiny
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

STATIC: dict[str, Any] = {"cache_implementation": "static"}


def snapshot(gemma: Any) -> dict[str, Any]:
    """Everything that hangs on a model, its modules and hooks included."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in gemma.__dict__.items()}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`torch.compile` that keeps the function and tells that it was asked."""
    asked: list[Any] = []

    def keep(function: Callable[..., Any], **kwargs: Any) -> Any:
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", keep)
    return asked


def test_the_model_is_not_touched(compiled: list[Any]) -> None:
    gemma = model()
    generate(gemma, **STATIC, disable_compile=True)
    kind, before = type(gemma), snapshot(gemma)
    own = gemma._cache.layers[0].keys.clone()
    view: Any = guide_gemma(gemma, lg.CFG(2.0))
    generate(view, PROMPTS.flip(0), MASK.flip(0), **STATIC)
    generate(view, canvases=2)
    generate(view, PROMPTS.flip(0), MASK.flip(0), guidance_scale=1.0, **STATIC)
    after = snapshot(gemma)
    assert type(gemma) is kind and not isinstance(gemma, GuidedDiffusionGemma)
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] or before[name] == after[name] for name in before)
    assert torch.equal(gemma._cache.layers[0].keys, own)
    assert isinstance(view, kind) and view.lm_head is gemma.lm_head
    del gemma._cache


def test_a_plain_call_of_the_view_is_unguided() -> None:
    view: Any = guide_gemma(model(), lg.CFG(5.0))
    canvas = torch.randint(VOCAB, (2, CANVAS))
    arguments = {"input_ids": PROMPTS, "attention_mask": MASK, "decoder_input_ids": canvas}
    with torch.no_grad():
        assert torch.equal(view(**arguments).logits, model()(**arguments).logits)


@pytest.mark.parametrize("method", [lg.CFG(2.0), lg.AdaptiveCFG(2.5)])
def test_compiled_code_is_kept_with_the_view(method: lg.Guidance, compiled: list[Any]) -> None:
    expected = answer(guide_gemma(model(), method), **STATIC, disable_compile=True)
    view = guide_gemma(model(), method)
    for _ in range(2):
        assert answer(view, **STATIC) == expected
    # encoder, decoder, two functions of the sampler and the stopping criterion, once each
    assert len(compiled) == 5


def test_calls_do_not_share_state() -> None:
    view = guide_gemma(model(), lg.CFG(2.0))
    expected, other = answer(view, canvases=2), answer(view, negative_prompt_ids=torch.tensor([BOS, 30]), canvases=2)
    assert expected != other
    inner: list[Any] = []

    def nested(input_ids: Any, scores: Any) -> Any:
        if not inner:
            inner.append(None)
            state = torch.random.get_rng_state()
            inner[0] = answer(view, negative_prompt_ids=torch.tensor([BOS, 30]), canvases=2)
            torch.random.set_rng_state(state)
        return scores

    assert answer(view, canvases=2, logits_processor=[nested]) == expected
    assert inner == [other]


def test_lists_of_the_user_are_copied() -> None:
    criteria = StoppingCriteriaList()
    generate(guide_gemma(model(), lg.CFG(1.0)), stopping_criteria=criteria, eos_token_id=[1])
    assert not criteria


def test_arguments_by_position() -> None:
    torch.manual_seed(5)
    view = guide_gemma(model(), lg.CFG(2.0))
    config = type(model().generation_config)(max_new_tokens=CANVAS, max_denoising_steps=2)
    torch.manual_seed(5)
    by_name = view.generate(PROMPTS, generation_config=config, attention_mask=MASK)
    torch.manual_seed(5)
    assert torch.equal(view.generate(PROMPTS, None, None, config, attention_mask=MASK).sequences, by_name.sequences)


def test_refuses_what_is_no_diffusion_gemma() -> None:
    with refused("model", "LlamaForCausalLM", error=TypeError):
        guide_gemma(tiny("llama"), lg.CFG())
    with refused("model", "already guided"):
        guide_gemma(guide_gemma(model(), lg.CFG()), lg.CFG())
    with refused("guidance", error=TypeError):
        guide_gemma(model(), "cfg")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        (lg.SuffixCFG(), "Suffix"),
        (lg.DoLa(), "EarlyLayers"),
        (lg.S2Guidance(), "DroppedBlocks"),
        (lg.Contrastive("small"), "OtherModel"),
        (RewardedSamples("some.module:reward"), "reward"),
        (lg.CFG(negative_prompt=Suffix()), "Suffix"),
        (lg.CFG(negative_prompt=MaskedPrompt()), "no mask token"),
    ],
)
def test_refuses_sources_it_does_not_have(method: lg.Guidance, needs: str) -> None:
    with refused("guidance", needs, type(method).__name__):
        guide_gemma(model(), method)


def test_refuses_to_renoise_the_prompt() -> None:
    with refused("candidates", "'prompt'"):
        guide_gemma(model(), lg.AdaptiveCFG(candidates="prompt"))


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("guidance_scale", {"guidance_scale": [1.0, 2.0, 3.0]}),
        ("guidance_scale", {"guidance_scale": "strong"}),
        ("negative_prompt", {"negative_prompt": "a text"}),
        ("negative_prompt_ids", {"negative_prompt_ids": torch.tensor([[VOCAB]])}),
        ("negative_prompt_ids", {"negative_prompt_ids": torch.ones(3, 2, dtype=torch.long)}),
        ("NegativePrompt", {"negative_prompt_ids": torch.tensor([VOCAB - 1])}),
        ("attention_mask", {"attention_mask": torch.zeros_like(MASK)}),
        ("input_ids", {"input_ids": PROMPTS[0]}),
        ("input_ids", {"input_ids": PROMPTS[:, :0]}),
        ("input_ids", {"input_ids": PROMPTS.float()}),
    ],
)
def test_refuses_bad_arguments(argument: str, kwargs: dict[str, Any]) -> None:
    view: Any = guide_gemma(model(), lg.CFG(2.0))
    error = TypeError if kwargs.get("guidance_scale") == "strong" else ValueError
    with refused(argument, error=error):
        view.generate(**{"input_ids": PROMPTS, "attention_mask": MASK, "max_denoising_steps": 1} | kwargs)


def test_refuses_caches_it_cannot_follow() -> None:
    class Other(type(generate(model()).past_key_values)):  # type: ignore[misc]
        pass

    view = guide_gemma(model(), lg.CFG(2.0))
    with refused("past_key_values", "Other"):
        generate(view, PROMPTS[:1], None, past_key_values=Other(config=model().config.get_text_config(decoder=True)))


def test_refuses_prompts_of_which_only_the_end_is_known() -> None:
    ids = PROMPTS[:1]
    first = generate(model(), ids, None)
    with refused("past_key_values", "PromptPrefix"):
        view = guide_gemma(model(), lg.PREADD(2.0), tokenizer=Words())  # type: ignore[arg-type]
        generate(view, torch.cat([first.sequences[:, ids.shape[1] :], ids], 1), None, past_key_values=first[-1])


class Words:
    """A tokenizer that knows one text."""

    bos_token_id = BOS

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [30, 31]}
