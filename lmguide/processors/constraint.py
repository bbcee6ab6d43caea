"""A constraint as a `LogitsProcessor`, for anyone's own decoding loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import LogitsProcessor

from lmguide.constraints.base import Constraint, as_constraint
from lmguide.constraints.engine import check_backend, compile
from lmguide.constraints.states import ConstraintState
from lmguide.constraints.vocabulary import Vocabulary
from lmguide.processors.prefix import step_from

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class ConstraintLogitsProcessor(LogitsProcessor):
    """Minus infinity for tokens that may not follow, as an item of `logits_processor=[...]`.

    Beams, several returned sequences, drafts and call after call are right: rows are known by what they have written.
    `lmguide.guide(model, constraint, tokenizer)` does the same, reads forced tokens several at a time and tells of
    answers that are cut off: prefer it where you can. A processor of guidance must stand before this one. Scores are
    not renormalised: beams are ranked by the probability of their text without the constraint, unless `generate` is
    given `renormalize_logits=True`, which is what the view does.

    The first ids of a call are taken for the prompt. A call whose prompt is exactly the last sequence and one more
    token cannot be told from the next step of that call: `reset()` tells it.

    Args:
        constraint: What every answer must be.
        tokenizer: The model's tokenizer.
        eos_token_id: What ends an answer, one or several; `None` is the tokenizer's own. What `generate()` ends with
            must be among them.
        backend: The engine: `"llguidance"`, the default, or `"xgrammar"`.

    Raises:
        ValueError: A constraint that cannot be met with the vocabulary; at the first step, when its width is known.
        ConstraintError: No token can follow in a row.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("tales")
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> processor = lg.ConstraintLogitsProcessor(lg.Regex("[a-z]{3}!"), tokenizer)
        >>> output = model.generate(**inputs, max_new_tokens=20, logits_processor=[processor])
        >>> tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)[-1]
        '!'
    """

    supports_continuous_batching = False

    def __init__(
        self,
        constraint: Constraint | str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_id: int | Iterable[int] | None = None,
        backend: str | None = None,
    ) -> None:
        check_backend(backend)
        self.constraint = as_constraint(constraint)
        self.tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.backend = backend
        self.reset()

    def reset(self) -> None:
        """Forget the last prefix; the next ids are a prompt."""
        self._prompt: Tensor | None = None
        self._seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores `[B, V]`, minus infinity where a token may not follow."""
        if step_from(self._prompt, self._seen, input_ids) is None:
            vocabulary = Vocabulary.of_tokenizer(self.tokenizer, scores.shape[-1], self.eos_token_id)
            compiled = compile(self.constraint, vocabulary, self.backend)
            self._state = ConstraintState([compiled] * len(input_ids), vocabulary)
            self._prompt = input_ids
        self._seen = input_ids
        assert self._prompt is not None
        return self._state.at(input_ids[:, self._prompt.shape[1] :])(scores)
