"""Which guide models a server has, and what a request may ask of them.

Which there are is said where the server starts, in vLLM's `additional_config`; requests know their names only. Nothing
here loads a model: what is looked at are configurations and tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lmguide import contexts
from lmguide.bundled import PREFIX, bundled
from lmguide.checks import check_number
from lmguide.descriptions.caif import TextClassifier
from lmguide.descriptions.gedi import ClassPosterior, check_codes
from lmguide.serialization import did_you_mean
from lmguide.sources.ids import check_positions, pack
from lmguide.sources.models import check_vocabulary
from lmguide.sources.rewards.verdicts import check_model, index_in_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmguide.guidance import Guidance


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


def classifies(config: Any) -> bool:
    """Whether a model's configuration is that of a sequence classifier, and not of a language model."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def check_guides(settings: Settings, tokenizer: Any, vocab_size: int) -> None:
    """Refuse guides that no worker could load beside the served model.

    Args:
        settings: The guides.
        tokenizer: The served model's; `None` if it has none.
        vocab_size: Of the served model.

    Raises:
        ValueError: A guide cannot be found, or is a language model of another vocabulary.
    """
    served = SimpleNamespace(config=SimpleNamespace(vocab_size=vocab_size))
    for name, model in settings.guides.items():
        try:
            config = guide_config(model)
            own = guide_tokenizer(model)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"guide {name}: cannot open {model!r}: {reason}. Give a folder or a hub name.") from None
        if not classifies(config):
            check_vocabulary(served, tokenizer, SimpleNamespace(config=config), own, f"guide {name}")


def check_source(
    method: Guidance, context: contexts.Context, settings: Settings, prompt: Sequence[int], total: int, tokenizer: Any
) -> None:
    """Refuse a context whose guide this server has not, or that its guide cannot serve.

    Args:
        method: The method it is of, for the names of its arguments.
        context: One that a guide serves.
        settings: The guides.
        prompt: The request's prompt.
        total: Tokens its answer may have.
        tokenizer: The served model's.

    Raises:
        ValueError: It does not fit; the argument is named.
    """
    match context:
        case ClassPosterior():
            given, more = context.guide, _longest_code(context, tokenizer)
        case TextClassifier():
            given, more = context.classifier, 1  # type: ignore[assignment]
        case contexts.OtherModel():
            given, more = context.model, 0
        case _:
            raise TypeError(f"context: expected one that a guide serves, got {context}. Use another reader.")
    argument = next((each.name for each in fields(method) if getattr(method, each.name) is given), "model")
    config = _known(argument, given, settings)
    if classifies(config) != isinstance(context, TextClassifier):
        kinds = "a language model", "a classifier"
        wanted, got = kinds if classifies(config) else reversed(kinds)
        raise ValueError(f"{argument}: expected {wanted} among the guides, got {given!r}, {got}. Name another guide.")
    if isinstance(context, TextClassifier):
        _check_classifier(context, settings.guides[str(given)], config, tokenizer)
    if isinstance(context, ClassPosterior):
        _check_posterior(context, config)
    if not isinstance(context, TextClassifier) or context.reading == "ids":
        check_positions(SimpleNamespace(config=config), pack([list(prompt)], "cpu"), total + more, argument)  # type: ignore[arg-type]


def _known(argument: str, given: object, settings: Settings) -> Any:
    if not isinstance(given, str) or given not in settings.guides:
        known = ", ".join(map(repr, settings.guides)) or "none"
        cure = did_you_mean(str(given), settings.guides) if settings.guides else "Start the server with it."
        raise ValueError(f"{argument}: expected the name of a guide of this server, {known}, got {given!r}. {cure}")
    return guide_config(settings.guides[given])


def _check_posterior(context: ClassPosterior, config: Any) -> None:
    if context.map_vocabulary:
        raise ValueError("map_vocabulary: expected a guide of the served model's vocabulary in a server. Leave it out.")
    codes = context.codes or (getattr(config, "gedi", None) or {}).get("codes")
    if codes is None:
        raise ValueError("codes: expected all classes of the guide, which names none itself. Give codes=[...].")
    check_codes(codes, context.code)


def _check_classifier(context: TextClassifier, model: str, config: Any, tokenizer: Any) -> None:
    shape = _classifier_shape(model)
    check_model(shape)
    if isinstance(context.label, tuple):
        raise ValueError("label: expected one class for a request, got several. Give one.")
    index_in_model(shape, context.label)
    if context.reading != "ids":
        return
    check_vocabulary(None, tokenizer, shape, guide_tokenizer(model), "classifier")
    if config.is_encoder_decoder or not isinstance(getattr(shape, "score", None), torch.nn.Module):
        raise ValueError(
            f"classifier: expected a causal one that classifies every prefix by its last token, got "
            f"{type(shape).__name__}. Use caif, which reads texts."
        )


def _longest_code(context: ClassPosterior, tokenizer: Any) -> int:
    def tokens(code: Any) -> int:
        return len(tokenizer(code, add_special_tokens=False)["input_ids"]) if isinstance(code, str) else len(code)

    return max(map(tokens, context.codes or (context.code,))) + (0 if context.topic is None else tokens(context.topic))


@lru_cache(maxsize=16)
def guide_config(model: str) -> Any:
    """The configuration of a model."""
    if model.startswith(PREFIX):
        return bundled(model.removeprefix(PREFIX))[0].config
    return AutoConfig.from_pretrained(model)


@lru_cache(maxsize=16)
def guide_tokenizer(model: str) -> Any:
    """The tokenizer of a model."""
    return bundled(model.removeprefix(PREFIX))[1] if model.startswith(PREFIX) else AutoTokenizer.from_pretrained(model)


@lru_cache(maxsize=16)
def _classifier_shape(model: str) -> Any:
    """A classifier without its weights."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(guide_config(model)).eval()
