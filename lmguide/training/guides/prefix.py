"""FUDGE's guide: a causal classifier that says behind every prefix of a text which class the whole will have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification

from lmguide.sources.rewards import prefixes
from lmguide.training.guides import data
from lmguide.training.guides.models import check_fit, front, load_model, load_tokenizer, pad
from lmguide.training.losses import prefix_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lmguide.training.guides.run import Example
    from lmguide.training.guides.settings import Settings


class OfPrefixes(torch.nn.Module):
    """A sequence classifier whose verdict is asked behind every token."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Mapping[str, Tensor], measure: bool = False) -> Tensor:
        """The loss, a scalar; or to `measure`, what `PrefixTask.metrics` takes."""
        mask, labels = batch["attention_mask"], batch["labels"]
        states = self.classifier.base_model(
            input_ids=batch["input_ids"], attention_mask=mask, use_cache=False
        ).last_hidden_state
        logits = self.classifier.score(states)
        loss = prefix_loss(logits, labels, mask)
        if not measure:
            return loss
        right = (logits.argmax(-1) == labels[:, None]) & mask.bool()
        last = mask.sum(1, keepdim=True) - 1
        whole = right.gather(1, last).sum()
        return torch.stack(
            [*(x.float() for x in (whole, right.sum(), loss * mask.sum(), mask.sum())), loss.new_tensor(len(labels))]
        )


class PrefixTask:
    """What is trained, on which batches, how it is measured and saved.

    Args:
        settings: Those of the run.
        source: Where the texts are.

    Raises:
        ValueError: See `data.read`; a base model that cannot be one.
    """

    kind = "prefix-classifier"

    def __init__(self, settings: Settings, source: data.Source) -> None:
        self.settings = settings
        self.tokenizer = load_tokenizer(settings)
        texts, held_out = data.read(source, settings.seed)
        self.start = front(self.tokenizer)
        self.corpus = data.encode(texts, held_out, self.tokenizer, settings.max_length - len(self.start), None)
        names = dict(enumerate(self.corpus.labels))
        classifier = load_model(
            AutoModelForSequenceClassification,
            settings,
            num_labels=len(names),
            id2label=names,
            label2id={name: number for number, name in names.items()},
            problem_type="single_label_classification",
        )
        check_fit(classifier, settings, [*self.start, self.corpus.largest])
        give_padding(classifier, self.tokenizer)
        if prefixes.way(classifier.eval()) is None:
            raise ValueError(
                f"base: expected a causal model whose classifier can judge every prefix, got "
                f"{type(classifier).__name__}. Use a model that writes from left to right, such as gpt2-medium."
            )
        self.module = OfPrefixes(classifier)

    def examples(self, held_out: bool) -> int:
        """Texts."""
        return len(self.corpus.part(held_out))

    def batch(self, examples: Sequence[Example], held_out: bool) -> dict[str, Tensor]:
        """Texts padded to one length."""
        found = self.corpus.part(held_out)[[number for number, _ in examples]]
        ids, mask = pad([[*self.start, *text] for text in found["ids"]])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(found["label"])}

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """Of a batch's loss in that of a step: its prefixes."""
        return int(batch["attention_mask"].sum())

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Share of right classes of whole texts and of all prefixes, and nats per prefix."""
        whole, right, nats, count, texts = sums
        return {"accuracy": whole / texts, "accuracy_of_prefixes": right / count, "nll": nats / count}

    def save(self, folder: Path) -> None:
        """Write what `lg.Fudge` and `lg.CAIF` load."""
        self.module.classifier.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def about(self) -> list[str]:
        """What is trained on what, in lines."""
        counts = self.corpus.counts()
        named = [
            f"{label} ({data.counted(count, 'text')})" for label, count in zip(self.corpus.labels, counts, strict=True)
        ]
        return [f"{len(counts)} classes: {', '.join(named)}"]

    def use(self, folder: str) -> str:
        """How to use the result."""
        return f"lg.Fudge({folder!r}, {self.corpus.labels[0]!r})"


def give_padding(classifier: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer without a padding token pad with another special one, so that texts can be classified in batches.

    GPT-2 for one has none. A new token would make the vocabulary another than the guided model's.
    """
    if tokenizer.pad_token_id is None:
        special = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token)
        tokenizer.pad_token = next((token for token in special if token is not None), None)
    classifier.config.get_text_config(decoder=True).pad_token_id = tokenizer.pad_token_id
