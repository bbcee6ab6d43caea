"""What guidance did, token by token: entropies, open gates and the top candidates before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmguide.huggingface.view import recorded
from lmguide.measures import entropy, kl_divergence

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.huggingface.view import GuidedModel
    from lmguide.schedules import Progress


@dataclass(frozen=True)
class StepRecord:
    """One generated token.

    Attributes:
        token: Its id.
        entropy: Of the conditional distribution before temperature, nats.
        divergence: KL(guided || conditional), nats: how far guidance moved the distribution.
        open: Whether guidance applied.
        before: The likeliest tokens without guidance, with probabilities, likeliest first.
        after: The same with guidance.
    """

    token: int
    entropy: float
    divergence: float
    open: bool
    before: tuple[tuple[int, float], ...]
    after: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Trace:
    """A traced answer.

    Attributes:
        sequences: All ids, `[B, L]`, prompt included.
        prompt_length: Where the answers begin.
        rows: For each row of the batch, its tokens up to and including the first end-of-sequence token.
    """

    sequences: Tensor
    prompt_length: int
    rows: tuple[tuple[StepRecord, ...], ...]


def trace(guided: GuidedModel, *args: Any, top: int = 5, **kwargs: Any) -> Trace:
    """Generate with a guided view and record what guidance did to every token.

    Args:
        guided: A view made by `guide`.
        *args: As for `guided.generate`.
        top: Candidates to record, at least 1.
        **kwargs: As for `guided.generate`. Beams and assisted decoding have no one path to record and are refused.

    Returns:
        The trace. `guided.stats` is that of the call.

    Raises:
        ValueError: Beams or assisted decoding, or guidance that is off.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("tales")
        >>> guided = lg.guide(model, lg.CFG(3.0), tokenizer=tokenizer)
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> traced = lg.trace(guided, **inputs, max_new_tokens=5, do_sample=False)
        >>> len(traced.rows[0]), traced.rows[0][0].open
        (5, True)
    """
    if top < 1:
        raise ValueError(f"top: expected at least 1 candidate, got {top}. Use 5 for the likeliest five.")
    for option in ("num_beams", "prompt_lookup_num_tokens", "assistant_model"):
        if _option(guided, kwargs, option) not in {None, 1}:
            raise ValueError(f"{option}: a trace follows one path, drafts and beams have several. Leave it out.")
    steps: list[tuple[list[Any], ...]] = []

    def record(cond: Tensor, scores: Tensor, opened: Tensor, progress: Progress) -> None:
        count = min(top, cond.shape[-1])
        before, after = cond.exp().topk(count), scores.exp().topk(count)
        steps.append(
            (
                entropy(cond).tolist(),
                kl_divergence(scores, cond).tolist(),
                opened.tolist(),
                [
                    list(zip(*pair, strict=True))
                    for pair in zip(before.indices.tolist(), before.values.tolist(), strict=True)
                ],
                [
                    list(zip(*pair, strict=True))
                    for pair in zip(after.indices.tolist(), after.values.tolist(), strict=True)
                ],
            )
        )

    view = recorded(guided, record)
    output = view.generate(*args, **kwargs)
    guided.stats = view.stats
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    if not steps:
        raise ValueError(
            "guidance: it is off, so there is nothing to trace. "
            "Give a strength other than 1 (0 for contrastive methods)."
        )
    prompt_length = sequences.shape[1] - len(steps)
    end = _option(guided, kwargs, "eos_token_id")
    ends = set(end if isinstance(end, list) else [end])
    rows = []
    for row, tokens in enumerate(sequences[:, prompt_length:].tolist()):
        records = []
        for token, step in zip(tokens, steps, strict=True):
            ent, moved, opened, before, after = (column[row] for column in step)
            records.append(StepRecord(token, ent, moved, opened, tuple(before), tuple(after)))
            if token in ends:
                break
        rows.append(tuple(records))
    return Trace(sequences, prompt_length, tuple(rows))


def _option(guided: GuidedModel, kwargs: dict[str, Any], name: str) -> Any:
    """An option of a call: given by name, in a generation config, or the model's own."""
    for holder in (
        kwargs,
        vars(kwargs.get("generation_config") or guided.generation_config),
        vars(guided.generation_config),
    ):
        if (value := holder.get(name)) is not None:
            return value
    return None
