"""GeDi's guide: a language model that reads a control code in front of every text, and tells classes by Bayes' rule.

With topics the codes are `true` and `false`, and every text is read behind its own topic and behind a wrong one.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from lmguide.training.guides import data
from lmguide.training.guides.models import check_causal, check_fit, front, load_model, load_tokenizer, pad
from lmguide.training.losses import class_log_likelihoods, gedi_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lmguide.training.guides.run import Example
    from lmguide.training.guides.settings import GediSettings

TOPIC_CODES = ("true", "false")
"""In front of a text's own topic, and of another."""


class ClassConditional(torch.nn.Module):
    """A language model with what its classifier learns beside it.

    The factor is the exponential of what is learnt, so that it stays above 0.
    """

    def __init__(self, model: Any, codes: Sequence[Sequence[int]], bos: int | None, gen_weight: float) -> None:
        super().__init__()
        self.model = model
        self.codes = codes
        self.bos = bos
        self.gen_weight = gen_weight
        compared = gen_weight < 1  # else nothing reads them, which data parallelism does not bear
        self.log_scale = torch.nn.Parameter(torch.zeros(()), requires_grad=compared)
        self.bias = torch.nn.Parameter(torch.zeros(len(codes)), requires_grad=compared)

    def forward(self, batch: Mapping[str, Tensor], measure: bool = False) -> Tensor:
        """The loss, a scalar; or to `measure`, what `GediTask.metrics` takes."""
        labels = batch["labels"]
        log_likelihoods, counts = class_log_likelihoods(
            self.model,
            self.codes,
            batch["input_ids"],
            batch["attention_mask"],
            bos=self.bos,
            scored=batch["scored"],
            only=labels if self.gen_weight == 1 and not measure else None,
        )
        scale = self.log_scale.exp()
        if not measure:
            return gedi_loss(
                log_likelihoods, counts, labels, gen_weight=self.gen_weight, logit_scale=scale, bias=self.bias
            )
        classes = log_likelihoods / counts[:, None] * scale + self.bias
        right = (classes.argmax(1) == labels).sum()
        likely = log_likelihoods.gather(1, labels[:, None]).sum()
        return torch.stack([right.float(), -likely, counts.sum().float(), torch.ones_like(likely) * len(labels)])


class GediTask:
    """What is trained, on which batches, how it is measured and saved.

    Args:
        settings: Those of the run.
        source: Where the texts are.

    Raises:
        ValueError: See `data.read`; a code for an unknown label, two codes alike or one without tokens; a base model
            that cannot be one.
    """

    kind = "gedi"

    def __init__(self, settings: GediSettings, source: data.Source) -> None:
        self.settings = settings
        self.tokenizer = load_tokenizer(settings)
        texts, held_out = data.read(source, settings.seed)
        self.texts = code_texts(texts.known, settings.codes)
        of_labels = tokens_of_codes(self.texts, self.tokenizer)
        start = front(self.tokenizer)
        if settings.topic:
            self.topics: list[list[int]] | None = list(of_labels.values())
            self.codes: tuple[str, ...] = TOPIC_CODES
            ids = list(tokens_of_codes({code: code for code in TOPIC_CODES}, self.tokenizer).values())
        else:
            self.topics, self.codes, ids = None, tuple(self.texts.values()), list(of_labels.values())
        longest = len(start) + max(map(len, ids)) + max(map(len, self.topics or [[]]))
        if longest >= settings.max_length:
            raise ValueError(
                f"max_length: expected room for a text behind {longest} tokens of code, got {settings.max_length}. "
                "Raise it or choose shorter codes."
            )
        end = self.tokenizer.eos_token_id
        self.corpus = data.encode(texts, held_out, self.tokenizer, settings.max_length - longest, end)
        model = load_model(AutoModelForCausalLM, settings)
        parts = (*start, *(token for code in ids + (self.topics or []) for token in code))
        check_fit(model, settings, [*parts, self.corpus.largest])
        check_causal(model)
        self.module = ClassConditional(model, ids, start[0] if start else None, settings.gen_weight)

    def examples(self, held_out: bool) -> int:
        """How many there are. With topics every text makes two."""
        return len(self.corpus.part(held_out)) * (1 if self.topics is None else len(TOPIC_CODES))

    def batch(self, examples: Sequence[Example], held_out: bool) -> dict[str, Tensor]:
        """Examples padded to one length. In another epoch, texts are beside other wrong topics."""
        rows = self.corpus.part(held_out)
        if self.topics is None:
            found = rows[[number for number, _ in examples]]
            ids, mask = pad(found["ids"])
            return {"input_ids": ids, "attention_mask": mask, "scored": mask, "labels": torch.tensor(found["label"])}
        found = rows[[number // len(TOPIC_CODES) for number, _ in examples]]
        labels = [number % len(TOPIC_CODES) for number, _ in examples]
        fronts = []
        for (number, epoch), own, wrong in zip(examples, found["label"], labels, strict=True):
            others = [topic for topic in range(len(self.topics)) if topic != own]
            rng = random.Random(f"topic {self.settings.seed} {held_out} {epoch} {number}")
            fronts.append(self.topics[rng.choice(others) if wrong else own])
        ids, mask = pad([[*topic, *text] for topic, text in zip(fronts, found["ids"], strict=True)])
        scored = mask.clone()
        for row, topic in enumerate(fronts):
            scored[row, : len(topic)] = 0
        return {"input_ids": ids, "attention_mask": mask, "scored": scored, "labels": torch.tensor(labels)}

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """Of a batch's loss in that of a step: its texts."""
        return len(batch["labels"])

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Share of right classes, and nats per token behind the right code."""
        right, nats, tokens, texts = sums
        return {"accuracy": right / texts, "nll": nats / tokens}

    def save(self, folder: Path) -> None:
        """Write what `lg.GeDi` loads."""
        module, model = self.module, self.module.model
        model.config.gedi = {
            "codes": list(self.codes),
            "logit_scale": math.exp(float(module.log_scale.detach())),
            "bias": module.bias.detach().tolist(),
        }
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def about(self) -> list[str]:
        """What is trained on what, in lines."""
        kinds = "topics" if self.topics else "classes"
        counts = self.corpus.counts()
        named = [
            f"{label} ({text!r}, {data.counted(count, 'text')})"
            for (label, text), count in zip(self.texts.items(), counts, strict=True)
        ]
        return [f"{len(counts)} {kinds}: {', '.join(named)}"]

    def use(self, folder: str) -> str:
        """How to use the result."""
        if self.topics is None:
            return f"lg.GeDi({folder!r}, {self.codes[0]!r})"
        topic = next(iter(self.texts.values()))
        return f"lg.GeDi({folder!r}, {TOPIC_CODES[0]!r}, topic={topic!r})"


def code_texts(labels: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """The text of the code of every label.

    Raises:
        ValueError: One is given for an unknown label.

    Example:
        >>> code_texts(("glad", "0"), {"0": " grim"})
        {'glad': ' glad', '0': ' grim'}
    """
    if unknown := [label for label in given if label not in labels]:
        raise ValueError(f"codes: expected labels of the data ({', '.join(labels)}), got {unknown[0]!r}.")
    return {label: given.get(label, f" {label}") for label in labels}


def tokens_of_codes(texts: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The tokens of the code of every label, as `lg.GeDi` will read them.

    Raises:
        ValueError: A code has none, or two have the same.
    """
    found: dict[str, list[int]] = {}
    for label, text in texts.items():
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ValueError(
                f"codes: expected a text with tokens for the label {label!r}, got {text!r}, which has none. "
                f"Give another with --codes {label}=TEXT."
            )
        if twin := next((other for other, theirs in found.items() if theirs == ids), None):
            raise ValueError(
                f"codes: expected different tokens, got {ids} for both {twin!r} and {label!r}. "
                f"Give others with --codes {label}=TEXT."
            )
        found[label] = ids
    return found
