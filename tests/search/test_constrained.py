"""Samples under a constraint against the law itself, worked out by writing down every text."""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers as tf

import lmguide as lg
from lmguide.search import constrained_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.search import Samples

pytest.importorskip("llguidance", reason="the grammar engines are an extra: pip install lmguide[grammar]")

PAD, END, LETTERS = 0, 1, {"a": 2, "b": 3}
PROMPT = torch.tensor([[2, 3, 3]])


@cache
def letters() -> Any:
    """A tokenizer of two letters."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"<pad>": PAD, "<end>": END, **LETTERS}, []))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", clean_up_tokenization_spaces=False
    )


@cache
def model(seed: int) -> Any:
    """A language model of two letters with random weights."""
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.22,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return tf.LlamaForCausalLM(config).eval()


def law(seed: int, length: int, valid: Callable[[str], bool]) -> tuple[dict[str, float], dict[str, float]]:
    """`p(text | valid)` for all texts of a length, and what masking gives: `prod_t p(x_t) / Z_t`."""
    texts = ["".join(text) for text in itertools.product(LETTERS, repeat=length)]
    ids = torch.tensor([[*PROMPT[0].tolist(), *(LETTERS[letter] for letter in text), END] for text in texts])
    with torch.no_grad():
        log_probs = model(seed)(ids).logits.double().log_softmax(-1)[:, PROMPT.shape[1] - 1 : -1]
    steps = log_probs.gather(-1, ids[:, PROMPT.shape[1] :, None])[..., 0].exp()
    probability = dict(zip(texts, steps.prod(-1).tolist(), strict=True))
    good = [text for text in texts if valid(text)]
    total = sum(probability[text] for text in good)
    masked = {}
    for text in good:
        masked[text] = 1.0
        for place in range(length):
            follow = [letter for letter in LETTERS if any(other.startswith(text[:place] + letter) for other in good)]
            row = log_probs[texts.index(text), place].exp()
            masked[text] *= float(row[LETTERS[text[place]]]) / sum(float(row[LETTERS[letter]]) for letter in follow)
    return {text: probability[text] / total for text in good}, masked


def distance(samples: Samples, expected: dict[str, float]) -> float:
    """Total variation between the weighted samples and a law."""
    found = dict.fromkeys(expected, 0.0)
    texts = letters().batch_decode(samples.sequences[:, PROMPT.shape[1] :], skip_special_tokens=True)
    for text, weight in zip(texts, samples.weights.tolist(), strict=True):
        if weight:  # texts that were cut off have none
            found[text] += weight
    return sum(abs(found[text] - share) for text, share in expected.items()) / 2


def balanced(text: str) -> bool:
    depths = list(itertools.accumulate(1 if letter == "a" else -1 for letter in text))
    return min(depths) >= 0 and depths[-1] == 0


CASES: dict[str, tuple[lg.Constraint, int, Callable[[str], bool]]] = {
    "five": (lg.Regex("aaaaa|b[ab]{4}"), 5, lambda text: text == "aaaaa" or text[0] == "b"),
    "parity": (
        lg.Regex("(b*ab*a)*b*"),
        6,
        lambda text: text.count("a") % 2 == 0,
    ),
    "dyck": (lg.Grammar('start: "" | "a" start "b" start'), 8, balanced),
}
MANY: dict[str, Any] = {"samples": 2000, "top_k": 0, "attention_mask": torch.ones_like(PROMPT)}


def run(case: str, sampling: Any, seed: int = 0, **more: Any) -> Samples:
    constraint, length, _ = CASES[case]
    # texts of this length: the pattern and the number of tokens together
    if case != "five":
        more.setdefault("predicate", lambda text, ended: len(text) == length if ended else len(text) <= length)
    guided = lg.guide(model(seed), constraint, letters())
    generator = torch.Generator().manual_seed(1)
    return constrained_samples(
        guided, PROMPT, sampling=sampling, max_new_tokens=length + 1, generator=generator, **(MANY | more)
    )


@pytest.mark.parametrize("seed", [1, 3])
def test_a_mask_alone_gives_another_law_and_the_others_the_right_one(seed: int) -> None:
    expected, masked = law(seed, 5, CASES["five"][2])
    apart = sum(abs(expected[text] - masked[text]) for text in expected) / 2
    assert apart > 0.15, "the case shows nothing"
    local = run("five", "local", seed)
    assert distance(local, masked) < 0.05
    assert distance(local, expected) > 0.1
    for sampling in ("importance", "smc"):
        assert distance(run("five", sampling, seed), expected) < 0.06, sampling
    for sampling in ("asap", "rejection"):
        found = run("five", sampling, seed, samples=900, max_rounds=2700)
        assert distance(found, expected) < 0.08, sampling
        assert found.rounds < found.forwards <= 6 * found.rounds  # a round ends when its last text has fallen


@pytest.mark.parametrize(
    ("case", "sampling", "samples"),
    [("parity", "importance", 2500), ("parity", "smc", 2500), ("dyck", "rejection", 400)],
)
def test_with_a_predicate_too(case: str, sampling: str, samples: int) -> None:
    """The constraint says what may follow, a Python function how long it may be."""
    expected, _ = law(0, CASES[case][1], CASES[case][2])
    assert distance(run(case, sampling, samples=samples), expected) < 0.09


def test_the_evidence_is_the_mass_of_what_is_valid() -> None:
    _, length, valid = CASES["five"]
    texts = ["".join(text) for text in itertools.product(LETTERS, repeat=length)]
    ids = torch.tensor(
        [[*PROMPT[0].tolist(), *(LETTERS[letter] for letter in text), END] for text in texts if valid(text)]
    )
    with torch.no_grad():
        log_probs = model(0)(ids).logits.double().log_softmax(-1)[:, PROMPT.shape[1] - 1 : -1]
    mass = float(log_probs.gather(-1, ids[:, PROMPT.shape[1] :, None])[..., 0].sum(-1).exp().sum())
    for sampling in ("importance", "smc"):
        found = torch.tensor(run("five", sampling).log_evidence).exp()
        assert float(found) == pytest.approx(mass, rel=0.06)


def test_log_mass_is_what_each_mask_left() -> None:
    found = run("five", "importance", samples=3)
    rows = found.sequences[:, PROMPT.shape[1] :]
    with torch.no_grad():
        laws = model(0)(found.sequences).logits.log_softmax(-1)[:, PROMPT.shape[1] - 1 : -1].exp()
    for row, masses in enumerate(found.log_mass):
        assert len(masses) == 6
        text: list[int] = rows[row].tolist()
        for place, mass in enumerate(masses):
            allowed = [END] if place == 5 else [2, 3] if not place or text[0] == 3 else [2]
            assert torch.tensor(mass).exp() == pytest.approx(float(laws[row, place, allowed].sum()), rel=1e-4)
        assert float(found.log_weights[row]) == pytest.approx(sum(masses))


def test_temperature_is_part_of_the_law() -> None:
    found = run("five", "importance", samples=2, temperature=0.5)
    with torch.no_grad():
        laws = (2 * model(0)(PROMPT).logits[0, -1]).softmax(-1)
    assert torch.tensor(found.log_mass[0][0]).exp() == pytest.approx(float(laws[[2, 3]].sum()), rel=1e-4)


def test_a_predicate_alone() -> None:
    """A Python function instead of a grammar, asked about few of the tokens."""
    expected, _ = law(0, 5, lambda text: "ab" not in text)

    def fits(text: str, ended: bool) -> bool:
        return "ab" not in text and (len(text) == 5 if ended else len(text) <= 5)

    guided = lg.guide(model(0), lg.CFG(1.0), letters())
    found = constrained_samples(
        guided,
        PROMPT,
        predicate=fits,
        max_new_tokens=6,
        generator=torch.Generator().manual_seed(0),
        **MANY | {"samples": 500},
    )
    assert distance(found, expected) < 0.1
    assert 0 < found.predicate_calls < 100


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sampling": "smcc"}, ValueError, "sampling: expected one of local, .* Did you mean 'smc'?"),
        ({"samples": 0}, ValueError, "samples"),
        ({"ess_threshold": 2}, ValueError, "ess_threshold"),
        ({"max_new_tokens": 3}, lg.ConstraintError, "no text was complete within max_new_tokens"),
        (
            {"sampling": "rejection", "max_rounds": 1, "samples": 40},
            lg.ConstraintError,
            "max_rounds: expected 40 valid",
        ),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    guided = lg.guide(model(0), CASES["five"][0], letters())
    arguments: dict[str, Any] = {"samples": 4, "max_new_tokens": 6, "top_k": 0} | change
    with pytest.raises(error, match=message):
        constrained_samples(guided, PROMPT, attention_mask=torch.ones_like(PROMPT), **arguments)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="expected a view with a constraint, or a predicate"):
        constrained_samples(lg.guide(model(0), lg.CFG(2.0), letters()), PROMPT)
    with pytest.raises(ValueError, match=r"inputs: expected one prompt, \[1, P\], got \[2, 3\]"):
        constrained_samples(lg.guide(model(0), CASES["five"][0], letters()), PROMPT.repeat(2, 1))
