"""Guide models in a worker: loaded with the server, and run once a step on the texts of all requests that want them."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from lmguide.contexts import OtherModel
from lmguide.descriptions.caif import TextClassifier
from lmguide.sources.ids import pack
from lmguide.sources.models import check_vocabulary, opened
from lmguide.sources.moving import MovingLaw
from lmguide.sources.rewards.base import Generation
from lmguide.sources.rewards.gedi_rows import MovingPosterior
from lmguide.sources.rewards.verdicts import loaded
from lmguide.sources.roomy import ROOM
from lmguide.vllm.settings import classifies, guide_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from lmguide.descriptions.gedi import ClassPosterior
    from lmguide.vllm.combine import Text
    from lmguide.vllm.settings import Settings

    Source: TypeAlias = ClassPosterior | OtherModel
    """What a guide is asked for: the posterior of a class, or its own law."""

logger = logging.getLogger("vllm.lmguide")

GIB = 2**30
AT_ONCE = 2**13
"""Tokens of new texts that a guide reads in one pass, with their padding; a single text may have more."""


@dataclass
class Cohort:
    """Requests whose texts a guide reads together.

    Attributes:
        reader: What it knows of them.
        requests: Their ids, in the reader's order.
        read: How many tokens of each it has read.
    """

    reader: MovingPosterior | MovingLaw
    requests: list[str]
    read: dict[str, int]

    def keep(self, requests: Sequence[str]) -> None:
        """Forget the others."""
        if len(requests) < len(self.requests):
            places = torch.tensor([self.requests.index(name) for name in requests])
            self.reader.keep(places.to(self.reader.device))
            self.requests = list(requests)


class Guides:
    """The guides of one worker and what they keep of running requests.

    Args:
        settings: Which there are.
        model_config: vLLM's, of the served model.
        tokenizer: The served model's.
        device: Where guides run.

    Raises:
        ValueError: A guide has another vocabulary than the served model.
    """

    def __init__(self, settings: Settings, model_config: Any, tokenizer: Any, device: torch.device) -> None:
        self._device = device
        self._width = model_config.get_vocab_size()
        self._limit = settings.guide_cache_gib * GIB
        self._models: dict[str, tuple[Any, Any]] = {}
        self._cohorts: dict[Source, list[Cohort]] = {}
        self._told = False
        self.elsewhere = 0.0
        """Bytes that others keep of texts for guides of this worker."""
        served: Any = SimpleNamespace(
            config=SimpleNamespace(vocab_size=self._width), dtype=model_config.dtype, device=device
        )
        for name, model in settings.guides.items():
            if classifies(guide_config(model)):
                guide, own = loaded(TextClassifier(model, 0))
                guide.to(device)
            else:
                guide, own = opened(model, None, served, False, "guide")
                check_vocabulary(served, tokenizer, guide, own, "guide")
            self._models[name] = guide, own
            size = sum(weight.nbytes for weight in guide.parameters()) / GIB
            logger.info("lmguide: guide %s, %.2f GiB, and %.2f GiB for texts", name, size, settings.guide_cache_gib)

    def keep(self, requests: set[str]) -> None:
        """Forget all requests but these."""
        for source, cohorts in list(self._cohorts.items()):
            for cohort in list(cohorts):
                left = [name for name in cohort.requests if name in requests]
                if left:
                    cohort.keep(left)
                else:
                    cohorts.remove(cohort)
            if not cohorts:
                del self._cohorts[source]

    def model(self, name: str) -> tuple[Any, Any]:
        """A guide and its tokenizer."""
        return self._models[name]

    def read(self, source: Source, texts: Sequence[Text], everyone: Mapping[str, Text]) -> Tensor:
        """Log-posteriors or log-probabilities `[B, V]` behind some texts.

        Args:
            source: The description.
            texts: Those asked about.
            everyone: All that run, by request: what is read together goes on together.
        """
        asked = {text.request for text in texts}
        found: dict[str, Tensor] = {}
        cohorts = self._cohorts.setdefault(source, [])
        for cohort in [each for each in cohorts if asked & set(each.requests)]:
            cohorts.remove(cohort)  # comes back when all went well
            self._shrink(source, cohort, everyone, asked)
            if cohort.requests:
                found |= self._advance(cohort, everyone)
                cohorts.append(cohort)
        new = [text for text in texts if text.request not in found]
        room = [text for place, text in enumerate(new) if self._fits(source, new[: place + 1])]
        for portion in self._portions(source, room):
            cohort = self._begin(source, portion)
            found |= self._advance(cohort, everyone)
            if cohorts and cohorts[0].reader.joinable() and cohort.reader.joinable():
                cohorts[0].reader.join(cohort.reader)  # type: ignore[arg-type]
                cohorts[0].requests += cohort.requests
                cohorts[0].read |= cohort.read
            else:
                cohorts.append(cohort)
        for text in new[len(room) :]:
            self._tell()
            found |= self._advance(self._begin(source, [text]), everyone)
        return torch.stack([found[text.request] for text in texts])

    def _shrink(self, source: Source, cohort: Cohort, everyone: Mapping[str, Text], asked: set[str]) -> None:
        """Leave out rows that cannot go on together with those asked about, and the last ones if memory is short."""
        unread = {name: len(everyone[name].ids) - cohort.read[name] for name in cohort.requests if name in everyone}
        (count, _), *_ = Counter(unread[name] for name in cohort.requests if name in asked).most_common(1)
        rows = [name for name, tokens in unread.items() if tokens == count]
        per_row = self._bytes(source, cohort.reader.copies, cohort.reader.width + count)
        rows = rows[: max(0, int((self._limit - self._held()) // per_row))]
        if rows:
            cohort.keep(rows)
        else:
            cohort.requests = []

    def _portions(self, source: Source, texts: Sequence[Text]) -> Iterator[list[Text]]:
        """New texts that are read in one pass, those of like length together."""
        portion: list[Text] = []
        for text in sorted(texts, key=lambda text: len(text.ids)):
            if portion and (len(portion) + 1) * len(text.ids) * self._copies(source) > AT_ONCE:
                yield portion
                portion = []
            portion.append(text)
        if portion:
            yield portion

    def _copies(self, source: Source) -> int:
        """Rows of the guide for each text: one for every code."""
        if isinstance(source, OtherModel):
            return 1
        return len(source.codes or self._models[_name(source)][0].config.gedi["codes"])

    def _begin(self, source: Source, texts: Sequence[Text]) -> Cohort:
        guide, tokenizer = self._models[_name(source)]
        ids = [list(text.ids) for text in texts]
        rows = pack(ids, self._device)
        reader: MovingPosterior | MovingLaw
        if isinstance(source, OtherModel):
            reader = MovingLaw(guide, rows, self._width)
        else:
            # The vocabularies were compared when the guide was loaded: its numbers stand for the served model's.
            like: Any = SimpleNamespace(config=guide.config, dtype=guide.dtype, device=self._device)
            generation = Generation(like, None, rows, len(ids), self._width, self._device, None, drafts=False)
            reader = MovingPosterior(replace(source, guide=guide, tokenizer=tokenizer), generation)
        names = [text.request for text in texts]
        return Cohort(reader, names, dict(zip(names, map(len, ids), strict=True)))

    def _advance(self, cohort: Cohort, everyone: Mapping[str, Text]) -> dict[str, Tensor]:
        new = [list(everyone[name].ids)[cohort.read[name] :] for name in cohort.requests]
        tokens = torch.tensor(new, dtype=torch.long, device=self._device).reshape(len(new), -1)
        scores = cohort.reader.advance(tokens)
        for name in cohort.requests:
            cohort.read[name] = len(everyone[name].ids)
        return dict(zip(cohort.requests, scores, strict=True))

    def _fits(self, source: Source, texts: Sequence[Text]) -> bool:
        copies = self._copies(source)
        readers = [cohort.reader for cohort in self._cohorts.get(source, ())]
        width = max([*(len(text.ids) for text in texts), *(reader.width for reader in readers)])
        padded = sum(reader.rows * (width - reader.width) for reader in readers) * (
            self._bytes(source, copies, 1) - self._bytes(source, copies, 0)
        )
        return self._held() + padded + len(texts) * self._bytes(source, copies, width) <= self._limit

    def spare(self) -> float:
        """Bytes that there is still room for, negative where there is none."""
        return self._limit - self._held()

    def _held(self) -> float:
        """Bytes of what is kept of texts."""
        return self.elsewhere + sum(
            cohort.reader.rows * self._bytes(source, cohort.reader.copies, cohort.reader.width)
            for source, cohorts in self._cohorts.items()
            for cohort in cohorts
        )

    def _bytes(self, source: Source, copies: int, width: int) -> float:
        """Bytes of one request: keys and values with spare room, and a law behind every code."""
        guide = self._models[_name(source)][0]
        return float(copies * ((width + ROOM) * token_bytes(guide) + 4 * self._width))

    def _tell(self) -> None:
        if not self._told:
            logger.warning("lmguide: no room for what guides keep of texts; some are read anew at every step")
        self._told = True


def token_bytes(guide: Any) -> int:
    """Bytes of a token's keys and values."""
    config = guide.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head * guide.dtype.itemsize)


def _name(source: Source) -> str:
    return str(source.model if isinstance(source, OtherModel) else source.guide)
