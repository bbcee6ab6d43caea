"""A model's verdict on what a text is about to name: looking ahead behind the likeliest next tokens, and asking."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch

from lmguide.descriptions.topics import listed
from lmguide.sources import caches
from lmguide.sources.branch import Branch, forward, passes
from lmguide.sources.ids import check_positions
from lmguide.sources.rewards.english import entity_settled, leading_entity
from lmguide.sources.rewards.questions import Questions, asked_about, resolved
from lmguide.sources.rewards.spelling import ends_in_word, spelling
from lmguide.sources.rewards.words import per_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmguide.descriptions.topics import TopicVerdicts
    from lmguide.sources.rewards.base import Generation

_WORD = re.compile(r"\w")
_JOINTS = {"", "'", "-", "\u2019"}
"""What can stand between the letters of one word."""


class Candidate(NamedTuple):
    """A next token that begins a word.

    Attributes:
        row: Its row of the loop.
        token: The token.
        before: What the token has in front of the word.
    """

    row: int
    token: int
    before: str


class VerdictReward:
    """`beta [v is about to name something of topic] - alpha [... of avoid]`, see `TopicVerdicts`.

    Attributes:
        forwards: Forward passes that read the text, look ahead and answer questions.
        nfe: The same counted per row of the loop.

    Args:
        context: The description.
        generation: The call.

    Raises:
        ValueError: No tokenizer, an encoder-decoder, neither one topic nor one per prompt, answers of the same tokens,
            or no positions left to look ahead.
    """

    def __init__(self, context: TopicVerdicts, generation: Generation) -> None:
        if generation.tokenizer is None:
            raise ValueError(
                "tokenizer: looking ahead needs the guided model's tokenizer, got None. "
                "Pass tokenizer= to guide() or to the processor."
            )
        if generation.model.config.is_encoder_decoder:
            raise ValueError(
                "model: expected a decoder-only model to look ahead with, got an encoder-decoder, whose input a reward "
                "does not see. Use ExampleGuidance or TopKGuidance."
            )
        self._asked = Questions(context, generation)
        asked_about(context, generation)
        prompts = generation.prompts.tokens()
        self._topics = per_row("topic", list(listed(context.topic)), prompts)
        self._avoids = per_row("avoid", list(listed(context.avoid)), prompts)
        self._context = context
        self._generation = generation
        self._extract = resolved("extract", context.extract) or leading_entity
        self._answers = context.answers or (("Yes", "No") if context.chat else (" yes", " no"))
        if self._asked.path(self._answers[0]) == self._asked.path(self._answers[1]):
            raise ValueError(
                f"answers: expected texts of different tokens, got {self._answers!r}, which are the same to the asked "
                "model. Write other words."
            )
        most = (generation.total or 0) + context.look_ahead
        check_positions(generation.model, generation.prompts, most, "look_ahead")
        self._spelling = spelling(generation.tokenizer, generation.vocab_size)
        self._before = [self._spelling.text(row)[-4:] for row in prompts]
        self._branch = Branch(generation.model, generation.prompts, generation.batch, record_past=generation.drafts)
        self._verdicts: dict[tuple[str, str], bool] = {}
        self._ahead = [0, 0]

    @property
    def forwards(self) -> int:
        """Forward passes so far."""
        return self._branch.forwards + self._ahead[0] + self._asked.forwards

    @property
    def nfe(self) -> int:
        """The same per row; passes over more rows than the loop has count as many as they would fill."""
        return self._branch.forwards + self._ahead[1] + self._asked.nfe

    @torch.no_grad()
    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Log-rewards `[B, V]`: of the likeliest tokens of each row that begin a word, 0 elsewhere."""
        rewards = torch.zeros(scores.shape, device=scores.device)
        candidates = self._candidates(generated, scores)
        if not candidates:
            return rewards
        entities = [self._extract(text) for text in self._look_ahead(generated, candidates)]
        wanted: list[tuple[Candidate, str, str, float]] = []
        for candidate, entity in zip(candidates, entities, strict=True):
            for topics, by in ((self._topics, self._context.beta), (self._avoids, -self._context.alpha)):
                if entity and (topic := topics[candidate.row]):
                    wanted.append((candidate, entity, topic, by))
        self._ask({(entity, topic): None for _, entity, topic, _ in wanted})
        for candidate, entity, topic, by in wanted:
            if self._verdicts[entity, topic]:
                rewards[candidate.row, candidate.token] += by
        return rewards

    def reorder(self, order: Tensor) -> None:
        """Let the cache follow; the topics of a prompt are those of all its beams."""
        self._branch.reorder(order)

    def rewind(self, valid: int) -> None:
        """Take tokens back from the cache."""
        self._branch.rewind(valid)

    def _candidates(self, generated: Tensor, scores: Tensor) -> list[Candidate]:
        """The likeliest tokens of each row that has topics, as far as they begin a word."""
        best, tokens = scores.topk(min(self._context.candidates, scores.shape[1]), -1)
        found = []
        answers = generated[:, -8:].tolist()
        for row, (values, likeliest) in enumerate(zip(best.tolist(), tokens.tolist(), strict=True)):
            if not (self._topics[row] or self._avoids[row]):
                continue
            inside = ends_in_word((self._before[row] + self._spelling.text(answers[row]))[-4:])
            for value, token in zip(values, likeliest, strict=True):
                text = self._spelling.texts[token].decode("utf-8", "replace")
                word = _WORD.search(text)
                before = text[: word.start()] if word else ""
                if word and value > -torch.inf and not (inside and before in _JOINTS):
                    found.append(Candidate(row, token, before))
        return found

    def _look_ahead(self, generated: Tensor, candidates: Sequence[Candidate]) -> list[str]:
        """What the model would write from each candidate's word on."""
        branch, model = self._branch, self._generation.model
        branch.rewind(generated.shape[1])
        if branch.cache is None or branch.consumed < generated.shape[1]:
            branch.logits(generated)
        rows = torch.tensor([candidate.row for candidate in candidates], device=generated.device)
        tokens = torch.tensor([[candidate.token] for candidate in candidates], device=generated.device)
        ids = torch.cat([branch.rows.ids, generated], 1)[rows]
        mask = torch.cat([branch.rows.mask, torch.ones_like(generated)], 1)[rows]
        texts = self._texts(candidates, tokens)
        early = self._extract is leading_entity
        with nullcontext() if branch.cache is None else caches.lent(branch.cache):
            if branch.cache is not None:
                caches.expand(branch.cache, rows)
            while tokens.shape[1] < self._context.look_ahead and not (early and all(map(entity_settled, texts))):
                ids, mask = torch.cat([ids, tokens[:, -1:]], 1), torch.cat([mask, torch.ones_like(tokens[:, -1:])], 1)
                fresh = None if branch.cache is None else 1
                logits = forward(model, ids, mask, branch.cache, fresh, 1, {}).logits[:, -1]
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
                texts = self._texts(candidates, tokens)
                made = passes(model, fresh)
                self._ahead[0] += made
                self._ahead[1] += made * -(-len(candidates) // self._generation.batch)
        return texts

    def _texts(self, candidates: Sequence[Candidate], tokens: Tensor) -> list[str]:
        every = [self._spelling.text(row).decode("utf-8", "replace") for row in tokens.tolist()]
        return [text[len(candidate.before) :] for candidate, text in zip(candidates, every, strict=True)]

    def _ask(self, pairs: dict[tuple[str, str], None]) -> None:
        """Find out whether entities belong to topics, each pair once."""
        new = [pair for pair in pairs if pair not in self._verdicts]
        if not new:
            return
        questions = [
            self._context.question.replace("{entity}", entity).replace("{topic}", topic) for entity, topic in new
        ]
        yes, no = self._asked.log_probs(questions, self._answers).unbind(1)
        shares = torch.sigmoid(yes - no)
        self._verdicts |= dict(zip(new, (shares > self._context.threshold).tolist(), strict=True))
