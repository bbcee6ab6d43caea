"""What a guided call returns beside tokens is the conditional's; and no pass computes what nobody asked for."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LogitsProcessor

import lmguide as lg
from tests.families import ENCODER_DECODERS, FAMILIES, VOCAB, made, padded, tiny, tokens, words
from tests.huggingface.methods import METHODS, Setting
from tests.huggingface.reference import First

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tests.families import Model

NEW = 6
SETTING = Setting("llama", [tokens(9, 1), tokens(6, 2)], [tokens(4, 3), tokens(12, 4)])
IDS, MASK = padded(SETTING.prompts)
ARGUMENTS: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": NEW, "do_sample": False}
EVERYTHING: dict[str, Any] = {
    f"output_{name}": True for name in ("scores", "logits", "hidden_states", "attentions")
} | {"return_dict_in_generate": True}
METHODS_TRIED = ("cfg", "selective", "suffix, selective", "dola", "s2", "two methods")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 4},
}


def eager(family: str) -> Model:
    """A model that tells its attentions."""
    return made(family, attn_implementation="eager")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS_TRIED)
def test_states_and_attentions_are_those_of_the_conditional_alone(method: str, mode: str) -> None:
    """Shape for shape and number for number what the reference, which runs nothing beside the prompt, returns."""
    model = eager("llama")
    arguments = ARGUMENTS | EVERYTHING | MODES[mode]
    guided: Any = lg.guide(model, METHODS[method][0](SETTING), tokenizer=words())
    found = guided.generate(IDS, **arguments)
    expected = First(model, SETTING.law(method)).generate(IDS, **arguments)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert set(found) == set(expected)
    for name in ("hidden_states", "attentions"):
        mine, other = _trimmed(found[name]), _trimmed(expected[name])
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def _trimmed(steps: Any) -> list[list[Tensor]]:
    """Of every step and layer what stands for tokens: no padding of a prompt, no unused places of a static cache."""
    return [[_real(state, IDS.shape[1] + step) for state in layers] for step, layers in enumerate(steps)]


def _real(state: Tensor, width: int) -> Tensor:
    """Tokens by the rest: of hidden states `[B, L, D]`, or of attentions `[B, H, L, K]` to the first `width` keys."""
    by_token = state if state.ndim == 3 else state[..., :width].transpose(1, 2)
    mask = torch.nn.functional.pad(MASK, (0, width - MASK.shape[1]), value=1)[:, -by_token.shape[1] :].bool()
    return by_token[mask.repeat_interleave(len(state) // len(mask), 0)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_returns_rows_of_the_batch(family: str) -> None:
    encoder_decoder = family in ENCODER_DECODERS
    model = tiny(family) if "mamba" in family else eager(family)
    ids, mask = padded(SETTING.prompts, right=encoder_decoder)
    arguments = ARGUMENTS | EVERYTHING | {"attention_mask": mask}
    if "mamba" in family:
        arguments["output_attentions"] = False
    guided: Any = lg.guide(model, METHODS["cfg"][0](Setting(family, SETTING.prompts, SETTING.negatives)))
    found, plain = guided.generate(ids, **arguments), First(model, SETTING.law("cfg")).generate(ids, **arguments)
    assert set(found) == set(plain)
    for name in found:
        if name not in {"past_key_values", "sequences"}:
            assert _shapes(found[name]) == _shapes(plain[name]), name


def _shapes(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else [_shapes(item) for item in value or ()]


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_logits_are_the_law_and_scores_what_processors_made_of_it(method: str) -> None:
    class Halve(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores / 2

    guided: Any = lg.guide(tiny("llama"), METHODS[method][0](SETTING), tokenizer=words())
    found = guided.generate(IDS, **ARGUMENTS | EVERYTHING | {"output_attentions": False}, logits_processor=[Halve()])
    law = SETTING.law(method)
    for step, (logits, scores) in enumerate(zip(found.logits, found.scores, strict=True)):
        assert list(logits.shape) == [2, VOCAB]
        answers = found.sequences[:, IDS.shape[1] : IDS.shape[1] + step].tolist()
        exact = torch.stack([law(row, answer).log_softmax(-1) for row, answer in enumerate(answers)])
        torch.testing.assert_close(logits, exact, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(scores, logits / 2)
        torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["cfg", "selective", "suffix", "s2"])
def test_drafts_leave_the_outputs_of_accepted_tokens(method: str) -> None:
    setting = Setting("llama", [tokens(9, 1) * 2], [tokens(4, 3)])
    arguments: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False} | EVERYTHING
    guided: Any = lg.guide(eager("llama"), METHODS[method][0](setting))
    found = guided.generate(torch.tensor(setting.prompts), prompt_lookup_num_tokens=3, **arguments)
    plain = First(eager("llama"), setting.law(method)).generate(
        torch.tensor(setting.prompts), prompt_lookup_num_tokens=3, **arguments
    )
    assert found.sequences.tolist() == plain.sequences.tolist()
    for name in ("scores", "hidden_states", "attentions"):
        torch.testing.assert_close(_plain(found[name]), _plain(plain[name]), atol=1e-3, rtol=1e-3)


def _plain(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else [_plain(item) for item in value]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_laws_of_half_precision_are_combined_in_float32(dtype: torch.dtype) -> None:
    """The difference of two sources is small: rounding them before it would leave little of it."""
    model = made("llama").to(dtype)
    guided: Any = lg.guide(model, METHODS["cfg"][0](SETTING))
    arguments = ARGUMENTS | {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 1}
    (logits,) = guided.generate(IDS, **arguments).logits
    law = SETTING.law("cfg", model)
    assert logits.dtype == torch.float32
    exact = torch.stack([law(row, []).log_softmax(-1) for row in range(2)])
    torch.testing.assert_close(logits, exact, atol=0.3 if dtype == torch.bfloat16 else 0.05, rtol=0)
    assert (logits - logits.to(dtype).float()).abs().max() > 1e-4, "the result was rounded"


def test_inside_inference_mode() -> None:
    for method in ("cfg", "selective", "suffix", "dola"):
        guided: Any = lg.guide(tiny("llama"), METHODS[method][0](SETTING))
        with torch.inference_mode():
            found = guided.generate(IDS, **ARGUMENTS)
        assert found.tolist() == guided.generate(IDS, **ARGUMENTS).tolist()


def test_beam_scores_are_sums_of_log_probabilities() -> None:
    guided: Any = lg.guide(tiny("llama"), METHODS["cfg"][0](SETTING))
    more = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    found = guided.generate(IDS, **ARGUMENTS | EVERYTHING | {"output_attentions": False} | more)
    law = SETTING.law("cfg")
    for row, (sequence, score) in enumerate(zip(found.sequences.tolist(), found.sequences_scores, strict=True)):
        answer = sequence[IDS.shape[1] :]
        steps = [law(row // 3, answer[:step]).log_softmax(-1)[answer[step]] for step in range(NEW)]
        torch.testing.assert_close(score, torch.stack(steps).sum(), atol=1e-4, rtol=1e-4)


@contextmanager
def passes(model: Model) -> Iterator[list[tuple[int, int, int]]]:
    """The passes of a model, each as its rows, its tokens, and the positions whose logits were computed."""
    found: list[tuple[int, int, int]] = []
    inner: list[Tensor] = []

    def embedded(_: Any, args: Any, output: Tensor) -> None:
        inner.append(output)

    def headed(_: Any, args: Any, output: Tensor) -> None:
        found.append((*inner[-1].shape[:2], args[0].shape[1]))

    handles = [
        model.get_input_embeddings().register_forward_hook(embedded),
        model.get_output_embeddings().register_forward_hook(headed),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


LONG = Setting("llama", [tokens(96, 1)], [tokens(16, 2)])
LONG_CALL: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize(
    ("family", "mode"),
    [(family, "greedy") for family in ("llama", "gpt2", "mistral_sliding", "gemma3", "qwen3_next", "mamba2")]
    + [(family, "static cache") for family in ("llama", "gpt2", "mistral_sliding", "gemma3")],
)
def test_a_short_negative_is_not_padded_to_the_prompt(family: str, mode: str) -> None:
    """The prompt's 96 tokens and the negative's 16 are run each on their own, then both in one pass a step."""
    guided: Any = lg.guide(tiny(family), METHODS["cfg"][0](LONG))
    with passes(tiny(family)) as found:
        guided.generate(torch.tensor(LONG.prompts), **LONG_CALL | MODES[mode])
    assert found == [(1, 96, 1), (1, 16, 1), *[(2, 1, 1)] * 3]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"cad"}))
def test_no_pass_computes_logits_of_a_prompt(method: str) -> None:
    guided: Any = lg.guide(tiny("llama"), METHODS[method][0](LONG), tokenizer=words())
    with passes(tiny("llama")) as found:
        guided.generate(torch.tensor(LONG.prompts), **LONG_CALL)
    # The early layers of DoLa go through the head too, two of them side by side; and the verifier scores answers of two
    # tokens where "yes" and "no" begin alike.
    assert {positions for _, _, positions in found} <= ({1, 2} if method in {"dola", "verifier"} else {1})


def test_no_pass_computes_logits_of_a_prompt_in_other_modes() -> None:
    for mode in ("no cache", "chunked prefill", "beams"):
        for method in ("cfg", "selective", "suffix"):
            guided: Any = lg.guide(tiny("llama"), METHODS[method][0](LONG))
            with passes(tiny("llama")) as found:
                guided.generate(torch.tensor(LONG.prompts), **LONG_CALL | MODES[mode])
            assert {positions for _, _, positions in found} == {1}, (mode, method)


def test_prompt_lookup_scores_its_drafts_and_no_more() -> None:
    setting = Setting("llama", [tokens(9, 1) * 4], [tokens(6, 2)])
    for method in ("cfg", "selective", "suffix"):
        guided: Any = lg.guide(tiny("llama"), METHODS[method][0](setting))
        with passes(tiny("llama")) as found:
            guided.generate(torch.tensor(setting.prompts), prompt_lookup_num_tokens=3, **LONG_CALL)
        assert max(positions for _, _, positions in found) <= 4, method


def test_a_catch_up_is_one_pass_over_the_missed_tokens() -> None:
    setting = Setting("llama", [tokens(9, 1)], [tokens(4, 3)])
    guided: Any = lg.guide(tiny("llama"), lg.CFG(3.0, setting.negative, gate=lg.Period(5, first=2)))
    with passes(tiny("llama")) as found:
        guided.generate(torch.tensor(setting.prompts), max_new_tokens=9, do_sample=False)
    negative = [shape for place, shape in enumerate(found) if place in {3, 9}]
    assert negative == [(1, 4 + 2, 1), (1, 5, 1)]
    assert len(found) == 9 + 2


def test_the_stacked_cache_is_no_longer_than_its_longest_row() -> None:
    """One more cache for the negative, and nothing beyond: the joined one has two rows of the prompt's length."""
    widths: list[tuple[int, ...]] = []
    guided: Any = lg.guide(tiny("llama"), METHODS["cfg"][0](LONG))

    def hook(_: Any, __: Any, output: Any) -> None:
        widths.append(tuple(output.past_key_values.layers[0].keys.shape[:3]))

    handle = tiny("llama").register_forward_hook(hook)
    try:
        guided.generate(torch.tensor(LONG.prompts), **LONG_CALL)
    finally:
        handle.remove()
    assert widths == [(1, 2, 96), (1, 2, 16), (2, 2, 97), (2, 2, 98), (2, 2, 99)]
