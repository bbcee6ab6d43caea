"""Methods that read what was written: checked in the frontend, bound in a worker while a request runs.

The library's own readers do the work. Of the served model they look at numbers only, so a stand-in will do.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from lmguide import contexts
from lmguide.descriptions.caif import TextClassifier
from lmguide.descriptions.gedi import ClassPosterior
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from lmguide.vllm.guides import Guides, token_bytes
from lmguide.vllm.plan import reads
from lmguide.vllm.settings import check_source, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmguide.guidance import Guidance
    from lmguide.sources.rewards.base import TokenReward
    from lmguide.vllm.combine import Guided, Text
    from lmguide.vllm.plan import Served


def check_readers(
    methods: Sequence[Guidance], prompt: Sequence[int] | None, served: Served, total: int | None, config: Any
) -> None:
    """Refuse methods that could not be bound in a worker.

    Args:
        methods: All methods of a request.
        prompt: Its prompt; `None` where that came as embeddings.
        served: The served model.
        total: Tokens the answer may have.
        config: The server's configuration, which names its guides.

    Raises:
        ValueError: A method does not fit the served model or its guide, or there is no text to read.
    """
    for method in methods:
        if not reads(method):
            continue
        if prompt is None:
            raise ValueError(f"guidance: {method.name} reads texts, and the prompt came as embeddings. Send its text.")
        for context in method.sources().values():
            if isinstance(context, contexts.OtherModel | ClassPosterior | TextClassifier):
                check_source(method, context, read_settings(config), prompt, total or 0, served.tokenizer)
            else:
                bind_token_reward(context, _generation(prompt, served.vocab_size, served.tokenizer, total))


class Rewards:
    """What the guides and word lists of one worker say of its requests.

    Args:
        config: The server's configuration.
        device: Where guides run.
    """

    def __init__(self, config: Any, device: torch.device) -> None:
        self._config = config
        self._bound: dict[tuple[str, int], dict[str, TokenReward]] = {}
        self._texts: Mapping[str, Text] = {}
        self._tokenizer: Any = None
        self._guides: Guides | None = None
        self._ends: Any = None
        settings = read_settings(config)
        if settings.guides:
            self._guides = Guides(settings, config.model_config, self._spelled(), device)

    def keep(self, requests: set[str]) -> None:
        """Forget all requests but these."""
        if self._bound:
            self._bound = {key: bound for key, bound in self._bound.items() if key[0] in requests}
        if self._guides is not None:
            self._count()
            self._guides.keep(requests)

    def see(self, texts: Mapping[str, Text]) -> None:
        """Take note of what the requests of this step have written whose laws read it, by request."""
        self._texts = texts

    def law(self, guide: str, batch: Sequence[Guided]) -> Tensor:
        """Log-probabilities `[B, V]` of a guide behind the batch's texts."""
        assert self._guides is not None
        return self._guides.read(contexts.OtherModel(guide), [_text(guided) for guided in batch], self._texts)

    def log_rewards(self, method: int, batch: Sequence[Guided], scores: Tensor) -> Mapping[str, Tensor]:
        """Log-rewards `[B, V]` of a method of the batch's law, by name."""
        sources = batch[0].law.methods[method].sources()
        if isinstance(source := sources.get("reward"), ClassPosterior):
            assert self._guides is not None
            return {"reward": self._guides.read(source, [_text(guided) for guided in batch], self._texts)}
        found: dict[str, list[Tensor]] = {}
        for row, guided in enumerate(batch):
            answer = torch.tensor([_text(guided).answer], dtype=torch.long, device=scores.device)
            for name, reward in self._of(guided, method, scores).items():
                found.setdefault(name, []).append(reward.log_rewards(answer, scores[row : row + 1]))
            self._make_room()
        return {name: torch.cat(rows) for name, rows in found.items()}

    def _of(self, guided: Guided, method: int, scores: Tensor) -> dict[str, TokenReward]:
        """The method's rewards, bound to the request when it is first asked about."""
        text, law = _text(guided), guided.law
        key = text.request, method
        if key not in self._bound:
            generation = _generation(text.prompt, scores.shape[-1], self._spelled(), law.total, scores.device)
            generation.model.generation_config = self._special()
            sources = law.methods[method].sources()
            self._bound[key] = {name: self._bind(source, generation) for name, source in sources.items()}
        return self._bound[key]

    def _bind(self, source: contexts.Context, generation: Generation) -> TokenReward:
        if isinstance(source, TextClassifier):
            assert self._guides is not None
            classifier, tokenizer = self._guides.model(str(source.classifier))
            source = replace(source, classifier=classifier, tokenizer=tokenizer)
        return bind_token_reward(source, generation)

    def _make_room(self) -> None:
        """Let caches of classifiers go where the guides' memory is short; they are filled anew when they are asked."""
        if self._guides is None:
            return
        cached = [
            key for key, bound in self._bound.items() if any(hasattr(reward, "reader") for reward in bound.values())
        ]
        self._count()
        while cached and self._guides.spare() < 0:
            del self._bound[cached.pop(0)]
            self._count()

    def _count(self) -> None:
        """Tell the guides how much the caches of classifiers hold."""
        assert self._guides is not None
        readers = [
            (self._texts.get(request), reward.reader)
            for (request, _), bound in self._bound.items()
            for reward in bound.values()
            if hasattr(reward, "reader")
        ]
        self._guides.elsewhere = float(
            sum(len(text.ids) * token_bytes(reader.classifier) for text, reader in readers if text is not None)
        )

    def _special(self) -> Any:
        """The served model's own special tokens, which are no text."""
        if self._ends is None:
            model, names = self._config.model_config, ("bos_token_id", "eos_token_id", "pad_token_id")
            given = {name: getattr(model.hf_text_config, name, None) for name in names}
            given |= {name: ids for name, ids in model.try_get_generation_config().items() if name in names}
            self._ends = SimpleNamespace(**given)
        return self._ends

    def _spelled(self) -> Any:
        if self._tokenizer is None:
            from vllm.tokenizers import cached_tokenizer_from_config

            self._tokenizer = cached_tokenizer_from_config(self._config.model_config)
        return self._tokenizer


def _text(guided: Guided) -> Text:
    text = guided.text
    assert text is not None
    return text


def _generation(
    prompt: Sequence[int], vocab_size: int, tokenizer: Any, total: int | None, device: torch.device | str = "cpu"
) -> Generation:
    model: Any = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    rows = pack([list(prompt)], device)
    return Generation(model, tokenizer, rows, 1, vocab_size, torch.device(device), total, drafts=False)
