"""A language model that is asked questions beside the text that it or another model writes.

Questions are asked in batches, each from scratch and without sampling: what is cached is the caller's business.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

import torch
from transformers import NoRepeatNGramLogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from lmguide.descriptions.topics import listed
from lmguide.sources.branch import Branch
from lmguide.sources.ids import Rows, check_positions, pack
from lmguide.sources.models import opened
from lmguide.sources.rewards.words import per_row
from lmguide.sources.rows import RowBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lmguide.descriptions.topics import TopicContext
    from lmguide.sources.rewards.base import Generation

AT_ONCE = 64
"""Rows of one pass over questions."""

REPEATED = 3
"""Tokens in a row that an answer has once: greedy lists of small models go round in circles. The published code says 2,
which in "polar bear, brown bear," forbids the second comma."""


class Questions:
    """The model that a description asks, or else the guided one.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        forwards: Forward passes so far.
        nfe: The same counted per row of the loop.

    Args:
        context: The description.
        generation: The call.

    Raises:
        ValueError: No tokenizer, or a model that drops out units or is on another device.
        TypeError: It is no model.
    """

    def __init__(self, context: TopicContext, generation: Generation) -> None:
        model: Any = context.model
        self.model, self.tokenizer = generation.model, context.tokenizer or generation.tokenizer
        if model is not None:
            self.model, self.tokenizer = opened(model, context.tokenizer, generation.model, False)
            if self.model.training:
                raise ValueError("model: expected one that does not drop out units. Call its eval().")
        if self.tokenizer is None:
            where = "guide() or to the processor" if model is None else "the method"
            raise ValueError(f"tokenizer: a question needs the asked model's, got None. Pass tokenizer= to {where}.")
        self.forwards = 0
        self.nfe = 0
        self._chat = context.chat
        self._batch = generation.batch

    @torch.no_grad()
    def answers(self, questions: Sequence[str], new_tokens: int, ended: Callable[[str], bool]) -> list[str]:
        """What the model answers greedily, each to its end.

        Args:
            questions: Texts.
            new_tokens: Most tokens of an answer.
            ended: Whether an answer needs no more.
        """
        found = []
        repeated = NoRepeatNGramLogitsProcessor(REPEATED)
        for part in _parts(questions):
            branch = self._branch(part, [[]] * len(part), new_tokens)
            generated = branch.rows.ids[:, :0]
            texts = [""] * len(part)
            for _ in range(new_tokens):
                scores = branch.logits(generated)[:, -1, : len(self.tokenizer)].float()
                token = repeated(generated, scores).argmax(-1, keepdim=True)
                generated = torch.cat([generated, token], 1)
                texts = [self._text(row) for row in generated.tolist()]
                over = [bool(self._ends & set(row)) for row in generated.tolist()]
                if all(end or ended(text) for end, text in zip(over, texts, strict=True)):
                    break
            found += texts
            self._count(branch, len(part))
        return found

    @torch.no_grad()
    def laws(self, questions: Sequence[str]) -> Tensor:
        """Log-probabilities `[N, V]` of the first token of an answer."""
        found = []
        for part in _parts(questions):
            branch = self._branch(part, [[]] * len(part), 1)
            found.append(branch.logits(branch.rows.ids[:, :0])[:, -1].float().log_softmax(-1))
            self._count(branch, len(part))
        return torch.cat(found)

    @torch.no_grad()
    def log_probs(self, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Log-probabilities `[N, A]` that an answer begins with each of some texts."""
        paths = [self.path(answer) for answer in answers]
        found: dict[tuple[int, ...], list[Tensor]] = {path: [] for path in paths}
        for begun in dict.fromkeys(path[:-1] for path in paths):  # answers that differ at last share a pass
            for part in _parts(questions):
                branch = self._branch(part, [begun] * len(part), 1)
                laws = branch.logits(branch.rows.ids[:, :0], len(begun) + 1).float().log_softmax(-1)
                self._count(branch, len(part))
                shared = sum((laws[:, place, token] for place, token in enumerate(begun)), laws.new_zeros(len(part)))
                for path in found:
                    if path[:-1] == begun:
                        found[path].append(shared + laws[:, -1, path[-1]])
        return torch.stack([torch.cat(found[path]) for path in paths], 1)

    def path(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer.

        Raises:
            ValueError: It has none.
        """
        tokens = tuple(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise ValueError(f"answers: expected texts of at least one token, got {answer!r}. Write another word.")
        return tokens

    @property
    def _ends(self) -> set[int]:
        own = self.model.generation_config.eos_token_id
        return {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id} - {None}

    def _text(self, tokens: list[int]) -> str:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        return str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _branch(self, questions: Sequence[str], begun: Sequence[Sequence[int]], new_tokens: int) -> Branch:
        """The model behind questions and the beginnings of their answers."""
        builder = RowBuilder(None, len(questions), self.model, self.tokenizer, self.model.device)
        asked: Any = [[{"role": "user", "content": text}] for text in questions] if self._chat else list(questions)
        rows = builder.negative(asked, argument="query")
        extra = None
        if self.model.config.is_encoder_decoder:
            hidden, mask = _encoded(self.model, rows)
            states: Any = hidden
            extra = {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": mask}
            start = self.model.generation_config.decoder_start_token_id
            rows = pack([[start, *tokens] for tokens in begun], rows.ids.device)
        elif any(begun):
            rows = pack([[*row, *tokens] for row, tokens in zip(rows.tokens(), begun, strict=True)], rows.ids.device)
        check_positions(self.model, rows, new_tokens, "query")
        return Branch(self.model, rows, len(questions), use_cache=new_tokens > 1, extra=extra)

    def _count(self, branch: Branch, rows: int) -> None:
        self.forwards += branch.forwards
        self.nfe += branch.forwards * -(-rows // self._batch)


def asked_about(context: TopicContext, generation: Generation) -> list[str]:
    """Every topic of a description, once.

    Raises:
        ValueError: There is neither one for all prompts nor one for each.
    """
    given = {"topic": listed(context.topic), "avoid": listed(context.avoid)}
    prompts = generation.prompts.tokens()
    for argument, topics in given.items():
        per_row(argument, list(topics), prompts)
    return list(dict.fromkeys(topic for topics in given.values() for topic in topics if topic))


def resolved(argument: str, given: Any) -> Any:
    """A function, found where a text says that it is.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(given, str):
        return given
    try:
        found = pkgutil.resolve_name(given)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{argument}: expected a function at {given!r}, but {error}. Give 'module:function'."
        ) from error
    if not callable(found):
        raise ValueError(f"{argument}: expected a function at {given!r}, got {type(found).__name__}. Give a function.")
    return found


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


def _encoded(model: Any, rows: Rows) -> tuple[Tensor, Tensor]:
    """Encoder output and mask for rows, which encoders want padded on the right."""
    order = rows.mask.eq(0).long().argsort(dim=1, stable=True)
    ids, mask = rows.ids.gather(1, order), rows.mask.gather(1, order)
    return model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state, mask
