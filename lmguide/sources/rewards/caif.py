"""A classifier's log-probability of the wanted class behind each of a row's likeliest next tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmguide.sources.ids import check_positions
from lmguide.sources.models import check_vocabulary
from lmguide.sources.rewards import prefixes, verdicts

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.descriptions.caif import TextClassifier
    from lmguide.sources.rewards.base import Generation


def bind_classifier(context: TextClassifier, generation: Generation) -> ClassifierReward:
    """The reward of a classifier, by token ids where that was asked for or can be done, else by texts.

    Raises:
        ValueError: An unknown label, a classifier of one class, ids asked of a classifier that cannot take them, or no
            tokenizer to make texts.
        TypeError: A classifier of no known kind.
    """
    classifier, tokenizer = verdicts.loaded(context)
    if isinstance(context.classifier, str):
        classifier = classifier.to(generation.device)
    prompts = generation.prompts.tokens()
    if verdicts.is_model(classifier):
        verdicts.check_model(classifier)
        label = verdicts.columns(
            lambda one: verdicts.index_in_model(classifier, one), context.label, generation.batch, prompts
        )
        if (refusal := _no_ids(context, generation, classifier, tokenizer)) is None:
            return _ByIds(context, generation, label, classifier)
        if context.reading == "ids":
            raise ValueError(refusal)
        source = verdicts.of_model(classifier, tokenizer, context)
    else:
        if context.reading == "ids":
            raise ValueError(
                f"reading: expected 'text' for a classifier of texts, got 'ids' with {type(classifier).__name__}. "
                "Only a causal sequence classifier of transformers reads ids."
            )
        if hasattr(classifier, "predict_log_proba"):
            source = verdicts.of_sklearn(classifier)
        else:
            source = verdicts.of_function(classifier, context.batch_size)
        label = verdicts.columns(source.index, context.label, generation.batch, prompts)
    if generation.tokenizer is None:
        raise ValueError(
            "tokenizer: a classifier that reads texts needs the guided model's too, got None. "
            "Pass tokenizer= to guide() or to the processor."
        )
    return _ByText(context, generation, label, source)


class ClassifierReward:
    """`log p(label | prefix, v)` of the `top_k` tokens `v` with the highest scores; base of the two ways to get it.

    Attributes:
        forwards: Calls of the classifier so far.
        nfe: The same per row; a text of its own counts one.
    """

    def __init__(self, context: TextClassifier, generation: Generation, label: Tensor) -> None:
        self.context = context
        self.generation = generation
        self.label = label.to(generation.device)
        self.forwards = 0
        self.nfe = 0
        special = _special_tokens(generation)
        self.special = torch.zeros(generation.vocab_size, dtype=torch.bool)
        self.special[[token for token in special if token < generation.vocab_size]] = True
        self.special = self.special.to(generation.device)

    @torch.no_grad()
    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Log-rewards `[B, V]`; what is no candidate gets minus infinity or the candidates' mean."""
        count = min(self.context.top_k, scores.shape[-1])
        best, candidates = scores.topk(count, -1)
        possible = ~torch.isneginf(best)
        found = self._candidates(generated, candidates, possible).clamp_min(verdicts.LEAST)
        if self.context.rest == "mean":
            mean = (found * possible).sum(-1, keepdim=True) / possible.sum(-1, keepdim=True).clamp_min(1)
            return mean.expand(scores.shape).scatter(-1, candidates, found)
        excluded = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return excluded.scatter_(-1, candidates, found.masked_fill(~possible, -torch.inf))

    def reorder(self, order: Tensor) -> None:
        """Nothing is kept by row."""

    def rewind(self, valid: int) -> None:
        """Nothing is kept by token."""

    def _candidates(self, generated: Tensor, candidates: Tensor, possible: Tensor) -> Tensor:
        """Log-probabilities `[B, k]` of the wanted class; where not `possible` any finite number."""
        raise NotImplementedError


class _ByText(ClassifierReward):
    """Every candidate decoded with its prefix, and the text classified."""

    def __init__(
        self, context: TextClassifier, generation: Generation, label: Tensor, source: verdicts.Verdicts
    ) -> None:
        super().__init__(context, generation, label)
        self.source = source
        self.prompts = generation.prompts.tokens()

    def _candidates(self, generated: Tensor, candidates: Tensor, possible: Tensor) -> Tensor:
        rows, places = possible.nonzero(as_tuple=True)
        answers, tokens = generated.tolist(), candidates[rows, places].tolist()
        whole = [[*self.prompts[row], *answers[row], token] for row, token in zip(rows.tolist(), tokens, strict=True)]
        texts = self.generation.tokenizer.batch_decode(
            whole, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        single = {text: number for number, text in enumerate(dict.fromkeys(texts))}  # beams often agree
        table = self.source.log_probs(list(single)).to(self.label.device)
        if table.shape[1] <= int(self.label.max()):
            raise ValueError(
                f"label: expected the index of one of {table.shape[1]} classes, got {int(self.label.max())}. "
                "Count them from 0."
            )
        self.forwards += self.source.passes(len(single))
        self.nfe += -(-len(texts) // candidates.shape[0])
        found = torch.zeros(candidates.shape, device=self.label.device)
        number = torch.tensor([single[text] for text in texts], device=self.label.device)
        found[rows, places] = table[number, self.label[rows]]
        return found


class _ByIds(ClassifierReward):
    """Candidates as token ids behind the classifier's own cache of the prefix."""

    def __init__(self, context: TextClassifier, generation: Generation, label: Tensor, classifier: Any) -> None:
        super().__init__(context, generation, label)
        way = prefixes.way(classifier)
        assert way is not None
        check_positions(classifier, generation.prompts, (generation.total or 0) + 1, "classifier")
        self.classifier = classifier
        self.reader = prefixes.PrefixClassifier(classifier, generation.prompts, way, context.batch_size)
        rows = classifier.get_input_embeddings().weight.shape[0]
        self.special[rows:] = True  # padding of the guided model's logits
        if (pad := getattr(classifier.config, "pad_token_id", None)) is not None and pad < rows:
            self.special[pad] = True

    def reorder(self, order: Tensor) -> None:
        """Let the cache follow."""
        self.reader.reorder(order)

    def rewind(self, valid: int) -> None:
        """Take tokens back from the cache."""
        self.reader.rewind(valid)

    def _candidates(self, generated: Tensor, candidates: Tensor, possible: Tensor) -> Tensor:
        special = self.special[candidates]
        after, before = self.reader.logits(generated, candidates.masked_fill(special, 0))
        self.forwards, self.nfe = self.reader.forwards, self.reader.nfe
        logits = torch.where(special[..., None], before[:, None], after)
        table = verdicts.log_probs_of(self.classifier, logits)
        return table.gather(-1, self.label[:, None, None].expand(-1, table.shape[1], 1))[..., 0]


def _no_ids(context: TextClassifier, generation: Generation, classifier: Any, tokenizer: Any) -> str | None:
    """Why a classifier cannot be given token ids; `None` if it can or is not to."""
    if context.reading == "text":
        return "reading: expected 'ids'. Use 'auto'."
    if classifier.device != generation.device:
        return (
            f"classifier: expected it on {generation.device} like the guided model, got {classifier.device}. "
            "Move it with .to(), or use reading='text'."
        )
    if not bool(generation.prompts.mask.any(1).all()):
        return (
            "prompt: expected at least one token for a classifier of ids to begin with, got none. Use reading='text'."
        )
    try:
        check_vocabulary(generation.model, generation.tokenizer, classifier, tokenizer)
    except ValueError as error:
        return f"classifier: expected the guided model's vocabulary to read its ids; {error} Or use reading='text'."
    if prefixes.way(classifier) is None:
        return (
            f"classifier: expected a causal one that classifies every prefix by its last token, got "
            f"{type(classifier).__name__}. Use CAIF with reading='text'."
        )
    return None


def _special_tokens(generation: Generation) -> set[int]:
    """Tokens that are no text."""
    config = generation.model.generation_config
    found: set[int] = set(getattr(generation.tokenizer, "all_special_ids", ()))
    for tokens in (config.bos_token_id, config.eos_token_id, config.pad_token_id):
        found.update(tokens if isinstance(tokens, list) else [] if tokens is None else [tokens])
    return found
