"""What callers of `generate` and `loglikelihood` may give, in what forms, and what is said to them otherwise."""

from __future__ import annotations

import copy
from collections import UserDict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import lmguide as lg
from lmguide.denoisers import binding
from lmguide.diffusion.request import check_lengths
from tests.denoisers.models import LONGEST, MASK, PAD, VOCAB, Small, canvas_of, denoiser_of, model_of
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER = 4


def generate(denoiser: Any = None, ids: Any = None, **options: Any) -> Any:
    ids = canvas_of(2, 5, 0) if ids is None else ids
    if not options.get("infill"):
        options = {"max_new_tokens": ANSWER, "eos_token_id": (), **options}
    return lg.diffusion.generate(denoiser or denoiser_of("llada"), ids, **options)


def with_config(**fields: Any) -> lg.diffusion.Denoiser:
    """A denoiser whose configuration says further things."""
    model = copy.deepcopy(model_of("llada"))
    vars(model.config).update(fields)
    return lg.diffusion.Denoiser(model, mask_token_id=MASK)


class Tokens:
    """A tokenizer of one token each."""

    mask_token_id = MASK

    def __init__(self, **roles: int) -> None:
        self.eos_token_id, self.pad_token_id = roles.get("eos"), roles.get("pad")

    def get_vocab(self) -> dict[str, int]:
        return {f"t{index}": index for index in range(VOCAB)}


REMASKED = lg.CFG(2.0, lg.RemaskedCanvas())


@pytest.mark.parametrize("method", [REMASKED, lg.AdaptiveCFG(2.0)])
def test_a_cache_does_not_go_with_a_canvas_masked_again(method: lg.Guidance) -> None:
    with refused("cache", type(method).__name__):
        generate(denoiser_of("dream"), cache="dual", guidance=method)


def test_a_method_that_is_off_does_not_hinder_a_cache() -> None:
    plain = generate(denoiser_of("dream"), cache="dual").sequences
    assert generate(denoiser_of("dream"), cache="dual", guidance=lg.AdaptiveCFG(1.0)).sequences.equal(plain)


@pytest.mark.parametrize("method", [REMASKED, lg.AdaptiveCFG(2.0)])
def test_uniform_noise_has_nothing_to_mask_with(method: lg.Guidance) -> None:
    with refused("RemaskedCanvas", "mask token"):
        generate(denoiser_of("udlm"), guidance=method)


def test_the_mask_token_is_no_padding_and_no_end() -> None:
    with refused("pad_token_id", f"mask token {MASK}"):
        generate(pad_token_id=MASK)
    with refused("eos_token_id", f"mask token {MASK}"):
        generate(eos_token_id=[2, MASK])
    with refused("pad_token_id", "one token"):
        generate(pad_token_id=[1, 2])


def ended(denoiser: lg.diffusion.Denoiser, **options: Any) -> list[int]:
    """An answer that ends at its first token: a constraint to token 2 alone."""

    def two(canvas: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return (torch.arange(VOCAB) == 2).expand(len(rows), VOCAB)

    options = {"eos_token_id": None, "constraint": two, "order": "fixed:direction=left_to_right", **options}
    found: list[int] = generate(denoiser, canvas_of(1, 5, 0), **options).sequences[0, 5:].tolist()
    return found


def test_a_configurations_bad_tokens_are_left_out() -> None:
    assert ended(with_config(eos_token_id=2, pad_token_id=7)) == [2, 7, 7, 7]
    masked = with_config(eos_token_id=2)
    vars(masked.model)["generation_config"] = SimpleNamespace(pad_token_id=MASK, eos_token_id=[MASK, 2])
    assert ended(masked, tokenizer=Tokens(pad=7)) == [2, PAD, PAD, PAD]
    assert ended(with_config(eos_token_id=2, pad_token_id=-1)) == [2] * 4
    assert ended(with_config(eos_token_id=[VOCAB, 2], pad_token_id=7)) == [2, 7, 7, 7]
    assert ended(with_config(eos_token_id=VOCAB, pad_token_id=7)) == [2] * 4
    with refused("eos_token_id", str(VOCAB)):
        generate(eos_token_id=VOCAB)
    with refused("pad_token_id", "-1"):
        generate(pad_token_id=-1)


def test_a_tokenizer_beside_a_denoiser_knows_ends_and_padding() -> None:
    denoiser = with_config(pad_token_id=None)
    assert denoiser.tokenizer is None
    assert ended(denoiser) == [2] * 4
    assert ended(denoiser, tokenizer=Tokens(eos=2, pad=7)) == [2, 7, 7, 7]


def test_something_must_be_left_to_write() -> None:
    for kept in ([], [MASK]):
        with refused("suppress_tokens", "left to write"):
            generate(suppress_tokens=[token for token in range(VOCAB) if token not in kept])
    rest = [token for token in range(VOCAB) if token not in {MASK, 9}]
    assert (generate(suppress_tokens=rest).sequences[:, 5:] == 9).all()


ANSWERS: dict[str, tuple[Callable[[int], Any], str]] = {
    "numbers": (lambda n: torch.ones(n, VOCAB), "float32"),
    "one row": (lambda n: torch.ones(VOCAB, dtype=torch.bool), rf"shape \[{VOCAB}\]"),
    "fewer tokens": (lambda n: torch.ones(n, VOCAB - 1, dtype=torch.bool), f"{VOCAB - 1}"),
    "elsewhere": (lambda n: torch.ones(n, VOCAB, dtype=torch.bool, device="meta"), "meta"),
    "nothing": (lambda n: None, "NoneType"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_constraint_answers_with_booleans(case: str) -> None:
    answer, got = ANSWERS[case]
    with refused("constraint", r"booleans \[n, V\]", got):
        generate(constraint=lambda canvas, rows, columns: answer(len(rows)))


def test_a_constraint_is_a_function() -> None:
    with refused("constraint", error=TypeError):
        generate(constraint=[1, 2])


def test_a_negative_prompt_must_fit_before_anything_runs() -> None:
    long = [5] * (LONGEST - ANSWER + 1)
    steps: list[int] = []
    denoiser = with_config()
    denoiser.model.register_forward_hook(lambda *_: steps.append(1))
    with refused("negative_prompt", str(LONGEST + 1)):
        generate(denoiser, guidance=lg.CFG(2.0, long))
    with refused("negative_prompt_ids", str(LONGEST + 1)):
        generate(denoiser, guidance=lg.CFG(2.0, [5]), negative_prompt_ids=torch.tensor([long]))
    assert not steps
    generate(denoiser, guidance=lg.CFG(2.0, long[1:]))
    assert steps


BAD_TEXTS: dict[str, tuple[Any, Any, str, str]] = {
    "long": ([[5]] * 3, [[6], [6] * LONGEST, [7]], "contexts", "index 1"),
    "empty": ([[5], [], [5]], [[6]] * 3, "contexts", "index 1"),
    "vocabulary": ([[5]] * 3, [[6], [6], [VOCAB]], "targets", "index 2"),
    "mask": ([[5]] * 3, [[6], [6], [MASK]], "targets", "index 2"),
    "text": ([[5], "five"], [[6]] * 2, "contexts", "index 1"),
    "truth": ([[5], [True]], [[6]] * 2, "contexts", "index 1"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_likelihood_says_which_item(case: str) -> None:
    contexts, targets, argument, index = BAD_TEXTS[case]
    denoiser = with_config()
    denoiser.model.register_forward_hook(lambda *_: pytest.fail("ran before it was checked"))
    with refused(argument, index):
        lg.diffusion.loglikelihood(denoiser, contexts, targets)


def test_numbers_of_array_libraries() -> None:
    options = {"steps": 2, "block_length": 2, "temperature": 0.5, "top_p": 0.75, "top_k": 9, "residual_interval": 2}
    kinds: dict[type, Any] = {int: np.int64, float: np.float32}
    same = {name: kinds[type(value)](value) for name, value in options.items()}
    expected, found = (
        generate(generator=torch.Generator().manual_seed(0), guidance=lg.CFG(1.5), **given)
        for given in (options, {**same, "max_new_tokens": np.int64(ANSWER)})
    )
    assert found.sequences.equal(expected.sequences)
    for name in ("max_new_tokens", "steps", "temperature"):
        with refused(name, "True", error=TypeError):
            generate(**{name: True})


@pytest.mark.parametrize(
    "end",
    [2, [2], (2,), {2}, frozenset({2}), np.int64(2), np.array([2, 5]), torch.tensor(2), [torch.tensor(2)]],
    ids=str,
)
def test_ends_in_any_form(end: Any) -> None:
    assert ended(with_config(), eos_token_id=end, pad_token_id=torch.tensor([7])) == [2, 7, 7, 7]


@pytest.mark.parametrize("end", [True, 2.0, "2", [None], torch.tensor(2.0), torch.tensor(True), {2: 3}], ids=str)
def test_what_is_no_end(end: Any) -> None:
    with refused("eos_token_id", "token ids"):
        generate(eos_token_id=end)


class Unknown(Small):
    """A model of no family."""

    settings = {"model_type": "mine"}


@pytest.mark.parametrize("call", [generate, lambda model: lg.diffusion.loglikelihood(model, [[5]], [[6]])])
def test_a_model_of_no_known_family(call: Any) -> None:
    with refused("model", "Unknown", r"Denoiser\(model, family="):
        call(Unknown().eval())
    with pytest.raises(ValueError, match="of class Unknown[.]"):
        lg.diffusion.Denoiser(Unknown().eval())


def test_guidance_in_strings() -> None:
    methods = [lg.CFG(2.0), lg.AdaptiveCFG(1.5)]
    strings = ["cfg:guidance_scale=2.0", "adaptive_cfg:guidance_scale=1.5"]
    expected = generate(guidance=methods).sequences
    assert not expected.equal(generate().sequences)
    assert generate(guidance=strings).sequences.equal(expected)
    assert generate(guidance=[methods[0], strings[1]]).sequences.equal(expected)
    scores = [lg.diffusion.loglikelihood(denoiser_of("llada"), [[5]], [[6, 7]], guidance=g) for g in (methods, strings)]
    assert scores[0].score.equal(scores[1].score)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_tokenizers_output_is_not_its_ids(kind: Any) -> None:
    with refused("input_ids", kind.__name__, r"[*][*]inputs"):
        generate(ids=kind(input_ids=canvas_of(1, 5, 0)))


def test_infilling_on_uniform_noise() -> None:
    with refused("model", "mask token", "infill"):
        generate(denoiser_of("udlm"), infill=True)


def test_a_canvas_too_long_to_fill_in_is_not_told_of_new_tokens() -> None:
    with refused("input_ids", str(LONGEST + 1)):
        generate(ids=canvas_of(1, 5, LONGEST - 4), infill=True)
    with pytest.raises(ValueError, match="Change it[.]$"):
        generate(ids=canvas_of(1, 5, 2), infill=True, block_length=3)


@pytest.mark.parametrize("order", ["low_confidence", "dream:alg=entropy"])
def test_infilling_takes_as_many_steps_as_there_are_holes(order: str) -> None:
    ids = canvas_of(2, 9, 0)
    ids[:, 4] = ids[0, 7] = MASK
    output = generate(denoiser_of("dream"), ids, infill=True, order=order, output_history=True)
    assert len(output.history) == 3, "the masks, and two steps"
    ids[0, 7] = 5
    assert generate(denoiser_of("dream"), ids, infill=True, order=order).nfe.tolist() == [1, 1]
    assert check_lengths(denoiser_of("dream"), 9, 9, 3, None, holes=2) == (3, 3), "several windows: one per column"


def test_another_model_by_name_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str, **_: Any) -> lg.diffusion.Denoiser:
        loaded.append(name)
        return denoiser_of("llada")

    monkeypatch.setattr(binding, "load", load)
    name = "a model of this test alone"
    for _ in range(2):
        generate(guidance=lg.AutoGuidance(name, 2.0))
    lg.diffusion.loglikelihood(denoiser_of("llada"), [[5], [5]], [[6], [6, 7]], guidance=lg.AutoGuidance(name, 2.0))
    assert loaded == [name]


@pytest.mark.parametrize("padding", [8, -8])
def test_another_models_padded_vocabulary(padding: int) -> None:
    """A model whose embedding is padded further means the same tokens: it is a guide like the model without padding."""

    class Padded(torch.nn.Module):
        """The same laws with so many tokens more, which nobody has."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model_of("llada")
            self.config = SimpleNamespace(**{**vars(self.inner.config), "vocab_size": VOCAB + padding})

        def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
            logits = self.inner(input_ids, **inputs).logits.roll(1, -1)
            wider = torch.nn.functional.pad(logits, (0, max(padding, 0)), value=-1e9)
            return SimpleNamespace(logits=wider[..., : VOCAB + padding])

    other: Any = lg.diffusion.Denoiser(Padded().eval(), "llada", tokenizer=Tokens(), mask_token_id=MASK)
    ids = canvas_of(2, 5, 0).clamp_max(VOCAB - 9)
    options: dict[str, Any] = {"tokenizer": Tokens(), "guidance": lg.AutoGuidance(other, 1.5)}
    suppressed = list(range(VOCAB - 8, VOCAB))
    output = generate(ids=ids, suppress_tokens=suppressed, **options)
    assert not output.sequences.equal(generate(ids=ids, suppress_tokens=suppressed).sequences)
    assert ((output.confidences > 0) & (output.confidences <= 1)).all()
