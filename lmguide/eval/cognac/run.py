"""Answers of a model to the items, under one setting, with what they cost and how likely the unguided model finds them.

Knows no files: what is done is handed in, what is new comes out batch by batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmguide.descriptions.words import forms
from lmguide.eval.cognac.scores import LONGEST, Mean, perplexity, ratio, score
from lmguide.guidance import Guidance
from lmguide.huggingface import guide
from lmguide.sources.branch import Branch
from lmguide.sources.rows import RowBuilder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.eval.cognac.items import Item
    from lmguide.sources.ids import Rows

HOLES = ("<topic>", "<constraint>", "<allowed_words>", "<forbidden_words>")
"""What a description of a method can have in the place of what an item says; the last two for whole lists of words."""

METRICS = ("on_topic", "violated", "on_topic_not_violated")


@dataclass(frozen=True)
class Setting:
    """How answers are made. Equal settings make equal answers, on one machine.

    Attributes:
        model: Its name or path.
        guidance: Descriptions of the methods, with `HOLES`; none for the unguided model.
        split: Of the items.
        items: Their fingerprint.
        chat: Whether prompts go through the chat template.
        max_new_tokens: Most tokens of an answer.
        temperature: 0 is greedy.
        top_p: Share of the likeliest tokens to sample from.
        batch_size: Items at once; they share a seed.
        seed: Of the first batch; it grows with the number of the batch's first item.
        dtype: Of the weights.
    """

    model: str
    guidance: tuple[dict[str, Any], ...]
    split: str
    items: str
    chat: bool = False
    max_new_tokens: int = 60
    temperature: float = 0.7
    top_p: float = 0.92
    batch_size: int = 8
    seed: int = 0
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """A name for files, which no two settings share."""
        methods = "+".join(str(method["name"]) for method in self.guidance) or "unguided"
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.split}-{methods}-{digest[:8]}"

    @property
    def label(self) -> str:
        """What people call it: the methods, what items fill in, and what is away from its default."""
        return " + ".join(map(_label, self.guidance)) or "unguided"


@dataclass(frozen=True)
class Answer:
    """An answer to an item, and its scores.

    Attributes:
        id: Of the item.
        topic: Of the item.
        constraint: Of the item.
        text: The answer.
        on_topic: As in `Score`.
        violated: As in `Score`.
        on_topic_not_violated: As in `Score`.
        repetition: As in `Score`.
        topic_words: As in `Score`.
        forbidden_words: As in `Score`.
        tokens: Tokens of the answer, with its end.
        nats: Minus their log-probability under the unguided model.
        steps: Decoding steps of the batch.
        nfe: Forward evaluations of the batch, per row.
    """

    id: str
    topic: str
    constraint: str
    text: str
    on_topic: bool
    violated: bool
    on_topic_not_violated: bool
    repetition: tuple[float, ...]
    topic_words: tuple[str, ...]
    forbidden_words: tuple[str, ...]
    tokens: int
    nats: float
    steps: int
    nfe: int


def parse(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description of a method with every field, checked; it may have `HOLES` for values.

    Raises:
        ValueError: There is no such method, a value is wrong, or a hole stands within another value.
    """
    method = Guidance.from_dict(description).to_dict()
    given = {key: value for key, value in description.items() if isinstance(value, str)}  # "<topic>", not ("<topic>",)
    method |= {key: value for key, value in given.items() if any(hole in value for hole in HOLES)}
    inside = json.dumps({key: value for key, value in method.items() if not isinstance(value, str)})
    for hole in HOLES:
        if hole in inside:
            raise ValueError(
                f"guidance: expected {hole} in a value that is a text, got it inside another. "
                "Only what takes one text per prompt can have it."
            )
        if hole.endswith("_words>") and any(hole in value and hole != value for value in given.values()):
            raise ValueError(
                f"guidance: expected {hole} by itself, got it within a longer text. It is a list; give include={hole}."
            )
    return method


def filled(description: Mapping[str, Any], items: Sequence[Item]) -> Guidance:
    """A method for some items: each text with holes becomes one for each of them.

    Example:
        >>> from lmguide.eval.cognac.items import Item
        >>> items = [Item("dev-000", "animal", "dog", "", (), ()), Item("dev-001", "bird", "owl", "", (), ())]
        >>> filled({"name": "example_guidance", "topic": "<topic>", "avoid": "any <constraint>"}, items).sources()
        ... # doctest: +ELLIPSIS
        {'reward': TopicExamples(topic=('animal', 'bird'), avoid=('any dog', 'any owl'), ...
    """
    return Guidance.from_dict({key: _filled(value, items) for key, value in description.items()})


def answers(
    setting: Setting,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    done: Collection[str] = (),
) -> Iterator[list[Answer]]:
    """Answer the items, batch by batch.

    Args:
        setting: How.
        model: The model, decoder-only.
        tokenizer: Its tokenizer.
        items: All items of the setting; batches are cut from these, whatever is done.
        done: Ids of items that have been answered; batches of such alone are left out.

    Raises:
        ValueError: An encoder-decoder, a chat without a template, or a method that does not fit.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(
            "model: expected a decoder-only model, got an encoder-decoder. Use one that goes on with a text."
        )
    for start in range(0, len(items), setting.batch_size):
        batch = items[start : start + setting.batch_size]
        if not all(item.id in done for item in batch):
            yield _answer(setting, model, tokenizer, batch, setting.seed + start)


def summary(found: Sequence[Answer]) -> dict[str, Mean]:
    """Means over answers: of the metrics, of repetition, perplexity, and forward evaluations per token."""
    means = {name: Mean.of([float(getattr(answer, name)) for answer in found]) for name in METRICS}
    for size in range(1, LONGEST + 1):
        means[f"repetition_{size}"] = Mean.of([answer.repetition[size - 1] for answer in found])
    means["perplexity"] = perplexity([answer.nats / answer.tokens for answer in found])
    means["nfe_per_token"] = ratio([answer.nfe for answer in found], [answer.steps for answer in found])
    return means


@torch.no_grad()
def _answer(
    setting: Setting, model: Any, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], seed: int
) -> list[Answer]:
    rows = _rows(setting, model, tokenizer, items)
    methods = [filled(description, items) for description in setting.guidance]
    writer: Any = guide(model, methods, tokenizer=tokenizer) if methods else model
    sampling = {"do_sample": True, "temperature": setting.temperature, "top_p": setting.top_p, "top_k": 0}
    torch.manual_seed(seed)
    sequences: Tensor = writer.generate(
        rows.ids,
        attention_mask=rows.mask,
        max_new_tokens=setting.max_new_tokens,
        **(sampling if setting.temperature else {"do_sample": False}),
    )
    written = sequences[:, rows.ids.shape[1] :]
    lengths = _lengths(written, _ends(model))
    nats = _nats(model, rows, written, lengths)
    steps = written.shape[1]
    nfe = writer.stats.nfe if methods and writer.stats.steps else steps
    texts = [str(tokenizer.decode(row[:n], skip_special_tokens=True)) for row, n in zip(written, lengths, strict=True)]
    return [
        Answer(
            item.id,
            item.topic,
            item.constraint,
            text,
            **asdict(score(item, text)),
            tokens=n,
            nats=cost,
            steps=steps,
            nfe=nfe,
        )
        for item, text, n, cost in zip(items, texts, lengths, nats, strict=True)
    ]


def _rows(setting: Setting, model: Any, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> Rows:
    prompts: Any = [item.prompt for item in items]
    if setting.chat:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return RowBuilder(None, len(items), model, tokenizer, model.device).negative(prompts, argument="prompt")


def _nats(model: Any, rows: Rows, written: Tensor, lengths: Sequence[int]) -> list[float]:
    """What the unguided model finds each answer unlikely by."""
    real = torch.arange(written.shape[1], device=written.device) < torch.tensor(lengths, device=written.device)[:, None]
    branch = Branch(model, rows, len(rows.ids), use_cache=False)
    logits = branch.logits(written[:, :-1], written.shape[1], real[:, :-1].long())
    costs = -logits.float().log_softmax(-1).gather(-1, written[..., None])[..., 0]
    found: list[float] = costs.where(real, 0.0).sum(1).tolist()
    return found


def _ends(model: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    return set(own if isinstance(own, list) else [own]) - {None}


def _lengths(written: Tensor, ends: set[int]) -> list[int]:
    """Tokens of each answer up to its end, which is one of them."""
    rows = written.tolist()
    return [next((place + 1 for place, token in enumerate(row) if token in ends), len(row)) for row in rows]


def _filled(value: Any, items: Sequence[Item]) -> Any:
    if not isinstance(value, str) or not any(hole in value for hole in HOLES):
        return value
    if value == "<allowed_words>":
        return [_allowed(item) for item in items]
    if value == "<forbidden_words>":
        return [list(item.forbidden_words) for item in items]
    return [value.replace("<topic>", item.topic).replace("<constraint>", item.constraint) for item in items]


def _allowed(item: Item) -> list[str]:
    """The words of the topic that have no form in common with a forbidden one."""
    forbidden = {form for word in item.forbidden_words for form in forms(word, variants=True)}
    return [word for word in item.topic_words if not forbidden & set(forms(word, variants=True))]


def _label(description: Mapping[str, Any]) -> str:
    """The name of a method with the fields that are filled for each item and those away from their defaults."""
    method = Guidance.from_dict(description)
    shown = [
        field.name if any(hole in str(description[field.name]) for hole in HOLES) else f"{field.name}={value}"
        for field in dataclasses.fields(method)
        if field.name in description and (value := getattr(method, field.name)) != field.default
    ]
    return f"{description['name']} {', '.join(shown)}".rstrip()
