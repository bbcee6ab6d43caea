"""Templates on DiffusionGemma's canvas, in transformers' own `generate()`, guided or not.

Its canvas is written anew at every step, and what comes out is the likeliest token of every column at the last one: a
token that only stands in the input is not kept. So here the scores of a template's text are forced, at every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import LogitsProcessor

from lmguide.constraints.automaton.chain import FREE, Chain
from lmguide.constraints.automaton.class_scores import ByClass
from lmguide.constraints.automaton.ends import with_ends
from lmguide.constraints.automaton.rows import Rows
from lmguide.constraints.automaton.store import token_dfa
from lmguide.constraints.context_free.reading import is_context_free
from lmguide.denoisers.gemma_checks import base_model
from lmguide.diffusion.template_layout import Slot, layout_of, null_vocabulary
from lmguide.measures import promote

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.diffusion.templates import Filled, Template

MARGIN = 1e-3
"""How far the token of the likeliest allowed text stands above all others of its column."""


class TemplateLogitsProcessor(LogitsProcessor):
    """The scores of a DiffusionGemma's canvas under a template that stands at its beginning.

    The template's text is sure, and behind it the end of the answer. In a field scores become log-marginals of the law
    of allowed texts, `p(x) ∝ ∏_i p_i(x_i) · 1[x is allowed]`, and the tokens of the likeliest of those texts stand
    first; so whatever step is the last, the canvas that comes out is allowed. It depends on its arguments alone, as
    `guide_gemma` needs.

    Args:
        template: What stands on the canvas; each field has one length.
        model: A DiffusionGemma, or a view of `guide_gemma`.
        tokenizer: Its tokenizer.

    Attributes:
        open_share: Share of the canvas that is in fields. The columns of the text have no entropy: multiply the
            `confidence_threshold` of transformers' stopping criterion by it to stop where it would stop by itself.

    Raises:
        TypeError: No template.
        ValueError: The template is longer than the canvas, a field has several lengths or is under a grammar, or no
            text of a field fits its columns.
    """

    def __init__(self, template: Template, model: Any, tokenizer: Any) -> None:
        model = base_model(model)
        text_config = model.config.get_text_config()
        owner = _Owner(model, tokenizer, text_config.vocab_size)
        if template.undecided:
            raise ValueError(
                f"template: expected fields of one length on this canvas, got several for {template.undecided[0]!r}. "
                "Give one."
            )
        self.layout = layout_of(template, null_vocabulary(template, owner, tokenizer))
        length, canvas = len(self.layout.tokens), model.config.canvas_length
        if length > canvas:
            raise ValueError(
                f"template: expected at most the {canvas} columns of the canvas, got {length}. Shorten fields or text."
            )
        ends = text_config.eos_token_id
        end = self.layout.vocabulary.eos[0] if ends is None else ends if isinstance(ends, int) else ends[0]
        columns = torch.tensor([*self.layout.tokens, *[end] * (canvas - length)])
        columns = columns.to(model.device)
        self._pinned = (columns >= 0).nonzero()[:, 0], columns[columns >= 0]
        words = self.layout.vocabulary
        self._fields = [_field(slot, words.tokens, words.eos, model.device) for slot in self.layout.slots]
        self.open_share = 1 - len(self._pinned[0]) / canvas

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores `[B, C, V]` of a canvas under the template."""
        (found,) = promote(scores.clone())
        places, tokens = self._pinned
        found[:, places] = -torch.inf
        found[:, places, tokens] = 0.0
        for field in self._fields:
            here = slice(field.slot.start, field.slot.stop)
            found[:, here] = field.allowed(found[:, here])
        return found

    def read(self, answer: Tensor) -> list[Filled]:
        """The values of a template's fields.

        Args:
            answer: What was generated, without the prompt, `[B, C]`.
        """
        return [self.layout.read(row) for row in answer]


class _Owner(NamedTuple):
    """What is asked of a model for its null token."""

    model: Any
    tokenizer: Any
    vocab_size: int
    mask_token_id: None = None


class _Allowed(NamedTuple):
    """A field and the automaton of its texts."""

    slot: Slot
    chain: Chain
    by_class: ByClass

    def allowed(self, scores: Tensor) -> Tensor:
        """Log-marginals `[B, W, V]` given that the text is allowed, the likeliest text's tokens first."""
        batch, width, vocab_size = scores.shape
        chain = self.chain
        law = scores.log_softmax(-1).transpose(0, 1).reshape(-1, vocab_size)
        mass, tops = self.by_class.mass_and_tops(law)
        state = torch.full((batch,), chain.dfa.start, device=scores.device)
        everything = torch.zeros_like(state)
        rows = Rows(chain, state, chain.accept.expand(batch, -1), everything, everything + width, width)
        by_column = (width, batch, -1)
        marginals, paths = rows.marginals(mass.view(by_column)), rows.best(tops.score.view(by_column))
        weights = chain.class_weights(marginals.before[:-1].flatten(0, 1), marginals.behind[1:].flatten(0, 1))
        weights = weights - marginals.total.repeat(width)[:, None]
        found = law + weights[:, chain.classes].to(law.dtype)
        best = tops.token.gather(1, paths.classes.view(-1, 1))
        first = found.amax(1, keepdim=True) + MARGIN
        found.scatter_(1, best, first)
        return found.view(width, batch, vocab_size).transpose(0, 1)


def _field(slot: Slot, tokens: list[bytes], null: tuple[int, ...], device: torch.device) -> _Allowed:
    if is_context_free(slot.constraint):
        raise ValueError(
            f"template: expected constraints that an automaton reads on this canvas, got a grammar in {slot.name!r}. "
            "Use JSON(), JSONSchema or Regex."
        )
    dfa = with_ends(token_dfa(slot.constraint, tokens), null)
    chain = Chain(dfa, device)
    width = slot.stop - slot.start
    open_, columns = torch.full((width, 1), FREE, device=device), torch.tensor([width], device=device)
    if dfa.empty or not bool(chain.finishing(open_, columns)[0, dfa.start]):
        raise ValueError(
            f"template: expected a text of {slot.constraint} in the {width} columns of {slot.name!r}, got none. "
            "Give the field another length."
        )
    return _Allowed(slot, chain, ByClass(chain.classes, chain.width))
