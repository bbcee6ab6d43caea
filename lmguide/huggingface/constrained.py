"""A constraint in a guided call: bound to its rows, forced tokens as drafts, what is told when an answer is cut."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, LogitsProcessor
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria

from lmguide.constraints.base import Constraint, ConstraintError
from lmguide.constraints.engine import compile
from lmguide.constraints.states import ConstraintState, Row
from lmguide.constraints.vocabulary import Vocabulary
from lmguide.sources import caches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import GenerationConfig

    from lmguide.constraints.engine import Compiled
    from lmguide.huggingface.run import Run
    from lmguide.huggingface.view import Plan


def compiled(plan: Plan, config: GenerationConfig) -> tuple[tuple[Compiled | None, ...], Vocabulary]:
    """The constraints of a plan on the vocabulary of its model, one for all prompts or one for each.

    Raises:
        ValueError: No tokenizer or no end-of-sequence token, or a constraint that cannot be met with this vocabulary.
    """
    if plan.tokenizer is None:
        raise ValueError(
            "tokenizer: a constraint is about text and needs the model's tokenizer, got None. "
            "Give it: lg.guide(model, ..., tokenizer=tokenizer)."
        )
    if not (ends := end_tokens(config)):
        raise ValueError(
            "eos_token_id: a constraint ends an answer with it, got none. "
            "Give generate() eos_token_id=tokenizer.eos_token_id."
        )
    size = plan.model.config.get_text_config(decoder=True).vocab_size
    vocabulary = Vocabulary.of_tokenizer(plan.tokenizer, size, ends)
    given = plan.constraint if isinstance(plan.constraint, tuple) else (plan.constraint,)
    return tuple(None if each is None else compile(each, vocabulary, plan.backend) for each in given), vocabulary


def end_tokens(config: GenerationConfig) -> tuple[int, ...]:
    """The tokens that end a sequence in a call."""
    ends = getattr(config, "_eos_token_tensor", None)
    return () if ends is None else tuple(ends.flatten().tolist())


def bound(
    plan: Plan, config: GenerationConfig, prompts: int, repeat: int, close_within: int | None = None
) -> ConstraintState | None:
    """The constraint of each row of a loop; `None` if there is none.

    Args:
        plan: Of the call.
        config: Of the call.
        prompts: How many prompts there are.
        repeat: Rows of each prompt: beams, or several returned sequences.
        close_within: As in `ConstraintState`.

    Raises:
        ValueError: As `compiled`, or neither one constraint nor one per prompt.
    """
    if plan.constraint is None:
        return None
    each, vocabulary = compiled(plan, config)
    if len(each) not in {1, prompts}:
        raise ValueError(
            f"constraint: expected one, or one per prompt ({prompts}), got {len(each)}. "
            "Give as many as there are prompts, None for a prompt without."
        )
    rows = [each[row // repeat if len(each) > 1 else 0] for row in range(prompts * repeat)]
    return ConstraintState(rows, vocabulary, close_within=close_within)


class ForcedTokens(CandidateGenerator):
    """Drafts the tokens that the constraint leaves no choice about, so that one forward pass reads them all.

    Each is the only token with any probability at its place, so that drafts are always kept.

    Args:
        run: The call.
        max_length: Longest sequence.
    """

    def __init__(self, run: Run, max_length: int) -> None:
        self.run = run
        self.max_length = max_length

    def get_candidates(self, input_ids: Tensor, **_: Any) -> Any:
        """The row with what must follow it."""
        state = self.run.constraint
        assert state is not None
        room = max(0, self.max_length - input_ids.shape[1] - 1)
        forced = state.forced(input_ids[:, self.run.prompt_length :])[:room]
        self.run.stats.forced += len(forced)
        return torch.cat([input_ids, input_ids.new_tensor(forced)[None]], 1) if forced else input_ids, None


def can_skip(plan: Plan, input_ids: Tensor, arguments: Mapping[str, Any]) -> bool:
    """Whether forced tokens can be drafted and the answer is the same: one row, a cache that forgets, plain ends."""
    config = arguments["generation_config"]
    cache = arguments.get(caches.cache_name(plan.model))
    plain_ends = all(
        type(rule) in {EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria} for rule in arguments["stopping_criteria"]
    )
    return (
        plan.constraint is not None
        and input_ids.shape[0] == 1
        and plain_ends
        and bool(arguments.get("use_cache"))
        and cache is not None
        and all(type(part) is DynamicCache for part in caches.parts(cache))
        and not plan.model._is_stateful
        and not config.prefill_chunk_size
        and not (config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states))
        and not getattr(cache, "_is_user_defined", False)
    )


class NeverEmpty(LogitsProcessor):
    """Refuses rows that other processors have left without any token; they would be sampled from NaN."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores `[B, V]` themselves."""
        empty = torch.isneginf(scores).all(-1)
        if bool(empty.any()):
            raise ConstraintError(
                f"constraint: other processors exclude every token that it allows in row {int(empty.int().argmax())}. "
                "Loosen min_new_tokens, bad_words_ids, suppress_tokens and the like, or the constraint."
            )
        return scores


def told(state: ConstraintState, answers: Tensor, prompts: int) -> int:
    """How many returned answers `[B, G]` stop before they are complete; a warning says so.

    Raises:
        ConstraintError: An answer was returned that its constraint does not allow: there were fewer than asked for.
    """
    each = [row.compiled for row in state.rows[:: len(state.rows) // prompts]]
    cut = 0
    for index, tokens in enumerate(answers.tolist()):
        row = Row(each[index * prompts // len(answers)], frozenset(state.vocabulary.eos))
        row.extend(tokens)
        if row.matcher is None or row.ended:
            continue
        if row.taken < len(tokens):
            raise ConstraintError(
                f"num_return_sequences: expected answers that the constraint allows, got another in row {index}. "
                "There are fewer than asked for: ask for fewer."
            )
        cut += not row.matcher.accepting()
    if cut:
        warnings.warn(
            f"constraint: {cut} of {len(answers)} answers stop before they are complete. Raise max_new_tokens.",
            stacklevel=4,
        )
    return cut


def checked(constraint: object) -> Constraint | tuple[Constraint | None, ...]:
    """A constraint, or one for each prompt.

    Raises:
        TypeError: Something else is there.
    """
    if isinstance(constraint, Constraint):
        return constraint
    if isinstance(constraint, list | tuple) and all(
        each is None or isinstance(each, Constraint) for each in constraint
    ):
        return tuple(constraint)
    raise TypeError(
        f"constraint: expected a constraint such as Regex('[0-9]+') or one for each prompt, got {constraint!r}. "
        "Constraint.from_dict reads a dictionary."
    )
