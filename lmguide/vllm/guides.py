"""Guide models in a worker: loaded with the server, and run once a step on the texts of all requests that want them.

Which models there are is said where the server starts, in vLLM's `additional_config`; requests know their names only.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from lmguide.bundled import PREFIX, bundled
from lmguide.checks import check_number
from lmguide.descriptions.gedi import check_codes
from lmguide.serialization import did_you_mean
from lmguide.sources.ids import pack
from lmguide.sources.models import check_vocabulary, opened
from lmguide.sources.rewards.base import Generation
from lmguide.sources.rewards.gedi import ROOM
from lmguide.sources.rewards.gedi_rows import MovingPosterior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmguide.descriptions.gedi import ClassPosterior
    from lmguide.vllm.combine import Text

logger = logging.getLogger("vllm.lmguide")

GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """The guides of a server.

    Attributes:
        guides: Folder or hub name of each model, by the name that requests use.
        guide_cache_gib: Memory for what guides keep of running requests; a text that finds no room is read anew at
            every step.
    """

    guides: Mapping[str, str] = field(default_factory=dict)
    guide_cache_gib: float = 1.0


def read_settings(config: Any) -> Settings:
    """What `additional_config["lmguide"]` says.

    Raises:
        ValueError: It holds something else than names of models and a size.
    """
    found = config.additional_config if config is not None else None
    given = found.get("lmguide", {}) if isinstance(found, dict) else {}
    example = '{"lmguide": {"guides": {"mood": "some/guide"}, "guide_cache_gib": 1}}'
    if not isinstance(given, dict) or set(given) - {"guides", "guide_cache_gib"}:
        raise ValueError(f"additional_config: expected something like {example}, got {given!r} for lmguide. Mend it.")
    guides = given.get("guides", {})
    names = [name for pair in guides.items() for name in pair] if isinstance(guides, dict) else [None]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"guides: expected the model of each name, got {guides!r}. Write for example {example}")
    size = given.get("guide_cache_gib", Settings.guide_cache_gib)
    check_number("guide_cache_gib", size, "1 is the default.", above=0)
    return Settings(dict(guides), float(size))


def check_posterior(context: ClassPosterior, settings: Settings) -> None:
    """Refuse a description whose guide this server has not, or whose codes that has not.

    Raises:
        ValueError: It does not fit.
    """
    name = str(context.guide)
    if name not in settings.guides:
        known = ", ".join(map(repr, settings.guides)) or "none"
        raise ValueError(
            f"guide: expected the name of a guide of this server, {known}, got {name!r}. "
            f"{did_you_mean(name, settings.guides) if settings.guides else 'Start the server with it.'}"
        )
    if context.map_vocabulary:
        raise ValueError("map_vocabulary: expected a guide of the served model's vocabulary in a server. Leave it out.")
    codes = context.codes or _codes(settings.guides[name])
    if codes is None:
        raise ValueError("codes: expected all classes of the guide, which names none itself. Give codes=[...].")
    check_codes(codes, context.code)


@lru_cache(maxsize=16)
def _codes(model: str) -> Any:
    config = bundled(model.removeprefix(PREFIX))[0].config if model.startswith(PREFIX) else None
    return (getattr(config or AutoConfig.from_pretrained(model), "gedi", None) or {}).get("codes")


@dataclass
class Cohort:
    """Requests whose texts a guide reads together.

    Attributes:
        reader: What it knows of them.
        requests: Their ids, in the reader's order.
        read: How many tokens of each it has read.
    """

    reader: MovingPosterior
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
        self._cohorts: dict[ClassPosterior, list[Cohort]] = {}
        self._told = False
        served: Any = SimpleNamespace(
            config=SimpleNamespace(vocab_size=self._width), dtype=model_config.dtype, device=device
        )
        for name, model in settings.guides.items():
            guide, own = opened(model, None, served, False, "guide")
            check_vocabulary(served, tokenizer, guide, own, "guide")
            self._models[name] = guide, own
            size = sum(weight.nbytes for weight in guide.parameters()) / GIB
            logger.info("lmguide: guide %s, %.2f GiB, and %.2f GiB for texts", name, size, settings.guide_cache_gib)

    def keep(self, requests: set[str]) -> None:
        """Forget all requests but these."""
        for context, cohorts in list(self._cohorts.items()):
            for cohort in list(cohorts):
                left = [name for name in cohort.requests if name in requests]
                if left:
                    cohort.keep(left)
                else:
                    cohorts.remove(cohort)
            if not cohorts:
                del self._cohorts[context]

    def posteriors(self, context: ClassPosterior, texts: Sequence[Text], everyone: Mapping[str, Text]) -> Tensor:
        """Log-posteriors `[B, V]` behind some texts.

        Args:
            context: The description.
            texts: Those asked about.
            everyone: All that run, by request: what is read together goes on together.
        """
        asked = {text.request for text in texts}
        found: dict[str, Tensor] = {}
        cohorts = self._cohorts.setdefault(context, [])
        for cohort in [each for each in cohorts if asked & set(each.requests)]:
            cohorts.remove(cohort)  # comes back when all went well
            self._shrink(context, cohort, everyone, asked)
            if cohort.requests:
                found |= self._advance(cohort, everyone)
                cohorts.append(cohort)
        new = [text for text in texts if text.request not in found]
        room = [text for place, text in enumerate(new) if self._fits(context, new[: place + 1])]
        if room:
            cohort = self._begin(context, room)
            found |= self._advance(cohort, everyone)
            if cohorts and cohorts[0].reader.joinable() and cohort.reader.joinable():
                cohorts[0].reader.join(cohort.reader)
                cohorts[0].requests += cohort.requests
                cohorts[0].read |= cohort.read
            else:
                cohorts.append(cohort)
        for text in new[len(room) :]:
            self._tell()
            found |= self._advance(self._begin(context, [text]), everyone)
        return torch.stack([found[text.request] for text in texts])

    def _shrink(self, context: ClassPosterior, cohort: Cohort, everyone: Mapping[str, Text], asked: set[str]) -> None:
        """Leave out rows that cannot go on together with those asked about, and the last ones if memory is short."""
        unread = {name: len(everyone[name].ids) - cohort.read[name] for name in cohort.requests if name in everyone}
        (count, _), *_ = Counter(unread[name] for name in cohort.requests if name in asked).most_common(1)
        rows = [name for name, tokens in unread.items() if tokens == count]
        per_row = self._bytes(context, cohort.reader.copies, cohort.reader.width + count)
        rows = rows[: max(0, int((self._limit - self._held()) // per_row))]
        if rows:
            cohort.keep(rows)
        else:
            cohort.requests = []

    def _begin(self, context: ClassPosterior, texts: Sequence[Text]) -> Cohort:
        guide, tokenizer = self._models[str(context.guide)]
        ids = [list(text.ids) for text in texts]
        # The vocabularies were compared when the guide was loaded: the guide's numbers stand for the served model's.
        like: Any = SimpleNamespace(config=guide.config, dtype=guide.dtype, device=self._device)
        rows = pack(ids, self._device)
        generation = Generation(like, None, rows, len(ids), self._width, self._device, None, drafts=False)
        reader = MovingPosterior(replace(context, guide=guide, tokenizer=tokenizer), generation)
        names = [text.request for text in texts]
        return Cohort(reader, names, dict(zip(names, map(len, ids), strict=True)))

    def _advance(self, cohort: Cohort, everyone: Mapping[str, Text]) -> dict[str, Tensor]:
        new = [list(everyone[name].ids)[cohort.read[name] :] for name in cohort.requests]
        tokens = torch.tensor(new, dtype=torch.long, device=self._device).reshape(len(new), -1)
        posterior = cohort.reader.advance(tokens, torch.empty(0))
        for name in cohort.requests:
            cohort.read[name] = len(everyone[name].ids)
        return dict(zip(cohort.requests, posterior, strict=True))

    def _fits(self, context: ClassPosterior, texts: Sequence[Text]) -> bool:
        copies = len(context.codes or _codes_of(self._models[str(context.guide)][0]))
        readers = [cohort.reader for cohort in self._cohorts.get(context, ())]
        width = max([*(len(text.ids) for text in texts), *(reader.width for reader in readers)])
        padded = sum(reader.rows * (width - reader.width) for reader in readers) * (
            self._bytes(context, copies, 1) - self._bytes(context, copies, 0)
        )
        return self._held() + padded + len(texts) * self._bytes(context, copies, width) <= self._limit

    def _held(self) -> float:
        """Bytes of what all cohorts keep."""
        return sum(
            cohort.reader.rows * self._bytes(context, cohort.reader.copies, cohort.reader.width)
            for context, cohorts in self._cohorts.items()
            for cohort in cohorts
        )

    def _bytes(self, context: ClassPosterior, copies: int, width: int) -> float:
        """Bytes of one request: keys and values with spare room, and a law behind every code."""
        guide = self._models[str(context.guide)][0]
        config = guide.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * heads * head * guide.dtype.itemsize
        return float(copies * ((width + ROOM) * token + 4 * config.vocab_size))

    def _tell(self) -> None:
        if not self._told:
            logger.warning("lmguide: no room for what guides keep of texts; some are read anew at every step")
        self._told = True


def _codes_of(guide: Any) -> Any:
    return guide.config.gedi["codes"]
