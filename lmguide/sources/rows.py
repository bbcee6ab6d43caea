"""The rows of a context: made from text, chat messages, ids, or the prompt itself, as the context describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmguide import contexts
from lmguide.sources.ids import Rows, checked, pack

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowBuilder:
    """Makes the rows of a context that runs the same model on another prompt.

    Attributes:
        prompt: The prompts themselves, one row per prompt; `None` when generation starts from embeddings.
        batch: How many prompts there are.
        model: The model, for its vocabulary and special tokens.
        tokenizer: Its tokenizer, needed for text and messages.
        device: Where rows are put.
        expanded: Whether `batch` counts beams, so that fewer rows that divide it will do.
        partial: Whether `prompt` is only the new part of a prompt whose beginning is already in a cache.
    """

    prompt: Rows | None
    batch: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    partial: bool = False
    expanded: bool = False

    def __call__(self, context: contexts.Context) -> Rows:
        """The rows of a context: one, or one per prompt.

        Raises:
            ValueError: The context needs a tokenizer, a prompt in ids or a token there is not, or has bad content.
        """
        match context:
            case contexts.NegativePrompt():
                return self.negative(context.prompt)
            case contexts.LastToken():
                return self._from_prompt(context, lambda row: row[-1:])
            case contexts.EmptyPrompt():
                return self._ids([[self._bos()]], "negative_prompt")
            case contexts.RandomPrompt():
                return self._random(context)
            case contexts.ShuffledPrompt():
                return self._shuffled(context)
            case contexts.WithoutContext():
                passage = self._tokens(context.passage, "passage", special=False)
                return self._from_prompt(context, lambda row: _without(row, passage, context.passage))
            case contexts.PromptPrefix():
                prefix = self._tokens(context.prefix, "prefix", special=False)
                return self._from_prompt(context, lambda row: self._behind_bos(row, prefix))
        raise TypeError(
            f"context: expected one of prompts, got {type(context).__name__}. "
            "It runs on another pass; see lmguide.sources.binding."
        )

    def negative(
        self, prompt: contexts.Prompt | Tensor | None, mask: Tensor | None = None, argument: str = "negative_prompt"
    ) -> Rows:
        """The rows of a negative prompt given as text, chat messages or ids; `None` is the default contrast."""
        if prompt is None:
            return self._default()
        if isinstance(prompt, torch.Tensor) or _is_ids(prompt):
            return self._ids(prompt, argument, mask)
        if isinstance(prompt, str):
            return self._ids([self._tokens(prompt, argument)], argument)
        if isinstance(prompt, Sequence) and prompt and all(isinstance(item, str) for item in prompt):
            return self._ids([self._tokens(str(item), argument) for item in prompt], argument)
        conversations = _conversations(prompt)
        if conversations is None:
            raise ValueError(
                f"{argument}: expected text, chat messages or token ids, got {prompt!r}. Pass one of these."
            )
        return self._ids([self._chat(messages, argument) for messages in conversations], argument)

    def suffix(self, context: contexts.Suffix) -> Rows:
        """The tokens of a suffix, one row."""
        tokens = (
            self._tokens(context.suffix, "suffix", special=False) if isinstance(context.suffix, str) else context.suffix
        )
        return self._ids([list(tokens)], "suffix")

    def whole_prompt(self, context: contexts.Context) -> Rows:
        """The prompts themselves, for another model."""
        return pack(self._prompt_tokens(context), self.device)

    def _default(self) -> Rows:
        if self.tokenizer is not None and getattr(self.tokenizer, "chat_template", None):
            return self._ids([self._chat([{"role": "user", "content": ""}], "negative_prompt")], "negative_prompt")
        return self._from_prompt(contexts.LastToken(), lambda row: row[-1:])

    def _ids(self, ids: object, argument: str, mask: Tensor | None = None) -> Rows:
        config = self.model.generation_config
        pad, eos = config.pad_token_id, config.eos_token_id
        ends = eos if isinstance(eos, list) else [eos]
        return checked(
            ids,
            mask,
            argument=argument,
            batch=self.batch,
            expanded=self.expanded,
            vocab_size=self.model.config.get_text_config(decoder=True).vocab_size,
            device=self.device,
            pad_token_id=None if pad in ends else pad,
        )

    def _tokens(self, text: str, argument: str, special: bool = True) -> list[int]:
        if self.tokenizer is None:
            raise ValueError(f"{argument}: a text needs a tokenizer. Pass tokenizer= to guide(), or give token ids.")
        if not text:
            raise ValueError(f"{argument}: expected a text, got an empty one. For no prompt at all use EmptyPrompt().")
        tokens = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        if not tokens:
            raise ValueError(
                f"{argument}: expected a text with at least one token, got {text!r}. "
                "For no prompt at all use EmptyPrompt()."
            )
        return tokens

    def _chat(self, messages: Sequence[Mapping[str, Any]], argument: str) -> list[int]:
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"{argument}: chat messages need a tokenizer with a chat template. Pass one, or give text or ids."
            )
        text = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
        )
        return self._tokens(str(text), argument, special=False)

    def _prompt_tokens(self, context: contexts.Context) -> list[list[int]]:
        if self.prompt is None:
            raise ValueError(
                f"inputs_embeds: {type(context).__name__} is made from the prompt's token ids, and there are none. "
                "Pass negative_prompt_ids, or input_ids beside the embeddings."
            )
        if self.partial and not isinstance(context, contexts.LastToken):
            raise ValueError(
                f"past_key_values: {type(context).__name__} is made from the whole prompt, but only its new part was "
                "given. Pass the full input_ids beside the cache."
            )
        return self.prompt.tokens()

    def _from_prompt(self, context: contexts.Context, change: Any) -> Rows:
        return self._ids([change(row) for row in self._prompt_tokens(context)], "negative_prompt")

    def _bos(self) -> int:
        for holder in (self.tokenizer, self.model.generation_config, self.model.config.get_text_config(decoder=True)):
            if (token := getattr(holder, "bos_token_id", None)) is not None:
                return int(token)
        raise ValueError(
            "EmptyPrompt: the model has no beginning-of-sequence token. Use LastToken() or a negative prompt."
        )

    def _behind_bos(self, row: list[int], prefix: list[int]) -> list[int]:
        try:
            starts = row[:1] == [self._bos()]
        except ValueError:
            starts = False
        return [*row[:1], *prefix, *row[1:]] if starts else [*prefix, *row]

    def _random(self, context: contexts.RandomPrompt) -> Rows:
        generator = torch.Generator().manual_seed(context.seed)
        if context.prompts is not None:
            picks = torch.randint(len(context.prompts), (self.batch,), generator=generator).tolist()
            return self._ids([self._tokens(context.prompts[pick], "prompts") for pick in picks], "prompts")
        vocab_size = self.model.config.get_text_config(decoder=True).vocab_size
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        allowed = torch.tensor([token for token in range(vocab_size) if token not in special])
        rows = self._prompt_tokens(context)
        return self._ids(
            [allowed[torch.randint(len(allowed), (len(row),), generator=generator)].tolist() for row in rows], "prompts"
        )

    def _shuffled(self, context: contexts.ShuffledPrompt) -> Rows:
        generator = torch.Generator().manual_seed(context.seed)
        special = set(getattr(self.tokenizer, "all_special_ids", ()))

        def shuffle(row: list[int]) -> list[int]:
            places = [place for place, token in enumerate(row[:-1]) if token not in special]
            order = torch.randperm(len(places), generator=generator).tolist()
            shuffled = list(row)
            for place, source in zip(places, order, strict=True):
                shuffled[place] = row[places[source]]
            return shuffled

        return self._from_prompt(context, shuffle)


def _is_ids(prompt: object) -> bool:
    """Whether a sequence is of ints or of sequences of ints."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        return not isinstance(prompt, str) and isinstance(prompt, Sequence)
    first = prompt[0]
    if isinstance(first, Sequence) and not isinstance(first, str):
        return all(isinstance(item, int) for row in prompt for item in row)
    return isinstance(first, int)


def _conversations(prompt: object) -> list[Sequence[Mapping[str, Any]]] | None:
    """Chat messages as a list of conversations; `None` for anything else."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return None
    if all(isinstance(item, Mapping) for item in prompt):
        return [prompt]
    if all(isinstance(item, Sequence) and item and all(isinstance(m, Mapping) for m in item) for item in prompt):
        return list(prompt)
    return None


def _without(row: list[int], passage: list[int], text: str) -> list[int]:
    for start in range(len(row) - len(passage) + 1):
        if row[start : start + len(passage)] == passage:
            return row[:start] + row[start + len(passage) :]
    raise ValueError(
        f"passage: its tokens do not stand in the prompt as they are ({text[:40]!r}). "
        "Pass the prompt without the passage as negative_prompt."
    )
