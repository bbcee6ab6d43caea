"""Methods that judge what was written: bound in the frontend to be checked, in a worker while a request runs.

The library's own readers of rewards do the work. Of the served model they read numbers only, so a stand-in will do.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from lmguide.descriptions.gedi import ClassPosterior
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from lmguide.vllm.guides import Guides, check_posterior, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from lmguide.guidance import Guidance
    from lmguide.sources.rewards.base import TokenReward
    from lmguide.vllm.combine import Guided, Text
    from lmguide.vllm.plan import Served


def check_rewards(
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
        ValueError: A method does not fit the served model, or there is no text to judge.
    """
    for method in methods:
        if not method.is_reward:
            continue
        if prompt is None:
            raise ValueError(f"guidance: {method.name} judges texts, and the prompt came as embeddings. Send its text.")
        for context in method.sources().values():
            if isinstance(context, ClassPosterior):
                check_posterior(context, read_settings(config))
            else:
                bind_token_reward(context, _generation(prompt, served.vocab_size, served.tokenizer, total))


class Rewards:
    """The rewards of the requests of one worker.

    Args:
        config: The server's configuration.
        device: Where guides run; `None` where rewards are refused.
    """

    def __init__(self, config: Any, device: torch.device | None) -> None:
        self._config = config
        self._bound: dict[str, dict[int, dict[str, TokenReward]]] = {}
        self._texts: dict[str, Text] = {}
        self._tokenizer: Any = None
        self._guides: Guides | None = None
        settings = read_settings(config)
        if settings.guides and device is not None:
            self._guides = Guides(settings, config.model_config, self._spelled(), device)

    def keep(self, requests: set[str]) -> None:
        """Forget all requests but these."""
        if self._bound:
            self._bound = {name: bound for name, bound in self._bound.items() if name in requests}
        if self._guides is not None:
            self._guides.keep(requests)

    def see(self, texts: Iterable[Text]) -> None:
        """Take note of what all requests of this step have written."""
        self._texts = {text.request: text for text in texts}

    def log_rewards(self, method: int, batch: Sequence[Guided], scores: Tensor) -> Mapping[str, Tensor]:
        """Log-rewards `[B, V]` of a method of the batch's law, by name."""
        contexts = batch[0].law.methods[method].sources()
        if isinstance(context := contexts.get("reward"), ClassPosterior):
            assert self._guides is not None
            return {"reward": self._guides.posteriors(context, [_text(guided) for guided in batch], self._texts)}
        found: dict[str, list[Tensor]] = {}
        for row, guided in enumerate(batch):
            answer = torch.tensor([_text(guided).answer], dtype=torch.long, device=scores.device)
            for name, reward in self._of(guided, method, scores).items():
                found.setdefault(name, []).append(reward.log_rewards(answer, scores[row : row + 1]))
        return {name: torch.cat(rows) for name, rows in found.items()}

    def _of(self, guided: Guided, method: int, scores: Tensor) -> dict[str, TokenReward]:
        """The method's rewards, bound to the request when it is first asked about."""
        text, law = _text(guided), guided.law
        bound = self._bound.setdefault(text.request, {})
        if method not in bound:
            generation = _generation(text.prompt or (), scores.shape[-1], self._spelled(), law.total, scores.device)
            contexts = law.methods[method].sources()
            bound[method] = {name: bind_token_reward(context, generation) for name, context in contexts.items()}
        return bound[method]

    def _spelled(self) -> Any:
        if self._tokenizer is None:
            from vllm.tokenizers import cached_tokenizer_from_config

            self._tokenizer = cached_tokenizer_from_config(self._config.model_config)
        return self._tokenizer


def _text(guided: Guided) -> Text:
    text = guided.text
    assert text is not None and text.prompt is not None and text.answer is not None
    return text


def _generation(
    prompt: Sequence[int], vocab_size: int, tokenizer: Any, total: int | None, device: torch.device | str = "cpu"
) -> Generation:
    model: Any = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    rows = pack([list(prompt)], device)
    return Generation(model, tokenizer, rows, 1, vocab_size, torch.device(device), total, drafts=False)
