"""`loglikelihood`: how likely a denoising model finds given answers, with or without guidance."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from lmguide import contexts as descriptions
from lmguide.checks import check_whole
from lmguide.denoisers.binding import denoiser_of
from lmguide.denoisers.guide import Guide
from lmguide.diffusion.masking import MaskPlan, mask_plan
from lmguide.diffusion.request import methods_of
from lmguide.schedules import Progress
from lmguide.sources.canvas import Canvas

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.denoisers import Denoiser
    from lmguide.denoisers.guide import Law
    from lmguide.guidance import Guidance


@dataclass(frozen=True)
class Likelihood:
    """Scores of some targets, each after its context.

    Attributes:
        score: In nats, `[N]`, float64. Unguided, an estimate of a lower bound on `log p(target | context)`. Guided, a
            score for ranking and no more: the guided laws of different masks belong to no joint distribution, so it is
            the bound of nothing and must not be reported as perplexity; nor is it one when divided by a length.
        standard_error: Monte-Carlo standard error of each score, `[N]`, float64: 0 where every mask was taken, NaN
            where one draw cannot tell, or the score is minus infinity. Targets of one length share their masks, so
            their differences are known better than two errors suggest.
        greedy: Whether low-confidence decoding at temperature 0, one token a step, would write the target, `[N]`;
            `None` if not asked.
        nfe: Evaluations per target, `[N]`: rows of forward passes of any model.
        is_bound: Whether the scores estimate a bound, that is, nothing was guided.
    """

    score: Tensor
    standard_error: Tensor
    greedy: Tensor | None
    nfe: Tensor
    is_bound: bool


@torch.no_grad()
def loglikelihood(
    model: Any,
    contexts: Sequence[Sequence[int] | Tensor],
    targets: Sequence[Sequence[int] | Tensor],
    *,
    guidance: Guidance | Sequence[Guidance | str] | str | None = None,
    samples: int = 128,
    antithetic: bool = False,
    greedy: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    tokenizer: Any = None,
) -> Likelihood:
    """Monte-Carlo log-likelihood scores of targets, as LLaDA defines them (2502.09992, algorithm 3).

    `score = E_k E_mask (L / k) sum_(l masked) log p(target_l | context, tokens not masked)`, with `k` uniform in `1..L`
    and a uniformly drawn mask of exactly `k` of the `L` target tokens. `p` is the law of the decoding loop: guidance
    sees the masked canvas, so for adaptive guidance the tokens left of the target are candidates like the context's.
    Gates and schedules take the share of the target that is not masked as progress.

    Targets of one length are scored on the same masks, whatever their contexts, and so are the sources of guidance. A
    target whose `2^L - 1` masks are no more than `samples` is scored exactly, on each of them once: a target of one
    token takes one forward pass.

    Args:
        model: A `Denoiser`, or a model whose family is recognised from its configuration.
        contexts: Token ids, one sequence for each target, of at least one token.
        targets: Token ids, of at least one token each.
        guidance: A method, several, or strings. What is given per prompt must be one for all here.
        samples: Masks for each target, at least 1.
        antithetic: Masks come in pairs of complements, and the full mask is taken once: see `mask_plan`.
        greedy: Find out whether greedy decoding would write the target, with up to `L` further passes.
        batch_size: Canvases in a forward pass; guidance may stack further ones beside them.
        seed: Of the masks, which never touch torch's global generator. The same seed, the same masks.
        tokenizer: For negative prompts in text; by default the denoiser's own.

    Returns:
        Scores, their errors, and what they cost, in the order of the targets, on the CPU.

    Raises:
        ValueError: Bad ids or numbers, a family without such a likelihood, or guidance that has none; the argument is
            named.
        TypeError: A number that is not whole, or guidance that is none.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lmguide.denoisers import Denoiser
        >>> config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        >>> denoiser = Denoiser(BertForMaskedLM(config).eval(), mask_token_id=4)
        >>> found = loglikelihood(denoiser, [[7, 8], [7, 8]], [[9, 10, 11], [12]])
        >>> found.nfe.tolist(), found.standard_error.tolist(), found.is_bound
        ([7, 1], [0.0, 0.0], True)
    """
    denoiser = denoiser_of(model, tokenizer)
    _check_family(denoiser)
    methods = [method for method in methods_of(guidance) if method.enabled]
    for method in methods:
        _check_method(method)
    check_whole("batch_size", batch_size, "Give the canvases of a forward pass.", least=1)
    batch_size = operator.index(batch_size)
    before, after = _ids("contexts", contexts, denoiser), _ids("targets", targets, denoiser)
    if len(before) != len(after):
        raise ValueError(
            f"targets: expected one for each of the {len(before)} contexts, got {len(after)}. "
            "Repeat a context that has several targets."
        )
    _check_widths(before, after, denoiser.max_length)
    score, error = (torch.zeros(len(after), dtype=torch.float64) for _ in range(2))
    nfe = torch.zeros(len(after), dtype=torch.long)
    written = torch.zeros(len(after), dtype=torch.bool) if greedy else None
    padded = denoiser.family.padding != "none"
    for items in _alike(before, after, batch_size, padded):
        plan = mask_plan(len(after[items[0]]), samples, seed, antithetic)
        batch = _Batch(denoiser, methods, [before[i] for i in items], [after[i] for i in items], batch_size, tokenizer)
        sums = batch.sums(plan)
        score[items], error[items] = plan.estimate(sums).cpu(), plan.standard_error(sums).cpu()
        if written is not None:
            written[items] = batch.greedy().cpu()
        nfe[items] = batch.nfe
    return Likelihood(score, error, written, nfe, is_bound=not methods)


class _Batch:
    """Targets of one length that are scored on the same masks at the same time.

    Args:
        denoiser: The model.
        methods: Methods that do something.
        contexts: Token ids of each.
        targets: Token ids of each, `L` of them.
        batch_size: Canvases in a forward pass.
        tokenizer: For negative prompts in text.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        methods: Sequence[Guidance],
        contexts: Sequence[list[int]],
        targets: Sequence[list[int]],
        batch_size: int,
        tokenizer: Any,
    ) -> None:
        self.denoiser, self.methods, self.tokenizer = denoiser, methods, tokenizer
        device = denoiser.device
        self.start = max(map(len, contexts))
        gaps = [self.start - len(context) for context in contexts]
        self.prompts = torch.tensor(
            [[0] * gap + context for gap, context in zip(gaps, contexts, strict=True)], device=device
        )
        self.real = torch.arange(self.start, device=device) >= torch.tensor(gaps, device=device)[:, None]
        self.targets = torch.tensor(targets, device=device)
        self.items, self.length = self.targets.shape
        self.at_once = max(1, batch_size // self.items)
        self.timed = any(method.schedule is not None or method.when() is not None for method in methods)
        self._guides: dict[int, Guide] = {}  # by the number of canvases of each target

    @property
    def nfe(self) -> int:
        """Evaluations for each target so far."""
        return sum(copies * guide.stats.nfe for copies, guide in self._guides.items())

    def sums(self, plan: MaskPlan) -> Tensor:
        """The log-probabilities of what each mask hides, added up, `[N, S]`, float64."""
        sums = torch.zeros(self.items, len(plan.masks), dtype=torch.float64, device=self.targets.device)
        for part in self._parts(plan):
            masks = plan.masks[part].to(sums.device).repeat(self.items, 1)
            law = self._law(masks, len(part), self.length - int(plan.counts[part[0]]))
            hidden = masks.nonzero()
            copies = sums.new_zeros(len(masks))
            targets = self.targets.repeat_interleave(len(part), 0)
            for positions in law.chunks(hidden):
                rows, places = positions.unbind(1)
                scores, _ = law.at(rows, places + self.start)
                copies.index_add_(0, rows, scores.gather(1, targets[rows, places, None])[:, 0].double())
            sums[:, part.to(sums.device)] = copies.view(self.items, len(part))
        return sums

    def greedy(self) -> Tensor:
        """Whether the likeliest token of the surest position is the target's, step after step, `[N]`."""
        masks = torch.ones_like(self.targets, dtype=torch.bool)
        right = torch.ones(self.items, dtype=torch.bool, device=masks.device)
        for step in range(self.length):
            law = self._law(masks, 1, step)
            sure = torch.full(masks.shape, -torch.inf, device=masks.device)
            tokens = torch.full_like(self.targets, -1)
            for positions in law.chunks(masks.nonzero()):
                rows, places = positions.unbind(1)
                scores, _ = law.at(rows, places + self.start)
                scores[:, self.denoiser.mask_token_id] = -torch.inf  # never written
                sure[rows, places], tokens[rows, places] = scores.max(-1)
            place = sure.argmax(1, keepdim=True)
            right &= tokens.gather(1, place).eq(self.targets.gather(1, place))[:, 0]
            if not bool(right.any()):
                break
            masks = masks.scatter(1, place, False)
        return right

    def _parts(self, plan: MaskPlan) -> Iterable[Tensor]:
        """Indices of masks that run in one pass. Where progress matters they hide equally many tokens."""
        groups: Iterable[Tensor] = [torch.arange(len(plan.masks))]
        if self.timed:
            groups = (plan.counts.eq(count).nonzero()[:, 0] for count in plan.counts.unique())
        for group in groups:
            yield from group.split(self.at_once)

    def _law(self, masks: Tensor, copies: int, stands: int) -> Law:
        """The guided laws with some target tokens masked: `copies` canvases of each target, next to one another."""
        guide = self._guides.get(copies)
        if guide is None:
            guide = self._guides[copies] = self._guide(copies)
        canvas, mask_token_id = guide.canvas, self.denoiser.mask_token_id
        assert mask_token_id is not None
        answer = self.targets.repeat_interleave(copies, 0).masked_fill(masks, mask_token_id)
        canvas.ids = torch.cat([canvas.ids[:, : self.start], answer], 1)
        canvas.undecided = torch.nn.functional.pad(masks, (self.start, 0))
        return guide.law(Progress(stands, self.length), self.start, self.start + self.length)

    def _guide(self, copies: int) -> Guide:
        prompts, real = self.prompts.repeat_interleave(copies, 0), self.real.repeat_interleave(copies, 0)
        given = torch.nn.functional.pad(real, (0, self.length))
        mask = torch.nn.functional.pad(real, (0, self.length), value=True).long()
        ids = torch.nn.functional.pad(prompts, (0, self.length))
        canvas = Canvas(ids, mask, given, torch.zeros_like(given), self.denoiser.mask_token_id)
        return Guide(self.denoiser, self.methods, canvas, self.start, tokenizer=self.tokenizer)


def _alike(contexts: Sequence[list[int]], targets: Sequence[list[int]], most: int, padded: bool) -> Iterable[list[int]]:
    """Indices of targets of one length, at most so many, with contexts of similar length, or of one if not padded."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index in sorted(range(len(targets)), key=lambda i: len(contexts[i])):
        groups.setdefault((len(targets[index]), 0 if padded else len(contexts[index])), []).append(index)
    for items in groups.values():
        yield from (items[first : first + most] for first in range(0, len(items), most))


def _ids(argument: str, given: Sequence[Sequence[int] | Tensor], denoiser: Denoiser) -> list[list[int]]:
    rows = [row.tolist() if isinstance(row, torch.Tensor) else row for row in given]
    for index, row in enumerate(rows):
        if not isinstance(row, list | tuple) or not all(map(_is_id, row)):
            raise ValueError(
                f"{argument}: expected sequences of token ids, got {row!r} at index {index}. Tokenise texts first."
            )
        if not row:
            raise ValueError(
                f"{argument}: expected at least one token in each, got none at index {index}. "
                "For no context at all give the beginning-of-sequence token."
            )
        if not all(0 <= token < denoiser.vocab_size for token in row):
            raise ValueError(
                f"{argument}: expected ids in [0, {denoiser.vocab_size}), got {min(row)} to {max(row)} at index {index}"
                ". Use the model's own tokenizer."
            )
        if denoiser.mask_token_id in row:
            raise ValueError(
                f"{argument}: expected tokens of text, got the mask token {denoiser.mask_token_id} at index {index}. "
                "Remove it."
            )
    return [[int(token) for token in row] for row in rows]


def _is_id(token: object) -> bool:
    return isinstance(token, Integral) and not isinstance(token, bool)


def _check_widths(contexts: Sequence[list[int]], targets: Sequence[list[int]], limit: int | None) -> None:
    """Refuse what is too long for the model before anything runs."""
    for index, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        if limit is not None and len(context) + len(target) > limit:
            raise ValueError(
                f"contexts: expected at most {limit} tokens with the target, got {len(context)} and {len(target)} at "
                f"index {index}. Shorten the context from the left."
            )


def _check_family(denoiser: Denoiser) -> None:
    family = denoiser.family
    if denoiser.mask_token_id is None:
        raise ValueError(
            f"model: expected one with a mask token, got {family.name}, which denoises random tokens: its bound is "
            "another one. Score with a masked model."
        )
    if family.attention != "full":
        raise ValueError(
            f"model: expected one that attends to the whole canvas, got {family.name}, whose blocks are denoised one "
            "after the other: masks over several blocks are none it was trained on. Score with a model of full "
            "attention."
        )


def _check_method(method: Guidance) -> None:
    """Refuse what means something else for every canvas of a batch, or has no law for a given token."""
    field, cure = method.strength_field, "Call loglikelihood once for each group of targets."
    if isinstance(getattr(method, field), tuple):
        raise ValueError(f"{field}: expected one number for all targets, got one per prompt. {cure}")
    for context in method.sources().values():
        match context:
            case descriptions.NegativePrompt() if _several(context.prompt):
                raise ValueError(f"negative_prompt: expected one for all targets, got one per prompt. {cure}")
            case descriptions.ClassifierGradient() if isinstance(context.label, tuple):
                raise ValueError(f"label: expected one class for all targets, got one per prompt. {cure}")
            case descriptions.SampledCanvases():
                raise ValueError(
                    f"guidance: expected laws of all tokens, got {type(method).__name__}, whose samples leave most "
                    "tokens without probability. Use it in generate, and score with the reward itself."
                )
            case descriptions.RemaskedCanvas() if context.confidences == "previous":
                raise ValueError(
                    "confidences: expected 'current', got 'previous': the masks of a likelihood are no steps that "
                    "follow one another. Use confidences='current'."
                )


def _several(prompt: Any) -> bool:
    """Whether a negative prompt is one per row: several texts, conversations or lists of ids."""
    if prompt is None or isinstance(prompt, str) or len(prompt) < 2:
        return False
    return not isinstance(prompt[0], int | Mapping)
