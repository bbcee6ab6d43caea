"""The posterior of GeDi is that of a plain reference, whatever a loop does to its rows and tokens."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.descriptions.gedi import ClassPosterior
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from lmguide.sources.rewards.gedi import PosteriorReward
from lmguide.sources.vocabularies import shared_tokens
from tests.families import PAD, STATEFUL, VOCAB, made, tiny, tokens, words
from tests.gedi import log_posterior
from tests.huggingface.reference import next_token
from tests.refusals import refused
from tests.sources.test_models import other_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

PROMPTS = [tokens(9, 1), tokens(4, 2), tokens(6, 3)]
CODES = ((5,), (6, 7, 8), (9, 10))
TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def generation(prompts: Sequence[Sequence[int]] = PROMPTS, model: Any = None, **more: Any) -> Generation:
    arguments: dict[str, Any] = {
        "model": model or tiny("llama"),
        "tokenizer": None,
        "prompts": pack(prompts, "cpu"),
        "batch": len(prompts),
        "vocab_size": VOCAB,
        "device": torch.device("cpu"),
        "total": 30,
    }
    return Generation(**arguments | more)


def bind(call: Generation | None = None, guide: Any = None, code: Any = CODES[0], **more: Any) -> PosteriorReward:
    context = ClassPosterior(guide or tiny("gpt2", 1), code, **{"codes": CODES[:2]} | more)
    reward = bind_token_reward(context, call or generation())
    assert isinstance(reward, PosteriorReward)
    return reward


def asked(reward: PosteriorReward, answers: Sequence[Sequence[int]]) -> Tensor:
    generated = torch.tensor(answers, dtype=torch.long).view(len(answers), -1)
    return reward.log_rewards(generated, torch.zeros(len(answers), VOCAB))


def expected(
    answers: Sequence[Sequence[int]],
    guide: Any = None,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    codes: Sequence[Sequence[int]] = CODES[:2],
    wanted: int = 0,
    **more: Any,
) -> Tensor:
    return torch.stack(
        [
            log_posterior(guide or tiny("gpt2", 1), [*prompt, *answer], codes, wanted, **more)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    ).float()


def answers_of(length: int, seed: int = 50) -> list[list[int]]:
    return [tokens(length, seed + row) for row in range(len(PROMPTS))]


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    assert found.dtype == torch.float32


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "exact": ({}, {}),
    "the other code": ({"code": CODES[1]}, {"wanted": 1}),
    "three codes": ({"codes": CODES, "code": CODES[2]}, {"codes": CODES, "wanted": 2}),
    "prior": ({"class_prior": (3.0, 1.0)}, {"added": (math.log(0.75), math.log(0.25))}),
    "bias": ({"class_bias": -1.5, "code": CODES[1]}, {"added": (0.0, -1.5), "wanted": 1}),
    "normalized": ({"form": "normalized"}, {"mean_over": 1.0}),
    "everything": (
        {
            "form": "normalized",
            "codes": CODES,
            "logit_scale": 2.5,
            "bias": (0.5, -0.25, 1.0),
            "class_bias": 2.0,
            "class_prior": (0.5, 0.25, 0.25),
        },
        {
            "codes": CODES,
            "mean_over": 2.5,
            "added": (2.5 + math.log(0.5), -0.25 + math.log(0.25), 1.0 + math.log(0.25)),
        },
    ),
    "topic": (
        {"topic": (33, 34)},
        {"codes": ((5, 33, 34), (6, 7, 8, 33, 34))},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_step_by_step(form: str) -> None:
    given, law = FORMS[form]
    reward, answers = bind(**given), answers_of(12)
    for length in range(13):
        now = [answer[:length] for answer in answers]
        close(asked(reward, now), expected(now, **law))
        reward.rewind(length)
    assert (reward.forwards, reward.nfe) == (13, 13 * len(law.get("codes", CODES[:2])))


@pytest.mark.parametrize("family", ["llama", "mistral_sliding", "gemma3", "opt", "qwen3_next", "mamba", "mamba2"])
def test_every_kind_of_cache_follows_gates_drafts_and_beams(family: str) -> None:
    guide = tiny(family, 1)
    tolerance = 1e-4 if family in STATEFUL else 1e-5  # recurrent states round otherwise over several tokens
    reward = bind(guide=guide)
    answers = answers_of(14)
    for length in (0, 1, 6):  # a gate was closed in between
        now = [answer[:length] for answer in answers]
        close(asked(reward, now), expected(now, guide), tolerance)
        reward.rewind(length)
    drafts = [[*answer[:6], *tokens(4, 70 + row)] for row, answer in enumerate(answers)]
    for length in (7, 8, 9, 10):
        now = [answer[:length] for answer in drafts]
        close(asked(reward, now), expected(now, guide), tolerance)
    reward.rewind(8)  # two drafts were right
    now = [[*draft[:8], *tokens(2, 80 + row)] for row, draft in enumerate(drafts)]
    close(asked(reward, [row[:9] for row in now]), expected([row[:9] for row in now], guide), tolerance)
    same = bind(generation([PROMPTS[0]] * 3), guide)
    asked(same, [answer[:3] for answer in answers])
    same.reorder(torch.tensor([2, 0, 1]))
    same.reorder(torch.tensor([1, 1, 2]))  # before the guide is asked again
    moved = [[*answers[row][:3], 40 + place] for place, row in enumerate((0, 0, 1))]
    close(asked(same, moved), expected(moved, guide, [PROMPTS[0]] * 3), tolerance)


def test_taken_back_further_than_announced() -> None:
    reward, answers = bind(), answers_of(6)
    asked(reward, answers)
    reward.rewind(5)
    reward.rewind(2)
    other = [[*answer[:2], 50, 51, 52] for answer in answers]
    close(asked(reward, other), expected(other))
    shorter = [answer[:1] for answer in answers]
    close(asked(reward, shorter), expected(shorter))  # nobody said so


def test_without_drafts_one_prefix_is_kept() -> None:
    reward, answers = bind(generation(drafts=False)), answers_of(6)
    for length in range(7):
        asked(reward, [answer[:length] for answer in answers])
    assert len(reward._known) == 1
    close(asked(reward, answers), expected(answers))


def test_a_long_text_loses_no_precision() -> None:
    guide = made("llama", 1, max_position_embeddings=2048)
    prompt = tokens(600, 4)
    reward = bind(generation([prompt], total=None), guide)
    laws = []
    for code in CODES[:2]:
        with torch.no_grad():
            logits = guide(torch.tensor([[*code, *prompt]])).logits[0].double().log_softmax(-1)
        evidence = logits[len(code) - 1 : -1].gather(1, torch.tensor(prompt)[:, None]).sum()
        laws.append(evidence + logits[-1])
    with torch.no_grad():
        torch.testing.assert_close(
            asked(reward, [[]]), torch.stack(laws).log_softmax(0)[:1].float(), atol=1e-4, rtol=1e-5
        )


def test_prompts_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asked(bind(), [[], [], []])
    monkeypatch.setattr("lmguide.sources.rewards.gedi.CHUNK", 6 * VOCAB * 2)
    torch.testing.assert_close(asked(bind(), [[], [], []]), whole, atol=1e-6, rtol=0)


def test_the_code_stands_behind_the_beginning() -> None:
    prompts = [[1, *tokens(5, 1)], tokens(4, 2), [1]]
    reward = bind(generation(prompts))
    found = asked(reward, [[7, 8], [9, 10], [11, 12]])
    for row, answer in enumerate(([7, 8], [9, 10], [11, 12])):
        start = [1] if prompts[row][0] == 1 else []
        text = [*prompts[row][len(start) :], *answer]
        close(found[row], log_posterior(tiny("gpt2", 1), text, CODES[:2], 0, start=start).float())


def test_no_prompt_at_all() -> None:
    reward = bind(generation([[], []], model=tiny("t5")))
    close(asked(reward, [[], []]), expected([[], []], prompts=[[], []]))
    close(asked(reward, [[4], [5]]), expected([[4], [5]], prompts=[[], []]))


def test_posteriors_of_all_codes_are_one() -> None:
    total = sum(asked(bind(codes=CODES, code=code), answers_of(3)).exp() for code in CODES)
    torch.testing.assert_close(total, torch.ones(3, VOCAB), atol=1e-5, rtol=0)


def test_codes_in_text_and_from_the_guides_config(tmp_path: Path) -> None:
    guide = made("gpt2", 1)
    guide.config.gedi = {"codes": ["w5", "w6 w7 w8", [9, 10]], "logit_scale": 2.0, "bias": [0.5, 0.0, -0.5]}
    guide.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    call = generation(tokenizer=words())
    law: dict[str, Any] = {"codes": CODES, "wanted": 1, "mean_over": 2.0, "added": (0.5, 0.0, -0.5)}
    for given in (guide, str(tmp_path)):
        reward = bind(call, given, code="w6 w7 w8", codes=None, form="normalized")
        close(asked(reward, [[], [], []]), expected([[], [], []], **law))
    assert bind(call, str(tmp_path), "w5", codes=None)._branch.model is reward._branch.model, "loaded once"
    exact = bind(call, guide, code=(9, 10), codes=None)
    close(asked(exact, [[], [], []]), expected([[], [], []], codes=CODES, wanted=2))
    other = bind(call, guide, code="w5", codes=("w5", "w9"), topic="w33 w34")
    close(asked(other, [[], [], []]), expected([[], [], []], codes=((5, 33, 34), (9, 33, 34))))


def test_a_token_the_guide_excludes_under_every_code_is_no_evidence() -> None:
    guide = _with_bias(made("gpt2", 1), 50, -math.inf)
    found = asked(bind(guide=guide), [[], [], []])
    assert bool(found.isfinite().all())
    kept = [token for token in range(VOCAB) if token != 50]
    close(found[:, kept], expected([[], [], []], guide)[:, kept])


def test_embeddings_padded_differently() -> None:
    wider, narrower = made("gpt2", 1, vocab_size=VOCAB + 8), made("gpt2", 1, vocab_size=VOCAB - 8)
    call = generation(tokenizer=words())
    found = asked(bind(call, wider, tokenizer=words()), [[], [], []])
    laws = []
    for code in CODES[:2]:  # those ids are none, so they have no share
        text = PROMPTS[0]
        evidence = sum(float(next_token(wider, code, text[:i])[:VOCAB].log_softmax(-1)[t]) for i, t in enumerate(text))
        laws.append(evidence + next_token(wider, code, text)[:VOCAB].log_softmax(-1))
    close(found[0], torch.stack(laws).log_softmax(0)[0])
    call = generation([[3, 4, 5]], tokenizer=words())
    found = asked(bind(call, narrower, tokenizer=words()), [[]])
    close(found[:, : VOCAB - 8], expected([[]], narrower, [[3, 4, 5]]))
    before = torch.tensor([sum(_evidence(narrower, code, [3, 4, 5])) for code in CODES[:2]]).log_softmax(0)[0]
    close(found[0, VOCAB - 8 :], before.expand(8))


def _evidence(guide: Any, code: Sequence[int], text: Sequence[int]) -> list[float]:
    return [float(next_token(guide, code, text[:place])[token]) for place, token in enumerate(text)]


def _with_bias(guide: Any, token: int, value: float) -> Any:
    guide = copy.deepcopy(guide)

    def bias(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        changed = logits.clone()
        changed[..., token] = value
        return changed

    guide.lm_head.register_forward_hook(bias)
    return guide


class TestAnotherVocabulary:
    """Every third word is spelled otherwise in the guide's tokenizer, the others stand at other ids."""

    size = 100
    order = torch.randperm(size - 2, generator=torch.Generator().manual_seed(0)) + 2

    def tokenizer(self) -> Any:
        import tokenizers  # noqa: PLC0415
        import transformers as tf  # noqa: PLC0415

        names = {int(index): f"w{word + 2}" if word % 3 else f"\u2581x{word}" for word, index in enumerate(self.order)}
        vocabulary = {"<s>": 0, "<p>": 1} | {name: index for index, name in names.items()}
        model = tokenizers.models.WordLevel(vocabulary, unk_token="<p>")
        return tf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(model), pad_token="<p>", bos_token="<s>"
        )

    def map(self) -> list[int]:
        mine = [1, 0] + [-1] * (VOCAB - 2)  # padding and beginning by their role
        for word, index in enumerate(self.order.tolist()):
            if word % 3:
                mine[word + 2] = index
        return mine

    @pytest.mark.parametrize("form", ["exact", "normalized"])
    def test_shared_tokens_are_judged_and_others_are_passed_over(self, form: Any) -> None:
        guide, ids = made("llama", 1, vocab_size=self.size), self.map()
        prompts = [[1, 2, 3, 4, 5, 6, 8, 110], [3, 4], [2, 5]]
        call = generation(prompts, tokenizer=words())
        reward = bind(call, guide, tokenizer=self.tokenizer(), map_vocabulary=True, form=form)
        answers = [[2, 7, 3, 111], [9, 12, 2, 5], [3, 3, 4, 6]]
        scale = {"exact": None, "normalized": 1.0}[form]
        for length in (0, 1, 2, 4):
            found = asked(reward, [answer[:length] for answer in answers])
            reward.rewind(length)
            for row, answer in enumerate(answers):
                text = [ids[token] for token in [*prompts[row], *answer[:length]] if ids[token] >= 0]
                start = [0] if prompts[row][0] == 1 else []
                text = text[len(start) :]
                law = log_posterior(guide, text, CODES[:2], 0, start=start, mean_over=scale).float()
                evidence = torch.tensor(
                    [sum(_evidence(guide, [*start, *code], text)) for code in CODES[:2]], dtype=torch.float64
                )
                evidence = evidence * scale / max(1, len(text)) if scale else evidence
                before = evidence.log_softmax(0)[0].float()
                for token in range(VOCAB):
                    want = law[ids[token]] if ids[token] >= 0 else before
                    torch.testing.assert_close(found[row, token], want, **TOLERANCE)

    def test_the_map(self) -> None:
        assert shared_tokens(words(), self.tokenizer(), VOCAB, self.size).tolist() == self.map()

    def test_marks_of_a_words_beginning_are_one(self) -> None:
        mine, theirs = other_words({"w7": "\u0120the", "w8": "\u2581a"}), other_words({"w9": "\u2581the"})
        found = shared_tokens(mine, theirs, VOCAB, VOCAB)
        assert found[7] == 9
        assert found[8] == -1

    def test_refusals(self) -> None:
        guide = made("llama", 1, vocab_size=self.size)
        with refused("map_vocabulary", "tokenizers of both"):
            bind(generation(), guide, map_vocabulary=True)
        with refused("guide", "same vocabulary", "map_vocabulary=True"):
            bind(generation(tokenizer=words()), guide, tokenizer=self.tokenizer())
        with refused("guide", "same vocabulary size", "map_vocabulary=True"):
            bind(generation(), guide)
        none = other_words({f"w{index}": f"v{index}" for index in range(VOCAB)} | {"<pad>": "<p>", "<bos>": "<b>"})
        with refused("map_vocabulary", "not one"):
            bind(generation(tokenizer=words()), tiny("llama", 1), tokenizer=none, map_vocabulary=True)
        with refused("guide", "recurrent"):
            bind(
                generation(tokenizer=words()),
                made("mamba", 1, vocab_size=self.size),
                tokenizer=self.tokenizer(),
                map_vocabulary=True,
            )


REFUSED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "no codes": (lambda: bind(codes=None), ("codes", "config.gedi")),
    "a code of another guide": (lambda: bind(code=(11,)), ("code", r"\(11,\)")),
    "text without a tokenizer": (lambda: bind(code="w5", codes=("w5", "w6")), ("codes", "tokenizer")),
    "a text without tokens": (
        lambda: bind(generation(tokenizer=words()), code=" ", codes=(" ", "w6")),
        ("codes", "at least one"),
    ),
    "two spellings of one code": (
        lambda: bind(generation(tokenizer=words()), code="w5", codes=("w5", (5,))),
        ("codes", "different"),
    ),
    "a token the guide does not have": (lambda: bind(codes=((5,), (VOCAB,))), ("codes", str(VOCAB))),
    "an encoder-decoder": (lambda: bind(guide=tiny("t5")), ("guide", "causal")),
    "a guide in training": (lambda: bind(guide=made("gpt2").train()), ("guide", r"eval\(\)")),
    "too long for it": (lambda: bind(generation(total=125)), ("guide", "positions")),
    "NaN": (
        lambda: asked(bind(guide=_with_bias(made("gpt2", 1), PAD, math.nan)), [[], [], []]),
        ("guide", "NaN"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, (argument, *found) = REFUSED[case]
    with refused(argument, *found):
        make()


def test_no_model() -> None:
    with refused("guide", "int", error=TypeError):
        bind(guide=3)


def test_codes_saved_with_a_guide_are_checked() -> None:
    guide = made("gpt2", 1)
    guide.config.gedi = {"codes": [[5], [6]], "bias": [1.0]}
    with refused("code", r"\(7,\)"):
        bind(guide=guide, code=(7,), codes=None)
    with refused("bias", "2 codes"):
        bind(guide=guide, codes=None, form="normalized")
    with refused("class_prior", "2 codes"):
        bind(guide=guide, codes=None, class_prior=(1.0, 1.0, 1.0))


def test_a_context_that_is_no_reward() -> None:
    with refused("LastToken", "reward"):
        bind_token_reward(lg.LastToken(), generation())
