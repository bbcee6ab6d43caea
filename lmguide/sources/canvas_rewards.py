"""Rewards bound to a model: what computes log-rewards of tokens at positions of a canvas.

A decoding loop calls `prepare` once at each denoising step and `log_rewards` for the positions it looks at. It knows no
method and no loop.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lmguide import contexts
from lmguide.bundled import PREFIX, bundled
from lmguide.sources.classifiers import SequenceClassifier, parameters
from lmguide.sources.models import check_vocabulary, fitted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.sources.canvas import Canvas

Laws: TypeAlias = Callable[["Tensor", "Tensor"], "Tensor"]
"""Log-probabilities `[n, V]` at rows `[n]` and columns `[n]` of the canvas."""

Uniform: TypeAlias = Callable[[str], "Tensor"]
"""Noise of a stream, `[B, L]` in (0, 1): the same for the same row, step and stream, and independent otherwise."""

CHUNK = {"cpu": 2**21, "cuda": 2**24}
"""Scores that are worked on at once."""


class Guided(Protocol):
    """What a reward must know of the model that it guides; a `Denoiser` has it."""

    @property
    def model(self) -> Any:
        """The model, for the vocabulary of its configuration."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, or none."""

    @property
    def vocab_size(self) -> int:
        """Tokens that it scores."""

    @property
    def mask_token_id(self) -> int | None:
        """The mask token; `None` where it denoises random tokens."""

    @property
    def device(self) -> torch.device:
        """Where it is."""


class CanvasReward(Protocol):
    """A reward bound to a model, for one batch of canvases.

    Attributes:
        forwards: Forward evaluations of another model for each row at a step.
        needs_whole_canvas: Whether `prepare` asks for the law of every undecided position, not only of the window.
    """

    forwards: ClassVar[int]
    needs_whole_canvas: ClassVar[bool]

    def prepare(self, canvas: Canvas, law: Laws, stop: int | None = None, uniform: Uniform | None = None) -> None:
        """Look at the canvas of a step.

        Args:
            canvas: The canvas as it is.
            law: The law that the reward is added to, after all rules. Asked in chunks.
            stop: Columns of the canvas that the model saw; `None` is all. Undecided ones before it have a law.
            uniform: The loop's noise for columns `[0, stop)`; `None` draws with the seed of the description.
        """

    def log_rewards(self, rows: Tensor, columns: Tensor, scores: Tensor) -> Tensor:
        """Log-rewards `[n, V]` at rows `[n]` and columns `[n]`, to be added to `scores` `[n, V]`."""


def bind_reward(
    context: contexts.Context, guided: Guided, tokenizer: PreTrainedTokenizerBase | None = None
) -> CanvasReward:
    """The reward that a context describes.

    Args:
        context: A `ClassifierGradient` or `SampledCanvases`.
        guided: The guided model.
        tokenizer: Its tokenizer, if another than `guided.tokenizer`.

    Raises:
        ValueError: A reward for models that write from left to right, a classifier that does not fit the guided model,
            or a reward that is not where it is said to be.
        TypeError: A context that is no reward, or a model that is no classifier.
    """
    match context:
        case contexts.ClassifierGradient():
            return GradientReward(context, guided, tokenizer)
        case contexts.SampledCanvases():
            return SampleReward(context, guided)
    if type(context).__module__ == contexts.__name__:
        raise TypeError(
            f"context: expected one of rewards, got {type(context).__name__}. It is a source of its own; see "
            "bind_canvas."
        )
    raise ValueError(
        f"{type(context).__name__}: expected a reward that judges a canvas, got one for models that write from left to "
        "right. Use lmguide.guide with such a model, or ClassifierGuidance or RewardedSamples on a canvas."
    )


class GradientReward:
    """`g_{l,v} - g_{l,x_l}` with `g` the gradient of `log p(label | x)` by the one-hot canvas `x`.

    Only the gradient by the embeddings, `[B, L, D]`, is kept; `g_{l,v} = grad_l . E_v` is formed where it is asked for.
    """

    forwards: ClassVar[int] = 1
    needs_whole_canvas: ClassVar[bool] = False

    def __init__(
        self, context: contexts.ClassifierGradient, guided: Guided, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        classifier: Any = context.model
        known = context.tokenizer
        if isinstance(classifier, str):
            classifier, loaded = _load(classifier, guided.device)
            known = known or loaded
        if callable(getattr(classifier, "log_prob", None)) and hasattr(classifier, "embedding"):
            self.classifier: contexts.CanvasClassifier = classifier
        else:
            self.classifier = SequenceClassifier(classifier)
            check_vocabulary(guided.model, tokenizer or guided.tokenizer, classifier, known)
        self.label, self.vocab_size = context.label, guided.vocab_size
        size, device = self.classifier.embedding.shape[0], self.classifier.embedding.device
        # tokenizers that agree may come with embeddings of different padding, but random tokens are of any id
        if size < guided.vocab_size and (known is None or guided.mask_token_id is None):
            raise ValueError(
                f"model: expected a classifier that embeds the guided model's {guided.vocab_size} tokens, got {size}. "
                "Train one with the guided model's tokenizer."
            )
        if guided.mask_token_id is not None and guided.mask_token_id >= size:
            raise ValueError(
                f"model: expected a classifier that knows the mask token {guided.mask_token_id}, got one of {size} "
                "tokens. Train one on noised canvases."
            )
        if device.type != guided.device.type:
            raise ValueError(
                f"model: expected the classifier on {guided.device} like the guided model, got {device}. "
                "Move it with .to()."
            )

    def prepare(self, canvas: Canvas, law: Laws, stop: int | None = None, uniform: Uniform | None = None) -> None:
        """One forward and one backward pass of the classifier; the law and the noise are not looked at."""
        batch = canvas.ids.shape[0]
        labels = (self.label,) * batch if isinstance(self.label, int) else self.label
        if len(labels) != batch:
            raise ValueError(
                f"label: expected one class or one per prompt ({batch}), got {len(labels)}. "
                "Give as many as there are prompts."
            )
        # tensors made in inference mode cannot take part in a backward pass: copies made here can
        with torch.inference_mode(False), torch.enable_grad():
            self._table = self.classifier.embedding.detach()
            mask = canvas.attention_mask[:, :stop].clone()
            ids = canvas.ids[:, :stop].masked_fill(mask == 0, 0)  # it may not know the padding token
            embeds = self._table[ids].requires_grad_()
            log_prob = self.classifier.log_prob(embeds, mask, torch.tensor(labels, device=ids.device))
            if log_prob.shape != (batch,):
                raise ValueError(
                    f"log_prob: expected one number per row, [{batch}], got the shape {list(log_prob.shape)}. "
                    "Return log p(label | canvas)."
                )
            (self._gradient,) = torch.autograd.grad(log_prob.sum(), embeds)
        self._held = (self._gradient * embeds.detach()).sum(-1)

    def log_rewards(self, rows: Tensor, columns: Tensor, scores: Tensor) -> Tensor:
        """The first-order change of `log p(label | canvas)` by each token, in float32."""
        change = self._gradient[rows, columns] @ self._table.T - self._held[rows, columns, None]
        return fitted(change.float(), self.vocab_size)


class SampleReward:
    """`log p' - log p`, with `p'` the weighted share of a token among clean canvases drawn from `p`."""

    forwards: ClassVar[int] = 0
    needs_whole_canvas: ClassVar[bool] = True

    def __init__(self, context: contexts.SampledCanvases, guided: Guided) -> None:
        self.context, self.vocab_size = context, guided.vocab_size
        self.reward = _found(context.reward) if isinstance(context.reward, str) else context.reward
        self._takes_mask = "attention_mask" in parameters(self.reward)
        self._step = 0

    def prepare(self, canvas: Canvas, law: Laws, stop: int | None = None, uniform: Uniform | None = None) -> None:
        """Draw the canvases and weigh them."""
        uniform = uniform or self._seeded(canvas, stop)
        self._step += 1
        ids, samples = canvas.ids[:, :stop], self.context.samples
        rows, columns = canvas.undecided[:, :stop].nonzero().unbind(1)
        self._place = torch.full_like(ids, -1)
        self._place[rows, columns] = torch.arange(len(rows), device=ids.device)
        self._tokens = ids.new_zeros(len(rows), samples)
        self._log_probs = torch.zeros(len(rows), samples, device=ids.device)
        self._weights = torch.zeros(len(rows), samples, device=ids.device)
        if not len(rows):
            return
        noise = torch.stack([uniform(f"sampled_canvases/{k}")[rows, columns] for k in range(samples)], 1)
        at_once = max(1, CHUNK.get(ids.device.type, CHUNK["cpu"]) // self.vocab_size)
        for part in torch.arange(len(rows), device=ids.device).split(at_once):
            log_probs = law(rows[part], columns[part])
            tokens = _draw(log_probs, noise[part])
            self._tokens[part], self._log_probs[part] = tokens, log_probs.gather(1, tokens).float()
        clean = ids[:, None].repeat(1, samples, 1)
        clean[rows, :, columns] = self._tokens
        weights = self._weigh(clean, canvas.attention_mask[:, :stop])
        if self.context.mode == "pick":
            begins = (1 - canvas.attention_mask[:, :stop]).sum(1, keepdim=True)  # a row does not notice its padding
            picked = _draw(weights.log(), uniform("sampled_canvases/pick").gather(1, begins))
            weights = torch.zeros_like(weights).scatter_(1, picked, 1.0)
        self._weights = weights[rows]

    def log_rewards(self, rows: Tensor, columns: Tensor, scores: Tensor) -> Tensor:
        """`log p' - log p`, minus infinity off the samples; 0 at positions that were not undecided."""
        place = self._place[rows, columns]
        open_ = place >= 0
        rewards = torch.zeros_like(scores, dtype=torch.float32)
        tokens, weights = self._tokens[place[open_]], self._weights[place[open_]]
        # shares of tokens first, in the place of the result
        shares = rewards.new_zeros(len(tokens), rewards.shape[1]).scatter_add_(1, tokens, weights)
        ratio = shares.gather(1, tokens).log() - self._log_probs[place[open_]]
        rewards[open_] = shares.fill_(-torch.inf).scatter_(1, tokens, ratio)
        return rewards

    def _weigh(self, clean: Tensor, mask: Tensor) -> Tensor:
        """Weights `[B, K]` of clean canvases `[B, K, L]`."""
        batch, samples, _ = clean.shape
        masks = {"attention_mask": mask.repeat_interleave(samples, 0)} if self._takes_mask else {}
        found = self.reward(clean.flatten(0, 1), **masks)
        if not isinstance(found, torch.Tensor) or found.shape != (batch * samples,):
            got = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(
                f"reward: expected a tensor with one number per text, [{batch * samples}], got {got}. "
                "Score every row of ids."
            )
        if bool((found.isnan() | torch.isposinf(found)).any()):
            raise ValueError("reward: expected finite numbers or minus infinity, got NaN or infinity. Mend the reward.")
        rewards = found.detach().to(clean.device, torch.float32).view(batch, samples)
        # where every sample is impossible none is better than another
        rewards = rewards.masked_fill(torch.isneginf(rewards).all(1, keepdim=True), 0.0)
        return (rewards / self.context.temperature).softmax(1)

    def _seeded(self, canvas: Canvas, stop: int | None) -> Uniform:
        """Noise by the place in the row, counted without padding: no row's draws depend on the rest of its batch."""
        places = (canvas.attention_mask[:, :stop].cumsum(1) - 1).clamp_min(0)

        def uniform(stream: str) -> Tensor:
            generator = torch.Generator().manual_seed(_seed(self.context.seed, self._step, stream))
            return torch.rand(places.shape[1], generator=generator).to(places.device)[places]

        return uniform


def _draw(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Tokens `[n, K]` from laws `[n, V]` by the inverse of their sums at uniform numbers `[n, K]`."""
    sums = log_probs.float().exp().cumsum(-1)
    tokens = torch.searchsorted(sums, noise * sums[:, -1:], right=True).clamp_max(log_probs.shape[1] - 1)
    # sums are rounded: a token that cannot be must not come out of that
    impossible = torch.isneginf(log_probs.gather(1, tokens))
    return torch.where(impossible, log_probs.argmax(-1, keepdim=True), tokens)


def _seed(*coordinates: int | str) -> int:
    digest = hashlib.sha256("/".join(map(str, coordinates)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _found(path: str) -> Callable[..., Tensor]:
    try:
        reward = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward: expected a function at {path!r}, but {error}. Give 'module:function'.") from error
    if not callable(reward):
        raise ValueError(f"reward: expected a function at {path!r}, got {type(reward).__name__}. Give a function.")
    found: Callable[..., Tensor] = reward
    return found


@lru_cache(maxsize=4)  # asked for at every call
def _load(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with torch.inference_mode(False):  # a gradient is wanted
        if name.startswith(PREFIX):
            model, tokenizer = bundled(name.removeprefix(PREFIX))
            return model.to(device), tokenizer  # type: ignore[arg-type]
        model = AutoModelForSequenceClassification.from_pretrained(name).to(device).eval()
    return model, AutoTokenizer.from_pretrained(name)
