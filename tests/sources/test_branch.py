"""A branch is right wherever it is asked, whatever happened in between: late, in drafts, re-ordered, taken back."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lmguide.sources.branch import Branch, positions
from lmguide.sources.ids import pack
from tests.families import ENCODER_DECODERS, FAMILIES, STATEFUL, tiny, tokens
from tests.huggingface.reference import next_token
from tests.huggingface.test_view import Counter

DECODERS = [family for family in FAMILIES if family not in ENCODER_DECODERS]
PROMPTS = [tokens(4, 1), tokens(11, 2)]


def branch(family: str, prompts: list[list[int]], batch: int | None = None, **options: Any) -> Branch:
    return Branch(tiny(family), pack(prompts, "cpu"), batch or len(prompts), **options)


def exact(family: str, prompts: list[list[int]], answers: list[list[int]], keep: int = 1) -> torch.Tensor:
    """Each row's law after each of its answer's last `keep` prefixes, from scratch."""
    return torch.stack(
        [
            torch.stack([next_token(tiny(family), prompt, answer[: len(answer) - k]) for k in range(keep - 1, -1, -1)])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    )


def ask(one: Branch, answers: list[list[int]], keep: int = 1) -> torch.Tensor:
    with torch.no_grad():
        return one.logits(torch.tensor(answers, dtype=torch.long).reshape(len(answers), -1), keep).log_softmax(-1)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", DECODERS)
def test_one_catch_up_is_many_steps(family: str, use_cache: bool) -> None:
    answers = [tokens(9, 5), tokens(9, 6)]
    stepwise, late = (branch(family, PROMPTS, use_cache=use_cache) for _ in range(2))
    for step in range(10):
        now = [answer[:step] for answer in answers]
        found = ask(stepwise, now)
        same(found, exact(family, PROMPTS, now))
        if step in {2, 3, 9}:
            same(ask(late, now), found)
    if use_cache:
        assert (stepwise.caught_up, stepwise.consumed) == (0, 9)
        assert (late.caught_up, late.consumed) == (1 + 0 + 5, 9)
    by_token = family == "mamba" and use_cache  # it cannot be resumed with several tokens at once
    assert (stepwise.forwards, late.forwards) == (10, 1 + 1 + 6 if by_token else 3)


@pytest.mark.parametrize("family", DECODERS)
def test_forwards_are_those_a_hook_counts(family: str) -> None:
    answers = [tokens(9, 5), tokens(9, 6)]
    late = branch(family, PROMPTS)
    with Counter(tiny(family)) as counter:
        for step in (0, 4, 9):
            ask(late, [answer[:step] for answer in answers])
    assert late.forwards == counter.count


@pytest.mark.parametrize("family", DECODERS)
def test_one_row_serves_a_batch(family: str) -> None:
    for first in (0, 3):  # asked before the first token, and late
        one = branch(family, PROMPTS[:1], batch=3)
        answers = [tokens(9, 5), tokens(9, 6), tokens(9, 7)]
        for step in range(first, 6):
            now = [answer[:step] for answer in answers]
            same(ask(one, now), exact(family, PROMPTS[:1] * 3, now))
        assert one.rows.ids.shape[0] == 3


@pytest.mark.parametrize("family", [family for family in DECODERS if family not in STATEFUL])
def test_drafts_are_scored_at_every_prefix(family: str) -> None:
    answers = [tokens(12, 5), tokens(12, 6)]
    one = branch(family, PROMPTS, record_past=True)
    for step, keep in ((0, 1), (4, 3), (5, 1), (9, 4), (12, 2)):
        now = [answer[:step] for answer in answers]
        same(ask(one, now, keep), exact(family, PROMPTS, now, keep))


@pytest.mark.parametrize(
    ("family", "seed", "use_cache"),
    [(family, seed, True) for family in DECODERS for seed in (0, 1)] + [("llama", 0, False), ("mamba", 0, False)],
)
def test_any_history_gives_the_same_law(family: str, seed: int, use_cache: bool) -> None:
    """A random walk of what decoding loops do: steps seen and unseen, drafts accepted and not, beams re-ordered.

    As the engine does, each question first takes back the tokens whose logits it wants again.
    """
    rng = random.Random(seed)
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2  # two beams for each prompt
    one = branch(family, prompts, record_past=family not in STATEFUL, use_cache=use_cache)
    answers: list[list[int]] = [[] for _ in prompts]

    def drafted(count: int) -> list[list[int]]:
        return [[*answer, *(rng.randrange(2, 100) for _ in range(count))] for answer in answers]

    for _ in range(24):
        match rng.choice(["ask", "ask", "step", "beams", "draft"]):
            case "ask":
                one.rewind(max(0, len(answers[0]) - 1))
                same(ask(one, answers), exact(family, prompts, answers))
            case "step":
                answers = drafted(1)
            case "beams":
                order = [rng.randrange(2), rng.randrange(2), 2 + rng.randrange(2), 2 + rng.randrange(2)]
                answers = [answers[row] for row in order]
                one.reorder(torch.tensor(order))
            case "draft":
                before, count = len(answers[0]), rng.randrange(1, 4)
                answers = drafted(count)
                keep = 1 if family in STATEFUL else min(count + 1, before + count)
                one.rewind(before + count - keep)
                same(ask(one, answers, keep), exact(family, prompts, answers, keep))
                kept = before + rng.randrange(count + 1)
                answers = [answer[:kept] for answer in answers]
                one.rewind(kept)
    one.rewind(max(0, len(answers[0]) - 1))
    same(ask(one, answers), exact(family, prompts, answers))


@pytest.mark.parametrize("family", ["mistral_sliding", "gemma3"])
@pytest.mark.parametrize("record_past", [True, False])
def test_rewinds_over_a_window_again_and_again(family: str, record_past: bool) -> None:
    """The window holds 8 tokens: rewinding past what is left of it must not be believed."""
    answer = tokens(30, 5)
    one = branch(family, PROMPTS[1:], record_past=record_past)
    for step in (10, 9, 8, 12, 11, 10, 9, 25, 20, 3, 30, 2, 5):
        one.rewind(max(0, step - 1))
        now = [answer[:step]]
        same(ask(one, now), exact(family, PROMPTS[1:], now))


def test_a_rewind_keeps_what_stands() -> None:
    one = branch("llama", PROMPTS)
    answers = [tokens(9, 5), tokens(9, 6)]
    ask(one, answers)
    one.rewind(9)
    assert (one.consumed, one.cache is not None) == (9, True)
    one.rewind(20)
    assert one.consumed == 9
    one.rewind(4)
    assert (one.consumed, one.cache is not None) == (4, True)
    recurrent = branch("mamba2", PROMPTS)
    ask(recurrent, answers)
    recurrent.rewind(4)
    assert recurrent.cache is None, "a recurrent state cannot go back"


def test_nothing_is_run_before_it_is_asked() -> None:
    one = branch("llama", PROMPTS)
    with Counter(tiny("llama")) as counter:
        one.reorder(torch.tensor([1, 0]))
        one.rewind(0)
    assert (one.cache, one.forwards, counter.count) == (None, 0, 0)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_decoders_branch_reads_its_encoder_output(family: str) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    model, prompt, answer = tiny(family), tokens(7, 1), tokens(5, 2)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        hidden = model.get_encoder()(ids).last_hidden_state
    start = [[int(model.generation_config.decoder_start_token_id or 0)]]
    extra = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "attention_mask": torch.ones_like(ids)}
    one = branch(family, start, extra=extra, record_past=True)
    for step in (0, 1, 4, 2, 5):
        one.rewind(max(0, step - 1))
        same(ask(one, [answer[:step]])[:, 0], next_token(model, prompt, answer[:step])[None])


def test_positions_count_tokens_and_not_padding() -> None:
    assert positions(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
