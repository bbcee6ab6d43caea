"""A classifier's gradient as a reward: against closed forms, finite differences and all substitutions."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf

from lmguide.contexts import ClassifierGradient, LastToken
from lmguide.sources.canvas_rewards import bind_reward
from tests.families import VOCAB, tokens, words
from tests.refusals import refused
from tests.sources.canvases import MASK, canvas_of, guided, no_law, rewards

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass
class Linear:
    """`sum_l W[l, x_l]`: linear in the one-hot canvas, which is its own embedding."""

    weight: Tensor

    @property
    def embedding(self) -> Tensor:
        return torch.eye(self.weight.shape[1])

    def log_prob(self, embeds: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        return (embeds * self.weight * attention_mask[..., None]).sum((1, 2)) * labels


def substituted(score: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """`log p(y | x with v at l) - log p(y | x)` of one row of ids `[L]`, by all `L V` substitutions, `[L, V]`."""
    here = score(ids[None])
    change = torch.empty(len(ids), VOCAB)
    for column in range(len(ids)):
        other = ids.repeat(VOCAB, 1)
        other[:, column] = torch.arange(VOCAB)
        change[column] = score(other) - here
    return change


def test_a_linear_classifier_is_exact() -> None:
    canvas = canvas_of([tokens(6, 1), [5, MASK, 7, MASK, MASK, 9]])
    linear = Linear(torch.randn(6, VOCAB))
    found = rewards(bind_reward(ClassifierGradient(linear, 1), guided()), canvas)
    plain = [linear.weight - linear.weight[torch.arange(6), row][:, None] for row in canvas.ids]
    assert torch.equal(found, torch.cat(plain))

    def score(ids: Tensor) -> Tensor:
        return linear.weight[torch.arange(6), ids].sum(1)

    torch.testing.assert_close(found, torch.cat([substituted(score, row) for row in canvas.ids]), atol=1e-5, rtol=0)


def test_labels_of_rows() -> None:
    canvas = canvas_of([[4, 5, MASK], [4, 5, MASK]])
    linear = Linear(torch.randn(3, VOCAB))
    one = rewards(bind_reward(ClassifierGradient(linear, 1), guided()), canvas)
    both = rewards(bind_reward(ClassifierGradient(linear, (1, 2)), guided()), canvas)
    assert torch.equal(both, torch.cat([one[:3], 2 * one[3:]]))
    with refused("label", "per prompt", "got 3"):
        rewards(bind_reward(ClassifierGradient(linear, (1, 2, 0)), guided()), canvas)


_BERT: Any = tf.BertConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    initializer_range=0.4,
)
_LLAMA: Any = tf.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=32,
    initializer_range=0.4,
    pad_token_id=0,
)
_GPT2: Any = tf.GPT2Config(
    vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.4, pad_token_id=0
)
_GEMMA: Any = tf.Gemma3TextConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=32,
    initializer_range=0.4,
    pad_token_id=0,
)
for _config in (_BERT, _LLAMA, _GPT2, _GEMMA):
    _config.num_labels = 3
MADE: dict[str, tuple[Any, Any]] = {
    "bert": (tf.BertForSequenceClassification, _BERT),
    "llama": (tf.LlamaForSequenceClassification, _LLAMA),
    "gpt2": (tf.GPT2ForSequenceClassification, _GPT2),  # it counts positions and reads the last token
    "gemma3": (tf.Gemma3TextForSequenceClassification, _GEMMA),  # it scales its embeddings
}
all_classifiers = pytest.mark.parametrize("name", MADE)


def classifier(name: str) -> Any:
    kind, config = MADE[name]
    torch.manual_seed(5)
    return kind(config).eval()


@all_classifiers
def test_a_transformers_reward_is_its_derivative_towards_each_token(name: str) -> None:
    """Central differences along `E_v - E_x`, in double precision."""
    model = classifier(name).double()
    canvas = canvas_of([[5, MASK, 7, MASK, 9]])
    found = rewards(bind_reward(ClassifierGradient(model, 2), guided()), canvas)
    embedding = model.get_input_embeddings()
    here = embedding(canvas.ids)
    # these two take norms in single precision, whose rounding a short step would magnify
    step, close = (1e-4, 1e-6) if name in {"bert", "gpt2"} else (1e-3, 2e-4)

    def score(embeds: Tensor) -> Tensor:
        logits: Tensor = model(inputs_embeds=embeds, attention_mask=canvas.attention_mask).logits
        return logits.log_softmax(-1)[0, 2]

    for column, token in itertools.product(range(5), (0, MASK, 9, 50, VOCAB - 1)):
        towards = torch.zeros_like(here)
        towards[0, column] = embedding(torch.tensor(token)) - here[0, column]
        slope = (score(here + step * towards) - score(here - step * towards)) / (2 * step)
        torch.testing.assert_close(found[column, token].double(), slope, atol=close, rtol=close)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found[torch.arange(5), canvas.ids[0]], torch.zeros(5), atol=1e-6, rtol=0)


@all_classifiers
def test_small_changes_of_a_token_are_what_substitution_gives(name: str) -> None:
    """Embeddings that differ little: what first order misses is of second order."""
    ids, misses = torch.tensor([5, MASK, 7, 8]), []
    for spread in (0.02, 0.01):
        model = classifier(name).double()
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            weight.copy_(weight[9:10] + spread * weight)

        def score(rows: Tensor, model: Any = model) -> Tensor:
            with torch.no_grad():
                logits: Tensor = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
            return logits.log_softmax(-1)[:, 1]

        exact = substituted(score, ids)
        found = rewards(bind_reward(ClassifierGradient(model, 1), guided()), canvas_of([ids.tolist()]))
        # the last-token classifiers take the padding token's id for padding
        misses.append(float((found - exact)[:, 1:].abs().max()))
        assert misses[-1] < 0.2 * exact.abs().max()
    assert 3 < misses[0] / misses[1] < 5


@all_classifiers
def test_padding_and_other_rows_change_nothing(name: str) -> None:
    model = classifier(name)
    long, short = [5, 6, MASK, 7, MASK, 9, 10], [5, MASK, 8, MASK]
    both = rewards(bind_reward(ClassifierGradient(model, (1, 2)), guided()), canvas_of([long, short]))
    for row, label, found in ((long, 1, both[: len(long)]), (short, 2, both[len(long) :])):
        alone = rewards(bind_reward(ClassifierGradient(model, label), guided()), canvas_of([row]))
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    wider = rewards(bind_reward(ClassifierGradient(model, 2), guided()), canvas_of([short], [6]))
    torch.testing.assert_close(wider, both[len(long) :], atol=1e-5, rtol=1e-4)


def test_columns_behind_the_window_are_not_seen() -> None:
    model = classifier("bert")
    reward = bind_reward(ClassifierGradient(model, 1), guided())
    rows, columns = torch.zeros(3, dtype=torch.long), torch.arange(3)
    reward.prepare(canvas_of([[5, 6, MASK, MASK, MASK]]), no_law, stop=3)
    cut = reward.log_rewards(rows, columns, torch.zeros(3, VOCAB))
    reward.prepare(canvas_of([[5, 6, MASK]]), no_law)
    assert torch.equal(cut, reward.log_rewards(rows, columns, torch.zeros(3, VOCAB)))


def test_gradients_in_inference_mode_leave_the_classifier_alone() -> None:
    model = classifier("bert")
    canvas = canvas_of([[5, 6, MASK], [5, MASK, 8]])
    usual = rewards(bind_reward(ClassifierGradient(model, 1), guided()), canvas)
    with torch.inference_mode():
        inside = canvas_of([[5, 6, MASK], [5, MASK, 8]])
        assert torch.equal(rewards(bind_reward(ClassifierGradient(model, 1), guided()), inside), usual)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_independent_labels_are_read_as_such() -> None:
    config = tf.BertConfig(**_BERT.to_dict() | {"problem_type": "multi_label_classification"})
    torch.manual_seed(5)
    model: Any = tf.BertForSequenceClassification(config).eval()
    canvas = canvas_of([[5, MASK, 7]])
    embeds = model.get_input_embeddings()(canvas.ids).detach().requires_grad_()
    model(inputs_embeds=embeds).logits[0, 1].sigmoid().log().backward()
    slope = embeds.grad[0] @ model.get_input_embeddings().weight.T
    plain = (slope - slope.gather(1, canvas.ids.T)).detach()
    found = rewards(bind_reward(ClassifierGradient(model, 1), guided()), canvas)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_a_classifier_is_loaded_by_name(tmp_path: Any) -> None:
    model = classifier("bert")
    model.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    canvas = canvas_of([[5, MASK, 7]])
    found = rewards(bind_reward(ClassifierGradient(str(tmp_path), 1), guided(tokenizer=words())), canvas)
    assert torch.equal(found, rewards(bind_reward(ClassifierGradient(model, 1), guided()), canvas))


def test_what_does_not_fit_is_refused() -> None:
    fits = classifier("bert")
    with refused("model", "vocabulary", str(VOCAB)):
        bind_reward(ClassifierGradient(fits, 1), guided(VOCAB + 1))
    with refused("model", "embeds", "100"):
        bind_reward(ClassifierGradient(Linear(torch.zeros(2, 100)), 1), guided())
    other = tf.PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(words().backend_tokenizer))
    other.add_tokens(["more"])
    with refused("model", "same vocabulary", "'more'"):
        bind_reward(ClassifierGradient(fits, 1, other), guided(), words())
    with refused("model", "mask token 500", "noised"):
        bind_reward(ClassifierGradient(fits, 1, words()), guided(mask_token_id=500), words())
    with refused("model", "drop out"):
        bind_reward(ClassifierGradient(tf.BertForSequenceClassification(_BERT).train(), 1), guided())
    with refused("model", "several classes"):
        bind_reward(
            ClassifierGradient(
                tf.BertForSequenceClassification(tf.BertConfig(**_BERT.to_dict() | {"num_labels": 1})).eval(), 1
            ),
            guided(),
        )
    for wrong in (torch.nn.Linear(2, 2), object(), tf.PreTrainedConfig()):
        with refused("model", "inputs_embeds", error=TypeError):
            bind_reward(ClassifierGradient(wrong, 1), guided())  # type: ignore[arg-type]
    with refused("label", "3 classes", "got 3"):
        rewards(bind_reward(ClassifierGradient(fits, 3), guided()), canvas_of([[5, MASK]]))
    with refused("model", "25 tokens", "24"):
        rewards(bind_reward(ClassifierGradient(fits, 1), guided()), canvas_of([[5] * 25]))
    with refused("context", "LastToken", error=TypeError):
        bind_reward(LastToken(), guided())
    with refused("model", "meta|cpu"):
        bind_reward(ClassifierGradient(fits, 1), guided(device=torch.device("meta")))


def test_a_classifier_that_counts_padding_is_refused() -> None:
    model = classifier("bert")

    def forward(inputs_embeds: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=model.classifier(inputs_embeds.mean(1)))

    model.forward = forward
    reward = bind_reward(ClassifierGradient(model, 1), guided())
    rewards(reward, canvas_of([[5, MASK, 7]]))
    with refused("model", "padding", "nats"):
        rewards(reward, canvas_of([[5, MASK, 7]], [4]))


def test_a_log_prob_of_another_shape_is_refused() -> None:
    class Wrong(Linear):
        def log_prob(self, embeds: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
            return embeds.sum((1, 2))[:, None]

    with refused("log_prob", r"\[1\]", r"\[1, 1\]"):
        rewards(bind_reward(ClassifierGradient(Wrong(torch.zeros(2, VOCAB)), 1), guided()), canvas_of([[5, MASK]]))
