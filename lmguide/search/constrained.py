"""Samples of the law of texts given that they fulfil a constraint; a mask alone gives another law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch.nn.utils.rnn import pad_sequence

from lmguide.checks import check_number, check_whole
from lmguide.constraints.base import ConstraintError
from lmguide.huggingface.view import drawn
from lmguide.search.adaptive import Adaptive, Prefix
from lmguide.search.allowed import Judge
from lmguide.search.particles import Particles
from lmguide.serialization import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmguide.constraints.states import ConstraintState
    from lmguide.huggingface.particles import Draw
    from lmguide.huggingface.view import GuidedModel

Sampling = Literal["local", "importance", "smc", "asap", "rejection"]


@dataclass(frozen=True)
class Samples:
    """Texts under a constraint.

    Attributes:
        sequences: Token ids `[n, L]`, prompt included.
        log_weights: Logarithms of the samples' weights `[n]`, float64; all 0 where each sample counts the same. Minus
            infinity on texts that are cut off or led nowhere.
        log_evidence: Estimate of `log P(text fulfils the constraint)` under the law without it.
        log_mass: For each sample the log-probability of all allowed tokens together at each of its steps: what the mask
            removed there is `1 - exp` of it. Empty with `"rejection"` and `"asap"`.
        forwards: Forward passes of any model.
        rounds: How often texts were written from the start.
        predicate_calls: Texts the predicate was asked about.
    """

    sequences: Tensor
    log_weights: Tensor
    log_evidence: float
    log_mass: tuple[tuple[float, ...], ...]
    forwards: int
    rounds: int
    predicate_calls: int

    @property
    def weights(self) -> Tensor:
        """The weights, summing to one `[n]`."""
        return self.log_weights.softmax(0)

    def choose(self, generator: torch.Generator | None = None) -> Tensor:
        """One of the sequences `[L]`, drawn by weight."""
        return self.sequences[int(torch.multinomial(self.weights, 1, generator=generator))]


def constrained_samples(
    guided: GuidedModel,
    inputs: Tensor,
    *,
    sampling: Sampling = "smc",
    samples: int = 8,
    predicate: Callable[[str, bool], bool] | None = None,
    ess_threshold: float = 0.5,
    max_rounds: int = 100,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Samples:
    """Texts from `p(x | x fulfils the constraint)`, where `p` is the guided law behind temperature, top-k and top-p.

    A mask alone draws from `prod_t p(x_t | x_<t) / Z_t`, with `Z_t` the mass of the tokens that are allowed at step
    `t`: a text that starts well and is forced into something unlikely comes too often. What is right weighs each text
    by `prod_t Z_t`:

    - `"local"`: masks, and no more; every weight is 1.
    - `"importance"`: masks, and the weights.
    - `"smc"`: the same, and where the effective sample size falls below `ess_threshold * samples`, texts are dropped
      and doubled by weight in the middle (sequential Monte Carlo).
    - `"asap"`: rounds of masked texts, each leaving out the mass that was found to be invalid (2405.21047); the law
      comes nearer to the right one with each round. Returns the last `samples` of `max_rounds` texts.
    - `"rejection"`: texts without masks, thrown away when they fail, and the mass found to be invalid left out of what
      comes after (CARS, 2510.01902). Exact, whatever the number of samples.

    Args:
        guided: A view made by `guide` with a constraint, or without one where there is a predicate.
        inputs: One prompt, `[1, P]`.
        sampling: Which of the above.
        samples: Texts to return, and particles of `"importance"` and `"smc"`.
        predicate: A Python function of a text so far, and whether it ends here, to whether it may still become valid: a
            type checker, a validator. Asked about tokens that are drawn, not about all; its mass is estimated without
            bias (AWRS, 2504.05410).
        ess_threshold: In [0, 1]; of `"smc"`.
        max_rounds: Rounds of `samples` texts after which `"rejection"` gives up, and texts of `"asap"`.
        generator: Of the draws, on the CPU or where the model is.
        **kwargs: Of `guided.generate`: `max_new_tokens`, `attention_mask`, `temperature`, `top_k`, `negative_prompt`.
            Texts of more than `max_new_tokens` count as invalid.

    Returns:
        The texts and their weights.

    Raises:
        ValueError: More than one prompt, no constraint and no predicate, an unknown way of sampling, a number out of
            range.
        ConstraintError: No text fulfils the constraint within `max_new_tokens` and `max_rounds`.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("tales")
        >>> guided = lg.guide(model, lg.Choice(("The sailor", "The fox")), tokenizer)
        >>> prompt = tokenizer("A tale of the sea:", return_tensors="pt").input_ids
        >>> found = lg.constrained_samples(guided, prompt, samples=4, top_k=0, max_new_tokens=9)
        >>> tokenizer.decode(found.choose()[prompt.shape[1] :], skip_special_tokens=True) in {"The sailor", "The fox"}
        True
    """
    _check(inputs, sampling, samples, ess_threshold, max_rounds)
    if guided._plan.constraint is None and predicate is None:
        raise ValueError(
            "guided: expected a view with a constraint, or a predicate, got neither. "
            "Use lg.guide(model, [..., constraint], tokenizer)."
        )
    if guided._plan.tokenizer is None:
        raise ValueError("guided: expected a view with a tokenizer, got one without. Use lg.guide(..., tokenizer).")
    call = _Call(guided, inputs, samples, predicate, generator, {"do_sample": True, **kwargs})
    if sampling == "asap":
        return call.asap(max_rounds)
    if sampling == "rejection":
        return call.rejection(max_rounds)
    return call.weighted(sampling, ess_threshold)


class _Call:
    """One call: what all rounds of it share."""

    def __init__(
        self,
        guided: GuidedModel,
        inputs: Tensor,
        samples: int,
        predicate: Callable[[str, bool], bool] | None,
        generator: torch.Generator | None,
        arguments: dict[str, Any],
    ) -> None:
        self.guided = guided
        self.inputs = inputs
        self.samples = samples
        self.predicate = predicate
        self.generator = generator
        self.arguments = arguments
        self.judge: Judge | None = None
        self.forwards = self.rounds = 0

    def round(self, drawer: Callable[[ConstraintState | None, Judge | None], Draw]) -> tuple[Tensor, Tensor]:
        """Sequences `[n, L]` of one round, and which of them have ended."""
        known: list[int] = []

        def made(state: ConstraintState | None, ends: tuple[int, ...]) -> Draw:
            known.extend(ends)
            if self.predicate is not None and self.judge is None:
                specials = frozenset(self.guided._plan.tokenizer.all_special_ids)  # type: ignore[union-attr]
                self.judge = Judge(self.predicate, self._text, frozenset(ends), specials)
            return drawer(state, self.judge)

        sequences = drawn(self.guided, made, self.inputs, num_return_sequences=self.samples, **self.arguments)
        self.rounds += 1
        self.forwards += self.guided.stats.forwards
        answers = sequences[:, 1 if self.guided.config.is_encoder_decoder else self.inputs.shape[1] :]
        return sequences, torch.isin(answers, answers.new_tensor(known)).any(1).cpu()

    def weighted(self, sampling: str, ess_threshold: float) -> Samples:
        """One round of particles."""
        particles: list[Particles] = []

        def drawer(state: ConstraintState | None, judge: Judge | None) -> Particles:
            threshold = ess_threshold if sampling == "smc" else 0.0
            particles.append(Particles(state, judge, self.samples, threshold, self.generator))
            return particles[0]

        sequences, ended = self.round(drawer)
        weights = particles[0].log_weights.masked_fill(~ended, -torch.inf)
        evidence = float(weights.logsumexp(0)) - math.log(self.samples)
        self._check_any(math.isfinite(evidence))
        if sampling == "local":
            weights = torch.zeros_like(weights).masked_fill(weights.isneginf(), -torch.inf)
        return self._samples(sequences, weights, evidence, tuple(particles[0].log_mass))

    def asap(self, texts: int) -> Samples:
        """Rounds of masked texts until there are so many; the last of them."""
        root = Prefix()
        sequences, ended = self.inputs, torch.zeros(0)
        for _ in range(-(-texts // self.samples)):
            sequences, ended = self._learn(root, reject=False)[:2]
        self._check_any(bool(ended.any()))
        weights = torch.zeros(self.samples, dtype=torch.float64).masked_fill(~ended, -torch.inf)
        return self._samples(sequences, weights, math.log(root.kept), ())

    def rejection(self, rounds: int) -> Samples:
        """Rounds of texts without masks until enough of them are valid."""
        root = Prefix()
        found: list[Tensor] = []
        tried = 0
        for _ in range(rounds):
            sequences, ended, stands = self._learn(root, reject=True)
            tried += self.samples
            found += list(sequences[(ended & stands).to(sequences.device)])
            if len(found) >= self.samples:
                break
        if len(found) < self.samples:
            raise ConstraintError(
                f"max_rounds: expected {self.samples} valid texts, got {len(found)} of {tried} in {rounds} rounds. "
                "Raise it, ask for fewer samples or use sampling='smc'."
            )
        rows = pad_sequence(found[: self.samples], batch_first=True, padding_value=self._padding())
        return self._samples(rows, torch.zeros(self.samples, dtype=torch.float64), math.log(root.kept), ())

    def _learn(self, root: Prefix, reject: bool) -> tuple[Tensor, Tensor, Tensor]:
        """One round: sequences, which have ended, and which still stand."""
        made: list[Adaptive] = []

        def drawer(state: ConstraintState | None, judge: Judge | None) -> Adaptive:
            made.append(Adaptive(root, state, judge, self.samples, reject, self.generator))
            return made[0]

        sequences, ended = self.round(drawer)
        stands = torch.tensor([text.stands for text in made[0].texts])
        made[0].learn((ended & stands).tolist())
        return sequences, ended & stands, stands

    def _check_any(self, found: bool) -> None:
        if not found:
            raise ConstraintError(
                "constraint: no text was complete within max_new_tokens. Raise it, loosen the constraint, or give "
                "top_k=0 (transformers' own is 50) if that leaves nothing of what is allowed."
            )

    def _text(self, tokens: Sequence[int]) -> str:
        tokenizer: Any = self.guided._plan.tokenizer
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _padding(self) -> int:
        config = self.guided.generation_config
        return int(config.pad_token_id if config.pad_token_id is not None else 0)

    def _samples(
        self, sequences: Tensor, weights: Tensor, evidence: float, mass: tuple[tuple[float, ...], ...]
    ) -> Samples:
        calls = 0 if self.judge is None else self.judge.calls
        return Samples(sequences, weights, evidence, mass, self.forwards, self.rounds, calls)


def _check(inputs: object, sampling: object, samples: object, ess_threshold: object, max_rounds: object) -> None:
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 2 or len(inputs) != 1:
        shape = list(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise ValueError(f"inputs: expected one prompt, [1, P], got {shape}. Call it once for each prompt.")
    if sampling not in get_args(Sampling):
        known = get_args(Sampling)
        raise ValueError(
            f"sampling: expected one of {', '.join(known)}, got {sampling!r}. {did_you_mean(sampling, known)}"
        )
    check_whole("samples", samples, "8 is usual.", least=1)
    check_number("ess_threshold", ess_threshold, "0.5 is usual, 0 is never.", least=0, most=1)
    check_whole("max_rounds", max_rounds, "100 is the default.", least=1)
