"""Candidates behind a cache get what the classifier says of each text alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.models.qwen3_next import modeling_qwen3_next

from lmguide.sources.ids import Rows
from lmguide.sources.rewards.prefixes import PrefixClassifier, Way, way
from tests.families import VOCAB, padded, tokens
from tests.sources.rewards.classifiers import CAUSAL, alone, causal, encoder, prompts

if TYPE_CHECKING:
    from torch import Tensor

COPIED = ("mistral_sliding", "qwen3_next")
ROUNDING = 1e-12
"""What is left between two ways to the same logits in float64: up to 2e-15 over instruction sets."""
WAYS: dict[str, Way] = {family: "copied" if family in COPIED else "shared" for family in CAUSAL}


@pytest.mark.parametrize("family", CAUSAL)
def test_the_way_is_found(family: str) -> None:
    assert way(causal(family)) == WAYS[family]


class _Mean(tf.LlamaForSequenceClassification):
    """Causal, but its verdict is the mean over all tokens."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        states = self.model(input_ids, use_cache=False).last_hidden_state
        return SequenceClassifierOutputWithPast(logits=self.score(states).mean(1))


def test_classifiers_that_do_not_read_their_last_token_have_no_way() -> None:
    assert way(encoder()) is None
    make: Any = _Mean
    mean = make(causal("llama").config).eval()
    mean.load_state_dict(causal("llama").state_dict())
    assert way(mean) is None


def _check(reader: PrefixClassifier, rows: list[list[int]], answers: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randint(2, VOCAB, (len(rows), 7), generator=generator)
    generated = torch.tensor(answers, dtype=torch.long).reshape(len(rows), -1)
    with torch.no_grad():
        after, before = reader.logits(generated, candidates)
    whole = [[*row, *answer] for row, answer in zip(rows, answers, strict=True)]
    alone_before = _table(reader.classifier, [[text] for text in whole])[:, 0]
    torch.testing.assert_close(before, alone_before, atol=ROUNDING, rtol=0)
    expected = _table(
        reader.classifier,
        [[[*text, token] for token in row] for text, row in zip(whole, candidates.tolist(), strict=True)],
    )
    torch.testing.assert_close(after, expected, atol=ROUNDING, rtol=0)


@pytest.fixture
def precise(family: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The classifier in float64 throughout, where only a fault can be seen."""
    classifier = copy.deepcopy(causal(family)).double()
    if family == "qwen3_next":  # transformers rounds the states of its gated delta rule to float32, whatever it is in
        monkeypatch.setattr(modeling_qwen3_next, "torch", _NoFloat32())
        classifier.set_experts_implementation("eager")  # the others take no float64
    return classifier


class _NoFloat32:
    """The module `torch` whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _table(model: Any, texts: list[list[list[int]]]) -> Tensor:
    return torch.stack([torch.stack([alone(model, text) for text in row]) for row in texts])


@pytest.mark.parametrize("most", [2, 128])
@pytest.mark.parametrize("family", CAUSAL)
def test_candidates_are_scored_as_whole_texts(family: str, precise: Any, most: int) -> None:
    rows = prompts()
    answers = [tokens(12, 50 + row) for row in range(len(rows))]
    reader = PrefixClassifier(precise, Rows(*padded(rows)), WAYS[family], most)
    _check(reader, rows, [[] for _ in rows], 0)
    for length in (1, 2, 5, 5, 6, 12):  # some steps are skipped, one is asked twice
        _check(reader, rows, [answer[:length] for answer in answers], length)
    reader.rewind(9)
    reader.rewind(4)
    _check(reader, rows, [[*answer[:4], 77] for answer in answers], 1)


@pytest.mark.parametrize("family", CAUSAL)
def test_beams_move_their_cache(family: str, precise: Any) -> None:
    prompt = prompts()[0]
    rows = [prompt] * 3
    answers = [tokens(4, 50 + row) for row in range(3)]
    reader = PrefixClassifier(precise, Rows(*padded(rows)), WAYS[family])
    reader.reorder(torch.tensor([2, 1, 0]))  # before there is anything to move
    _check(reader, rows, answers, 0)
    reader.reorder(torch.tensor([2, 2, 0]))
    reader.reorder(torch.tensor([1, 2, 2]))
    _check(reader, rows, [[*answers[old], 11 + new] for new, old in enumerate((2, 0, 0))], 1)


def test_a_step_is_one_forward_pass() -> None:
    rows = prompts()
    reader = PrefixClassifier(causal("llama"), Rows(*padded(rows)), "shared")
    candidates = torch.arange(2, 42).expand(3, -1)
    with torch.no_grad():
        reader.logits(candidates[:, :0], candidates)
        assert (reader.forwards, reader.nfe) == (2, 2)  # the prompt but its last token, and that with the candidates
        reader.logits(candidates[:, :1], candidates)
    assert (reader.forwards, reader.nfe) == (3, 3)
    assert reader.cache.get_seq_length() == max(map(len, rows)) + 1
    layer: Any = reader.cache.layers[0]
    assert layer.keys.shape[0] == 3, "the cache has been copied"
