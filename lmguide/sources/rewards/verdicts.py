"""Classifiers of texts, whoever made them, as one function from texts to log-probabilities, checked."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lmguide.bundled import PREFIX, bundled
from lmguide.serialization import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.descriptions.caif import Label, TextClassifier

SUM_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a function's classes may add up; half precision is nearer."""

LEAST = -1e4
"""What a log-probability of minus infinity becomes: a class ruled out is very bad, and far away from it very good."""

NO_LENGTH = 10**6
"""A tokenizer that knows no longest text says a number far above this."""


@dataclass(frozen=True)
class Verdicts:
    """A classifier of texts.

    Attributes:
        log_probs: From N texts to log-probabilities `[N, C]`.
        index: From a label to its column.
        passes: Forward passes that so many texts take.
    """

    log_probs: Callable[[list[str]], Tensor]
    index: Callable[[Label], int]
    passes: Callable[[int], int]


def is_model(classifier: object) -> bool:
    """Whether it is a model of transformers, and no pipeline or function."""
    return hasattr(classifier, "config") and hasattr(classifier, "get_input_embeddings")


def loaded(context: TextClassifier) -> tuple[Any, Any]:
    """The classifier of a description and its tokenizer, loaded if given by name."""
    if isinstance(context.classifier, str):
        model, tokenizer = _load(context.classifier)
        return model, context.tokenizer or tokenizer
    return context.classifier, context.tokenizer


def check_model(model: Any) -> None:
    """Refuse a model that gives no probabilities of classes.

    Raises:
        ValueError: It drops out units, or has one class or numbers instead of classes.
        TypeError: It is no sequence classifier.
    """
    if not hasattr(model.config, "num_labels") or not type(model).__name__.endswith("ForSequenceClassification"):
        raise TypeError(
            f"classifier: expected a sequence classifier of transformers, got {type(model).__name__}. "
            "Load one with AutoModelForSequenceClassification, or give a function from texts to log-probabilities."
        )
    if model.training:
        raise ValueError("classifier: expected one that does not drop out units. Call its eval().")
    independent = model.config.problem_type == "multi_label_classification"
    if model.config.problem_type == "regression" or (model.config.num_labels < 2 and not independent):
        raise ValueError(
            f"classifier: expected at least two classes, got {model.config.num_labels} "
            f"(problem_type {model.config.problem_type!r}). If its one number is a log-odds, set "
            "config.problem_type = 'multi_label_classification'."
        )


def log_probs_of(model: Any, logits: Tensor) -> Tensor:
    """Log-probabilities `[..., C]` of a model's logits, as its `problem_type` says."""
    logits = logits.float()
    if model.config.problem_type == "multi_label_classification":
        return torch.nn.functional.logsigmoid(logits)
    return logits.log_softmax(-1)


def index_in_model(model: Any, label: Label) -> int:
    """The column of a label of a model."""
    names = {str(name): int(index) for index, name in (model.config.id2label or {}).items()}
    if isinstance(label, str) and label in names:
        return names[label]
    if isinstance(label, int) and 0 <= label < model.config.num_labels:
        return label
    known = ", ".join(f"{name!r}" for name in names)
    raise ValueError(
        f"label: expected one of {known} or an index below {model.config.num_labels}, got {label!r}. "
        f"{did_you_mean(label, names)}"
    )


def of_model(model: Any, tokenizer: Any, context: TextClassifier) -> Verdicts:
    """A sequence classifier of transformers as a classifier of texts, which it gets padded on the right.

    Raises:
        ValueError: There is no tokenizer, or it cannot pad.
    """
    if tokenizer is None:
        raise ValueError(
            "tokenizer: a classifier that reads texts needs its own, got None. Pass tokenizer= beside the classifier, "
            "or give the classifier by name."
        )
    pads = tokenizer.pad_token_id is not None and getattr(model.config, "pad_token_id", None) is not None
    size = context.batch_size if pads else 1
    reader = copy.copy(tokenizer)  # the sides below are ours alone
    reader.truncation_side, reader.padding_side = "left", "right"
    longest = _longest(model, tokenizer) if context.max_length is None else context.max_length
    limit = {} if longest is None else {"truncation": True, "max_length": longest}

    def log_probs(texts: list[str]) -> Tensor:
        found: list[Tensor] = []
        for start in range(0, len(texts), size):
            batch = reader(texts[start : start + size], padding=pads, return_tensors="pt", **limit)
            if not batch["input_ids"].shape[1]:
                raise ValueError("prompt: the classifier got a text without tokens. Give a prompt.")
            found.append(log_probs_of(model, model(**batch.to(model.device)).logits))
        return torch.cat(found)

    return Verdicts(log_probs, lambda label: index_in_model(model, label), lambda texts: -(-texts // size))


def of_sklearn(classifier: Any) -> Verdicts:
    """A fitted classifier of scikit-learn, which is never imported here."""
    classes: list[Any] = list(getattr(classifier, "classes_", ()))
    if len(classes) < 2:
        raise ValueError(
            f"classifier: expected a fitted one with at least two classes, got {len(classes)}. Fit it on both."
        )

    def index(label: Label) -> int:
        if label in classes:
            return classes.index(label)
        known = ", ".join(map(str, classes))
        raise ValueError(
            f"label: expected one of the classifier's classes_ ({known}), got {label!r}. "
            f"{did_you_mean(label, map(str, classes))}"
        )

    def log_probs(texts: list[str]) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the logarithm of 0 is minus infinity: as it is meant
            return _checked(classifier.predict_log_proba(texts), len(texts))

    return Verdicts(log_probs, index, lambda _: 1)


def of_function(function: Callable[[list[str]], Any], batch_size: int) -> Verdicts:
    """A user's function from texts to log-probabilities."""

    def index(label: Label) -> int:
        if isinstance(label, int) and label >= 0:
            return label
        raise ValueError(f"label: a function's classes have no names, got {label!r}. Give the index of its column.")

    def log_probs(texts: list[str]) -> Tensor:
        parts = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
        return torch.cat([_checked(function(part), len(part)) for part in parts])

    return Verdicts(log_probs, index, lambda texts: -(-texts // batch_size))


def _checked(found: object, texts: int) -> Tensor:
    """Log-probabilities that came from outside."""
    try:
        table = torch.as_tensor(found).detach().float()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"classifier: expected log-probabilities as a tensor or an array, got {type(found).__name__}. "
            "Return one row for each text and one column for each class."
        ) from None
    if table.ndim != 2 or table.shape[0] != texts:
        raise ValueError(
            f"classifier: expected log-probabilities of shape [{texts}, classes], got {list(table.shape)}. "
            "Return one row for each text and one column for each class."
        )
    if table.shape[1] < 2:
        raise ValueError("classifier: expected at least two classes, got one. Return the logarithms of p and of 1 - p.")
    if bool(table.isnan().any()):
        raise ValueError("classifier: expected log-probabilities, got NaN. Look at what it makes of short texts.")
    if bool((table > SUM_TOLERANCE).any()):
        raise ValueError(
            f"classifier: expected log-probabilities, got {float(table.max()):.3g}, which is above 0. "
            "Return logarithms of probabilities, of scores their log_softmax."
        )
    sums = table.exp().sum(-1)
    if bool(((sums - 1).abs() > SUM_TOLERANCE).any()):
        worst = float(sums[(sums - 1).abs().argmax()])
        raise ValueError(
            f"classifier: expected log-probabilities whose exp adds up to 1, got {worst:.3g}. "
            "Return logarithms of the probabilities of exclusive classes; for a sigmoid those of p and of 1 - p."
        )
    return table


def columns(
    verdicts: Callable[[Label], int], label: Label | tuple[Label, ...], batch: int, prompts: list[Any]
) -> Tensor:
    """The wanted column of each row, `[B]`.

    Args:
        verdicts: From a label to its column.
        label: One for all or one per prompt.
        batch: Rows of the loop.
        prompts: The prompt of each row, so that beams of one can be told from prompts.

    Raises:
        ValueError: Neither one nor one per prompt.
    """
    labels = list(label) if isinstance(label, tuple) else [label]
    repeat = batch // len(labels)
    same = repeat and all(prompts[row] == prompts[row - row % repeat] for row in range(batch))
    if len(labels) > 1 and (batch % len(labels) or not same):
        raise ValueError(
            f"label: expected one or one per prompt, got {len(labels)} for {batch} rows. "
            "Give as many as there are prompts."
        )
    found = [verdicts(one) for one in labels]
    return torch.tensor(found).repeat_interleave(batch // len(found))


def _longest(model: Any, tokenizer: Any) -> int | None:
    longest = tokenizer.model_max_length
    if longest is not None and longest < NO_LENGTH:
        return int(longest)
    positions = getattr(model.config, "max_position_embeddings", None)
    return int(positions) if positions else None


@lru_cache(maxsize=4)  # a classifier is asked for at every generate call
def _load(name: str) -> tuple[Any, Any]:
    if name.startswith(PREFIX):
        return bundled(name.removeprefix(PREFIX))
    return AutoModelForSequenceClassification.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
