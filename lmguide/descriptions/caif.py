"""A classifier's verdict on each candidate for the next token, described without tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lmguide.checks import check_whole
from lmguide.contexts import CONTEXTS, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Label: TypeAlias = int | str
"""A class of a classifier: its name, or its index (a value of `classes_` for scikit-learn)."""

Texts: TypeAlias = Callable[[list[str]], Any]
"""From N texts to log-probabilities `[N, C]`, a tensor or an array."""


@CONTEXTS.register("text_classifier")
@dataclass(frozen=True)
class TextClassifier(Context):
    """A classifier's `log p(label | prompt, answer, v)` for the likeliest next tokens `v`; it makes a reward.

    Special tokens are no text: such a candidate gets the verdict on the prefix as it stands.

    Args:
        classifier: One of three. An `AutoModelForSequenceClassification` or its name or path; its configuration's
            `problem_type` says whether classes are exclusive (softmax) or `"multi_label_classification"` (sigmoid). A
            fitted scikit-learn pipeline with `predict_log_proba`. A function from a list of texts to log-probabilities
            `[N, C]` of exclusive classes. Only a name can be serialised.
        label: The wanted class, one for all or one per prompt: a name in the classifier's configuration or its index;
            for scikit-learn a value of `classes_`; for a function the index.
        top_k: Candidates of each row, at least 1: the tokens with the highest scores.
        rest: What the other tokens get: `"excluded"` (minus infinity, as in the published code), or the `"mean"` of the
            row's candidates.
        reading: `"ids"` feeds the candidates' token ids behind a shared key-value cache, for a causal classifier of
            the guided model's vocabulary; `"text"` decodes and classifies texts; `"auto"` is the former where it can
            be done.
        batch_size: Most texts of one call of the classifier.
        max_length: Most tokens of a text, special ones included; longer ones lose their beginning. `None` is what the
            classifier's tokenizer says. Has no meaning for ids.
        tokenizer: The classifier's. Loaded with the model when that is a name.
    """

    classifier: PreTrainedModel | Texts | str
    label: Label | tuple[Label, ...]
    top_k: int = 100
    rest: Literal["excluded", "mean"] = "excluded"
    reading: Literal["auto", "ids", "text"] = "auto"
    batch_size: int = 128
    max_length: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.label, list | tuple):
            object.__setattr__(self, "label", tuple(self.label))
            if not self.label:
                raise ValueError("label: expected a class or one per prompt, got none. Give its name or index.")
        for label in self.label if isinstance(self.label, tuple) else (self.label,):
            if not isinstance(label, str):
                check_whole("label", label, "Give the name of the class, or its index.", least=-(2**63))
        if not (isinstance(self.classifier, str) or callable(self.classifier) or _is_fitted(self.classifier)):
            raise TypeError(
                f"classifier: expected a sequence classifier, its name, a scikit-learn pipeline with "
                f"predict_log_proba or a function of texts, got {type(self.classifier).__name__}. "
                "Wrap it in a function from texts to log-probabilities."
            )
        check_whole("top_k", self.top_k, "The paper's code uses 100.", least=1)
        for argument, known in (("rest", ("excluded", "mean")), ("reading", ("auto", "ids", "text"))):
            if getattr(self, argument) not in known:
                options = ", ".join(map(repr, known))
                raise ValueError(
                    f"{argument}: expected {options}, got {getattr(self, argument)!r}. Choose one of them."
                )
        check_whole("batch_size", self.batch_size, "Use 1 for one text at a time.", least=1)
        if self.max_length is not None:
            check_whole("max_length", self.max_length, "Use None for the tokenizer's own.", least=1)


def _is_fitted(classifier: object) -> bool:
    """Whether it is scikit-learn's, told without importing it."""
    return hasattr(classifier, "predict_log_proba")
