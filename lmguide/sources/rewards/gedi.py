"""The posterior of a class at every next token: a guide on all control codes at once, followed token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lmguide.descriptions.gedi import check_codes, check_count
from lmguide.sources.branch import Branch, passes
from lmguide.sources.ids import check_positions, pack
from lmguide.sources.models import check_vocabulary, fitted, opened
from lmguide.sources.roomy import ROOM
from lmguide.sources.vocabularies import shared_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.descriptions.gedi import ClassPosterior, Code
    from lmguide.sources.ids import Rows
    from lmguide.sources.rewards.base import Generation

FLOOR = -1e30
"""Takes the place of minus infinity, whose differences are NaN."""

CHUNK = 2**24
"""Scores of a prompt that are worked on at once."""


@dataclass(frozen=True)
class Standing:
    """What the guide holds of a prefix.

    Attributes:
        laws: Log-probabilities of what follows it, `[C, R, V]`, float32, all finite.
        rows: Of the loop's rows, where each stands in `laws`, `[B]`; `None` where they stand as they are.
        evidence: `log p(text | code)` less its mean over the codes, `[C, B]`: the mean cancels in every posterior, and
            what is left stays small, so that long texts lose no precision.
        count: Tokens of text, `[B]`.
    """

    laws: Tensor
    rows: Tensor | None
    evidence: Tensor
    count: Tensor

    def of(self, order: Tensor) -> Standing:
        """The same in another order of the loop's rows."""
        rows = order if self.rows is None else self.rows[order]
        return Standing(self.laws, rows, self.evidence[:, order], self.count[order])

    def here(self) -> Tensor:
        """The laws in the loop's order, `[C, B, V]`."""
        return self.laws if self.rows is None else self.laws[:, self.rows]

    def then(self, tokens: Tensor, seen: Tensor | None, laws: Tensor) -> Standing:
        """One token later.

        Args:
            tokens: The tokens, `[B]`.
            seen: Rows whose token the guide knows; `None` is all.
            laws: What the guide says behind it, `[C, B, V]`.
        """
        rows = torch.arange(len(tokens), device=tokens.device) if self.rows is None else self.rows
        news = _centred(self.laws[:, rows, tokens])
        if seen is None:
            return Standing(laws, None, self.evidence + news, self.count + 1)
        return Standing(
            torch.where(seen[:, None], laws, self.here()), None, self.evidence + news * seen, self.count + seen
        )


class PosteriorReward:
    """`log P(code | text, v)` for every next token `v`; see `ClassPosterior` for the formulas.

    All codes of all rows are one cached batch of the guide: row `c * B + b` is row `b` behind code `c`.

    Args:
        context: The description.
        generation: The call.

    Raises:
        ValueError: The guide does not fit the guided model, knows no such code, or its scores are NaN.
        TypeError: It is no model.
    """

    def __init__(self, context: ClassPosterior, generation: Generation) -> None:
        guide, tokenizer = _guide(context, generation)
        saved = getattr(guide.config, "gedi", None) or {}
        if context.codes is None and "codes" not in saved:
            raise ValueError(
                "codes: expected all classes of the guide, got none, and its config.gedi names none. "
                "Give codes=(...) as it was trained."
            )
        codes = check_codes(context.codes or saved["codes"], context.code)
        bias: Any = [0.0] * len(codes)
        self._scale = 0.0  # the exact form: no mean over tokens
        if context.form == "normalized":
            bias = context.bias or saved.get("bias") or bias
            self._scale = float(context.logit_scale or saved.get("logit_scale") or 1.0)
            check_count("bias", bias, codes)
        check_count("class_prior", context.class_prior, codes)
        prior = context.class_prior or (1.0,) * len(codes)
        self._codes, self._batch = len(codes), generation.batch
        self._wanted = codes.index(context.code)
        self._others = [code for code in range(len(codes)) if code != self._wanted]
        handicap = [b + math.log(share / sum(prior)) for b, share in zip(bias, prior, strict=True)]
        handicap[self._wanted] += context.class_bias
        ahead = [handicap[other] - handicap[self._wanted] for other in self._others]
        self._handicapped = any(ahead)
        self._ahead = torch.tensor(ahead, device=generation.device)[:, None]
        self._map = _map(context, generation, guide, tokenizer)
        self._width = guide.config.get_text_config(decoder=True).vocab_size
        if self._map is None:
            self._width = generation.vocab_size
        rows, self._texts = self._rows(context, codes, generation, guide, tokenizer)
        check_positions(guide, rows, generation.total or 0, "guide")
        self._branch = Branch(guide, rows, rows.ids.shape[0], record_past=generation.drafts, room=ROOM)
        self._drafts = generation.drafts
        self._known: dict[int, Standing] = {}  # by tokens of the answer; several only while they may be taken back
        self._step = 0
        self._order: Tensor | None = None

    @property
    def forwards(self) -> int:
        """Forward passes of the guide."""
        return self._branch.forwards

    @property
    def nfe(self) -> int:
        """The same for each code."""
        return self._branch.forwards * self._codes

    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Log-posteriors `[B, V]` of the wanted class with each next token; `scores` are not looked at."""
        self._settle()
        if generated.shape[1] < self._step:
            self.rewind(generated.shape[1])
        if not self._known:
            self._read_prompts()
        if generated.shape[1] > self._step:
            self._read(generated)
        return self._log_posterior(self._known[self._step])

    def reorder(self, order: Tensor) -> None:
        """Follow beams, when the guide is asked next."""
        self._order = order if self._order is None else self._order[order]

    def rewind(self, valid: int) -> None:
        """Take back generated tokens; what is known of shorter prefixes than `valid` is let go."""
        self._settle()
        if not self._known:
            return
        step = min(self._step, max(0, valid))
        if step not in self._known:  # further back than was announced: the guide reads everything again
            self._branch.restart()
            self._known, self._step = {}, 0
            return
        self._known, self._step = {step: self._known[step]}, step
        self._branch.rewind(step)

    def _settle(self) -> None:
        if (order := self._order) is None:
            return
        self._order = None
        if self._known:
            self._known = {step: standing.of(order) for step, standing in self._known.items()}
            self._branch.reorder(torch.cat([order + code * self._batch for code in range(self._codes)]))

    def _rows(
        self,
        context: ClassPosterior,
        codes: tuple[Code, ...],
        generation: Generation,
        guide: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> tuple[Rows, list[int]]:
        """What the guide reads before the answer, code by code, and how many tokens at the end of each row are text."""
        texts = generation.prompts.tokens()
        if self._map is not None:
            mapped: list[int] = self._map.tolist()
            texts = [[mapped[token] for token in row if mapped[token] >= 0] for row in texts]
        bos = getattr(tokenizer, "bos_token_id", None)
        if bos is None:
            bos = getattr(guide.config.get_text_config(decoder=True), "bos_token_id", None)
        starts = [row[:1] if row[:1] == [bos] else [] for row in texts]
        texts = [row[len(start) :] for row, start in zip(texts, starts, strict=True)]
        topic = [] if context.topic is None else _ids("topic", context.topic, guide, tokenizer)
        conditions = [_ids("codes", code, guide, tokenizer) for code in codes]
        if len(set(map(tuple, conditions))) < len(codes):
            raise ValueError(f"codes: expected different tokens, got {conditions} for {codes}. Give each class once.")
        rows = [
            [*start, *condition, *topic, *text]
            for condition in conditions
            for start, text in zip(starts, texts, strict=True)
        ]
        return pack(rows, generation.device), [len(text) for text in texts]

    def _read_prompts(self) -> None:
        """Run the guide on the prompts, behind every code."""
        rows, device = self._branch.rows, self._branch.rows.ids.device
        longest = max(self._texts)
        raw = self._branch.logits(rows.ids[:, :0], longest + 1)
        law = self._laws(raw[:, -1].clone())
        count = torch.tensor(self._texts, device=device)
        is_text = torch.arange(longest, 0, -1, device=device) <= count.repeat(self._codes)[:, None]
        tokens = rows.ids[:, rows.ids.shape[1] - longest :]
        evidence = law.new_zeros(len(tokens))
        at_once = max(1, CHUNK // (len(tokens) * self._width))
        for start in range(0, longest, at_once):
            part = slice(start, min(longest, start + at_once))
            found = self._laws(raw[:, part]).gather(-1, tokens[:, part, None])[..., 0]
            found = _centred(found.unflatten(0, (self._codes, -1))).flatten(0, 1)  # before summing, for precision
            evidence += found.where(is_text[:, part], 0.0).sum(1)
        if not bool((evidence + law.sum(-1)).isfinite().all()):
            raise ValueError(
                "guide: expected finite scores of the prompt, got NaN or infinity. Load it in another dtype."
            )
        by_code = (self._codes, -1)
        self._known = {0: Standing(law.unflatten(0, by_code), None, evidence.unflatten(0, by_code), count)}
        self._step = 0

    def _read(self, generated: Tensor) -> None:
        """Run the guide on the tokens that it has not seen."""
        new = generated.shape[1] - self._step
        seen = None
        tokens = generated
        if self._map is not None:
            tokens = self._map[generated]
            seen = tokens >= 0
            tokens = tokens.clamp_min(0)
        raw = self._logits(tokens, seen, new)
        laws = self._laws(raw).unflatten(0, (self._codes, -1))
        standing = self._known[self._step]
        for place in range(-new, 0):
            known = None if seen is None else seen[:, place]
            standing = standing.then(tokens[:, place], known, laws[:, :, place])
        if new > 1:
            standing = replace(standing, laws=standing.laws.clone())  # and let those of the other places go
        self._step = generated.shape[1]
        self._known = {**self._known, self._step: standing} if self._drafts else {self._step: standing}

    def _logits(self, tokens: Tensor, seen: Tensor | None, keep: int) -> Tensor:
        """Logits `[C B, keep, V]` behind the last `keep` prefixes."""
        tokens = tokens.repeat(self._codes, 1)
        mask = None if seen is None else seen.long().repeat(self._codes, 1)
        if keep == 1 or passes(self._branch.model, keep) == 1:
            return self._branch.logits(tokens, keep, mask)
        length = tokens.shape[1]
        return torch.cat([self._branch.logits(tokens[:, :end]) for end in range(length - keep + 1, length + 1)], 1)

    def _laws(self, logits: Tensor) -> Tensor:
        """Log-probabilities without minus infinity."""
        laws: Tensor = fitted(logits, self._width).float().log_softmax(-1)
        return laws.clamp_min_(FLOOR)

    def _log_posterior(self, standing: Standing) -> Tensor:
        laws, wanted = standing.here(), self._wanted
        before = _ahead(standing.evidence, wanted, self._others)
        others = laws[self._others[0]][None] if len(self._others) == 1 else laws[self._others]
        behind = (others - laws[wanted]).add_(before[..., None])
        posterior = self._posterior(behind, (standing.count + 1)[:, None], self._ahead[..., None])
        if self._map is None:
            return posterior
        unchanged = self._posterior(before, standing.count.clamp_min(1), self._ahead)
        return torch.where(self._map < 0, unchanged[:, None], posterior[:, self._map.clamp_min(0)])

    def _posterior(self, behind: Tensor, length: Tensor, ahead: Tensor) -> Tensor:
        """`-log(1 + sum_c exp(z_c - z_wanted))` from differences of evidence `[C - 1, ...]` over so many tokens.

        Written over `behind`: the passes over the vocabulary are what a step costs beside the guide.
        """
        if self._scale:
            behind *= self._scale / length
        if self._handicapped:
            behind += ahead
        most = behind[0] if behind.shape[0] == 1 else behind.logsumexp(0)
        return torch.nn.functional.softplus(most).neg_()


def _centred(by_code: Tensor) -> Tensor:
    return by_code - by_code.mean(0)


def _ahead(by_code: Tensor, wanted: int, others: list[int]) -> Tensor:
    """Differences from the wanted code, `[C - 1, ...]`."""
    return by_code[others] - by_code[wanted]


def _guide(context: ClassPosterior, generation: Generation) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The guide and the tokenizer of its codes."""
    given: Any = context.guide
    guide, tokenizer = opened(given, context.tokenizer, generation.model, False, "guide")
    if guide.config.is_encoder_decoder:
        raise ValueError(
            f"guide: expected a causal language model, got {type(guide).__name__}, an encoder-decoder. "
            "Train one that reads code and text."
        )
    if guide.training:
        raise ValueError("guide: expected a model that does not drop out units. Call its eval().")
    if not context.map_vocabulary:
        try:
            check_vocabulary(generation.model, generation.tokenizer, guide, tokenizer, "guide")
        except ValueError as error:
            raise ValueError(f"{error} Or map_vocabulary=True, to use the tokens that both have.") from None
        tokenizer = tokenizer or generation.tokenizer
    return guide, tokenizer


def _map(
    context: ClassPosterior, generation: Generation, guide: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Tensor | None:
    """The guide's id of each token, or -1; `None` where every token has its own."""
    size = guide.config.get_text_config(decoder=True).vocab_size
    if context.map_vocabulary:
        if generation.tokenizer is None or tokenizer is None:
            raise ValueError(
                "map_vocabulary: expected the tokenizers of both models, got one or none. "
                "Pass tokenizer= to the method and to guide() or the processor."
            )
        found = shared_tokens(generation.tokenizer, tokenizer, generation.vocab_size, size)
    else:
        found = torch.arange(generation.vocab_size)
        found[size:] = -1  # embeddings of one tokenizer may be padded differently
    if size >= generation.vocab_size and torch.equal(found, torch.arange(generation.vocab_size)):
        return None
    if bool((found < 0).any()) and getattr(guide, "_is_stateful", False):
        raise ValueError(
            f"guide: {type(guide).__name__} keeps a recurrent state, which cannot pass over tokens that it does not "
            "know. Use a guide of attention layers, or of the guided model's vocabulary."
        )
    return found.to(generation.device)


def _ids(argument: str, code: Code, guide: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The guide's tokens of a code or topic."""
    if isinstance(code, str):
        if tokenizer is None:
            raise ValueError(f"{argument}: a text needs the guide's tokenizer. Pass tokenizer=, or give token ids.")
        ids = list(tokenizer(code, add_special_tokens=False)["input_ids"])
    else:
        ids = list(code)
    size = guide.config.get_text_config(decoder=True).vocab_size
    if not ids or max(ids) >= size:
        raise ValueError(
            f"{argument}: expected token ids in [0, {size}), at least one, got {ids} for {code!r}. "
            "Use the guide's own tokenizer."
        )
    return ids
