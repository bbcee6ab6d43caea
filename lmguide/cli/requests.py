"""The prompts of a command: read, checked and made into token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003 - read by from_dict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from lmguide.serialization import from_dict

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.huggingface.view import GuidedModel

Messages: TypeAlias = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Request:
    """What to answer.

    Args:
        prompt: Text or chat messages.
        negative_prompt: What to move away from, likewise; `None` leaves it to the method.

    Raises:
        ValueError: An empty prompt, or messages without role and content.
    """

    prompt: str | Messages
    negative_prompt: str | Messages | None = None

    def __post_init__(self) -> None:
        """Check the texts."""
        for argument in ("prompt", "negative_prompt"):
            value = getattr(self, argument)
            if value is not None and not value:
                raise ValueError(f"{argument}: expected a text or messages, got an empty one. Write something.")
            if isinstance(value, tuple) and not all({"role", "content"} <= set(message) for message in value):
                raise ValueError(f'{argument}: expected messages {{"role": ..., "content": ...}}, got {list(value)!r}.')


def readable(prompt: str | Messages) -> str:
    """A prompt as a person reads it.

    Example:
        >>> readable(({"role": "user", "content": "Hello"},))
        'user: Hello'
    """
    return prompt if isinstance(prompt, str) else "\n".join(f"{each['role']}: {each['content']}" for each in prompt)


def read_requests(arguments: argparse.Namespace) -> list[Request]:
    """The prompts of `--prompt`, `--chat` or `--file`, with `--negative-prompt` where they bring none of their own.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file has another form, or a prompt is empty.
    """
    negative = arguments.negative_prompt
    if arguments.prompt is not None:
        return [Request(arguments.prompt, negative)]
    if arguments.chat is not None:
        messages = _parse(_read(arguments.chat), arguments.chat)
        if not isinstance(messages, list):
            raise ValueError(f"{arguments.chat}: expected a JSON list of messages, got {messages!r}.")
        return [_request({"prompt": messages}, negative, arguments.chat)]
    lines = [(number, line) for number, line in enumerate(_read(arguments.file).split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{arguments.file}: expected at least one prompt, got none. Write one per line.")
    if Path(arguments.file).suffix != ".jsonl":
        return [Request(line.removesuffix("\r"), negative) for _, line in lines]
    places = [(f"{arguments.file}, line {number}", line) for number, line in lines]
    return [_request(_parse(line, place), negative, place) for place, line in places]


def encode(
    requests: Sequence[Request], guided: GuidedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Any], list[str | list[dict[str, str]]] | None]:
    """The inputs of `generate` for requests of one kind, and its negative prompts if there are any.

    Raises:
        ValueError: Messages for a model without a chat template.
    """
    chat = not isinstance(requests[0].prompt, str)
    if chat and not getattr(tokenizer, "chat_template", None):
        raise ValueError("--chat: the model's tokenizer has no chat template. Use --prompt.")
    texts = [
        request.prompt
        if isinstance(request.prompt, str)
        else str(tokenizer.apply_chat_template(_plain(request.prompt), tokenize=False, add_generation_prompt=True))
        for request in requests
    ]
    # A template writes the special tokens itself.
    batch = tokenizer(texts, return_tensors="pt", padding=len(texts) > 1, add_special_tokens=not chat)
    device = cast("PreTrainedModel", guided).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    if requests[0].negative_prompt is None:
        return inputs, None
    return inputs, [_negative(request) for request in requests]


def _negative(request: Request) -> str | list[dict[str, str]]:
    """The negative prompt as `generate` takes it; beside messages, a text stands for another system prompt."""
    negative = request.negative_prompt
    if isinstance(negative, str) and not isinstance(request.prompt, str):
        others = [message for message in _plain(request.prompt) if message["role"] != "system"]
        return [{"role": "system", "content": negative}, *others]
    return negative if isinstance(negative, str) else _plain(negative or ())


def _plain(messages: Messages) -> list[dict[str, str]]:
    return [dict(message) for message in messages]


def _request(data: object, negative: str | None, place: str) -> Request:
    try:
        request = from_dict(Request, data)  # type: ignore[arg-type]  # it refuses what is no dictionary
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None
    return request if request.negative_prompt is not None else Request(request.prompt, negative)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error.reason} at byte {error.start}.") from None


def _parse(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: expected JSON, got {text.strip()[:60]!r} ({error}).") from None
